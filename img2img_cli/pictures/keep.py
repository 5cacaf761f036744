"""Postprocess a model's result: keep the input's luminance, detail, unmasked pixels and alpha.

Models return 8 bits. Functions with `luminance` in their name combine that with 16-bit luminance of the input.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from img2img_cli.pictures.files.sixteen_bit import STEP, TOP, Deep
from img2img_cli.pictures.lab import Array, grey_to_lightness, lab_to_deep_rgb, lab_to_rgb, rgb_to_lab, rgb_to_lightness

Pixels = NDArray[np.uint8]
GUIDE_RADIUS = 6
GUIDE_EPSILON = 16.0  # in squared L* units: lightness steps well above 4 are edges
BAND_PIXELS = 1 << 21
PROJECTION_STEPS = 12
BASE_SCALE = 4
NOISE_LEVEL = 9.0  # in grey levels; at this noise, half of the detail is kept


def keep_luminance(picture: Image.Image, samples: list[Image.Image], saturation: float) -> Image.Image:
    """Colour `picture` with the mean chroma of `samples`, keeping its own L* at full resolution.

    A guided filter enlarges a* and b* along the edges of L*, so that colours end at the edges of objects. Its
    coefficients are computed at the samples' size (He & Sun 2015, "Fast guided filter").

    Args:
        picture: 8-bit sRGB at full resolution.
        samples: 8-bit sRGB results of the model, all of one size, usually smaller than the picture.
        saturation: factor on a* and b*; 0 gives grey.

    Returns:
        8-bit sRGB of the picture's size.
    """
    chroma = np.mean([rgb_to_lab(np.asarray(sample))[..., 1:] for sample in samples], axis=0) * saturation
    guide = rgb_to_lightness(np.asarray(picture.resize(samples[0].size, Image.Resampling.LANCZOS)))
    slopes, offsets = _guided_coefficients(guide, chroma)
    planes = [Image.fromarray(plane) for plane in np.moveaxis(np.concatenate([slopes, offsets], -1), -1, 0).copy()]
    full, pixels = np.empty((picture.height, picture.width, 3), np.uint8), np.asarray(picture)
    rows = max(1, BAND_PIXELS // picture.width)
    scale = samples[0].height / picture.height
    for top in range(0, picture.height, rows):
        bottom = min(top + rows, picture.height)
        box = (0, top * scale, samples[0].width, bottom * scale)
        size = (picture.width, bottom - top)
        slope_a, slope_b, offset_a, offset_b = (
            np.asarray(plane.resize(size, Image.Resampling.BILINEAR, box=box)) for plane in planes
        )
        lightness = rgb_to_lightness(pixels[top:bottom])
        lab = np.stack([lightness, slope_a * lightness + offset_a, slope_b * lightness + offset_b])
        full[top:bottom] = lab_to_rgb(np.moveaxis(lab, 0, -1))
    return Image.fromarray(full)


def _guided_coefficients(guide: Array, values: Array) -> tuple[Array, Array]:
    """Fit local models `values = slope * guide + offset`; return smoothed slope and offset, float32 `(H, W, 2)`."""
    mean_guide = box_mean(guide, GUIDE_RADIUS)[..., None]
    mean_values = np.stack([box_mean(values[..., i], GUIDE_RADIUS) for i in range(2)], -1)
    cross = np.stack([box_mean(guide * values[..., i], GUIDE_RADIUS) for i in range(2)], -1)
    variance = box_mean(guide * guide, GUIDE_RADIUS)[..., None] - mean_guide**2
    slope = (cross - mean_guide * mean_values) / (variance + GUIDE_EPSILON)
    offset = mean_values - slope * mean_guide
    return tuple(np.stack([box_mean(part[..., i], GUIDE_RADIUS) for i in range(2)], -1) for part in (slope, offset))  # type: ignore[return-value]


def box_mean(values: Array, radius: int) -> Array:
    """Return the mean over squares of side `2 * radius + 1`, repeating the border; float32 `(H, W)`."""
    size = 2 * radius + 1
    for axis in (0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (radius + 1, radius)
        sums = np.cumsum(np.pad(values, pad, mode="edge"), axis=axis, dtype=np.float64)
        high, low = (sums[size:], sums[:-size]) if axis == 0 else (sums[:, size:], sums[:, :-size])
        values = ((high - low) / size).astype(np.float32)
    return values


def back_project(result: Image.Image, source: Image.Image) -> Image.Image:
    """Correct an enlarged RGB result until its bicubic reduction is close to `source`, also RGB.

    This is Irani & Peleg's iterative back-projection ("Improving resolution by image registration", 1991), one channel
    at a time in float32 to bound the memory.
    """
    channels = []
    for channel, truth in zip(result.split(), source.split(), strict=True):
        estimate = project_channel(np.asarray(channel, np.float32), np.asarray(truth, np.float32), 255)
        channels.append(Image.fromarray(estimate.round().astype(np.uint8)))
    return Image.merge("RGB", channels)


def project_channel(estimate: Array, wanted: Array, top: float) -> Array:
    """Do one channel of `back_project`.

    Args:
        estimate: float32 `(H, W)` in 0..`top`, to be corrected.
        wanted: float32 `(h, w)`, what the estimate should be when scaled down.

    Returns:
        Float32 `(H, W)` in 0..`top`.
    """
    large, small = estimate.shape[::-1], wanted.shape[::-1]
    for _ in range(PROJECTION_STEPS):
        seen = np.asarray(Image.fromarray(estimate).resize(small, Image.Resampling.BICUBIC))
        error = Image.fromarray(wanted - seen).resize(large, Image.Resampling.BICUBIC)
        estimate = (estimate + np.asarray(error)).clip(0, top)
    return estimate


def keep_base(result: Image.Image, source: Image.Image) -> Image.Image:
    """Replace a result's light and colours at scales above about `BASE_SCALE` pixels by those of its source.

    Noise and compression hardly affect these scales, so a difference there is the model's drift. Both pictures are RGB
    of one size.
    """
    channels = []
    for made, own in zip(result.split(), source.split(), strict=True):
        drift = Image.fromarray(np.asarray(own, np.float32) - np.asarray(made, np.float32))
        base = drift.reduce(BASE_SCALE).resize(result.size, Image.Resampling.BICUBIC)
        channels.append(Image.fromarray((np.asarray(made) + np.asarray(base)).round().clip(0, 255).astype(np.uint8)))
    return Image.merge("RGB", channels)


def keep_detail(result: Image.Image, source: Image.Image, reconstructed: Image.Image, share: float) -> Image.Image:
    """Add the detail that the autoencoder loses of the source, and less of it if it is noise. All pictures are RGB.

    Args:
        reconstructed: the source after the autoencoder alone, of the same size.
        share: share of the lost detail to add without noise, 0..1. If even the smoothest blocks of 8 x 8 pixels lose
            much, the loss is noise, and the share is reduced.
    """
    lost = np.asarray(source, np.float32) - np.asarray(reconstructed, np.float32)
    height, width = (side // 8 * 8 for side in lost.shape[:2])
    blocks = lost[:height, :width].mean(2).reshape(height // 8, 8, width // 8, 8)
    noise = float(np.quantile(blocks.std(axis=(1, 3)), 0.2))
    weight = share / (1 + (noise / NOISE_LEVEL) ** 4)
    return Image.fromarray((np.asarray(result) + weight * lost).round().clip(0, 255).astype(np.uint8))


def unpad(image: Image.Image, content: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """Crop a picture from the canvas to `content` (width, height) and scale it to `size`."""
    image = image.crop((0, 0, *content))
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def restore_alpha(result: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """Give a result the input's alpha, resized if necessary. Without alpha, return the result unchanged."""
    if alpha is None:
        return result
    if alpha.size != result.size:
        alpha = alpha.resize(result.size, Image.Resampling.BICUBIC)
    merged = result.copy()
    merged.putalpha(alpha)
    return merged


