"""Find the pairs in a folder, in the layouts in which people and other tools keep them.

Names are matched, never positions. Only regular files count.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from img2img_cli.errors import InputError, UsageError
from img2img_cli.pictures.read import peek_size
from img2img_cli.tasks.inputs import PICTURES

Side = Literal["whole", "left", "right"]
Split = Literal["train", "test", "auto"]

# Folders whose pictures belong together, input first; `{}` stands for nothing, train or test.
FOLDERS = (
    ("{}_A", "{}_B"),
    ("{}A", "{}B"),
    ("input", "output"),
    ("inputs", "outputs"),
    ("before", "after"),
    ("source", "target"),
)
# Ends of names that belong together, input first.
ENDS = (("_start", "_end"), ("_before", "_after"), ("_input", "_output"), ("_0", "_1"), ("-condlabel", ""))
INPUT_COLUMNS = ("original_image", "input_image", "input", "source", "conditioning_image")
OUTPUT_COLUMNS = ("edited_image", "output_image", "output", "target", "image", "file_name")
CAPTION_COLUMNS = ("edit_prompt", "prompt", "text", "caption")
TABLES = ("metadata.jsonl", "metadata.csv")
PROMPTS = re.compile(r"(train|test)_prompts\.json")
MAX_TABLE_BYTES = 256 << 20
EXPECTED = (
    "expected folders A and B (or trainA and trainB, input and output, before and after), names that end in _start and "
    "_end, pictures with both halves side by side, a metadata.jsonl, or --control-path with a folder of inputs"
)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An input picture and the wanted output.

    Attributes:
        name: what both have in common.
        input_side, output_side: the half of a picture that holds both.
        caption: what the output shows or what was done; empty if nothing says so.
        split: whether the data says that the pair is for training or for testing.
    """

    name: str
    input: Path
    output: Path
    input_side: Side = "whole"
    output_side: Side = "whole"
    caption: str = ""
    split: Split = "auto"

    def swap(self) -> Pair:
        """Return the pair for the other direction."""
        return replace(
            self,
            input=self.output,
            output=self.input,
            input_side=self.output_side,
            output_side=self.input_side,
        )


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a folder holds.

    Attributes:
        layout: the layout in words.
        unpaired: names without a partner.
        problems: one line for each thing that does not fit.
    """

    layout: str
    pairs: tuple[Pair, ...]
    unpaired: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def find_pairs(data: Path, *, control: Path | None = None, prompt: str | None = None, swap: bool = False) -> Found:
    """Find the pairs of a folder or table.

    Args:
        control: a folder of inputs, for which `data` holds the outputs under the same names.
        prompt: the caption of all pairs that have none of their own.
        swap: learn the other direction.

    Raises:
        UsageError: there is nothing of the kind; the message says what was found and what is expected.
        InputError: a table cannot be read.
    """
    found = _find(data, control)
    if not found.pairs:
        rest = f"; {len(found.unpaired)} names have no partner, such as {found.unpaired[0]}" if found.unpaired else ""
        raise UsageError(f"{data}: {found.layout}, but not one pair{rest}; {EXPECTED}")
    captions = _read_prompts(data) if data.is_dir() else {}
    pairs = [_give_caption(pair, captions, prompt) for pair in found.pairs]
    return replace(found, pairs=tuple(pair.swap() for pair in pairs) if swap else tuple(pairs))


def _find(data: Path, control: Path | None) -> Found:
    if control is not None:
        return _match_folders([("auto", control, data)], f"outputs in {data.name}, inputs in {control.name}")
    if data.is_file():
        return _read_table(data)
    if not data.is_dir():
        raise UsageError(f"{data}: no such folder of pairs; check the path")
    for name in TABLES:
        if (data / name).is_file():
            return _read_table(data / name)
    for first, second in FOLDERS:
        splits: list[tuple[Split, str]] = [("train", "train"), ("test", "test"), ("test", "val"), ("auto", "")]
        there: list[tuple[Split, Path, Path]] = []
        for split, word in splits if "{}" in first else splits[-1:]:
            inputs, outputs = (data / name.format(word).lstrip("_") for name in (first, second))
            if inputs.is_dir() and outputs.is_dir():
                there.append((split, inputs, outputs))
        if there:
            named = " and ".join(sorted({f"{a.name}/ {b.name}/" for _, a, b in there}, reverse=True))
            return _match_folders(there, f"folders {named}")
    for ends in ENDS:
        found = _match_ends(data, ends)
        if found.pairs:
            return found
    return _match_halves(data)


def list_pictures(folder: Path) -> list[Path]:
    """Return the regular files in a folder and below that have the ending of a picture, sorted; hidden ones are not."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in PICTURES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _match_folders(folders: Iterable[tuple[Split, Path, Path]], layout: str) -> Found:
    pairs: list[Pair] = []
    unpaired: list[str] = []
    problems: list[str] = []
    for split, first, second in folders:
        inputs, outputs = (_by_stem(folder, problems) for folder in (first, second))
        for name in sorted(inputs.keys() & outputs.keys()):
            inner: Split = split
            if split == "auto" and (top := Path(name).parts[0]) in ("train", "test", "val") and top != name:
                inner = "train" if top == "train" else "test"
            pairs.append(Pair(name=name, input=inputs[name], output=outputs[name], split=inner))
        unpaired += [str(inputs.get(name) or outputs[name]) for name in sorted(inputs.keys() ^ outputs.keys())]
    return Found(layout=layout, pairs=tuple(pairs), unpaired=tuple(unpaired), problems=tuple(problems))


