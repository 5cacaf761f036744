"""Text that is safe to show in a terminal."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Replace control characters, text-direction marks and lone surrogates with U+FFFD."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
