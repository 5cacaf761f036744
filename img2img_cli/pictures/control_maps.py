"""Compute a ControlNet's control pictures from the input, with only NumPy and Pillow."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from img2img_cli.presets.schema import MAP_KINDS, ControlKind

SOFTEDGE_GAIN = 6.0


def make_control_image(image: Image.Image, kind: ControlKind) -> Image.Image:
    """Return the RGB control picture of an RGB picture, in the same size.

    Args:
        kind: `grey` is luminance, `softedge` smooth edge strength, `canny` thin white edges on black, `picture`
            the input itself. For the `MAP_KINDS`, the input is already the map and stays unchanged.
    """
    if kind == "picture" or kind in MAP_KINDS:
        return image.convert("RGB")
    grey = image.convert("L")
    if kind == "softedge":
        grey = _soft_edges(grey)
    elif kind == "canny":
        grey = _canny_edges(grey)
    return grey.convert("RGB")


def _gradient(luminance: Image.Image, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return central differences `(d/dy, d/dx)` of the blurred luminance in 0..1, both float32 `(H, W)`."""
    values = np.asarray(luminance.filter(ImageFilter.GaussianBlur(sigma)), dtype=np.float32) / 255
    padded = np.pad(values, 1, mode="edge")
    return (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2, (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2


def _soft_edges(luminance: Image.Image) -> Image.Image:
    """Return edge strength as `L`. The gain is fixed, so that a tile has the same edges as the whole picture."""
    dy, dx = _gradient(luminance, 1.0)
    return Image.fromarray((np.tanh(SOFTEDGE_GAIN * np.hypot(dy, dx)) * 255).round().astype(np.uint8))


def _canny_edges(luminance: Image.Image, low: float = 0.04, high: float = 0.1) -> Image.Image:
    """Return Canny edges (0 or 255) as `L`: non-maximum suppression, then hysteresis between two thresholds."""
    dy, dx = _gradient(luminance, 1.4)
    strength = np.hypot(dy, dx)
    padded = np.pad(strength, 1)
    sector = np.round(np.arctan2(dy, dx) / (np.pi / 4)).astype(int) % 4
    thin = np.zeros(strength.shape, dtype=bool)
    height, width = strength.shape
    for index, (y, x) in enumerate([(0, 1), (1, 1), (1, 0), (1, -1)]):
        ahead = padded[1 + y : 1 + y + height, 1 + x : 1 + x + width]
        behind = padded[1 - y : 1 - y + height, 1 - x : 1 - x + width]
        thin |= (sector == index) & (strength >= ahead) & (strength > behind)
    candidates, edges = thin & (strength > low), thin & (strength > high)
    while True:
        around = np.pad(edges, 1)
        grown = candidates & np.logical_or.reduce(
            [around[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y in (-1, 0, 1) for x in (-1, 0, 1)]
        )
        if np.array_equal(grown, edges):
            return Image.fromarray(edges.astype(np.uint8) * 255)
        edges = grown
