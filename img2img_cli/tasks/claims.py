"""Which results have which names: no result takes the place of another one or of a file that a job reads."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from img2img_cli.errors import OutputError
from img2img_cli.system.streams import STDIO
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.output_folder import NameProbe

MAX_PAIRS = 5


def check_outputs(jobs: Sequence[Job], folder: Path) -> None:
    """Refuse results that would get one name, also on a file system that ignores case or Unicode forms, and results
    that would replace a picture that a job reads, also through links.

    Raises:
        OutputError: naming the pairs.
    """
    claims = Claims(folder, jobs)
    if pairs := [pair for job in jobs if (pair := claims.add(job))]:
        more = f" and {len(pairs) - MAX_PAIRS} more" if len(pairs) > MAX_PAIRS else ""
        raise collide("; ".join(pairs[:MAX_PAIRS]) + more)


def collide(pairs: str) -> OutputError:
    """Return the error for results that have one name or an input's place."""
    return OutputError(
        f"results would get in each other's way: {pairs}; "
        "use --name, such as '{name}{ext}' or '{stem}-{index}{ext}', or another output folder"
    )


class Claims:
    """The names that results have below a folder, and the files that jobs read.

    Args:
        folder: the output folder.
        jobs: the jobs whose pictures no result may replace.
    """

    def __init__(self, folder: Path, jobs: Iterable[Job] = ()) -> None:
        self._folder = folder
        self._probe = NameProbe(folder)
        self._jobs: dict[str, dict[str, Job]] = {}
        self._read: dict[tuple[int, int], str] = {}
        for job in jobs:
            self.add_input(job)

    def add_input(self, job: Job) -> None:
        """Let no result replace a picture that a job reads: its input, mask, style or control picture."""
        for path in job.reads:
            if (identity := _identify(path)) is not None:
                self._read[identity] = path

    def add(self, job: Job) -> str | None:
        """Give a job its result's name; return what is in its way, as text, if it cannot have it."""
        name, form = self._name(job)
        holders = self._jobs.setdefault(form, {})
        for held, holder in holders.items():
            if held == name or not self._probe.tell_apart(held, name):
                return f"{holder.input} and {job.input} -> {job.output}"
        if (source := self.find_replaced(job)) is not None:
            return f"{job.input} -> {job.output}, which is the input {source}"
        holders[name] = job
        return None

    def find_replaced(self, job: Job) -> str | None:
        """Return the picture that a job's result would replace, unless it is the job's own input with `in_place`."""
        if job.output == STDIO or (identity := _identify(job.output)) is None:
            return None
        source = self._read.get(identity)
        if source is None or _identify(source) != identity:  # the file is gone and another one has its inode
            return None
        return None if job.in_place and source == job.input else source

    def drop(self, job: Job) -> None:
        """Take a job's name back, if it is its own."""
        name, form = self._name(job)
        if self._jobs.get(form, {}).get(name) is job:
            del self._jobs[form][name]

    def _name(self, job: Job) -> tuple[str, str]:
        """Return a result's name and the form of it that file systems may take for the same."""
        name = os.path.relpath(job.output, self._folder)
        return name, unicodedata.normalize("NFC", name).casefold()


def _identify(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
