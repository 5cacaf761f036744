"""Jobs: what is to be done to one picture, planned and checked before any work."""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from img2img_cli.errors import InputError, UsageError
from img2img_cli.pictures.files.formats import Format, Truncated
from img2img_cli.presets.references import is_network
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

    @property
    def reads(self) -> tuple[str, ...]:
        """The files that the job reads: its input, mask, style and control picture."""
        paths = (self.input, self.mask, self.style, self.control_image)
        return tuple(path for path in paths if path is not None and path != STDIO)


def choose_seed() -> int:
    """Return a random seed in the range that other tools accept too."""
    return secrets.randbelow(MAX_SEED + 1)


def vary_job(job: Job, outputs: Sequence[str]) -> list[Job]:
    """Return copies of a job, one for each output, with seeds in a row."""
    return [
        job.model_copy(update={"output": path, "seed": (job.seed + index) % (MAX_SEED + 1)})
        for index, path in enumerate(outputs)
    ]


def check_side_inputs(
    parameters: Parameters, where: str, *, mask: bool = False, style: bool = False, control_image: bool = False
) -> None:
    """Refuse side inputs that do not go with the parameters, and the lack of those that they need.

    Args:
        where: what the message begins with, such as "preset 'edit'".
        mask, style, control_image: whether the job has one.

    Raises:
        UsageError: naming `where`.
    """
    if mask and (parameters.size != "original" or parameters.task == "upscale"):
        what = "a mask keeps the picture's own pixels, so the result cannot have another size"
        raise UsageError(f"{where}: {what}; leave out the mask, or --size and upscaling")
    if parameters.look == "erase" and not mask:
        raise UsageError(f"{where} takes away what a mask marks; give one with --mask")
    if style and not parameters.takes_style:
        raise UsageError(f"{where} takes no --style; use --preset style, or with a prompt sd15-style or sdxl-style")
    if not style and parameters.takes_style:
        raise UsageError(f"{where} takes its style from a picture; give one with --style")
    kind = parameters.control
    if control_image and parameters.task == "colorize":
        if not is_network(parameters.model):
            raise UsageError(f"{where} takes no hints; use --preset colorize, or name the colours with --prompt")
    elif control_image and (parameters.task != "edit" or kind is None):
        raise UsageError(f"{where} takes no control picture; use edit with --control KIND=PICTURE")
    if not control_image and kind in MAP_KINDS:
        raise UsageError(f"{where}: {kind} cannot be made of the picture; give the map as --control {kind}=MAP.png")


def check_input(name: str) -> None:
    """Refuse what is not a readable, non-empty file, or stdin with a picture piped into it.

    Raises:
        InputError: naming the file.
        UsageError: stdin is a terminal.
    """
    if name == STDIO:
        if sys.stdin.isatty():
            raise UsageError("stdin is a terminal; pipe a picture into it, as in `cat old.jpg | img2img colorize - -`")
        return
    path = Path(name)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        if re.match(r"\w+://", name):
            raise InputError(f"{name}: is an address, no file; pipe it: curl -L {name} | img2img ... -") from None
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
