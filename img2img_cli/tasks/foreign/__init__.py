"""Read the parameters that other tools write into pictures, and turn them into a command. Start in `read`.

This package may import presets, jobs and pictures, but never torch.
"""
