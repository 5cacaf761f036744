"""Degrade good pictures into model inputs: low resolution, damage or other colours."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter


def shrink_and_enlarge(picture: Image.Image, factor: float) -> Image.Image:
    """Shrink a picture by `factor` and enlarge it again with bicubic interpolation, as `upscale` enlarges its input."""
    small = max(1, round(picture.width / factor)), max(1, round(picture.height / factor))
    return picture.resize(small, Image.Resampling.BICUBIC).resize(picture.size, Image.Resampling.BICUBIC)


def add_noise(picture: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    """Add Gaussian noise with a standard deviation of `sigma` grey levels to an 8-bit RGB picture."""
    noisy = np.asarray(picture, dtype=np.float32) + rng.normal(0, sigma, (*picture.size[::-1], 3))
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def compress(picture: Image.Image, quality: int, subsampling: int = -1) -> Image.Image:
    """Encode a picture as JPEG and decode it again.

    Args:
        subsampling: of the chroma, as Pillow numbers it; -1 is the encoder's choice.
    """
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return Image.open(buffer).convert("RGB")


def make_low_resolution(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Make the control picture of `upscale`: reduced x2 to x4, at times with a little noise or JPEG artefacts."""
    small = shrink_and_enlarge(picture, rng.choice([2.0, 2.0, 3.0, 4.0, 4.0]))
    if rng.random() < 0.25:
        small = add_noise(small, rng.uniform(1, 6), rng)
    return compress(small, int(rng.integers(60, 95))) if rng.random() < 0.25 else small


def make_damaged(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Make the control picture of `restore`: with noise, blur or JPEG artefacts, at times combined."""
    kinds = rng.random(3) < 0.45
    if not kinds.any():
        kinds[rng.integers(3)] = True
    if kinds[0]:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 2.0)))
    if kinds[1]:
        picture = add_noise(picture, rng.uniform(5, 35), rng)
    return compress(picture, int(rng.integers(8, 50))) if kinds[2] else picture


def recolour(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotate the hues of a picture by a random angle, to make the control picture of an edit that names colours."""
    hue, saturation, value = picture.convert("HSV").split()
    turn = int(rng.integers(24, 232))
    return Image.merge("HSV", (hue.point([(v + turn) % 256 for v in range(256)]), saturation, value)).convert("RGB")
