"""Unattended batches: skip finished results, decode and write while the model runs, and isolate failures.

This package imports `tasks` and the layers below it, but never `engines`: callers pass the pipelines in. Start in
`run`.
"""
