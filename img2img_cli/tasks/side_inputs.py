"""Load the side inputs of a job: mask, style, control picture or colour hints."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from img2img_cli.errors import InputError
from img2img_cli.pictures.hints import read_hints
from img2img_cli.pictures.masks import harden_mask, read_mask
from img2img_cli.pictures.read import Picture, load_image
from img2img_cli.tasks.job import Job

CONTROL_TOLERANCE = 0.02  # relative difference of aspect ratios, to allow for rounding to whole pixels


@dataclass(frozen=True, kw_only=True)
class SideInputs:
    """The side inputs of a job.

    Attributes:
        mask: `L` of the size of the input, white where to repaint.
        style: RGB of any size, whose style to take.
        control: RGB of the size of the input, which the ControlNet uses in place of the input.
        hints: RGBA in the shape of the input, opaque where a colour is given to `colorize`.
        notes: messages for the user about how the side inputs were read.
    """

    mask: Image.Image | None = None
    style: Image.Image | None = None
    control: Image.Image | None = None
    hints: Image.Image | None = None
    notes: tuple[str, ...] = ()


def load_side_inputs(job: Job, picture: Picture) -> SideInputs:
    """Load the side inputs of a job.

    Args:
        picture: the job's input.

    Raises:
        InputError: a picture cannot be read, a mask differs in size from the input or marks nothing, hints give no
            colour, or the aspect ratio of a control picture or hints differs from that of the input by more than 2 %.
    """
    size = picture.size
    mask, notes = load_mask(job.mask, size) if job.mask else (None, ())
    if mask is not None and job.parameters.look == "erase":
        mask = harden_mask(mask)
    control = hints = None
    if job.control_image and job.parameters.task == "colorize":
        given = load_image(job.control_image)
        _check_shape(given.size, size, job.control_image, "hints are")
        hints = read_hints(given, picture.rgb)
    elif job.control_image:
        control = _resize(load_image(job.control_image).rgb, size, job.control_image, "control picture is")
    style = load_style(job.style) if job.style else None
    return SideInputs(mask=mask, style=style, control=control, hints=hints, notes=notes)


def _resize(image: Image.Image, size: tuple[int, int], name: str, what: str) -> Image.Image:
    """Return a side input in the size of the input, if it has its shape."""
    _check_shape(image.size, size, name, what)
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def _check_shape(own: tuple[int, int], size: tuple[int, int], name: str, what: str) -> None:
    if abs(own[0] * size[1] / (own[1] * size[0]) - 1) > CONTROL_TOLERANCE:
        raise InputError(
            f"{name}: the {what} {own[0]} x {own[1]}, the picture {size[0]} x {size[1]}; crop it to the same shape"
        )


def load_style(name: str) -> Image.Image:
    """Load a style picture as RGB.

    While the file does not change, this returns the same object, because jobs with the same object share batches.

    Raises:
        InputError: the picture cannot be read.
    """
    path = Path(name)
    if not path.is_file():
        return load_image(name).rgb  # do not cache a pipe, whose content can differ each time
    return _read_style(name, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read_style(name: str, changed: int) -> Image.Image:
    return load_image(name).rgb


def load_mask(name: str, size: tuple[int, int]) -> tuple[Image.Image, tuple[str, ...]]:
    """Load a mask.

    Args:
        size: width and height that the mask must have.

    Returns:
        8-bit `L`, white where to repaint, and messages for the user about how it was read.

    Raises:
        InputError: the mask cannot be read, has another size, or marks nothing.
    """
    return check_mask(load_image(name), size)


def check_mask(picture: Picture, size: tuple[int, int]) -> tuple[Image.Image, tuple[str, ...]]:
    """A decoded mask as `load_mask` returns it.

    Raises:
        InputError: its size is not `size`, or it marks nothing.
    """
    name = picture.name
    if picture.size != size:
        width, height = picture.size
        raise InputError(
            f"{name}: the mask is {width} x {height}, the picture {size[0]} x {size[1]}; make them the same"
        )
    mask, note = read_mask(picture)
    if mask.getextrema()[1] == 0:
        raise InputError(
            f"{name}: the mask is all black, so nothing would be repainted; paint the part to change white"
        )
    return mask, (f"{name}: {note}",) if note else ()
