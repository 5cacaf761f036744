"""Text for people."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text that cannot steer a terminal, and that every stream can take."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
