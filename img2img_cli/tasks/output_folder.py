"""What an output folder takes: whether it can be written to, how long names may be, which it tells apart, its room."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from img2img_cli.errors import OutputError
from img2img_cli.pictures.files.formats import EXTENSIONS
from img2img_cli.tasks.job import Job

MAX_NAME, MAX_PATH = 255, 4096  # bytes, where the system does not tell
LOSSY = ("jpeg", "webp", "avif")
# The least that a result takes of its input's bytes, in practice. A JPEG of quality 100 comes down to a half, one that
# becomes AVIF to a seventh; a scan without compression that becomes a lossy file to a fortieth.
LEAST_SHARE, LEAST_LOSSY_SHARE = 1 / 8, 1 / 64


def check_folder(folder: Path, jobs: Sequence[Job]) -> None:
    """Refuse an output folder that cannot be written to, leads elsewhere by a link, or has too little room.

    Raises:
        OutputError: naming the folder.
    """
    for path in {os.path.dirname(job.output) for job in jobs}:
        check_place(path, folder)
    for path in (job.output for job in jobs if os.path.islink(job.output)):
        check_place(path, folder)
    existing = find_existing(folder)
    if not os.path.isdir(existing):
        raise OutputError(f"{existing}: is not a folder; name another output folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{existing}: cannot be written to; check its permissions")
    try:
        free = shutil.disk_usage(existing).free
    except OSError:  # not every file system tells
        return
    least = estimate_least_bytes(jobs)
    if free < least:
        raise OutputError(
            f"{existing}: {_show_bytes(free)} are free on its disk, and the results will take {_show_bytes(least)} "
            "at the very least; make room first"
        )


def find_existing(folder: Path) -> Path:
    """The folder itself, without links, or the nearest one above it that is there."""
    root = Path(os.path.realpath(folder))
    return next(path for path in (root, *root.parents) if os.path.lexists(path))


def check_place(path: str, folder: Path) -> None:
    """Refuse a result or its folder that links lead out of the output folder.

    Raises:
        OutputError: naming it.
    """
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise OutputError(f"{path}: a link leads out of {folder}; results would land elsewhere, remove the link")


def estimate_bytes(jobs: Sequence[Job]) -> int:
    """About how many bytes the results will have: as their inputs, times the scale squared."""
    return int(sum(_estimate_one(job) for job in jobs))


def estimate_least_bytes(jobs: Sequence[Job]) -> int:
    """A number of bytes that the results that are not there yet will hardly stay below."""
    return int(sum(_estimate_one(job) * _least_share(job) for job in jobs if not os.path.lexists(job.output)))


def _estimate_one(job: Job) -> float:
    try:
        size = os.path.getsize(job.input)
    except (OSError, ValueError):
        return 0
    return size * (job.parameters.scale**2 if job.parameters.task == "upscale" else 1)


def _least_share(job: Job) -> float:
    def is_lossy(path: str) -> bool:
        return EXTENSIONS.get(os.path.splitext(path)[1].lower()) in LOSSY

    shrinks = (job.format in LOSSY or (job.format == "keep" and is_lossy(job.output))) and not is_lossy(job.input)
    return LEAST_LOSSY_SHARE if shrinks else LEAST_SHARE


def _show_bytes(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 10 << 20 else f"{count >> 10} KiB"


class NameLimits:
    """How long names below a folder may be."""

    def __init__(self, folder: Path) -> None:
        existing = str(find_existing(folder))
        self._name = _ask_limit(existing, "PC_NAME_MAX", MAX_NAME)
        self._path = _ask_limit(existing, "PC_PATH_MAX", MAX_PATH)

    def check(self, output: str, where: str) -> None:
        """Refuse a name that is too long.

        Raises:
            OutputError: naming `where`.
        """
        longest = max(len(os.fsencode(part)) for part in output.split("/"))
        if longest > self._name or len(os.fsencode(output)) >= self._path:
            limit = f"{self._name} bytes a name" if longest > self._name else f"{self._path} bytes a path"
            raise OutputError(f"{where}: its result's name is too long ({limit}); shorten it with --name or rename it")


def _ask_limit(folder: str, name: str, default: int) -> int:
    try:
        return os.pathconf(folder, name)
    except (AttributeError, OSError, ValueError):
        return default


class NameProbe:
    """Whether an output folder's file system tells names apart that differ only in case or Unicode form.

    It is asked by making two such files in a folder of their own beside the results, which is then removed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = find_existing(folder)

    def tell_apart(self, name: str, other: str) -> bool:
        """Whether two different paths below the folder are two files; no where it cannot be found out."""
        pairs = [(a, b) for a, b in zip(name.split("/"), other.split("/"), strict=False) if a != b]
        try:
            with tempfile.TemporaryDirectory(prefix=".img2img-names-", dir=self._folder) as place:
                return any(_are_two(place, *pair) for pair in pairs)
        except OSError:
            return False


def _are_two(place: str, name: str, other: str) -> bool:
    Path(place, name).touch()
    return not os.path.lexists(os.path.join(place, other))
