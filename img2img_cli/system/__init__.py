"""The operating system and the Python process: streams, signals, files, processors.

Imports only `errors` and `text`.
"""
