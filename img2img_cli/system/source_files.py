"""Read files completely or not at all, and stamp them so that a later run can tell whether they changed."""

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
Stamp = tuple[int | None, int | None]  # size in bytes, time of the last change in ns
NO_STAMP: Stamp = (None, None)
# File systems round times: a second change within this time of the first may leave the file's time unchanged.
ROUNDING_NS = 2_000_000_000
WAIT_MS = 250
_SPECIAL = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_source(name: str, check: Callable[[], None] = lambda: None) -> tuple[bytes, Stamp]:
    """Return a file's content and stamp; a FIFO has `NO_STAMP`.

    Args:
        check: called at least every `WAIT_MS` while a FIFO is read, so that it can raise to stop the wait.

    Raises:
        ChangedError: the file changed while it was read.
        InputError: the file cannot be read, is empty or is larger than `MAX_BYTES`.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO without a writer would block here.
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
    """Check that there are between 1 and `MAX_BYTES` bytes.

    Raises:
        InputError: there are none or too many; the message names the file.
    """
    if not data:
        raise InputError(f"{name}: is empty; check what was meant to be there")
    if len(data) > MAX_BYTES:
        raise InputError(f"{name}: larger than {MAX_BYTES >> 20} MiB; make it smaller first")


def _read_stream(file: BinaryIO, check: Callable[[], None]) -> bytes:
    """Read until the end, or until the limit is exceeded."""
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
    """Return the SHA-256 of a regular file's content in hex, and its stamp.

    Raises:
        ChangedError: the file changed while it was read.
        InputError: the file cannot be read.
    """
    try:
        with open(name, "rb") as file:
            before = os.fstat(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return sha256, check_stamp(name, file, before)
    except (OSError, ValueError) as error:
        raise _explain(name, error) from None


def check_stamp(name: str, file: BinaryIO, before: os.stat_result) -> Stamp:
    """Return the stamp of an open file that was read to its end.

    The stamp has no time if the last change is so recent that another change might not alter the time.

    Raises:
        ChangedError: size or time differ from those of `before`.
    """
    after = os.fstat(file.fileno())
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise ChangedError(f"{name}: changed while it was read; run again when it is complete")
    recent = time.time_ns() - after.st_mtime_ns < ROUNDING_NS
    return after.st_size, None if recent else after.st_mtime_ns


def stamp_file(name: str) -> Stamp:
    """Return a regular file's current stamp, or `NO_STAMP` for anything else."""
    try:
        status = os.stat(name)
    except (OSError, ValueError):
        return NO_STAMP
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else NO_STAMP


def check_unchanged(stamps: Iterable[tuple[str, Stamp]]) -> None:
    """Check that files still have the given stamps.

    Raises:
        ChangedError: a file's stamp differs; the message names the first such file.
    """
    for name, stamp in stamps:
        if stamp_file(name) != stamp:
            raise ChangedError(f"{name}: changed while the batch ran; run it again")


def find_special(name: str) -> str | None:
    """Return what a FIFO, socket or device is, following links; None for a file, a folder or a missing name."""
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError):
        return None
    return next((kind for is_kind, kind in _SPECIAL if is_kind(mode)), None)
