"""What computes pieces: models from a hub, a folder or a file, on a device.

Imports `tasks` and below; never `batch`. Only this, `server` and `train` may load torch. Start in `open`.
"""
