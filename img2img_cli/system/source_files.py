"""A file's bytes, read whole or not at all, and the stamp by which a later run knows the file again."""

from __future__ import annotations

import hashlib
import os
import select
import stat
import time
from collections.abc import Callable, Iterable
from typing import BinaryIO

from img2img_cli.errors import ChangedError, InputError, ReadError

MAX_BYTES = 1 << 30
Stamp = tuple[int | None, int | None]  # size in bytes and time of the last change in ns
NO_STAMP: Stamp = (None, None)
# A second change within this time of the first can leave a file's time as it is: file systems round it.
ROUNDING_NS = 2_000_000_000
WAIT_MS = 250
_SPECIAL = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_source(name: str, check: Callable[[], None] = lambda: None) -> tuple[bytes, Stamp]:
    """A file's content and stamp. A FIFO has no stamp, and `check` is called while nobody writes to it.

    Raises:
        ChangedError: it changed while it was read.
        InputError: it cannot be read, is empty, or is over a gibibyte.
    """
    try:
        # A FIFO that nobody writes to would block here.
        with os.fdopen(os.open(name, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            before = os.fstat(file.fileno())
            regular = stat.S_ISREG(before.st_mode)
            data = file.read(min(before.st_size, MAX_BYTES) + 1) if regular else _read_stream(file, check)
            stamp = check_stamp(name, file, before) if regular else NO_STAMP
    except (OSError, ValueError) as error:
        raise _explain(name, error) from None
    check_length(name, data)
    return data, stamp


def _explain(name: str, error: OSError | ValueError) -> ReadError:
    reason = getattr(error, "strerror", None) or "no such name"
    return ReadError(f"{name}: cannot be read ({reason}); check the name and its permissions")


def check_length(name: str, data: bytes) -> None:
    """Refuse no bytes, and too many.

    Raises:
        InputError: naming the file.
    """
    if not data:
        raise InputError(f"{name}: is empty; check what was meant to be there")
    if len(data) > MAX_BYTES:
        raise InputError(f"{name}: larger than {MAX_BYTES >> 20} MiB; make it smaller first")


def _read_stream(file: BinaryIO, check: Callable[[], None]) -> bytes:
    """All that comes, up to a byte more than may be."""
    number, parts, length = file.fileno(), list[bytes](), 0
    poll = select.poll()
    poll.register(number, select.POLLIN)
    while length <= MAX_BYTES:
        check()
        if not poll.poll(WAIT_MS):
            continue
        try:
            part = os.read(number, 1 << 20)
        except BlockingIOError:
            continue
        if not part:
            break
        parts.append(part)
        length += len(part)
    return b"".join(parts)


def hash_source(name: str) -> tuple[str, Stamp]:
    """The SHA-256 of a regular file's content, and its stamp.

    Raises:
        ChangedError: it changed while it was read.
        InputError: it cannot be read.
    """
    try:
        with open(name, "rb") as file:
            before = os.fstat(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return sha256, check_stamp(name, file, before)
    except (OSError, ValueError) as error:
        raise _explain(name, error) from None


def check_stamp(name: str, file: BinaryIO, before: os.stat_result) -> Stamp:
    """The stamp of a file that was read to its end; without a time where a later change could leave that the same.

    Raises:
        ChangedError: the file is not what it was `before`.
    """
    after = os.fstat(file.fileno())
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise ChangedError(f"{name}: changed while it was read; run again when it is complete")
    recent = time.time_ns() - after.st_mtime_ns < ROUNDING_NS
    return after.st_size, None if recent else after.st_mtime_ns


def stamp_file(name: str) -> Stamp:
    """A regular file's stamp as it is now; `NO_STAMP` for anything else."""
    try:
        status = os.stat(name)
    except (OSError, ValueError):
        return NO_STAMP
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else NO_STAMP


def check_unchanged(stamps: Iterable[tuple[str, Stamp]]) -> None:
    """Refuse files whose stamps are others than they were.

    Raises:
        ChangedError: naming the first.
    """
    for name, stamp in stamps:
        if stamp_file(name) != stamp:
            raise ChangedError(f"{name}: changed while the batch ran; run it again")


def find_special(name: str) -> str | None:
    """What a name that is no regular file or folder stands for, links followed; None for those, and for nothing."""
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError):
        return None
    return next((kind for is_kind, kind in _SPECIAL if is_kind(mode)), None)
