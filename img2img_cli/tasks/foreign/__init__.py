"""Read the parameters that other tools write into pictures, and turn them into a command. Start in `read`.

This package may import `presets`, `pictures` and `tasks.job`, but never torch.
"""
