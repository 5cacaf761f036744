"""One picture of a batch on its way: read and decoded, its time counted."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from img2img_cli.batch.provenance import Provenance
from img2img_cli.batch.stages import Stages
from img2img_cli.errors import TimeLimitError
from img2img_cli.system.source_files import NO_STAMP, find_special, read_source
from img2img_cli.tasks.job import Job

if TYPE_CHECKING:
    from img2img_cli.batch.item_process import Forks, StagesApart


@dataclass(kw_only=True, eq=False)
class Entry:
    """A job on its way.

    Attributes:
        stages: its picture, once that is decoded.
        notes: what to tell of how it was read.
    """

    job: Job
    provenance: Provenance
    replace: bool
    spent_s: float = 0.0
    stage_began: float | None = None
    stages: Stages | StagesApart | None = None
    notes: list[str] = field(default_factory=list)
    pixels: int = 0

    def elapsed_s(self) -> float:
        """Seconds spent on this job itself, without its waiting."""
        return self.spent_s + (0.0 if self.stage_began is None else time.monotonic() - self.stage_began)

    def close(self) -> None:
        """Let go of the picture, and end its process."""
        if self.stages is not None:
            self.stages.close()
            self.stages = None


class timed:  # noqa: N801 - reads as a statement
    """Counts a stage's time to its entry."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    def __enter__(self) -> None:
        self._entry.stage_began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._entry.spent_s, self._entry.stage_began = self._entry.elapsed_s(), None


class Opener:
    """Reads and decodes entries, each in a process of its own if --item-timeout may have to end it."""

    def __init__(self, limit_s: float | None) -> None:
        self.limit_s = limit_s
        self._forks: Forks | None = None
        self._guard = threading.Lock()

    def open(self, entry: Entry, check: Callable[[], None]) -> None:
        """Read and decode an entry's pictures. Its provenance tells afterwards what was read, also where that failed.

        Args:
            check: called while a FIFO keeps it waiting; raises when nobody waits for the entry any more.

        Raises:
            Img2ImgError: naming the file; a `TimeLimitError` without text if its time is over.
        """
        entry.provenance = dataclasses.replace(entry.provenance, source_sha256=None, source_stamp=NO_STAMP)
        entry.stages = self._start(entry)  # which takes none of its time
        with timed(entry):
            name, data = entry.job.input, None
            if find_special(name):  # its name can mean something else in another process, as /dev/fd/3 does
                data, _ = read_source(name, partial(self._check_time, entry, check))
            read = entry.stages.load(data)
        # What is recorded is what was decoded, even when the file changed a moment ago.
        entry.provenance = dataclasses.replace(entry.provenance, source_sha256=read.sha256, source_stamp=read.stamp)
        entry.notes += read.notes
        if read.error is not None:
            raise read.error

    def _start(self, entry: Entry) -> Stages | StagesApart:
        job, fingerprint = entry.job, entry.provenance.fingerprint
        if self.limit_s is None:
            return Stages(job, fingerprint)
        from img2img_cli.batch.item_process import Forks, StagesApart

        with self._guard:
            if self._forks is None:
                self._forks = Forks()
        return StagesApart(self._forks, job, fingerprint, partial(self._find_time_left, entry))

    def _find_time_left(self, entry: Entry) -> float:
        assert self.limit_s is not None
        return self.limit_s - entry.elapsed_s()

    def is_late(self, entry: Entry) -> bool:
        """Whether an entry has had all the time of --item-timeout."""
        return self.limit_s is not None and entry.elapsed_s() > self.limit_s

    def _check_time(self, entry: Entry, check: Callable[[], None]) -> None:
        check()
        if self.is_late(entry):
            raise TimeLimitError

    def close(self) -> None:
        """End every process."""
        if self._forks is not None:
            self._forks.close()
