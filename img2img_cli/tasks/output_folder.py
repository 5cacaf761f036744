"""Check an output folder: permissions, links, free space, the length of names, and which names it distinguishes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from img2img_cli.errors import OutputError
from img2img_cli.pictures.files.formats import EXTENSIONS
from img2img_cli.tasks.job import Job

MAX_NAME, MAX_PATH = 255, 4096  # bytes, if the system does not tell its limits
LOSSY = ("jpeg", "webp", "avif")
# The smallest share of the bytes of its input that a result has in practice. A JPEG of quality 100 shrinks to 1/2, and
# to 1/7 as AVIF. An uncompressed scan shrinks to 1/40 in a lossy format.
LEAST_SHARE, LEAST_LOSSY_SHARE = 1 / 8, 1 / 64


def check_folder(folder: Path, jobs: Sequence[Job]) -> None:
    """Refuse an output folder that is not writable, from which links lead elsewhere, or that has too little space.

    Raises:
        OutputError: the folder is refused; the message names it.
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
    except OSError:  # some file systems do not tell
        return
    least = estimate_least_bytes(jobs)
    if free < least:
        raise OutputError(
            f"{existing}: {_show_bytes(free)} are free on its disk, and the results will take {_show_bytes(least)} "
            "at the very least; make room first"
        )


def find_existing(folder: Path) -> Path:
    """Return the folder with links resolved, or its nearest parent that exists."""
    root = Path(os.path.realpath(folder))
    return next(path for path in (root, *root.parents) if os.path.lexists(path))


def check_place(path: str, folder: Path) -> None:
    """Refuse a result, or its folder, if links lead out of the output folder.

    Raises:
        OutputError: a link leads out of the output folder; the message names the path.
    """
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise OutputError(f"{path}: a link leads out of {folder}; results would land elsewhere, remove the link")


def estimate_bytes(jobs: Sequence[Job]) -> int:
    """Estimate the bytes of all results: those of their inputs, times the scale squared for upscaling."""
    return int(sum(_estimate_one(job) for job in jobs))


def estimate_least_bytes(jobs: Sequence[Job]) -> int:
    """Estimate a lower bound on the bytes of the results that do not exist yet."""
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
    """The limits on the length of names and paths below a folder, in bytes."""

    def __init__(self, folder: Path) -> None:
        existing = str(find_existing(folder))
        self._name = _ask_limit(existing, "PC_NAME_MAX", MAX_NAME)
        self._path = _ask_limit(existing, "PC_PATH_MAX", MAX_PATH)

    def check(self, output: str, where: str) -> None:
        """Refuse a path that is too long, or that has a name that is too long.

        Args:
            where: the input, for the message.

        Raises:
            OutputError: the path or a name is too long.
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
    """A probe for whether the file system of an output folder distinguishes names that differ in case or Unicode form.

    It creates a file in a temporary folder next to the results, looks for it by the other name, and then removes the
    folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = find_existing(folder)

    def tell_apart(self, name: str, other: str) -> bool:
        """Return whether two different paths below the folder are two files; False if the folder is not writable."""
        pairs = [(a, b) for a, b in zip(name.split("/"), other.split("/"), strict=False) if a != b]
        try:
            with tempfile.TemporaryDirectory(prefix=".img2img-names-", dir=self._folder) as place:
                return any(_are_two(place, *pair) for pair in pairs)
        except OSError:
            return False


def _are_two(place: str, name: str, other: str) -> bool:
    Path(place, name).touch()
    return not os.path.lexists(os.path.join(place, other))
