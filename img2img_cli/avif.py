"""AVIF files whose properties stand in two lists of a kind: older encoders wrote one for colour and one for alpha.

The standard allows one list (`ipma` box) for each version and flags. libavif refuses more; other decoders read them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

MAX_BOXES, MAX_ITEMS = 10_000, 65_536


def merge_associations(data: bytes) -> bytes:
    """The file with each kind of list merged into its first; the same bytes where there is nothing to merge.

    All else stays at its place: what becomes free is made a `free` box.
    """
    for start, end, kind in _list_boxes(data, 0, len(data)):
        if kind == b"meta":
            for inner, inner_end, inner_kind in _list_boxes(data, start + 4, end):
                if inner_kind == b"iprp":
                    return _merge(data, inner, inner_end)
    return data


def _list_boxes(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    """Where the content of each box of short size begins and ends, and its type."""
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
    """Each item's number and its entry, from a list's content."""
    wide, long = content[0] > 0, content[3] & 1
    at, size = 8, 4 if wide else 2
    for _ in range(min(int.from_bytes(content[4:8]), MAX_ITEMS)):
        length = size + 1 + content[at + size] * (2 if long else 1)
        yield int.from_bytes(content[at : at + size]), content[at : at + length]
        at += length
