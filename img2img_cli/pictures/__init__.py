"""Pictures: read files, fit them to a model, restore what a model must not change, and write results.

Imports `presets` and below, NumPy and Pillow, never torch. Start in `read`.
"""
