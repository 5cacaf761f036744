"""Which model, with which values: YAML files, the keys they may have, and what they add up to.

Imports `errors`, `text` and `system` alone, and never torch. Start in `catalogue`, which resolves a preset.
"""
