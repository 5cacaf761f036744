"""Convert sRGB to CIE L*a*b* (D65) and back, without changing lightness, on NumPy arrays.

Formulas: IEC 61966-2-1 (sRGB) and CIE 15:2004.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    dtype=np.float32,
)
_WHITE = _RGB_TO_XYZ.sum(axis=1)
_XYZ_TO_RGB = np.linalg.inv(_RGB_TO_XYZ).astype(np.float32)
_EPSILON, _KAPPA = np.float32(216 / 24389), np.float32(24389 / 27)
_SEARCH_STEPS = 10


@functools.cache
def _linear_table(top: int) -> Array:
    codes = np.arange(top + 1, dtype=np.float64) / top
    return np.where(codes <= 0.04045, codes / 12.92, ((codes + 0.055) / 1.055) ** 2.4).astype(np.float32)


_LINEAR = _linear_table(255)


def rgb_to_lab(rgb: NDArray[np.uint8]) -> Array:
    """Convert 8-bit sRGB `(..., 3)` to float32 L*a*b*: L* in 0..100, a* and b* in about -110..110."""
    f = _compress(_LINEAR[rgb] @ (_RGB_TO_XYZ / _WHITE[:, None]).T)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def rgb_to_lightness(rgb: NDArray[np.uint8]) -> Array:
    """Convert 8-bit sRGB `(..., 3)` to float32 L* `(...)` in 0..100."""
    return _to_lightness(_LINEAR[rgb] @ (_RGB_TO_XYZ[1] / _WHITE[1]))


def grey_to_lightness(grey: NDArray[np.uint16]) -> Array:
    """Convert 16-bit grey `(...)` in sRGB's encoding to float32 L* in 0..100."""
    return _to_lightness(_linear_table(65535)[grey])


def _to_lightness(relative: Array) -> Array:
    lightness: Array = 116 * _compress(relative) - 16
    return lightness


def _compress(relative: Array) -> Array:
    """Apply CIE's f: a cube root that is linear near zero."""
    return np.where(relative > _EPSILON, np.cbrt(relative), (_KAPPA * relative + 16) / 116)


def _lab_to_linear(lab: Array) -> Array:
    """Return linear light `(..., 3)`, stored plane by plane, on which NumPy is several times faster."""
    fy = (lab[..., 0] + 16) * np.float32(1 / 116)
    planes = []
    for f in (fy + lab[..., 1] * np.float32(1 / 500), fy, fy - lab[..., 2] * np.float32(1 / 200)):
        cubed = f * f * f
        dark = cubed <= _EPSILON
        cubed[dark] = (116 * f[dark] - 16) / _KAPPA
        planes.append(cubed)
    linear = np.empty((3, *fy.shape), np.float32)
    for channel, weights in zip(linear, _XYZ_TO_RGB * _WHITE, strict=True):
        np.multiply(planes[0], weights[0], out=channel)
        for plane, weight in zip(planes[1:], weights[1:], strict=True):
            channel += plane * weight
    return np.moveaxis(linear, 0, -1)


def _is_within(linear: Array, slack: float) -> NDArray[np.bool_]:
    """Return where all three channels are in 0..1, give or take `slack`. Faster than `all` over such a short axis."""
    inside = (linear >= -slack) & (linear <= 1 + slack)
    found: NDArray[np.bool_] = inside[..., 0] & inside[..., 1] & inside[..., 2]
    return found


def lab_to_rgb(lab: Array) -> NDArray[np.uint8]:
    """Convert L*a*b* `(..., 3)` to 8-bit sRGB. A colour outside sRGB loses chroma, not lightness, until it fits."""
    return np.ascontiguousarray((_lab_to_encoded(lab, 1e-4) * 255).round().astype(np.uint8))


def lab_to_deep_rgb(lab: Array) -> NDArray[np.uint16]:
    """Convert L*a*b* `(..., 3)` to 16-bit sRGB, like `lab_to_rgb`."""
    return np.ascontiguousarray((_lab_to_encoded(lab, 3e-6) * 65535).round().astype(np.uint16))


def _lab_to_encoded(lab: Array, slack: float) -> Array:
    """Return sRGB in 0..1. Reduce the chroma of colours that are outside by more than `slack` in linear light."""
    linear = _lab_to_linear(lab)
    outside = ~_is_within(linear, slack)
    if outside.any():
        linear[outside] = _lab_to_linear(_reduce_chroma(lab[outside]))
    linear = linear.clip(0, 1)
    encoded: Array = np.power(linear, np.float32(1 / 2.4))
    encoded *= np.float32(1.055)
    encoded -= np.float32(0.055)
    dark = linear <= 0.0031308
    encoded[dark] = linear[dark] * np.float32(12.92)
    return encoded


def _reduce_chroma(lab: Array) -> Array:
    """Scale the chroma of each row of `(N, 3)` by the largest factor in 0..1, found by bisection, that fits sRGB."""
    low, high = np.zeros(len(lab), np.float32), np.ones(len(lab), np.float32)
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) * np.float32(0.5)
        linear = _lab_to_linear(_scale_chroma(lab, middle))
        fits = _is_within(linear, 0.0)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return _scale_chroma(lab, low)


def _scale_chroma(lab: Array, factor: Array) -> Array:
    return np.stack([lab[:, 0], lab[:, 1] * factor, lab[:, 2] * factor]).T
