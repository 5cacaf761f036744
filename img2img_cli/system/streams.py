"""stdin, stdout and stderr so that a command can rely on them, whatever its caller has closed."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any

from img2img_cli.errors import OutputError

STDIO = "-"  # the name that stands for stdin or stdout


class _Stdout(io.FileIO):
    """Results: the first bytes that cannot be written raise `OutputError`; those after them are dropped.

    An `OSError` would be caught on its way: click ends the process with 1 when a pipe breaks.
    """

    _failed = False

    def write(self, data: Any) -> int:
        if self._failed:
            return len(data)
        try:
            return _write_patiently(super().write, data, self.fileno())
        except OSError as error:
            self._failed = True
            raise explain_stdout(error) from None


class _Stderr(io.FileIO):
    """Messages: what cannot be written is dropped, as a message that nobody reads must not change what is done."""

    def write(self, data: Any) -> int:
        try:
            return _write_patiently(super().write, data, self.fileno())
        except OSError:
            return len(data)


def _write_patiently(write: Any, data: Any, number: int) -> int:
    """Write, and wait where the caller's pipe does not block."""
    while (written := write(data)) is None:
        select.select([], [number], [])
    return int(written)


def explain_stdout(error: OSError) -> OutputError:
    """The error of a command whose stdout cannot be written."""
    if error.errno == errno.EPIPE:
        return OutputError("stdout: the reader has left before all was written")
    if error.errno == errno.EBADF:
        return OutputError("stdout: is closed; leave it open, or name a file")
    return OutputError(f"stdout: cannot be written ({error.strerror}); free space on its disk")


def protect_streams() -> None:
    """Open what is closed, lest another file gets its number, and have failing writes end as documented.

    What is closed is opened the wrong way round, so that using it fails as it should.
    """
    for number, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the whole process
    sys.stdout = _wrap(_Stdout(1, "w", closefd=False), sys.stdout, "surrogateescape")
    sys.stderr = _wrap(_Stderr(2, "w", closefd=False), sys.stderr, "backslashreplace")


def _wrap(raw: io.FileIO, before: Any, errors: str) -> io.TextIOWrapper:
    """A text stream with the settings that Python gave the one before."""
    if before is not None:
        before.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(before, "encoding", None),
        errors=getattr(before, "errors", errors),
        line_buffering=raw.isatty() or errors == "backslashreplace",
        write_through=getattr(before, "write_through", False),
    )
