"""What ends a command before its time: a signal, or output that cannot be written any more."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal has gone"}
CODE_BASE = 128  # a shell's exit code for a signal is this plus its number


class Interrupted(BaseException):
    """A signal, raised in the main thread so that temporary files are removed."""

    def __init__(self, number: int) -> None:
        super().__init__(SIGNALS[signal.Signals(number)])
        self.exit_code = CODE_BASE + number


def _tell_all_but_signals(dropped: sys.UnraisableHookArgs) -> None:
    """Print no traceback of a signal that Python drops in a destructor; the next `check` raises it again."""
    if not isinstance(dropped.exc_value, Interrupted):
        sys.__unraisablehook__(dropped)


class Interrupts:
    """Decides where SIGINT, SIGTERM and SIGHUP take effect.

    The first signal raises `Interrupted` at once. Within `hold` it waits for the next `check`, or for code within
    `allow`, so that nothing comes between a result and its count. A second signal ends the process at once.
    """

    def __init__(self) -> None:
        self._signal: Interrupted | None = None
        self._stop: Exception | None = None
        self._held = False

    def install(self) -> None:
        """Take the signals from now on, except those that the caller has this process ignore, as `nohup` does."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._take)
        sys.unraisablehook = _tell_all_but_signals

    def close(self) -> None:
        """Ignore signals: the exit code is decided, and the interpreter only cleans up."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self._signal is not None:
            os._exit(CODE_BASE + number)
        self._signal = Interrupted(number)
        if not self._held:
            raise self._signal

    def stop(self, reason: Exception) -> None:
        """Have the next `check` raise `reason`; the first one counts."""
        self._stop = self._stop or reason

    def check(self) -> None:
        """Raise what has come meanwhile.

        Raises:
            Interrupted: a signal.
            Exception: what `stop` was given.
        """
        if self._signal is not None:
            raise self._signal
        if self._stop is not None:
            raise self._stop

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let signals wait; one that nobody has asked for is raised at the end."""
        self._held, self._stop = True, None
        try:
            yield
        finally:
            self._held = False
        self.check()

    @contextmanager
    def allow(self) -> Iterator[None]:
        """Within `hold`: let a signal end what takes long and leaves nothing behind, such as loading a model."""
        try:
            self._held = False
            self.check()
            yield
        finally:
            self._held = True


INTERRUPTS = Interrupts()  # of this process
