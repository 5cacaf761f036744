"""Which of a command's paths are inputs, and where the results go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from img2img_cli.errors import UsageError
from img2img_cli.pictures.files.formats import EXTENSIONS
from img2img_cli.presets.schema import Task
from img2img_cli.system.streams import STDIO
from img2img_cli.tasks.inputs import GLOB_CHARACTERS, MANIFESTS, is_folder_or_glob

_STREAMS = {f"/dev/{name}": STDIO for name in ("stdin", "stdout", "fd/0", "fd/1")}


@dataclass(frozen=True)
class Paths:
    """The inputs and the output of a command.

    Attributes:
        inputs: names of files; with `many`, of folders and globs too.
        output: a file, a folder or `-`; None for names beside the inputs.
        many: whether several results are made, in the folder `output`.
    """

    inputs: tuple[str, ...]
    output: str | None
    many: bool


def split_paths(task: Task, paths: Sequence[str], output: str | None) -> Paths:
    """Return what is read and where the results go, as cp does: the last of several paths is OUTPUT.

    Args:
        paths: as they were typed, at least one.
        output: the value of `--output`; with it, all paths are inputs.

    Raises:
        UsageError: several pictures without a folder for their results, or what only `batch` takes.
    """
    names = [_STREAMS.get(path, path) for path in paths]
    given = output is not None
    output = _STREAMS.get(output, output) if output is not None else None
    if output is None and len(names) > 1:
        *names, output = names
    many = len(names) > 1 or is_folder_or_glob(names[0])
    if not many:
        return Paths((names[0],), output, many=False)
    folder_command = f"img2img {task} {' '.join(_quote(name) for name in paths[:3])}{' ...' if len(paths) > 3 else ''}"
    if output is None or (not given and not (Path(output).is_dir() or output.endswith("/"))):
        raise UsageError(f"several pictures need a folder for their results: {folder_command} -o FOLDER")
    if output == STDIO or (Path(output).suffix.lower() in EXTENSIONS and not Path(output).is_dir()):
        raise UsageError(f"several pictures cannot go into '{output}'; name a folder with -o FOLDER")
    for name in names:
        if name == STDIO or Path(name).suffix.lower() in MANIFESTS:
            what = "a list of names on stdin" if name == STDIO else "a manifest"
            raise UsageError(f"{name}: {what} is for batch: img2img batch {_quote(name)} -o FOLDER --preset {task}")
    return Paths(tuple(names), output, many=True)


def _quote(name: str) -> str:
    return f"'{name}'" if GLOB_CHARACTERS & set(name) or " " in name else name
