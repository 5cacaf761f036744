"""Metrics of pictures: error, detail, colour and structure."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from img2img_cli.pictures.lab import rgb_to_lab


def measure_psnr(result: Image.Image, truth: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two 8-bit RGB pictures of equal size, in dB."""
    error = np.mean((np.asarray(result, np.float64) - np.asarray(truth, np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(float(error), 1e-9)))


def measure_ssim(result: Image.Image, truth: Image.Image) -> float:
    """Return the structural similarity of two 8-bit RGB pictures of equal size, in -1..1, over windows of 7 x 7 pixels.

    Wang et al. 2004, with a flat window; the mean over the channels. Sides must have at least 7 pixels.
    """
    first, second = (np.asarray(picture, np.float64) for picture in (result, truth))
    size, stable = 7, ((0.01 * 255) ** 2, (0.03 * 255) ** 2)

    def mean(values: np.ndarray) -> np.ndarray:
        sums = np.pad(values, ((1, 0), (1, 0), (0, 0))).cumsum(0).cumsum(1)
        windows: np.ndarray = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
        return windows / size**2

    means = mean(first), mean(second)
    variances = mean(first**2) - means[0] ** 2, mean(second**2) - means[1] ** 2
    covariance = mean(first * second) - means[0] * means[1]
    above = (2 * means[0] * means[1] + stable[0]) * (2 * covariance + stable[1])
    below = (means[0] ** 2 + means[1] ** 2 + stable[0]) * (variances[0] + variances[1] + stable[1])
    return float((above / below).mean())


def measure_detail(image: Image.Image) -> float:
    """Return the mean absolute difference of neighbouring grey values, vertical plus horizontal, in 0..510."""
    grey = np.asarray(image.convert("L"), np.float64)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


def measure_chroma(image: Image.Image, truth: Image.Image) -> tuple[float, float, float]:
    """Measure colour in CIELAB.

    Returns:
        the mean a*b* distance of the picture from `truth`, that of a grey picture from `truth`, and the mean chroma
        of the picture.
    """
    found, wanted = (rgb_to_lab(np.asarray(picture))[..., 1:] for picture in (image, truth))
    error, grey, chroma = (np.hypot(d[..., 0], d[..., 1]).mean() for d in (found - wanted, wanted, found))
    return float(error), float(grey), float(chroma)


def correlate_structure(image: Image.Image, reference: Image.Image) -> float:
    """Return the Pearson correlation of the gradient strengths of two pictures of equal size, in -1..1.

    Gradients are measured at a quarter of the size, where brush strokes and mosaic stones are averaged out. The
    result is 0 if either picture has a constant gradient strength.
    """
    first, second = (_gradient_strength(picture) for picture in (image, reference))
    return float(np.corrcoef(first, second)[0, 1]) if first.std() > 0 and second.std() > 0 else 0.0


def _gradient_strength(image: Image.Image) -> np.ndarray:
    grey = image.convert("L").reduce(4).filter(ImageFilter.GaussianBlur(1.5))
    dy, dx = np.gradient(np.asarray(grey, np.float64))
    strength: np.ndarray = np.hypot(dy, dx).ravel()
    return strength
