"""Luminance of more than 8 bits, as a file holds it; models see 8."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Deep: TypeAlias = NDArray[np.uint16]
TOP = 65535
STEP = TOP // 255  # from one 8-bit value to the next


def read_luminance(image: Image.Image) -> Deep:
    """16-bit, 32-bit and float luminance as 16-bit `(H, W)`.

    Floats in 0..1, 0..255 and beyond are told apart by the largest.

    Raises:
        ValueError: not finite.
    """
    values = np.asarray(image)
    if image.mode != "F":
        return np.asarray(values.clip(0, TOP), np.uint16)
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are not numbers")
    top = 1.0 if values.max() <= 1 else 255.0 if values.max() <= 255 else float(TOP)
    return np.asarray((values / top * TOP).round().clip(0, TOP), np.uint16)


def narrow(luminance: Deep) -> Image.Image:
    """The nearest 8-bit `L`; Pillow's own conversion would clip at 255."""
    return Image.fromarray(((luminance.astype(np.uint32) + STEP // 2) // STEP).astype(np.uint8))
