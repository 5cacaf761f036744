"""Thousands of small pictures, one for each way to store pixels, and a check that they are read correctly.

`python tests/mode_grid.py` reads them all, compares with tifffile and imagecodecs where these can read them, and prints
the differences. With `--write` it also writes the tables of docs/picture-modes.md.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from grid_common import HEIGHT, WIDTH, Case
from grid_formats import others, pngs
from grid_legacy import legacy
from grid_tiffs import odd_tiffs, packed_tiffs, plain_tiffs

PAGE = Path(__file__).parents[1] / "docs" / "picture-modes.md"
START, END = "<!-- tables: python tests/mode_grid.py --write -->", "<!-- end of tables -->"
MAKERS = (plain_tiffs, packed_tiffs, odd_tiffs, pngs, others, legacy)
REFUSAL = " cannot be read; convert it first"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a case was read.

    Attributes:
        wrong: what is wrong with it, or None.
        off: largest difference of a channel.
        refusal: the description in the error if it was refused.
    """

    wrong: str | None = None
    off: float = 0.0
    refusal: str | None = None


@dataclass
class Row:
    """The table's row for a group."""

    read: int = 0
    refused: int = 0
    off: float = 0.0


def make_grid() -> Iterator[Case]:
    """Return all cases."""
    for make in MAKERS:
        yield from make()


def judge(case: Case) -> Outcome:
    """Read a case as the tool does, and some cases with an independent reader, too."""
    from img2img_cli.errors import InputError
    from img2img_cli.pictures.read import load_image

    try:
        picture = load_image(case.name, case.data)
    except InputError as error:
        text = str(error).removeprefix(f"{case.name}: ")
        if case.rgb is None and text.endswith(REFUSAL) and "damaged" not in text:
            return Outcome(refusal=text.removesuffix(REFUSAL))
        return Outcome(wrong=f"refused: {text}")
    if case.rgb is None:
        return Outcome(wrong="read, where nothing is known")
    if picture.size != (WIDTH, HEIGHT):
        return Outcome(wrong=f"its size is {picture.size}")
    if (picture.alpha is None) != (case.alpha is None):
        return Outcome(wrong="alpha is lost" if picture.alpha is None else "alpha is invented")
    off = float(np.nanmax(np.abs(np.asarray(picture.rgb, float) - case.rgb)))
    if case.alpha is not None:
        off = max(off, float(np.abs(np.asarray(picture.alpha, float) - case.alpha).max()))
    wrong = f"it is off by {off:.1f}" if off > case.off + 1e-6 else compare_independently(case)
    return Outcome(wrong=wrong, off=off)


def compare_independently(case: Case) -> str | None:
    """Compare the stored samples with those that tifffile or imagecodecs finds."""
    if case.samples is None:
        return None
    read = imagecodecs.png_decode(case.data) if case.data[:4] == b"\x89PNG" else tifffile.imread(io.BytesIO(case.data))
    same = (read.squeeze().ravel() == case.samples.ravel()).all()
    same = same or (np.moveaxis(read, 0, -1).ravel() == case.samples.ravel()).all()
    return None if same else "the independent reader differs"


def write_tables(rows: dict[str, Row], refusals: Iterable[str]) -> str:
    """Return the tables as Markdown."""
    lines = [
        "| Pictures | Read rightly | Refused in a line | Largest difference, of 255 |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {name} | {row.read or ''} | {row.refused or ''} | {row.off:.1f} |" for name, row in rows.items()]
    total = Row(read=sum(row.read for row in rows.values()), refused=sum(row.refused for row in rows.values()))
    lines += [f"| **All** | {total.read} | {total.refused} | |", "", "| Refused as |", "| --- |"]
    return "\n".join([*lines, *(f"| {text} |" for text in sorted(set(refusals)))])


def read_tables() -> tuple[dict[str, Row], set[str]]:
    """Return the page's tables: rows by group, and the refused kinds."""
    tables = PAGE.read_text(encoding="utf-8").partition(START)[2].partition(END)[0]
    rows, refusals = {}, set()
    for line in tables.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[3].replace(".", "").isdigit():
            rows[cells[0]] = Row(int(cells[1] or 0), int(cells[2] or 0), float(cells[3]))
        elif len(cells) == 1 and line.startswith("| ") and cells[0] not in ("Refused as", "---"):
            refusals.add(cells[0])
    return rows, refusals


def main() -> int:
    """Read the grid and print its faults; the exit code says whether there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables of docs/picture-modes.md")
    write = parser.parse_args().write
    rows, refusals, faults = defaultdict[str, Row](Row), set[str](), 0
    for case in make_grid():
        outcome, row = judge(case), rows[case.group]
        if outcome.wrong:
            faults += 1
            print(f"{case.name}: {outcome.wrong}")
        elif outcome.refusal:
            row.refused += 1
            refusals.add(outcome.refusal)
        else:
            row.read += 1
            row.off = max(row.off, outcome.off)
    tables = write_tables(rows, refusals)
    print(tables)
    if write and not faults:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{START}\n\n{tables}\n\n{END}{after}", encoding="utf-8")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
