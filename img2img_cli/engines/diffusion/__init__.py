"""diffusers pipelines: load the parts, place them on a device, run them on batches. Start in `build`."""
