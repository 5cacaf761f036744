"""The plan of a watch, updated as files are added, changed and removed. Only the differences are planned again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from img2img_cli.errors import NothingMatchedError
from img2img_cli.tasks.claims import Claims, collide
from img2img_cli.tasks.inputs import Item
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.output_folder import check_folder
from img2img_cli.tasks.plan import BatchChoices, Planned, Planner, Refused, plan_batch

SETTLE_S = 0.5
Key = tuple[str, str | None]
Stamp = tuple[int, ...] | None


class LivePlan:
    """The plan of a watch.

    Args:
        find: lists the current inputs.

    Attributes:
        is_unsettled: whether the last update left out files that were still changing.
    """

    def __init__(self, find: Callable[[], list[Item]], choices: BatchChoices) -> None:
        self._find, self._choices = find, choices
        self._again: set[tuple[str, str | None]] = set()
        self._items: dict[Key, Item]
        self._stamps: dict[Key, Stamp]
        self._planned: dict[Key, Planned]
        self.is_unsettled = False
        self._plan_all([])

    @property
    def planned(self) -> list[Planned]:
        """A job or a refusal for each current input, in the order of the inputs."""
        return list(self._planned.values())

    def start(self) -> list[Planned]:
        """Plan all inputs and return the plan.

        Raises:
            Img2ImgError: as `plan_batch` and `find_items` raise it.
        """
        self._plan_all(self._find())
        return self.planned

    def try_again(self, jobs: Iterable[Planned]) -> None:
        """Have the next update return these jobs even if nothing changes.

        Use this for jobs that were skipped, or that failed for a reason outside their files.
        """
        self._again = {(job.input, job.output) for job in jobs}

    def update(self) -> list[Planned]:
        """Update the plan; return the jobs that are new, have changed or are to be tried again.

        Files whose size or time is still changing are left for the next update (see `is_unsettled`). If an error is
        raised, the plan does not change.

        Raises:
            Img2ImgError: a manifest, a preset, an option or the output folder is now invalid.
        """
        items, stamps = self._look()
        names_change = "{index" in self._choices.name and list(items) != list(self._items)
        if names_change or self._stamp_presets(items.values()) != self._presets:
            self._plan_all(list(items.values()), stamps)
            return self.planned
        gone = [key for key in self._items if key not in items]
        is_free = bool(gone)  # a removed input may free an output name that another input needs
        look, planned = [], dict[Key, Planned]()
        for index, (key, item) in enumerate(items.items()):
            old = self._planned.get(key)
            is_same = old is not None and self._items[key] == item and not (is_free and isinstance(old, Refused))
            planned[key] = old if old is not None and is_same else self._planner.plan(item, index)
            if not is_same or stamps[key] != self._stamps[key] or (item.path, planned[key].output) in self._again:
                look.append(key)
        fresh = [key for key in look if planned[key] is not self._planned.get(key)]
        check_folder(self._choices.folder, [job for key in fresh if isinstance(job := planned[key], Job)])
        for key in (*gone, *fresh):
            before = self._planned.get(key)
            if isinstance(before, Job):
                self._claims.drop(before)
        for key in look:
            job = planned[key]
            if isinstance(job, Job):
                self._claims.add_input(job)
        for key in fresh:
            planned[key] = self._claim(planned[key])
        self._items, self._stamps, self._planned = items, stamps, planned
        return [planned[key] for key in look]

    def _claim(self, job: Planned) -> Planned:
        """Claim the output of a job; return the job, or a refusal if another job has claimed the same file."""
        if isinstance(job, Refused):
            return job
        if (pair := self._claims.add(job)) is None:
            return job
        return Refused(input=job.input, output=job.output, preset=job.preset, error=collide(pair))

    def _plan_all(self, items: Sequence[Item], stamps: dict[Key, Stamp] | None = None) -> None:
        jobs = plan_batch(items, self._choices) if items else []
        self._planner = Planner(self._choices)
        self._claims = Claims(self._choices.folder, [job for job in jobs if isinstance(job, Job)])
        self._items = {item.key: item for item in items}
        self._stamps = stamps or {key: _stamp_item(item) for key, item in self._items.items()}
        self._presets = self._stamp_presets(items)
        self._planned = dict(zip(self._items, jobs, strict=True))
        for job in jobs:
            self._claim(job)

    def _look(self) -> tuple[dict[Key, Item], dict[Key, Stamp]]:
        """Return the current inputs and their stamps, without the changes of files that are still being written."""
        try:
            found = self._find()
        except NothingMatchedError:
            found = []
        items = {item.key: item for item in found}
        stamps = {key: _stamp_item(item) for key, item in items.items()}
        changed = [key for key, stamp in stamps.items() if self._stamps.get(key) != stamp]
        if changed:
            time.sleep(SETTLE_S)
        moving = {key for key in changed if _stamp_item(items[key]) != stamps[key]}
        self.is_unsettled = bool(moving)
        for key in moving:
            if key in self._items:  # keep its last known state
                items[key], stamps[key] = self._items[key], self._stamps[key]
            else:
                del items[key], stamps[key]
        return items, stamps

    def _stamp_presets(self, items: Iterable[Item]) -> dict[str, Stamp]:
        """Return the stamps of the preset and style files that jobs share."""
        names = {self._choices.preset, self._choices.style, *(item.preset for item in items)}
        return {name: _stamp(name) for name in names if name and Path(name).is_file()}


def _stamp_item(item: Item) -> Stamp:
    """Return the stamps of all pictures of an item, joined into one tuple; -1 stands for a missing file."""
    paths = (item.path, item.mask, item.style, item.control_image)
    return tuple(part for path in paths if path for part in (_stamp(path) or (-1,)))


def _stamp(path: str) -> Stamp:
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
