"""Keep library output off stdout, which may carry a picture or JSON, for one thread at a time."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

_guard = threading.Lock()
_silent: list[int] = []  # thread ids; a thread that nests appears several times


class _Stdout:
    """A stream that drops the output of silent threads and passes on everything else."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write like the wrapped stream, or drop the text of a silent thread."""
        return len(text) if threading.get_ident() in _silent else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def silence_stdout() -> Iterator[None]:
    """Drop what this thread prints within the block. Other threads are not affected."""
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
