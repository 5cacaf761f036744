"""Find the inputs of a batch: files, folders, globs, names on stdin, and rows of manifests."""

from __future__ import annotations

import csv
import fnmatch
import glob
import io
import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from img2img_cli.errors import Img2ImgError, InputError, NothingMatchedError, UsageError
from img2img_cli.pictures.files.formats import EXTENSIONS
from img2img_cli.presets.files import suggest
from img2img_cli.presets.schema import Parameters
from img2img_cli.presets.strict_yaml import parse_scalar
from img2img_cli.presets.values import read_value
from img2img_cli.system.source_files import find_special
from img2img_cli.system.streams import STDIO

# Extensions picked up from folders. Files of other formats must be named.
PICTURES = (*EXTENSIONS, ".gif", ".ppm", ".pgm", ".pnm", ".jp2", ".mpo")
NAMED_PICTURES = (".tga", ".pcx", ".ico", ".psd", ".dds")  # picked up by globs that end with the extension
# Pictures and films that are not read; what else lies in a folder is no input that anybody would miss.
_OTHER_MEDIA = """.heic .heif .jxl .svg .svgz .pdf .eps .ai .xcf .exr .hdr
.dng .raw .cr2 .cr3 .nef .arw .orf .rw2 .raf .pef .srw
.mp4 .mov .avi .mkv .webm .m4v .mpg .mpeg .mts .3gp"""
OTHER_MEDIA = frozenset(_OTHER_MEDIA.split())
MANIFESTS = (".csv", ".jsonl")
BATCH_STATE = ".img2img.sqlite"  # lies in the output folder of a batch
ROW_KEYS = ("input", "output", "mask", "style", "control_image", "preset", "seed")
PATH_KEYS = ("input", "output", "mask", "style", "control_image", "preset")
GLOB_CHARACTERS = frozenset("*?[")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One input of a batch.

    Attributes:
        path: the file to read.
        relative: the path of the result below the output folder, still with the name of the input.
        output: the path of the result below the output folder, if a manifest sets it.
        mask, style, control_image: the paths of side inputs, from a manifest.
        preset: the preset for this input, from a manifest.
        seed: the seed for this input, in 0..2**32 - 1, from a manifest.
        overrides: parameters for this input, from a manifest.
        origin: manifest and line, for messages.
        error: why this input cannot be processed; the other inputs are not affected.
        scanned: whether the input came from a folder, a glob or a list on stdin, rather than being named itself.
    """

    path: str
    relative: str
    output: str | None = None
    mask: str | None = None
    style: str | None = None
    control_image: str | None = None
    preset: str | None = None
    seed: int | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    origin: str | None = None
    error: Img2ImgError | None = field(default=None, compare=False)
    scanned: bool = False

    @property
    def key(self) -> tuple[str, str | None]:
        """The identity of the item: path and origin, since rows of a manifest may use a picture more than once."""
        return os.path.abspath(self.path), self.origin


@dataclass
class Aside:
    """What a search leaves aside.

    Attributes:
        extensions: of pictures and films that folders hold and that are not read.
        folders: output folders of a batch below an input folder.
        results: results that lie beside their inputs.
    """

    extensions: Counter[str] = field(default_factory=Counter)
    folders: list[str] = field(default_factory=list)
    results: int = 0

    def tell(self) -> list[str]:
        """Return a line for each kind."""
        lines = []
        if self.extensions:
            counts = ", ".join(f"{count} {extension}" for extension, count in sorted(self.extensions.items()))
            lines.append(f"left aside, as their formats are not looked for in folders: {counts}")
        what = [f"{self.results} of img2img's own results beside their inputs"] if self.results else []
        what += [f"{folder}, the output folder of a batch" for folder in self.folders]
        if what:
            lines.append(f"left aside: {'; '.join(what)}; --include-results takes them")
        return lines


def find_items(
    inputs: Sequence[str],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    skip_folder: Path | None = None,
    include_results: bool = False,
    notes: list[str] | None = None,
) -> list[Item]:
    """Find all inputs, in a stable order. A file that is found twice counts once.

    A manifest row with invalid values and an unreadable subfolder become items with an error.

    Args:
        inputs: files, folders, globs, manifests, or `-` for a list of names on stdin.
        include, exclude: globs. An input must match one of `include`, if any, and none of `exclude`, by its name or by
            its path below the input folder. They do not apply to rows of manifests.
        skip_folder: a folder whose files are never inputs, such as an output folder inside an input folder.
        include_results: whether to take results of earlier runs too: those beside their inputs, as their record tells,
            and the output folders of batches below an input folder. Results that are named, and an output folder that
            is itself an input, are always taken.
        notes: takes a message for each FIFO, socket or device that was found by scanning and is ignored, and for what
            else is left aside.

    Raises:
        InputError: a manifest cannot be read.
        NothingMatchedError: there is no input.
        UsageError: a manifest is malformed or has an unknown column.
    """
    left = Aside()
    found = [item for name in inputs for item in _expand(name, skip_folder, None if include_results else left, left)]
    if not include_results:
        stems = _list_stems(found)
        own = {item.path for item in found if item.scanned and _lies_beside_its_input(item.path, stems)}
        left.results = len(own)
        found = [item for item in found if item.path not in own]
    kept = [item for item in found if item.origin or item.error or _is_wanted(item.relative, include, exclude)]
    special = {item.path: kind for item in kept if item.scanned and (kind := find_special(item.path))}
    aside = [f"{path}: is {kind}, no regular file; left aside" for path, kind in special.items()] + left.tell()
    if notes is not None:
        notes += aside
    kept = [item for item in kept if not (item.scanned and item.path in special)]
    if not kept:
        why = f" ({aside[0]})" if aside else " that --include and --exclude leave" if found else ""
        raise NothingMatchedError(f"{', '.join(inputs)}: no picture found{why}; check the names and the working folder")
    seen: set[tuple[str, str | None]] = set()
    unique = []
    for item in kept:
        if item.key not in seen:
            seen.add(item.key)
            unique.append(item)
    return unique


def _is_wanted(relative: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    def matches(patterns: Sequence[str]) -> bool:
        name = os.path.basename(relative)
        return any(fnmatch.fnmatch(relative, p) or fnmatch.fnmatch(name, p) for p in patterns)

    return (not include or matches(include)) and not matches(exclude)


def _list_stems(items: Sequence[Item]) -> dict[str, set[str]]:
    """Return the names without extension of the items in each folder."""
    stems: dict[str, set[str]] = defaultdict(set)
    for item in items:
        folder, name = os.path.split(item.path)
        stems[folder].add(os.path.splitext(name)[0])
    return stems


def _lies_beside_its_input(path: str, stems: Mapping[str, set[str]]) -> bool:
    """Return whether a picture says of itself that it was made of another one in its folder.

    Args:
        stems: what `_list_stems` returns.
    """
    folder, name = os.path.split(path)
    stem = os.path.splitext(name)[0]
    # Opening every file would take long: only a name that goes on from another one's can be such a result.
    if not any(stem[:end] in stems[folder] for end in range(1, len(stem))):
        return False
    from img2img_cli.tasks.record import read_record

    try:
        source = str(read_record(path)["input"])
    except Img2ImgError:
        return False
    return source != name and os.path.lexists(os.path.join(folder, source))


def _expand(name: str, skip_folder: Path | None, outputs: Aside | None, left: Aside) -> Iterator[Item]:
    """Yield the items of an input.

    Args:
        outputs: takes output folders of batches, which are then left aside; None to take their pictures.
        left: takes the extensions of what is not read.
    """
    if name == STDIO:
        for line in read_names(sys.stdin.buffer.read()):
            for item in _expand_path(line, skip_folder, outputs, left):
                yield replace(item, scanned=True)
    elif Path(name).suffix.lower() in MANIFESTS:
        yield from read_manifest(Path(name))
    elif not os.path.lexists(name) and GLOB_CHARACTERS & set(name):
        matches = sorted(glob.glob(name, recursive=True))
        root = glob_root(name)
        suffixes = (*PICTURES, *({Path(name).suffix.lower()} & set(NAMED_PICTURES)))
        for match in matches:
            if Path(match).suffix.lower() in suffixes and not (os.path.isdir(match) or _is_below(match, skip_folder)):
                yield Item(path=match, relative=_mirror(os.path.relpath(match, root)), scanned=True)
    else:
        yield from _expand_path(name, skip_folder, outputs, left)


def _expand_path(name: str, skip_folder: Path | None, outputs: Aside | None, left: Aside) -> Iterator[Item]:
    if os.path.isdir(name):
        yield from _walk(name, skip_folder, outputs, left)
    else:
        # A missing file fails as one item and does not stop the batch, because names from `find` can be out of date.
        yield Item(path=name, relative=os.path.basename(name))


def is_folder_or_glob(name: str) -> bool:
    """Return whether a name stands for a folder, or for files that match it as a glob, rather than for a file."""
    if os.path.isdir(name):
        return True
    return bool(GLOB_CHARACTERS & set(name)) and not os.path.lexists(name) and bool(glob.glob(name, recursive=True))


def glob_root(pattern: str) -> str:
    """Return the part of a glob before its first component with a wildcard. Results mirror the paths below it."""
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if GLOB_CHARACTERS & set(part)), len(parts))
    return str(Path(*parts[:fixed])) if fixed else "."


def _mirror(source: str) -> str:
    """Return the path for a result below the output folder; only the name if the input path is absolute or has `..`."""
    name = os.path.basename(source) if os.path.isabs(source) or ".." in Path(source).parts else source
    return os.path.normpath(name)


def _walk(folder: str, skip_folder: Path | None, outputs: Aside | None, left: Aside) -> Iterator[Item]:
    """Yield the pictures below a folder. Each linked folder is followed only once, so that loops end."""
    visited: set[tuple[int, int]] = set()
    unreadable: list[OSError] = []
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=unreadable.append):
        try:
            status = os.stat(parent)
        except OSError as error:  # the folder was removed in the meantime
            unreadable.append(error)
            folders.clear()
            continue
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        if outputs is not None and parent != folder and BATCH_STATE in files:
            outputs.folders.append(parent)
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not _is_below(f"{parent}/{f}", skip_folder))
        for name in sorted(files):
            extension = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if extension in PICTURES:
                path = os.path.join(parent, name)
                yield Item(path=path, relative=os.path.relpath(path, folder), scanned=True)
            elif extension in OTHER_MEDIA or extension in NAMED_PICTURES:
                left.extensions[extension] += 1
    for failed in unreadable:
        reason = f"{failed.filename}: the folder cannot be read ({failed.strerror}); check its permissions"
        yield Item(path=str(failed.filename), relative="", error=InputError(reason))


def _is_below(path: str, folder: Path | None) -> bool:
    return folder is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def read_names(data: bytes) -> list[str]:
    """Split a list of names, separated by NUL if it contains one and by newlines otherwise."""
    separator = b"\0" if b"\0" in data else b"\n"
    return [os.fsdecode(name.rstrip(b"\r") if separator == b"\n" else name) for name in data.split(separator) if name]


def read_manifest(path: Path) -> list[Item]:
    """Read the rows of a CSV or JSON Lines file. Paths are relative to the folder of the manifest.

    Raises:
        InputError: the manifest cannot be read.
        UsageError: the manifest is malformed or has an unknown column; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the name") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    rows = _read_csv(path, text) if path.suffix.lower() == ".csv" else _read_jsonl(path, text)
    return [_make_item(path, line, row) for line, row in rows]


