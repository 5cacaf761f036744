"""Make stdin, stdout and stderr reliable even if the caller has closed some of them."""

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
    """Stream for results. The first failed write raises `OutputError`; later writes are dropped.

    It is no `OSError` because click catches that and exits with 1 when a pipe breaks.
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
    """Stream for messages. It ignores failed writes, because a lost message must not change the result."""

    def write(self, data: Any) -> int:
        try:
            return _write_patiently(super().write, data, self.fileno())
        except OSError:
            return len(data)


def _write_patiently(write: Any, data: Any, number: int) -> int:
    """Write to the stream, waiting for space if it is a non-blocking pipe; return the number of bytes written."""
    while (written := write(data)) is None:
        select.select([], [number], [])
    return int(written)


def explain_stdout(error: OSError) -> OutputError:
    """Return the error to raise when stdout cannot be written."""
    if error.errno == errno.EPIPE:
        return OutputError("stdout: the reader closed the pipe before everything was written")
    if error.errno == errno.EBADF:
        return OutputError("stdout: is closed; leave it open, or name a file")
    return OutputError(f"stdout: cannot be written ({error.strerror}); free space on its disk")


def protect_streams() -> None:
    """Reopen closed standard streams and make failed writes to stdout and stderr behave as documented.

    A closed stream's number would go to the next file that is opened. It is opened on the null device in the wrong
    direction, so that any use of it fails.
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
    """Return a text stream over `raw` with the settings of the stream that it replaces."""
    if before is not None:
        before.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(before, "encoding", None),
        errors=getattr(before, "errors", errors),
        line_buffering=raw.isatty() or errors == "backslashreplace",
        write_through=getattr(before, "write_through", False),
    )
