"""Many pictures, unattended: what is done already, decoding and writing beside the model, each failure alone.

Imports `tasks` and below; never `engines`, whose pipelines it is given. Start in `run`.
"""
