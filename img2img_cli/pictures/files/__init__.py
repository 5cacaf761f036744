"""File formats: their peculiarities, and limits on the cost of a file, checked before it is decoded.

Start in `limits`, then `decoders`.
"""
