"""Presets: YAML files that name a model and its values, their schema, and how they are resolved.

Imports only `errors`, `text` and `system`, never torch. Start in `catalogue`, which resolves a preset.
"""
