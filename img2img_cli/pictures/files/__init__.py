"""What is peculiar to one file format, and what a file may cost before a decoder sees it.

Imported by `pictures` alone. Start in `limits`, then `decoders`.
"""
