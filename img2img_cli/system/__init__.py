"""What the operating system and the Python process give: streams, signals, files, processors.

Imports `errors` and `text` alone.
"""
