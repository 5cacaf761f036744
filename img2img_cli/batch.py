"""Many jobs, unattended: what is done already, decoding and writing beside the model, and each failure alone."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from img2img_cli.errors import ExitCode, Img2ImgError, ModelError, OutOfMemoryError
from img2img_cli.interrupts import Interrupts
from img2img_cli.job import Job, check_input
from img2img_cli.journal import Journal, Provenance

if TYPE_CHECKING:
    from img2img_cli.apart import StagesApart
    from img2img_cli.stages import Stages
    from img2img_cli.work import Pipeline

Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When to give up, and how much to do at once.

    Attributes:
        max_failures: a count, or a share of the inputs as a float below 1; None for no limit.
    """

    batch_size: int | None = None
    workers: int = 2
    max_failures: int | float | None = None
    item_timeout_s: float | None = None
    timeout_s: float | None = None
    retry_failed: bool = False


@dataclass
class Tally:
    """Where every input ended: `inputs == done + up_to_date + failed + skipped` at the end of a run."""

    inputs: int
    done: int = 0
    up_to_date: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def open(self) -> int:
        """Inputs without an end so far."""
        return self.inputs - self.done - self.up_to_date - self.failed - self.skipped


@dataclass(kw_only=True, eq=False)
class Entry:
    """A job on its way."""

    job: Job
    provenance: Provenance
    replace: bool
    spent_s: float = 0.0
    stage_began: float | None = None
    stages: Stages | StagesApart | None = None
    pixels: int = 0

    def elapsed_s(self) -> float:
        """Seconds spent on this job itself, without its waiting."""
        return self.spent_s + (0.0 if self.stage_began is None else time.monotonic() - self.stage_began)


class Stop(Exception):  # noqa: N818 - not an error
    """Enough failures, or no time left: the rest is skipped."""


@dataclass
class Batch:
    """One run over jobs that share an output folder. `sort_out` first, which needs no model, then `run`."""

    journal: Journal
    limits: Limits
    emit: Emit
    tally: Tally
    load: Callable[[Job], Pipeline]
    interrupts: Interrupts = field(default_factory=Interrupts)
    began: float = field(default_factory=time.monotonic)
    timed_out: bool = field(default=False, init=False)

    def sort_out(self, jobs: Sequence[Job]) -> list[Entry]:
        """Tell what is done already and what cannot be, and return what is left to do."""
        entries: list[Entry] = []
        left = deque(jobs)
        try:
            while left:
                self.interrupts.check()
                entries += self._sort_out_one(left.popleft())
        except BaseException:
            for job in (*(entry.job for entry in entries), *left):
                self.end(job, "skipped")
            raise
        return entries

    def _sort_out_one(self, job: Job) -> list[Entry]:
        if self.limits.retry_failed and self.journal.status(job) != "failed":
            self.end(job, "up-to-date" if self.journal.status(job) == "done" else "skipped")
            return []
        try:
            check_input(job.input)
            provenance = self.journal.trace(job)
            current = self.journal.is_current(job, provenance) and not job.force
        except (Img2ImgError, MemoryError) as error:
            self.fail(job, error, 0.0)
            return []
        if current:
            self.end(job, "up-to-date")
            return []
        return [Entry(job=job, provenance=provenance, replace=job.force or os.path.lexists(job.output))]

    def run(self, entries: Sequence[Entry]) -> None:
        """Make what is left to do. What is not tried because of a limit or a signal is skipped, and counted.

        Raises:
            ModelError: the only model that is needed cannot be had.
        """
        groups: dict[str, list[Entry]] = {}
        for entry in entries:
            key = entry.job.parameters.pipeline_key
            groups.setdefault(key, []).append(entry)
        ended: set[int] = set()
        try:
            self.interrupts.check()
            self.check_limits()
            for group in groups.values():
                self._run_group(group, ended, alone=len(groups) == 1)
        except Stop:
            pass
        finally:
            for entry in entries:
                if id(entry) not in ended:
                    self.end(entry.job, "skipped")

    def _run_group(self, entries: list[Entry], ended: set[int], *, alone: bool) -> None:
        try:
            with self.interrupts.allow():
                pipeline = self.load(entries[0].job)
        except ModelError as error:
            if alone:
                raise
            for entry in entries:
                ended.add(id(entry))
                self.fail(entry.job, error, 0.0)
            return
        from img2img_cli.assembly import Line

        pipeline.expect(sum(entry.job.parameters.steps_run for entry in entries))
        with Line(self, pipeline, ended) as line:
            line.run(entries)

    def check_limits(self) -> None:
        """Raise `Stop` when enough has failed or the time is over."""
        limit = self.limits.max_failures
        if limit is not None:
            allowed = limit if isinstance(limit, int) else math.floor(limit * self.tally.inputs)
            if self.tally.failed > allowed:
                raise Stop
        if self.limits.timeout_s is not None and time.monotonic() - self.began > self.limits.timeout_s:
            self.timed_out = True
            raise Stop

    def end(self, job: Job, event: str, **facts: Any) -> None:
        """Count an input's end and tell of it."""
        counter = event.replace("-", "_")
        setattr(self.tally, counter, getattr(self.tally, counter) + 1)
        self.emit({"event": event, "input": job.input, "output": job.output, **facts})

    def fail(self, job: Job, error: Exception, seconds: float) -> None:
        """Note a failure with its reason, and count it."""
        if isinstance(error, MemoryError):
            error = OutOfMemoryError(f"{job.input}: out of memory; make it smaller, or use --workers 1")
        if isinstance(error, Img2ImgError):
            code, reason = int(error.exit_code), str(error)
        else:
            code, reason = int(ExitCode.BUG), f"a bug: {type(error).__name__}: {error}; please report it"
        try:
            self.journal.fail(job, code, reason, seconds)
        finally:
            self.end(job, "failed", code=code, reason=reason, seconds=round(seconds, 3))
