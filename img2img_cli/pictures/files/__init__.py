"""File formats: their peculiarities, and limits on the cost of a file, checked before it is decoded.

Start in `formats`; `limits` says what a file may cost.
"""
