"""Files of weights from elsewhere: what they hold, and how it becomes diffusers modules. Start in `contents`."""
