"""Jobs: what is to be done to one picture, planned and checked before any work."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from img2img_cli.errors import InputError, OutputError, UsageError
from img2img_cli.pictures.files.formats import EXTENSIONS, Format, Truncated
from img2img_cli.presets.schema import MAP_KINDS, Parameters
from img2img_cli.system.source_files import find_special
from img2img_cli.system.streams import STDIO

MAX_SEED = 2**32 - 1


class Job(BaseModel):
    """One picture's way from file to file. Frozen and JSON-safe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str
    output: str
    preset: str
    parameters: Parameters
    seed: int = Field(ge=0, le=MAX_SEED)
    mask: str | None = None
    style: str | None = None
    control_image: str | None = None
    format: Format = "keep"
    quality: int | None = Field(default=None, ge=1, le=100)
    force: bool = False
    in_place: bool = False
    metadata: bool = True
    truncated: Truncated = "refuse"


def choose_seed() -> int:
    """A fresh seed in the range that other tools accept too."""
    return secrets.randbelow(MAX_SEED + 1)


def telling_suffix(parameters: Parameters) -> str:
    """What is added to the input's name: `-edit`, `-colorize`, `-x2`."""
    return f"-x{parameters.scale:g}" if parameters.task == "upscale" else f"-{parameters.task}"


def check_style(parameters: Parameters, style: str | None, where: str) -> None:
    """Refuse a style picture that nobody looks at, and the lack of one.

    Raises:
        UsageError: naming `where`.
    """
    if style is not None and parameters.ip_adapter is None:
        raise UsageError(f"{where} takes no --style; use --preset sd15-style or sdxl-style")
    if style is None and parameters.ip_adapter is not None:
        raise UsageError(f"{where} takes its style from a picture; give one with --style")


def check_control(parameters: Parameters, control_image: str | None, where: str) -> None:
    """Refuse a control picture that nobody looks at, and the lack of one that cannot be made of the input.

    Raises:
        UsageError: naming `where`.
    """
    kind = parameters.control
    if control_image is not None and (parameters.task != "edit" or kind is None):
        raise UsageError(f"{where} takes no control picture; use edit with --control KIND=PICTURE")
    if control_image is None and kind in MAP_KINDS:
        raise UsageError(f"{where}: {kind} cannot be made of the picture; give the map as --control {kind}=MAP.png")


def plan_jobs(template: Job, output: str | None, *, variations: int = 1) -> list[Job]:
    """Give each variation its seed and output, and refuse what could not be written.

    Args:
        template: the job without its output.
        output: file, folder, `-` or None (beside the input).

    Raises:
        InputError, OutputError, UsageError: before anything was written.
    """
    check_input(template.input)
    if template.mask is not None:
        check_input(template.mask)
        if template.parameters.size != "original" or template.parameters.task == "upscale":
            raise UsageError("--mask keeps the picture's own pixels, so it needs --size original and no upscaling")
        if template.mask == STDIO:
            raise UsageError("--mask cannot be read from stdin; give a file")
    check_style(template.parameters, template.style, f"preset '{template.preset}'")
    check_control(template.parameters, template.control_image, f"preset '{template.preset}'")
    for option, path in (("--style", template.style), ("--control", template.control_image)):
        if path is not None:
            check_input(path)
            if path == STDIO:
                raise UsageError(f"{option} cannot be read from stdin; give a file")
    base = _name_output(template, output)
    if base == STDIO and variations > 1:
        raise UsageError("several variations cannot go to stdout; name an OUTPUT file or folder")
    outputs = [_number(base, index) for index in range(variations)] if variations > 1 else [base]
    if template.in_place and outputs != [template.input]:
        raise UsageError("--in-place makes one result in the input's own place; leave out OUTPUT and --variations")
    for path in outputs:
        try:
            _check_output(path, template)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror}); name another OUTPUT") from None
    return [
        template.model_copy(update={"output": path, "seed": (template.seed + index) % (MAX_SEED + 1)})
        for index, path in enumerate(outputs)
    ]


def check_input(name: str) -> None:
    """Refuse what is not a readable, non-empty file."""
    if name == STDIO:
        if sys.stdin.isatty():
            raise UsageError("stdin is a terminal; pipe a picture into it, as in `cat old.jpg | img2img colorize - -`")
        return
    path = Path(name)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise InputError(f"{name}: no such file; check the name") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); check the name and the folder") from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{name}: is a folder; give one picture")
    if (kind := find_special(name)) in ("a socket", "a device"):
        raise InputError(f"{name}: is {kind}; give a picture file")
    if not os.access(path, os.R_OK):
        raise InputError(f"{name}: cannot be read; check its permissions")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{name}: the file is empty; get it again from where it came")


def _name_output(job: Job, output: str | None) -> str:
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
    extension = source.suffix if job.format == "keep" else {"jpeg": ".jpg", "tiff": ".tif"}.get(job.format)
    extension = extension or f".{job.format}"
    if extension.lower() not in EXTENSIONS:
        extension = ".png"
    folder = source.parent if output is None else Path(output)
    return str(folder / f"{source.stem}{telling_suffix(job.parameters)}{extension}")


def _number(path: str, index: int) -> str:
    target = Path(path)
    return str(target.with_name(f"{target.stem}-{index + 1}{target.suffix}"))


def _check_output(path: str, job: Job) -> None:
    if path == STDIO:
        return
    target = Path(path)
    if job.format == "keep" and target.suffix.lower() not in EXTENSIONS:
        known = ", ".join(sorted(EXTENSIONS))
        raise OutputError(f"{path}: unknown picture format '{target.suffix}'; use one of {known} or --format")
    if not target.parent.is_dir():
        raise OutputError(f"{path}: the folder {target.parent} does not exist; create it first")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{path}: the folder {target.parent} cannot be written to; check its permissions")
    for read in filter(None, (job.input, job.mask, job.style, job.control_image)):
        if read != STDIO and target.exists() and target.samefile(read) and not (job.in_place and read == job.input):
            raise OutputError(f"{path}: is the input itself; name another OUTPUT, or use --in-place to replace it")
    if target.is_dir():
        raise OutputError(f"{path}: is a folder; name a file")
    if os.path.lexists(target) and not (job.force or job.in_place):
        raise OutputError(f"{path}: exists already; use --force to replace it, or name another OUTPUT")


def check_collisions(jobs: Sequence[Job]) -> None:
    """Refuse two jobs with one output, also on file systems that ignore case."""
    seen: dict[str, Job] = {}
    for job in jobs:
        key = os.path.realpath(job.output).casefold()
        if job.output != STDIO and key in seen:
            raise OutputError(f"{job.output}: two results would get this name; name the outputs apart")
        seen[key] = job
    for job in jobs:
        key = os.path.realpath(job.input).casefold()
        if job.input != STDIO and key in seen and not (job.in_place and seen[key] is job):
            if not _are_one(seen[key].output, job.input):
                continue  # they differ in case, and the file system tells them apart
            raise OutputError(f"{seen[key].output}: is also an input of this run; name another OUTPUT folder")


def _are_one(output: str, existing: str) -> bool:
    if os.path.realpath(output) == os.path.realpath(existing):
        return True
    try:
        return Path(output).samefile(existing)
    except OSError:
        return False
