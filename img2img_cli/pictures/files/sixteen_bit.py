"""Read luminance of more than 8 bits, and reduce it to the 8 bits that models take."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Deep: TypeAlias = NDArray[np.uint16]
TOP = 65535
OVERSHOOT = 2.0  # highlights may exceed the end of a range by this factor
SAMPLED = 1_000_000  # pixels examined to find the range of floats
STEP = TOP // 255  # 16-bit distance between neighbouring 8-bit values


def read_luminance(image: Image.Image) -> Deep:
    """Return the luminance of an image in a mode I or F as 16-bit `(H, W)`. Integers are clipped, floats scaled.

    Raises:
        ValueError: a pixel is not finite.
    """
    values = np.asarray(image)
    return scale_floats(values) if image.mode == "F" else np.asarray(values.clip(0, TOP), np.uint16)


def scale_floats(values: NDArray[Any]) -> Deep:
    """Scale floats from 0..1, 0..255 or 0..65535 to 0..65535 and clip the rest.

    The range is the smallest that holds almost all pixels; a few highlights or a slight overshoot do not count. Whole
    numbers, if any is over 1, have at least the range 0..255.

    Raises:
        ValueError: a value is not finite.
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
    """Round 16-bit luminance `(H, W)` to 8-bit `L`. Pillow's own conversion would clip at 255."""
    return Image.fromarray(((luminance.astype(np.uint32) + STEP // 2) // STEP).astype(np.uint8))
