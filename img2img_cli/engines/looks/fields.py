"""What the painted and drawn looks share: blurs, the flow of a picture's edges, strokes along it, and paper."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from img2img_cli.pictures.keep import box_mean

Array = NDArray[np.floating[Any]]


def to_array(picture: Image.Image) -> Array:
    """Return an 8-bit picture as float32 in 0..1, `(H, W)` or `(H, W, 3)`."""
    return np.asarray(picture, np.float32) / 255


def to_picture(values: Array) -> Image.Image:
    """Return float32 `(H, W)` or `(H, W, 3)` as an 8-bit picture; what is outside 0..1 is cut off."""
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def luminance(picture: Image.Image) -> Array:
    """Return the luma of an RGB picture, float32 `(H, W)` in 0..1."""
    return to_array(picture.convert("L"))


def blur(values: Array, sigma: float) -> Array:
    """Return float32 `(H, W)` or `(H, W, C)` under a Gaussian of deviation `sigma` pixels, by three box filters."""
    if values.ndim == 3:
        return np.stack([blur(values[..., channel], sigma) for channel in range(values.shape[2])], -1)
    for radius in _box_radii(sigma):
        values = box_mean(values, radius) if radius else values
    return values


def _box_radii(sigma: float) -> list[int]:
    """Return the radii of three boxes whose variances add up to that of the Gaussian, as nearly as whole pixels can."""
    wanted, radii = 12 * sigma**2, []
    for left in (3, 2, 1):
        radius = max(0, round((np.sqrt(wanted / left + 1) - 1) / 2))
        radii.append(radius)
        wanted = max(0.0, wanted - ((2 * radius + 1) ** 2 - 1))
    return radii


def measure_flow(grey: Array, sigma: float) -> tuple[Array, Array, Array]:
    """Return the direction along edges and how clear it is: x, y of unit vectors and 0..1, float32 `(H, W)` each.

    The direction is that of the smaller eigenvalue of the smoothed structure tensor (Brox et al. 2006).

    Args:
        grey: `(H, W)` in 0..1.
        sigma: deviation of the smoothing in pixels.
    """
    dy, dx = np.gradient(grey)
    squares: Array = np.stack([dx * dx, dy * dy, dx * dy], -1).astype(np.float32)
    xx, yy, xy = np.moveaxis(blur(squares, sigma), -1, 0)
    root = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    angle = 0.5 * np.arctan2(2 * xy, xx - yy) + np.float32(np.pi / 2)
    return np.cos(angle), np.sin(angle), root / (xx + yy + 1e-6)


def draw_along(values: Array, flow_x: Array, flow_y: Array, length: float, steps: int = 6) -> Array:
    """Return the mean of values along the flow, both ways: a line integral convolution (Cabral and Leedom 1993).

    Args:
        values: `(H, W)` or `(H, W, C)`.
        length: of a stroke to each side, in pixels.
        steps: samples to each side.
    """
    height, width = values.shape[:2]
    flat = values.reshape(height * width, -1)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    total, stride = flat.astype(np.float32), np.float32(length / steps)
    for sign in (1.0, -1.0):
        x, y, toward_x, toward_y = columns, rows, sign * flow_x, sign * flow_y
        for _ in range(steps):
            x, y = x + stride * toward_x, y + stride * toward_y
            at = y.round().clip(0, height - 1).astype(np.int32) * width + x.round().clip(0, width - 1).astype(np.int32)
            total = total + flat[at.ravel()]
            next_x, next_y = flow_x.ravel()[at], flow_y.ravel()[at]
            back = np.where(next_x * toward_x + next_y * toward_y < 0, np.float32(-1), np.float32(1))
            toward_x, toward_y = next_x * back, next_y * back
    mean: Array = (total / (2 * steps + 1)).reshape(values.shape)
    return mean


def flatten(picture: Array, radius: int, sharpness: float = 8.0) -> Array:
    """Return a picture with flat patches and kept edges: the Kuwahara filter with soft choice (Papari et al. 2007).

    Args:
        picture: `(H, W, 3)` in 0..1.
        radius: of a patch in pixels.
        sharpness: how much the least varied of the four squares at a pixel outweighs the others.
    """
    height, width = picture.shape[:2]
    grey, shift = picture.mean(2), max(1, radius // 2)
    variance = np.maximum(box_mean(grey * grey, shift) - box_mean(grey, shift) ** 2, 0)
    spread = np.pad(variance**0.5, shift, mode="edge")
    means = np.stack([np.pad(box_mean(picture[..., channel], shift), shift, mode="edge") for channel in range(3)], -1)
    total, weights = np.zeros_like(picture), np.zeros((height, width, 1), np.float32)
    for y in (0, 2 * shift):
        for x in (0, 2 * shift):
            weight = (1 / (0.01 + spread[y : y + height, x : x + width, None])) ** sharpness
            total += weight * means[y : y + height, x : x + width]
            weights += weight
    return (total / weights).astype(np.float32)


def draw_ink(
    grey: Array, sigma: float, *, sharpness: float = 18.0, threshold: float = 0.62, steep: float = 10.0
) -> Array:
    """Return lines and solid shadows, 0 is ink and 1 paper: the extended difference of Gaussians (Winnemoeller 2012).

    Args:
        grey: `(H, W)` in 0..1.
        sigma: of the finer Gaussian in pixels; the coarser one is 1.6 times as wide.
    """
    fine, coarse = blur(grey, sigma), blur(grey, 1.6 * sigma)
    sharp = (1 + sharpness) * fine - sharpness * coarse
    return np.where(sharp >= threshold, np.float32(1), 1 + np.tanh(steep * (sharp - threshold)))


def make_paper(size: tuple[int, int], scale: float, rng: np.random.Generator) -> Array:
    """Return the grain of paper, of mean 0 and deviation 1: noise in three octaves, float32 `(H, W)`.

    Args:
        size: height and width.
        scale: size of the finest grain in pixels.
    """
    total = np.zeros(size, np.float32)
    for octave, weight in enumerate((1.0, 0.7, 0.5)):
        step = max(1.0, scale * 2**octave)
        small = rng.standard_normal([max(2, round(side / step)) for side in size], np.float32)
        total += weight * np.asarray(Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC))
    grain: Array = (total - total.mean()) / (total.std() + 1e-6)
    return grain


def saturate(picture: Array, factor: float) -> Array:
    """Return a picture `(H, W, 3)` with its distance from its own luma times a factor."""
    grey = (picture @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    saturated: Array = grey + factor * (picture - grey)
    return saturated
