"""Styles made from photographs by image processing: paired training pictures in any number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

Style = Callable[[Image.Image, np.random.Generator], Image.Image]


def _tint(picture: Image.Image, gains: tuple[float, float, float]) -> Image.Image:
    return Image.fromarray((np.asarray(picture) * np.array(gains)).clip(0, 255).astype(np.uint8))


def pencil_sketch(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Colour dodge of the luminance by its inverted blur."""
    grey = np.asarray(picture.convert("L"), dtype=np.float32)
    blurred = np.asarray(picture.convert("L").filter(ImageFilter.GaussianBlur(3)), dtype=np.float32)
    dodge = (grey / np.maximum(blurred, 1)).clip(0, 1) ** 2.5
    return Image.fromarray((dodge * 255).astype(np.uint8)).convert("RGB")


def ink_drawing(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Black lines on white: a difference of two blurs, thresholded softly."""
    grey = picture.convert("L")
    fine, coarse = (np.asarray(grey.filter(ImageFilter.GaussianBlur(s)), dtype=np.float32) for s in (0.8, 2.2))
    lines = 1 / (1 + np.exp((coarse - fine - 3.0).clip(-50, 50) * 1.2))
    return Image.fromarray((lines * 255).astype(np.uint8)).convert("RGB")


def oil_painting(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Flat strokes: repeated mode and median filters, then stronger colour."""
    flat = picture.filter(ImageFilter.ModeFilter(7)).filter(ImageFilter.MedianFilter(5))
    return ImageEnhance.Color(flat.filter(ImageFilter.EDGE_ENHANCE)).enhance(1.3)


def watercolour(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Pale washes with darker rims."""
    wash = picture.filter(ImageFilter.MedianFilter(7)).filter(ImageFilter.GaussianBlur(1))
    pale = Image.blend(wash, Image.new("RGB", picture.size, "white"), 0.3)
    edges = ImageOps.invert(wash.convert("L").filter(ImageFilter.FIND_EDGES)).convert("RGB")
    return ImageChops.multiply(pale, Image.blend(edges, Image.new("RGB", picture.size, "white"), 0.5))


def pixel_art(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blocks of 8 pixels in few colours."""
    small = picture.resize([max(1, side // 8) for side in picture.size], Image.Resampling.BOX)
    few = ImageEnhance.Color(small).enhance(1.3).quantize(24).convert("RGB")
    return few.resize(picture.size, Image.Resampling.NEAREST)


def poster(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Four levels a channel and black outlines."""
    flat = ImageOps.posterize(picture.filter(ImageFilter.MedianFilter(5)), 2)
    return ImageChops.multiply(ImageEnhance.Brightness(flat).enhance(1.3), ink_drawing(picture, rng))


def sepia(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Luminance in brown tones."""
    return ImageOps.colorize(picture.convert("L"), "#1c1206", "#fff3d6", mid="#a9814f")


def black_and_white(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Luminance alone, with a little more contrast."""
    return ImageEnhance.Contrast(picture.convert("L")).enhance(1.15).convert("RGB")


def night(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Dark and blue."""
    return _tint(ImageEnhance.Color(picture).enhance(0.6), (0.22, 0.30, 0.52))


def golden_hour(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Warm low light."""
    return _tint(ImageEnhance.Contrast(picture).enhance(1.1), (1.18, 0.92, 0.58))


def winter(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cold, pale, with the light parts turned to snow."""
    cold = _tint(ImageEnhance.Color(picture).enhance(0.35), (0.95, 1.02, 1.15))
    snow = picture.convert("L").point([max(0, min(255, (v - 110) * 3)) for v in range(256)])
    return Image.composite(Image.new("RGB", picture.size, "#eef4ff"), cold, snow)


def fog(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Low contrast under a grey veil that thickens upwards."""
    veil = Image.linear_gradient("L").resize(picture.size).point([200 - v // 3 for v in range(256)])
    soft = ImageEnhance.Color(picture.filter(ImageFilter.GaussianBlur(1))).enhance(0.5)
    return Image.composite(Image.new("RGB", picture.size, "#d2d6da"), soft, veil)


STYLES: dict[str, Style] = {
    "pencil sketch": pencil_sketch,
    "ink drawing": ink_drawing,
    "oil painting": oil_painting,
    "watercolour": watercolour,
    "pixel art": pixel_art,
    "comic poster": poster,
    "sepia": sepia,
    "black and white": black_and_white,
    "night": night,
    "golden hour": golden_hour,
    "winter": winter,
    "fog": fog,
}