def colour_luminance(result: Image.Image, luminance: Deep) -> Deep:
    """Combine the colour of an 8-bit result with the L* of 16-bit luminance `(h, w)`; return sRGB `(H, W, 3)`."""
    luminance = _resize_luminance(luminance, result.size)
    full, pixels = np.empty((*luminance.shape, 3), np.uint16), np.asarray(result.convert("RGB"))
    rows = max(1, BAND_PIXELS // result.width)
    for top in range(0, result.height, rows):
        lab = rgb_to_lab(pixels[top : top + rows])
        lab[..., 0] = grey_to_lightness(luminance[top : top + rows])
        full[top : top + rows] = lab_to_deep_rgb(lab)
    return full


def enlarge_luminance(result: Image.Image, luminance: Deep) -> Deep:
    """Correct an enlarged 8-bit result until its reduction is close to the luminance; return 16-bit `(H, W)`."""
    estimate = np.asarray(result.convert("L"), np.float32) * STEP
    return np.asarray(project_channel(estimate, luminance.astype(np.float32), TOP).round(), np.uint16)


def paste_on_luminance(result: Image.Image, luminance: Deep, mask: Image.Image) -> Deep:
    """Return the result where the mask is white and exactly the luminance where it is black, 16-bit `(H, W, 3)`."""
    share = np.asarray(mask, np.uint32)[..., None]
    made = np.asarray(result.convert("RGB"), np.uint32) * STEP
    mixed = made * share + luminance.astype(np.uint32)[..., None] * (255 - share)
    return ((mixed + 127) // 255).astype(np.uint16)


def _resize_luminance(luminance: Deep, size: tuple[int, int]) -> Deep:
    if luminance.shape[::-1] == size:
        return luminance
    scaled = Image.fromarray(luminance.astype(np.float32)).resize(size, Image.Resampling.LANCZOS)
    return np.asarray(np.asarray(scaled).round().clip(0, TOP), np.uint16)
