"""Files to pixels and back: read, fit, keep what a model must not change, and write.

Imports `presets` and below; NumPy and Pillow, never torch. Start in `read`.
"""
