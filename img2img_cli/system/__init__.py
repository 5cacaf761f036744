"""The operating system and the Python process: streams, signals, files, processors.

Imports only `errors` and `text`. Each module stands alone; `source_files` and `interrupts` are used most.
"""
