"""The img2img and upscaling endpoints of AUTOMATIC1111's web UI API. Start in `api`."""
