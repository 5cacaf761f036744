"""Interpret masks in the forms that tools write (grey levels, labels, palette colours or alpha), and apply them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from img2img_cli.errors import InputError
from img2img_cli.pictures.files.sixteen_bit import STEP, narrow
from img2img_cli.pictures.read import Picture

Levels = NDArray[np.uint8] | NDArray[np.uint16]
WHITE = 255
BETWEEN = (32, 223)  # intermediate levels; a note says so if they are read as black or white
FAINTEST = 16  # level from which on a mask marks what to erase: the black of scans and videos is not 0
DARK = 64  # a mask with only darker pixels repaints hardly anything


def harden_mask(mask: Image.Image) -> Image.Image:
    """Return an 8-bit mask that is white wherever it is not nearly black, because nobody wants half a thing erased."""
    return mask.point([WHITE * (level >= FAINTEST) for level in range(256)])


def read_mask(picture: Picture) -> tuple[Image.Image, str | None]:
    """Return a mask as 8-bit `L`, white where to repaint, and a note if the mask is ambiguous, else None.

    - Any two values are black and white: 0 and 1, two colours of a palette, two 16-bit levels.
    - With more values, luminance is the share of repainting.
    - Transparent pixels are black. If all visible pixels have one colour, the alpha is the mask.

    Raises:
        InputError: its colours are equally bright, or its labels are too dark for a mask.
    """
    levels, note = _take_levels(picture)
    low, high = int(levels.min()), int(levels.max())
    if high == 0:
        return Image.new("L", picture.size), None
    if low == high:
        _check_colours(picture)
        plain = None if high == np.iinfo(levels.dtype).max else "is of one grey; all of the picture is repainted"
        return Image.new("L", picture.size, WHITE), note or plain
    step = 1 if levels.dtype == np.uint8 else STEP
    white = levels == high
    if (white | (levels == low)).all():
        if any(BETWEEN[0] <= value / step <= BETWEEN[1] for value in (low, high)):
            note = note or f"its two values {low} and {high} are read as black and white"
        return Image.fromarray(white.astype(np.uint8) * WHITE), note
    mask = Image.fromarray(levels) if levels.dtype == np.uint8 else narrow(levels.astype(np.uint16))
    brightest = int(np.asarray(mask).max())
    if brightest == 0:
        raise InputError(
            f"{picture.name}: the mask's brightest value is {high} of 65535, so nothing would be repainted; "
            "if these are labels, make the part to change white and the rest black"
        )
    if brightest < DARK:
        note = note or (
            f"its brightest value is {brightest} of 255, so hardly anything is repainted; "
            "if these are labels, make the part to change white and the rest black"
        )
    elif not picture.grey and picture.alpha is None and _has_colours(picture.rgb):
        note = note or "has several colours, whose brightness is taken for the mask"
    return mask, note


def _take_levels(picture: Picture) -> tuple[Levels, str | None]:
    """Return the levels `(H, W)` of a mask, and a note: alpha of a plain colour, or else luminance over black."""
    if picture.alpha is not None:
        alpha = np.asarray(picture.alpha)
        visible = np.asarray(picture.rgb)[alpha > 0]
        if len(visible) and (visible == visible[0]).all() and alpha.min() < alpha.max():
            is_white = int(visible[0].min()) > BETWEEN[1]
            return alpha, None if is_white else (
                "is of one colour, so what is opaque is repainted; invert its alpha if the rest was meant"
            )
        black = Image.new("L", picture.size)
        return np.asarray(Image.composite(picture.rgb.convert("L"), black, picture.alpha)), None
    return np.asarray(picture.rgb.convert("L")) if picture.luminance is None else picture.luminance, None


def _check_colours(picture: Picture) -> None:
    """Refuse a mask without alpha whose colours differ. Its brightness is known to be the same everywhere.

    Raises:
        InputError: there are several colours; the message names the file.
    """
    colours = picture.rgb.getcolors(1) if picture.alpha is None else []
    if colours is None:
        raise InputError(
            f"{picture.name}: the mask's colours are equally bright; make the part to change white, the rest black"
        )


def _has_colours(image: Image.Image) -> bool:
    """Return whether an RGB picture has colours, ignoring the faint ones that JPEG adds to grey."""
    pixels = np.asarray(image)
    return bool((pixels.max(axis=2) - pixels.min(axis=2)).max() >= BETWEEN[0])


def feather_mask(mask: Image.Image, pixels: float) -> Image.Image:
    """Fade a mask (`L`) in from its border inwards over about `pixels`; black pixels stay black."""
    if pixels <= 0:
        return mask
    soft = mask.filter(ImageFilter.GaussianBlur(pixels / 2))
    inner = soft.point([max(0, min(255, round((v - 127.5) * 2))) for v in range(256)])
    # A region thinner than the feather would fade out entirely; the floor keeps it visible.
    return ImageChops.darker(ImageChops.lighter(inner, mask.point([v // 4 for v in range(256)])), mask)


def paste_masked(result: Image.Image, original: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the result where the mask is white and exactly the original where it is black."""
    return Image.composite(result, original, mask)
