"""Repair AVIF files by older encoders, whose boxes libavif refuses although other decoders accept them.

- They have two lists of properties (`ipma` boxes), one for colour and one for alpha; the standard allows one list for
  each version and flags.
- Their alpha refers (in an `iref` box) to item 0, which does not exist, instead of the picture.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

MAX_BOXES, MAX_ITEMS = 10_000, 65_536


def mend_boxes(data: bytes) -> bytes:
    """Return the file in a form that libavif accepts; the same bytes if there is nothing to repair.

    No data moves: unused space becomes a `free` box.
    """
    for start, end, kind in _list_boxes(data, 0, len(data)):
        if kind == b"meta":
            parts = {
                inner_kind: (inner, inner_end) for inner, inner_end, inner_kind in _list_boxes(data, start + 4, end)
            }
            if b"iref" in parts and b"pitm" in parts:
                data = _refer_to_picture(data, *parts[b"iref"], parts[b"pitm"][0])
            return _merge(data, *parts[b"iprp"]) if b"iprp" in parts else data
    return data


def _refer_to_picture(data: bytes, start: int, end: int, primary: int) -> bytes:
    """Make references to item 0 refer to the primary item. Only for 16-bit item numbers."""
    if data[start] or data[primary]:
        return data
    mended = bytearray(data)
    for inner, inner_end, kind in _list_boxes(data, start + 4, end):
        if kind == b"auxl":
            for at in range(inner + 4, inner_end - 1, 2):
                if data[at : at + 2] == b"\0\0":
                    mended[at : at + 2] = data[primary + 4 : primary + 6]
    return bytes(mended)


def _list_boxes(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield start and end of each box's content, and its type. Stop at a box with a 64-bit or invalid size."""
    for _ in range(MAX_BOXES):
        size = int.from_bytes(data[at : at + 4])
        if at + 8 > end or size < 8 or at + size > end:
            return
        yield at + 8, at + size, data[at + 4 : at + 8]
        at += size


def _merge(data: bytes, start: int, end: int) -> bytes:
    kept, count = [], 0
    lists: dict[bytes, dict[int, bytes]] = {}
    for inner, inner_end, kind in _list_boxes(data, start, end):
        if kind != b"ipma":
            kept.append(data[inner - 8 : inner_end])
            continue
        count += 1
        entries = lists.setdefault(data[inner : inner + 4], {})
        for item, entry in _list_items(data[inner:inner_end]):
            entries[item] = entries.get(item) or entry
    if count == len(lists):
        return data
    for head, entries in lists.items():
        content = head + struct.pack(">I", len(entries)) + b"".join(entry for _, entry in sorted(entries.items()))
        kept.append(struct.pack(">I4s", 8 + len(content), b"ipma") + content)
    body = b"".join(kept)
    room = end - start - len(body)
    if room < 8:
        return data
    head = struct.pack(">I4s", 8 + len(body), b"iprp")
    return data[: start - 8] + head + body + struct.pack(">I4s", room, b"free") + bytes(room - 8) + data[end:]


def _list_items(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each item's number and its entry in an `ipma` list."""
    wide, long = content[0] > 0, content[3] & 1
    at, size = 8, 4 if wide else 2
    for _ in range(min(int.from_bytes(content[4:8]), MAX_ITEMS)):
        length = size + 1 + content[at + size] * (2 if long else 1)
        yield int.from_bytes(content[at : at + size]), content[at : at + length]
        at += length
