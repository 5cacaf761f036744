"""Styles made by image processing, which turn any photograph into a pair of training pictures.

Each style takes an 8-bit RGB picture and a random generator, and returns an RGB picture of the same size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

Style = Callable[[Image.Image, np.random.Generator], Image.Image]


def _tint(picture: Image.Image, gains: tuple[float, float, float]) -> Image.Image:
    return Image.fromarray((np.asarray(picture) * np.array(gains)).clip(0, 255).astype(np.uint8))


def pencil_sketch(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Draw a pencil sketch: a colour dodge of the luminance by its inverted blur."""
    grey = np.asarray(picture.convert("L"), dtype=np.float32)
    blurred = np.asarray(picture.convert("L").filter(ImageFilter.GaussianBlur(3)), dtype=np.float32)
    dodge = (grey / np.maximum(blurred, 1)).clip(0, 1) ** 2.5
    return Image.fromarray((dodge * 255).astype(np.uint8)).convert("RGB")


def ink_drawing(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Draw black lines on white, from a softly thresholded difference of two blurs."""
    grey = picture.convert("L")
    fine, coarse = (np.asarray(grey.filter(ImageFilter.GaussianBlur(s)), dtype=np.float32) for s in (0.8, 2.2))
    lines = 1 / (1 + np.exp((coarse - fine - 3.0).clip(-50, 50) * 1.2))
    return Image.fromarray((lines * 255).astype(np.uint8)).convert("RGB")


def _smooth_strokes(picture: Image.Image, radius: int) -> Image.Image:
    """Apply the Kuwahara filter: of the four squares that meet at a pixel, take the mean of the least varied one.

    Args:
        radius: the side of a square is `radius + 1` pixels.
    """
    values = np.asarray(picture, dtype=np.float32)
    height, width = values.shape[:2]
    padded = np.pad(values, ((radius + 1, radius), (radius + 1, radius), (0, 0)), mode="edge")
    grey = padded.mean(2, keepdims=True)
    sums = np.concatenate([padded, grey, grey**2], 2).astype(np.float64).cumsum(0).cumsum(1)
    side = radius + 1
    means = (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2
    squares = [means[y : y + height, x : x + width] for y in (0, radius) for x in (0, radius)]
    calmest = np.argmin([square[..., 4] - square[..., 3] ** 2 for square in squares], axis=0)
    strokes = np.choose(calmest[..., None], [square[..., :3] for square in squares])
    return Image.fromarray(strokes.round().clip(0, 255).astype(np.uint8))


def oil_painting(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Paint flat strokes that end at edges, in stronger colours."""
    strokes = ImageEnhance.Color(_smooth_strokes(picture, 4)).enhance(1.35)
    return ImageEnhance.Contrast(strokes).enhance(1.1)


def watercolour(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Paint pale washes with darker rims."""
    wash = _smooth_strokes(picture.filter(ImageFilter.GaussianBlur(1)), 5)
    pale = Image.blend(ImageEnhance.Color(wash).enhance(1.5), Image.new("RGB", picture.size, "white"), 0.4)
    grey = wash.convert("L")
    rims = ImageChops.difference(grey, grey.filter(ImageFilter.GaussianBlur(1.5)))
    shade = rims.point([max(120, 255 - 5 * max(0, v - 3)) for v in range(256)]).convert("RGB")
    return ImageChops.multiply(pale, shade)


def mosaic(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Lay stones in squares of 16 pixels, 2 of them mortar. The autoencoder cannot reproduce finer ones."""
    small = picture.resize([max(1, side // 16) for side in picture.size], Image.Resampling.BOX)
    stones = ImageEnhance.Color(small).enhance(1.2).resize(picture.size, Image.Resampling.NEAREST)
    y, x = np.ogrid[: picture.height, : picture.width]
    mortar = Image.fromarray(((y % 16 >= 14) | (x % 16 >= 14)) * np.uint8(255))
    return Image.composite(Image.new("RGB", picture.size, "#d8d2c4"), stones, mortar)


def pixel_art(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Draw blocks of 8 by 8 pixels in 24 colours."""
    small = picture.resize([max(1, side // 8) for side in picture.size], Image.Resampling.BOX)
    few = ImageEnhance.Color(small).enhance(1.3).quantize(24).convert("RGB")
    return few.resize(picture.size, Image.Resampling.NEAREST)


def poster(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Draw a comic poster: flat, strong colours with lightness in steps of 51, and black outlines."""
    flat = ImageEnhance.Color(_smooth_strokes(picture, 3)).enhance(1.6)
    light, *chroma = flat.convert("YCbCr").split()
    steps = light.point([min(255, round(v / 51 + 0.15) * 51) for v in range(256)])
    colours = Image.merge("YCbCr", (steps, *chroma)).convert("RGB")
    grey = picture.convert("L")
    fine, coarse = (np.asarray(grey.filter(ImageFilter.GaussianBlur(s)), dtype=np.float32) for s in (1.0, 2.4))
    outlines = 1 / (1 + np.exp((coarse - fine - 9.0).clip(-50, 50) * 0.8))
    return ImageChops.multiply(colours, Image.fromarray((outlines * 255).astype(np.uint8)).convert("RGB"))


def sepia(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Show the luminance in brown tones."""
    return ImageOps.colorize(picture.convert("L"), "#1c1206", "#fff3d6", mid="#a9814f")


def black_and_white(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Show only the luminance, with slightly more contrast."""
    return ImageEnhance.Contrast(picture.convert("L")).enhance(1.15).convert("RGB")


def night(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Make the picture dark and blue."""
    return _tint(ImageEnhance.Color(picture).enhance(0.6), (0.22, 0.30, 0.52))


def golden_hour(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Give the picture a warm evening light."""
    return _tint(ImageEnhance.Contrast(picture).enhance(1.1), (1.22, 0.93, 0.52))


def winter(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Make the picture cold and pale, and turn its light parts into snow."""
    cold = _tint(ImageEnhance.Color(picture).enhance(0.35), (0.95, 1.02, 1.15))
    snow = picture.convert("L").point([max(0, min(255, (v - 110) * 3)) for v in range(256)])
    return Image.composite(Image.new("RGB", picture.size, "#eef4ff"), cold, snow)


def fog(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Lower the contrast under a grey veil that grows denser towards the top."""
    veil = Image.linear_gradient("L").resize(picture.size).point([200 - v // 3 for v in range(256)])
    soft = ImageEnhance.Color(picture.filter(ImageFilter.GaussianBlur(1))).enhance(0.5)
    return Image.composite(Image.new("RGB", picture.size, "#d2d6da"), soft, veil)


STYLES: dict[str, Style] = {
    "pencil sketch": pencil_sketch,
    "ink drawing": ink_drawing,
    "oil painting": oil_painting,
    "watercolour": watercolour,
    "pixel art": pixel_art,
    "mosaic": mosaic,
    "comic poster": poster,
    "sepia": sepia,
    "black and white": black_and_white,
    "night": night,
    "golden hour": golden_hour,
    "winter": winter,
    "fog": fog,
}
