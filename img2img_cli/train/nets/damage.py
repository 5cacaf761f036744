"""The damage that restoring is learnt on: noise of several kinds, JPEG, light blur, mixtures, and none."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from img2img_cli.train.bundled import degrade

MARGIN = 16  # pixels around a crop, so that the blocks of JPEG do not always begin at its corner
MOST_NOISE = 55.0  # standard deviation in grey levels


def damage(clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a damaged copy of uint8 `(H, W, 3)` pixels.

    A twelfth stays as it is; a third gets noise alone, a quarter JPEG alone, a twelfth blur alone, and the rest a
    mixture in the order in which a camera and its owner bring it about: blur, noise, JPEG.
    """
    kind = rng.random()
    if kind < 0.08:
        return clean
    if kind < 0.43:
        return add_noise(clean, rng)
    if kind < 0.70:
        return compress(clean, rng)
    if kind < 0.78:
        return blur(clean, rng)
    pixels = blur(clean, rng) if rng.random() < 0.4 else clean
    if rng.random() < 0.8:
        pixels = add_noise(pixels, rng)
    return compress(pixels, rng) if rng.random() < 0.8 else pixels


def add_noise(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add noise: independent Gaussian (half), grey, correlated over neighbours, or stronger in bright parts."""
    sigma = rng.uniform(0, MOST_NOISE)
    shape = pixels.shape
    noise = rng.standard_normal(shape, dtype=np.float32)
    values = pixels.astype(np.float32)
    kind = rng.random()
    if kind > 0.85:  # shot noise: its variance grows with the light
        noise *= np.sqrt(values / 255 * 1.6 + 0.2)
        sigma *= 0.7
    elif kind > 0.7:  # a camera's own processing: neighbours share some of it
        rough = Image.fromarray((noise * 32 + 128).clip(0, 255).astype(np.uint8))
        soft = np.asarray(rough.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.0))), np.float32) - 128
        noise = soft / max(float(soft.std()), 1e-3)
        sigma *= 0.6
    elif kind > 0.5:  # film and old sensors: the same in all channels
        noise = np.broadcast_to(noise[..., :1], shape)
    return (values + sigma * noise).round().clip(0, 255).astype(np.uint8)


def compress(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Encode as JPEG at quality 8 to 95, with full or halved chroma; in a fifth of the cases twice, on another grid."""
    pixels = encode_jpeg(pixels, rng)
    if rng.random() > 0.2:
        return pixels
    shift = int(rng.integers(8)), int(rng.integers(8))
    return np.roll(encode_jpeg(np.roll(pixels, shift, (0, 1)), rng), (-shift[0], -shift[1]), (0, 1))


def encode_jpeg(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Encode pixels as JPEG once and return what a reader sees; three in four have a quality below 60."""
    quality = int(rng.integers(8, 60) if rng.random() < 0.75 else rng.integers(60, 96))
    return np.asarray(degrade.compress(Image.fromarray(pixels), quality, int(rng.choice([0, 2, 2]))))


def blur(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur lightly, with a standard deviation of 0.3 to 1.4 pixels."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.4))))
