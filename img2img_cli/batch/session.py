"""The state of one run over an output folder: finished results, counts of outcomes, and limits."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from img2img_cli.batch.entries import Entry, Opener
from img2img_cli.batch.journal import Failure, Journal
from img2img_cli.batch.provenance import Provenance
from img2img_cli.errors import (
    ExitCode,
    Img2ImgError,
    InputError,
    OutOfMemoryError,
    ReadError,
    TimeLimitError,
)
from img2img_cli.system.interrupts import Interrupts
from img2img_cli.tasks.job import Job, check_input
from img2img_cli.tasks.plan import Planned, Refused

if TYPE_CHECKING:
    from img2img_cli.tasks.pieces import Pipeline

Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a run: when to stop, and how much to do at once.

    Attributes:
        batch_size: the most pieces in one batch; None to let memory decide.
        workers: the number of threads that decode and write.
        max_failures: a count, or a share of the inputs as a float below 1; None for no limit.
        item_timeout_s: the seconds allowed for each input; None for no limit.
        timeout_s: the seconds allowed for the whole run; None for no limit.
        retry_failed: process only the jobs that failed before.
    """

    batch_size: int | None = None
    workers: int = 2
    max_failures: int | float | None = None
    item_timeout_s: float | None = None
    timeout_s: float | None = None
    retry_failed: bool = False


@dataclass
class Tally:
    """The number of inputs for each outcome. After a run, `inputs == done + up_to_date + failed + skipped`."""

    inputs: int
    done: int = 0
    up_to_date: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def open(self) -> int:
        """The number of inputs without an outcome so far."""
        return self.inputs - self.done - self.up_to_date - self.failed - self.skipped


class Stop(Exception):  # noqa: N818 - not an error
    """The signal to skip the remaining inputs, after too many failures or at the time limit."""


@dataclass
class Session:
    """One run over jobs that share an output folder.

    Call `sort_out` first, which needs no model, and then `run.run_entries`.

    Attributes:
        emit: takes each event of the run as a dict.
        load: loads the pipeline for a job.
        began: `time.monotonic()` at the start of the run.
        timed_out: whether the run reached `limits.timeout_s`.
        recalled: how many inputs count as failed because they failed before and have not changed.
        open_ended: the jobs that were skipped, or failed for a reason that may go away although their files stay the
            same.
    """

    journal: Journal
    limits: Limits
    emit: Emit
    tally: Tally
    load: Callable[[Job], Pipeline]
    interrupts: Interrupts = field(default_factory=Interrupts)
    began: float = field(default_factory=time.monotonic)
    opener: Opener = field(init=False)
    timed_out: bool = field(default=False, init=False)
    recalled: int = field(default=0, init=False)
    open_ended: list[Planned] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.opener = Opener(self.limits.item_timeout_s)

    def sort_out(self, planned: Sequence[Planned]) -> list[Entry]:
        """Report the inputs that are up to date or cannot be processed, and return entries for the others."""
        entries: list[Entry] = []
        left = deque(planned)
        self._tell_notes()
        try:
            while left:
                self.interrupts.check()
                entries += self._sort_out_one(left.popleft())
        except BaseException:
            for job in (*(entry.job for entry in entries), *left):
                self.end(job, "skipped")
            raise
        if self.recalled:
            text = f"{self.recalled} failed as before, as they have not changed; --retry-failed tries them again"
            self.emit({"event": "note", "text": text})
        self._tell_notes()
        return entries

    def _tell_notes(self) -> None:
        for text in self.journal.take_notes():
            self.emit({"event": "note", "text": text})

    def _sort_out_one(self, job: Planned) -> list[Entry]:
        if isinstance(job, Refused):
            self.end(job, "failed", code=int(job.error.exit_code), reason=str(job.error), seconds=0.0)
            return []
        if self.limits.retry_failed and self.journal.status(job) != "failed":
            self.end(job, "up-to-date" if self.journal.status(job) == "done" else "skipped")
            return []
        try:
            check_input(job.input)
            provenance = self.journal.trace(job)
            current = self.journal.is_current(job, provenance) and not job.force
            again = self.limits.retry_failed or job.force
            failure = None if current or again else self.journal.recall_failure(job, provenance)
        except (Img2ImgError, MemoryError) as error:
            self.fail(job, error, 0.0)
            return []
        if current:
            self.end(job, "up-to-date")
            return []
        if failure is not None:
            self.recalled += 1
            self.end(job, "failed", code=failure.code, reason=failure.reason, seconds=0.0)
            return []
        return [Entry(job=job, provenance=provenance, replace=job.force or os.path.lexists(job.output))]

    def check_limits(self) -> None:
        """Raise `Stop` after too many failures or at the time limit."""
        limit = self.limits.max_failures
        if limit is not None:
            allowed = limit if isinstance(limit, int) else math.floor(limit * self.tally.inputs)
            if self.tally.failed > allowed:
                raise Stop
        if self.limits.timeout_s is not None and time.monotonic() - self.began > self.limits.timeout_s:
            self.timed_out = True
            raise Stop

    def end(self, job: Planned, event: str, **facts: Any) -> None:
        """Count the outcome of an input and emit an event for it.

        Args:
            event: `done`, `up-to-date`, `failed` or `skipped`.
            facts: further values for the event.
        """
        counter = event.replace("-", "_")
        if event == "skipped":
            self.open_ended.append(job)
        setattr(self.tally, counter, getattr(self.tally, counter) + 1)
        self._tell_notes()
        self.emit({"event": event, "input": job.input, "output": job.output, **facts})

    def fail(self, job: Job, error: Exception, seconds: float, provenance: Provenance | None = None) -> None:
        """Record, count and report a failure.

        Args:
            error: the cause; a `TimeLimitError` without a message gets one.
            seconds: the time spent on the job.
            provenance: the provenance of the pictures that were read, if they may have caused the failure.
        """
        if isinstance(error, MemoryError):
            error = OutOfMemoryError(f"{job.input}: out of memory; make it smaller, or use --workers 1")
        if isinstance(error, TimeLimitError) and not str(error):
            limit = f"{self.limits.item_timeout_s:g} s"
            error = TimeLimitError(f"{job.input}: took longer than {limit}; raise --item-timeout or leave it out")
        if isinstance(error, Img2ImgError):
            code, reason = int(error.exit_code), str(error)
        else:
            code, reason = int(ExitCode.BUG), f"a bug: {type(error).__name__}: {error}; please report it"
        lasting = provenance if isinstance(error, InputError) and not isinstance(error, ReadError) else None
        if lasting is None:
            self.open_ended.append(job)
        try:
            self.journal.fail(job, Failure(code=code, reason=reason), seconds, lasting)
        finally:
            self.end(job, "failed", code=code, reason=reason, seconds=round(seconds, 3))
