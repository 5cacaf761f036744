"""Model cards: the figures between two marks are written by the evaluation, the rest by people."""

from __future__ import annotations

import re
from pathlib import Path

BEGIN, END = "<!-- evaluation -->", "<!-- end of evaluation -->"


def fill_card(card: Path, tables: str) -> None:
    """Replace the text between the marks of a card by tables of figures."""
    text = card.read_text(encoding="utf-8")
    marked = re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n\n{tables}\n\n{END}", text, flags=re.DOTALL)
    card.write_text(marked, encoding="utf-8")
