"""Luminance of more than 8 bits, as a file holds it; models see 8."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Deep: TypeAlias = NDArray[np.uint16]
TOP = 65535
OVERSHOOT = 2.0  # how far over a range's end its highlights may reach
SAMPLED = 1_000_000  # pixels that floats are judged by
STEP = TOP // 255  # from one 8-bit value to the next


def read_luminance(image: Image.Image) -> Deep:
    """16-bit, 32-bit and float luminance as 16-bit `(H, W)`.

    Raises:
        ValueError: not finite.
    """
    values = np.asarray(image)
    return scale_floats(values) if image.mode == "F" else np.asarray(values.clip(0, TOP), np.uint16)


def scale_floats(values: NDArray[Any]) -> Deep:
    """Floats in 0..1, in 0..255 or in 0..65535 as 0..65535; what is under or over is clipped.

    The range is the smallest that almost all pixels are in: a few highlights or an overshoot do not count. Whole
    numbers over 1 are in 0..255 at least.

    Raises:
        ValueError: not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are not numbers")
    sample = values.reshape(-1)[:: max(1, values.size // SAMPLED)]
    is_whole = values.max() > 1 and (sample == sample.round()).all()
    most = float(values.max()) if is_whole else float(np.quantile(sample, 0.99))
    top = 1.0 if most <= OVERSHOOT and not is_whole else 255.0 if most <= 255 * OVERSHOOT else float(TOP)
    scaled = np.empty(values.shape, np.uint16)
    for row in range(len(values)):
        scaled[row] = (values[row].astype(np.float64) / top * TOP).round().clip(0, TOP)
    return scaled


def narrow(luminance: Deep) -> Image.Image:
    """The nearest 8-bit `L`; Pillow's own conversion would clip at 255."""
    return Image.fromarray(((luminance.astype(np.uint32) + STEP // 2) // STEP).astype(np.uint8))
