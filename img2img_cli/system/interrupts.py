"""Ending a command early: on a signal, or when its output can no longer be written."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal has gone"}
CODE_BASE = 128  # a shell reports a signal as this plus its number


class Interrupted(BaseException):
    """A signal, raised in the main thread so that temporary files are removed."""

    def __init__(self, number: int) -> None:
        super().__init__(SIGNALS[signal.Signals(number)])
        self.exit_code = CODE_BASE + number


def _tell_all_but_signals(dropped: sys.UnraisableHookArgs) -> None:
    """Suppress the traceback of an `Interrupted` that was raised in a destructor; the next `check` raises it again."""
    if not isinstance(dropped.exc_value, Interrupted):
        sys.__unraisablehook__(dropped)


class Interrupts:
    """Decides where SIGINT, SIGTERM and SIGHUP take effect.

    The first signal raises `Interrupted` at once. Within `hold` it is raised only by the next `check`, or within
    `allow`, so that it cannot separate a result from its count. A second signal ends the process at once.
    """

    def __init__(self) -> None:
        self._signal: Interrupted | None = None
        self._stop: Exception | None = None
        self._held = False

    def install(self) -> None:
        """Handle the signals from now on, except those that the caller made this process ignore, as `nohup` does."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._take)
        sys.unraisablehook = _tell_all_but_signals

    def close(self) -> None:
        """Ignore signals from now on. Call it once the exit code is decided and the interpreter only cleans up."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self._signal is not None:
            os._exit(CODE_BASE + number)
        self._signal = Interrupted(number)
        if not self._held:
            raise self._signal

    @property
    def is_pending(self) -> bool:
        """Whether a signal has arrived that nothing has raised yet."""
        return self._signal is not None

    def stop(self, reason: Exception) -> None:
        """Make the next `check` raise `reason`. Later reasons are ignored."""
        self._stop = self._stop or reason

    def check(self) -> None:
        """Raise a pending signal or the reason given to `stop`.

        Raises:
            Interrupted: a signal has arrived.
            Exception: the reason that `stop` was given.
        """
        if self._signal is not None:
            raise self._signal
        if self._stop is not None:
            raise self._stop

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Delay signals. One that no `check` has raised is raised at the end of the block."""
        self._held, self._stop = True, None
        try:
            yield
        finally:
            self._held = False
        self.check()

    @contextmanager
    def allow(self) -> Iterator[None]:
        """Within `hold`, let a signal end a long step that leaves nothing half-written, such as loading a model."""
        try:
            self._held = False
            self.check()
            yield
        finally:
            self._held = True


INTERRUPTS = Interrupts()  # the one of this process
