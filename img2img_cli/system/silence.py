"""Keep what libraries print out of stdout, where a picture or JSON may go, in one thread and no other."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

_guard = threading.Lock()
_silent: list[int] = []  # threads; one may be there several times


class _Stdout:
    """A stream that drops what silent threads write and passes on everything else."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """As the stream's own."""
        return len(text) if threading.get_ident() in _silent else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def silence_stdout() -> Iterator[None]:
    """While this thread is in here, what it prints is dropped. Other threads print as ever."""
    thread = threading.get_ident()
    with _guard:
        _silent.append(thread)
        if not isinstance(sys.stdout, _Stdout):
            sys.stdout = _Stdout(sys.stdout)
    try:
        yield
    finally:
        with _guard:
            _silent.remove(thread)
            if not _silent and isinstance(sys.stdout, _Stdout):
                sys.stdout = sys.stdout.stream