def _read_csv(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if "input" not in row:
                raise UsageError(f"{path}:{reader.line_num}: has no input; the first line must name a column input")
            if None in row or None in row.values():
                raise UsageError(f"{path}:{reader.line_num}: not as many fields as the header has; check the commas")
            yield reader.line_num, {key: _read_cell(key, value) for key, value in row.items() if value != ""}
    except UsageError as error:
        raise UsageError(f"{path}:{reader.line_num}: {error}") from None
    except csv.Error as error:
        raise UsageError(f"{path}:{reader.line_num}: not CSV ({error}); check the quotes") from None


def _read_cell(key: str, value: str) -> Any:
    if key in Parameters.model_fields:
        return read_value(key, value)
    return value if key in PATH_KEYS else parse_scalar(value)


def _read_jsonl(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON strings may hold U+2028 and the like
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            kind = "nested too deeply" if isinstance(error, RecursionError) else "too long a number"
            reason = error.msg if isinstance(error, json.JSONDecodeError) else kind
            raise UsageError(f"{path}:{number}: not JSON ({reason}); one object a line") from None
        if not isinstance(row, dict):
            raise UsageError(f'{path}:{number}: must be an object such as {{"input": "a.jpg"}}')
        yield number, row


def _make_item(path: Path, line: int, row: dict[str, Any]) -> Item:
    """Make an item from a row. Invalid values become the error of the item.

    Raises:
        UsageError: the row has an unknown column, which is an error of the whole manifest.
    """
    origin = f"{path}:{line}"
    for key in row:
        if key not in ROW_KEYS and key not in Parameters.model_fields:
            raise UsageError(f"{origin}: {key}: no such column{suggest(key, (*ROW_KEYS, *Parameters.model_fields))}")
    try:
        return _read_row(path, origin, row)
    except UsageError as error:
        source = row.get("input")
        name = str(path.parent / source) if isinstance(source, str) and source else origin
        return Item(path=name, relative="", origin=origin, error=error)


def _read_row(path: Path, origin: str, row: dict[str, Any]) -> Item:
    overrides = {key: value for key, value in row.items() if key not in ROW_KEYS}
    for key, value in overrides.items():
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if any(isinstance(part, dict | list) for part in inner):
            raise UsageError(f"{origin}: {key}: is nested too deeply")
    for key in PATH_KEYS:
        if not isinstance(row.get(key) or "", str):
            raise UsageError(f"{origin}: {key}: must be text")
        if not _can_be_named(row.get(key) or ""):
            raise UsageError(f"{origin}: {key}: {row[key]!r} cannot be a name; write it as text without NUL")
    if not row.get("input"):
        raise UsageError(f"{origin}: has no input; every row needs one")
    seed = row.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32):
        raise UsageError(f"{origin}: seed: must be a whole number from 0 to {2**32 - 1}")
    if (output := row.get("output")) is not None:
        check_inside(output, origin)
    source = row["input"]
    return Item(
        path=str(path.parent / source),
        relative=_mirror(source),
        output=output,
        mask=str(path.parent / row["mask"]) if row.get("mask") else None,
        style=str(path.parent / row["style"]) if row.get("style") else None,
        control_image=str(path.parent / row["control_image"]) if row.get("control_image") else None,
        preset=row.get("preset"),
        seed=seed,
        overrides=overrides,
        origin=origin,
    )


def _can_be_named(text: str) -> bool:
    """Return whether a file can have this name. JSON may contain NUL and lone surrogates, which no name can hold."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def check_inside(output: str, origin: str) -> None:
    """Refuse a path that leaves the output folder, also on systems where a backslash separates folders.

    Args:
        origin: manifest and line, for the message.

    Raises:
        UsageError: the path names no file, is absolute, or contains `..` or NUL.
    """
    parts = re.split(r"[/\\]", output)
    if not Path(output).parts or Path(output).anchor or ".." in parts or "\0" in output:
        raise UsageError(f"{origin}: output: {output!r} must be a path below the output folder, without '..'")
