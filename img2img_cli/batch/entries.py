"""The entries of a batch: jobs in progress, their decoded pictures and the time spent on them."""

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
    """A job in progress.

    Attributes:
        provenance: the hashes and stamps that the result will be recorded with.
        replace: whether the result may overwrite an existing file.
        spent_s: seconds of the finished stages.
        stage_began: `time.monotonic()` at the start of the running stage; None between stages.
        stages: the stages of the picture, once reading has begun.
        notes: messages for the user about how the pictures were read.
        pixels: width times height of the input; 0 if unknown.
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
        """Return the seconds spent on this job, without the time it waited."""
        return self.spent_s + (0.0 if self.stage_began is None else time.monotonic() - self.stage_began)

    def close(self) -> None:
        """Release the picture and end its process, if it has one."""
        if self.stages is not None:
            self.stages.close()
            self.stages = None


class timed:  # noqa: N801 - reads as a statement
    """A context manager that adds the duration of a stage to its entry."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    def __enter__(self) -> None:
        self._entry.stage_began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._entry.spent_s, self._entry.stage_began = self._entry.elapsed_s(), None


class Opener:
    """A reader and decoder of entries. With --item-timeout, each entry gets its own process, which can be killed.

    Args:
        limit_s: the seconds that --item-timeout allows for each entry; None for no limit.
    """

    def __init__(self, limit_s: float | None) -> None:
        self.limit_s = limit_s
        self._forks: Forks | None = None
        self._guard = threading.Lock()

    def open(self, entry: Entry, check: Callable[[], None]) -> None:
        """Read and decode the pictures of an entry.

        Afterwards the provenance of the entry holds the hash and stamp of the bytes read, even if decoding failed.

        Args:
            check: called repeatedly while reading waits for a FIFO; raises if the entry is no longer wanted.

        Raises:
            Img2ImgError: a picture cannot be read or decoded; the message names the file. A `TimeLimitError` without
                a message means that the time limit has passed.
        """
        entry.provenance = dataclasses.replace(entry.provenance, source_sha256=None, source_stamp=NO_STAMP)
        entry.stages = self._start(entry)  # starting a process does not count towards the time of the entry
        with timed(entry):
            name, data = entry.job.input, None
            if find_special(name):  # read it here: a name such as /dev/fd/3 means another file in another process
                data, _ = read_source(name, partial(self._check_time, entry, check))
            read = entry.stages.load(data)
        # Record the bytes that were decoded, even if the file has changed since.
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
        """Return whether an entry has exceeded --item-timeout."""
        return self.limit_s is not None and entry.elapsed_s() > self.limit_s

    def _check_time(self, entry: Entry, check: Callable[[], None]) -> None:
        check()
        if self.is_late(entry):
            raise TimeLimitError

    def close(self) -> None:
        """End all decoder processes."""
        if self._forks is not None:
            self._forks.close()
