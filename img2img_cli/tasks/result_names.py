"""Names of results: beside the input, where the command line says, or from a batch's template."""

from __future__ import annotations

import os
import re
import string
import sys
from pathlib import Path

from img2img_cli.errors import OutputError, UsageError
from img2img_cli.pictures.files.formats import EXTENSIONS, Format
from img2img_cli.presets.schema import Parameters
from img2img_cli.system.streams import STDIO
from img2img_cli.tasks.job import Job

NAME_FIELDS = ("stem", "ext", "name", "preset", "task", "seed", "index")
DEFAULT_NAME = "{stem}{ext}"
_WIDTH = re.compile(r"\d{0,2}")


def choose_extension(source: str, format_: Format) -> str:
    """Return the extension of a result: that of its format, or the input's if results can have it, or else `.png`."""
    if format_ != "keep":
        return {"jpeg": ".jpg", "tiff": ".tif"}.get(format_, f".{format_}")
    extension = os.path.splitext(source)[1]
    return extension if extension.lower() in EXTENSIONS else ".png"


def find_unknown_extension(path: str, format_: Format) -> str | None:
    """Return the extension of a result's name if it decides the format and is no format's; None if all is well."""
    extension = os.path.splitext(path)[1]
    return extension if format_ == "keep" and extension.lower() not in EXTENSIONS else None


def choose_suffix(parameters: Parameters, preset: str | None = None) -> str:
    """Return what a result's name adds to the input's: `-x2`, `-style-night`, `-edit`.

    Args:
        preset: the preset's name or file, if the user has named it.
    """
    if parameters.task == "upscale":
        return f"-x{parameters.scale:g}"
    return f"-{parameters.task if preset is None else Path(preset).stem}"


def find_other_format(path: str, format_: Format) -> str | None:
    """Return the extension of a result's name if it stands for another format than the one asked for, else None."""
    extension = os.path.splitext(path)[1]
    known = EXTENSIONS.get(extension.lower(), format_)
    return extension if format_ != "keep" and known != format_ else None


def check_suffix(suffix: str) -> None:
    """Refuse a `--suffix` that would lead into another folder.

    Raises:
        UsageError: naming it.
    """
    if any(character in suffix for character in "/\\\0"):
        raise UsageError(f"--suffix {suffix!r}: must be a part of a file's name, such as -final")


def name_output(job: Job, output: str | None, suffix: str | None = None) -> str:
    """Return the path of a single result, or `-` for stdout.

    Args:
        job: the job; its own output does not matter.
        output: a file, a folder, `-`, or None for a name beside the input.
        suffix: what the name adds to the input's; `choose_suffix` for the task if None.

    Raises:
        UsageError: `in_place` with a picture from stdin.
        OutputError: the result would go to a terminal.
    """
    if job.in_place:
        if job.input == STDIO:
            raise UsageError("--in-place needs a file, not stdin")
        return output or job.input
    if output == STDIO or (output is None and job.input == STDIO):
        if sys.stdout.isatty():
            raise OutputError("stdout is a terminal; redirect it to a file with > or name an OUTPUT")
        return STDIO
    if output is not None and not Path(output).is_dir() and not output.endswith("/"):
        return output
    source = Path("stdin.png" if job.input == STDIO else job.input)
    folder = source.parent if output is None else Path(output)
    added = choose_suffix(job.parameters) if suffix is None else suffix
    return str(folder / f"{source.stem}{added}{choose_extension(source.name, job.format)}")


def number_name(path: str, index: int) -> str:
    """Return the path of a variation: `a-1.png` for index 0 of `a.png`."""
    target = Path(path)
    return str(target.with_name(f"{target.stem}-{index + 1}{target.suffix}"))


def check_template(template: str) -> None:
    """Refuse a `--name` with unknown fields or formats.

    Raises:
        UsageError: naming the field.
    """
    try:
        parts = string.Formatter().parse(template)
        fields = [(name, "!" if change else width) for _, name, width, change in parts if name is not None]
    except ValueError as error:
        raise UsageError(f"--name {template}: {error}; use braces in pairs, such as {DEFAULT_NAME}") from None
    for name, width in fields:
        if name not in NAME_FIELDS:
            raise UsageError(f"--name {template}: unknown field {{{name}}}; use one of {', '.join(NAME_FIELDS)}")
        if not _WIDTH.fullmatch(width or ""):
            raise UsageError(f"--name {template}: after the colon comes a width alone, such as {{index:04}}")


def fill_template(
    template: str, relative: str, format_: Format, *, preset: str, parameters: Parameters, seed: int, index: int
) -> str:
    """Return the path of a batch's result below the output folder.

    Args:
        template: a `--name` that `check_template` accepts.
        relative: the path of the result with the input's name.
        preset: the preset's name or file.
        index: the input's place among all, from 0.
    """
    name = os.path.basename(relative)
    filled = template.format(
        stem=os.path.splitext(name)[0],
        ext=choose_extension(name, format_),
        name=name,
        preset=Path(preset).stem,
        task=parameters.task,
        seed=seed,
        index=index + 1,
    )
    return os.path.join(os.path.dirname(relative), filled)
