"""Pictures that are given beside the input: a mask, a style, a control picture."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from img2img_cli.errors import InputError
from img2img_cli.pictures.masks import read_mask
from img2img_cli.pictures.read import Picture, load_image
from img2img_cli.tasks.job import Job

CONTROL_TOLERANCE = 0.02  # of aspect ratios, for what rounding to whole pixels does


@dataclass(frozen=True, kw_only=True)
class Guides:
    """The pictures beside the input that a job is given.

    Attributes:
        mask: `L` of the picture's size, for models that repaint.
        style: RGB of any size, for an IP-Adapter.
        control: RGB of the picture's size, for a ControlNet to look at instead.
        notes: what to tell of how they were read, a sentence each.
    """

    mask: Image.Image | None = None
    style: Image.Image | None = None
    control: Image.Image | None = None
    notes: tuple[str, ...] = ()


def load_guides(job: Job, size: tuple[int, int]) -> Guides:
    """A job's guides for a picture of this size.

    Raises:
        InputError: not readable, or not of the picture's size or shape.
    """
    mask, notes = load_mask(job.mask, size) if job.mask else (None, ())
    return Guides(
        mask=mask,
        style=load_style(job.style) if job.style else None,
        control=_load_control(job.control_image, size) if job.control_image else None,
        notes=notes,
    )


def _load_control(name: str, size: tuple[int, int]) -> Image.Image:
    image = load_image(name).rgb
    if abs(image.width * size[1] / (image.height * size[0]) - 1) > CONTROL_TOLERANCE:
        raise InputError(
            f"{name}: the control picture is {image.width} x {image.height}, the picture {size[0]} x {size[1]}; "
            "crop it to the same shape"
        )
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def load_style(name: str) -> Image.Image:
    """A style picture as RGB; the same object while the file stays, as jobs that share one share batches.

    Raises:
        InputError: not a picture that can be read.
    """
    path = Path(name)
    if not path.is_file():
        return load_image(name).rgb  # a pipe says nothing of whether it holds the same again
    return _read_style(name, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read_style(name: str, changed: int) -> Image.Image:
    return load_image(name).rgb


def load_mask(name: str, size: tuple[int, int]) -> tuple[Image.Image, tuple[str, ...]]:
    """A mask as 8-bit `L`, white where to repaint, and what to tell of how it was read.

    Raises:
        InputError: its size is not `size`, or it marks nothing.
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