def _by_stem(folder: Path, problems: list[str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in list_pictures(folder):
        name = str(path.relative_to(folder).with_suffix(""))
        if name in named:
            problems.append(f"{path}: {named[name].name} has the same name; remove one of the two")
        else:
            named[name] = path
    return named


def _match_ends(data: Path, ends: tuple[str, str]) -> Found:
    problems: list[str] = []
    named = _by_stem(data, problems)
    first, second = ends
    pairs, used = [], set()
    for name, path in named.items():
        stem = name.removesuffix(first)
        if name.endswith(first) and (partner := named.get(stem + second)) is not None:
            pairs.append(Pair(name=stem, input=path, output=partner))
            used |= {name, stem + second}
    layout = f"names that end in {first} and {second or 'nothing'}"
    rest = tuple(str(path) for name, path in named.items() if name not in used)
    return Found(layout=layout, pairs=tuple(pairs), unpaired=rest, problems=tuple(problems))


def _match_halves(data: Path) -> Found:
    """Take each picture that is twice as wide as high for a pair, if all are."""
    pictures = list_pictures(data)
    kinds = {path.relative_to(data).parts[0] for path in pictures}
    if not pictures:
        inside = sorted(path.name for path in data.iterdir())[:8]
        raise UsageError(f"{data}: no pictures in it, but {', '.join(inside) or 'nothing at all'}; {EXPECTED}")
    problems = []
    pairs = []
    for path in pictures:
        width, height = peek_size(str(path))
        if not width:
            problems.append(f"{path}: cannot be read as a picture; remove it or convert it")
            continue
        if width != 2 * height:
            where = ", ".join(sorted(kinds)[:4])
            raise UsageError(
                f"{data}: {len(pictures)} pictures in {where}, of which {path.name} is {width} x {height} and not two "
                f"squares side by side; {EXPECTED}"
            )
        name = str(path.relative_to(data).with_suffix(""))
        top = Path(name).parts[0]
        split: Split = "train" if top == "train" else "test" if top in ("test", "val") else "auto"
        pairs.append(Pair(name=name, input=path, output=path, input_side="left", output_side="right", split=split))
    return Found(layout="input and output side by side in one picture", pairs=tuple(pairs), problems=tuple(problems))


def _read_table(table: Path) -> Found:
    rows = list(_read_rows(table))
    pairs, problems = [], []
    first = next((name for name in INPUT_COLUMNS if any(name in row for _, row in rows)), None)
    second = next((name for name in OUTPUT_COLUMNS if any(name in row for _, row in rows)), None)
    if first is None or second is None:
        named = ", ".join(sorted({key for _, row in rows for key in row})[:10]) or "no columns"
        raise UsageError(
            f"{table}: has {named}; expected one of {', '.join(INPUT_COLUMNS)} and one of {', '.join(OUTPUT_COLUMNS)}"
        )
    caption = next((name for name in CAPTION_COLUMNS if any(name in row for _, row in rows)), None)
    for line, row in rows:
        places = []
        for column in (first, second):
            value = row.get(column)
            path = table.parent / str(value) if value else None
            if path is None or not path.is_file():
                problems.append(f"{table}:{line}: {column}: {value or 'nothing'} is no file")
            else:
                places.append(path)
        if len(places) == 2:
            told = str(row.get(caption) or "") if caption else ""
            name = str(Path(str(row[first])).with_suffix(""))
            split = row.get("split") if row.get("split") in ("train", "test") else "auto"
            pairs.append(Pair(name=name, input=places[0], output=places[1], caption=told, split=split))  # type: ignore[arg-type]
    return Found(layout=f"{table.name} with {first} and {second}", pairs=tuple(pairs), problems=tuple(problems))


def _read_rows(table: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        if table.stat().st_size > MAX_TABLE_BYTES:
            raise InputError(f"{table}: larger than {MAX_TABLE_BYTES >> 20} MiB; split it")
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{table}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{table}: cannot be read ({error.strerror}); check its permissions") from None
    if table.suffix == ".csv":
        yield from enumerate(csv.DictReader(text.splitlines()), 2)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise InputError(f"{table}:{number}: not a JSON object; write one in each line")
        yield number, row


def _read_prompts(data: Path) -> dict[str, str]:
    """Return the captions of `train_prompts.json` and `test_prompts.json`, by the name of the file without ending."""
    captions: dict[str, str] = defaultdict(str)
    for path in sorted(data.iterdir()):
        if not PROMPTS.fullmatch(path.name) or not path.is_file():
            continue
        try:
            told = json.loads(path.read_bytes()[:MAX_TABLE_BYTES])
            captions.update({str(Path(name).with_suffix("")): str(text) for name, text in told.items()})
        except (ValueError, AttributeError, RecursionError):
            raise InputError(f"{path}: must be a JSON object of file names and prompts") from None
    return captions


def _give_caption(pair: Pair, captions: Mapping[str, str], prompt: str | None) -> Pair:
    if pair.caption:
        return pair
    for path in (pair.output, pair.input):
        text = path.with_suffix(".txt")
        if text.is_file():
            try:
                return replace(pair, caption=" ".join(text.read_text(encoding="utf-8-sig").split()))
            except (UnicodeDecodeError, OSError):
                raise InputError(f"{text}: cannot be read as UTF-8 text; save it as UTF-8 or remove it") from None
    return replace(pair, caption=captions.get(pair.name) or captions.get(Path(pair.name).name) or prompt or "")
