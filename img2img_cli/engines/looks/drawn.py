"""Looks that are drawn or painted: pencil, ink, comic, oil and watercolour.

Each takes an RGB picture, a scale, 1 at about half a megapixel, and a generator, and returns an RGB picture.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from img2img_cli.engines.looks.fields import (
    Array,
    blur,
    draw_along,
    draw_ink,
    flatten,
    luminance,
    make_paper,
    measure_flow,
    saturate,
    to_array,
    to_picture,
)

DIRECTIONS = 8  # of a pencil's strokes


def draw_pencil(picture: Image.Image, scale: float, rng: np.random.Generator) -> Image.Image:
    """Draw strokes along edges over hatched shades (after Lu et al. 2012, "Combining sketch and tone")."""
    grey = blur(luminance(picture), 0.6 * scale)
    dy, dx = np.gradient(grey)
    strength = np.hypot(dx, dy).astype(np.float32)
    length = max(2, round(7 * scale))
    angles = np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    answers = np.stack([_smear(strength, angle, length) for angle in angles])
    best = answers.argmax(0)
    lines = sum(
        _smear(np.where(best == number, strength, np.float32(0)), angle, length) for number, angle in enumerate(angles)
    )
    lines = 1 - (1.25 * lines / (np.quantile(lines, 0.98) + 1e-4) - 0.06).clip(0, 1) ** 0.85
    noise = rng.standard_normal(grey.shape, np.float32)
    hatch = _smear(noise, np.pi / 4, max(3, round(9 * scale)))
    hatch += 0.8 * _smear(rng.standard_normal(grey.shape, np.float32), 0.3 * np.pi, max(3, round(9 * scale)))
    hatch /= hatch.std() + 1e-6
    tone = 0.45 + 0.55 * (blur(grey, 1.5 * scale) / (np.quantile(grey, 0.9) + 1e-3)).clip(0, 1) ** 0.7
    shaded = tone + 0.16 * (1 - tone) ** 0.5 * hatch + 0.012 * make_paper(grey.shape, scale, rng)
    return to_picture((0.10 + 0.90 * lines) * shaded.clip(0, 1) * 0.98).convert("RGB")


def _smear(values: Array, angle: float, length: int) -> Array:
    """Return the mean along a straight line through each pixel, `length` pixels to each side."""
    height, width = values.shape
    padded = np.pad(values, length, mode="reflect" if min(values.shape) > length else "edge")
    total = np.zeros_like(values)
    for distance in range(-length, length + 1):
        y, x = length + round(distance * np.sin(angle)), length + round(distance * np.cos(angle))
        total += padded[y : y + height, x : x + width]
    return total / (2 * length + 1)


def draw_in_ink(picture: Image.Image, scale: float, rng: np.random.Generator) -> Image.Image:
    """Draw black lines and solid shadows on white, smoothed along the edges."""
    grey = luminance(picture)
    ink = draw_ink(grey, 0.9 * scale, threshold=_find_threshold(grey))
    flow_x, flow_y, _ = measure_flow(grey, 2.5 * scale)
    smooth = draw_along(ink, flow_x, flow_y, 3.5 * scale, steps=4)
    return to_picture(1 / (1 + np.exp(-14 * (smooth - 0.5)))).convert("RGB")


def _find_threshold(grey: Array) -> float:
    """Return the level under which ink is solid: about the darkest fifth of a picture, but never its light half."""
    return float(np.clip(np.quantile(grey, 0.22), 0.08, 0.5))


def draw_comic(picture: Image.Image, scale: float, rng: np.random.Generator) -> Image.Image:
    """Draw flat, strong colours in few steps of light, dots in the shade, and black outlines."""
    pixels, grey = to_array(picture), luminance(picture)
    flat = flatten(flatten(pixels, round(4 * scale)), round(4 * scale))
    light = flat.max(2, keepdims=True)
    steps = 5 * light
    stepped = (np.floor(steps) + 1 / (1 + np.exp(-16 * (steps - np.floor(steps) - 0.5)))) / 5
    colours = saturate(flat * (0.25 * light + 0.75 * stepped) / (light + 1e-4), 1.7)
    colours = (colours - 0.5) * 1.15 + 0.55
    period = max(3.0, 6 * scale)
    y, x = np.mgrid[: picture.height, : picture.width].astype(np.float32)
    turned = (x + y) * np.float32(2**-0.5), (x - y) * np.float32(2**-0.5)
    dots = np.cos(turned[0] * 2 * np.pi / period) * np.cos(turned[1] * 2 * np.pi / period)
    smooth = blur(grey, 2 * scale)
    shade = 0.42 - smooth
    dark = 1 / (1 + np.exp(-8 * (dots + 3.2 * shade - 0.55)))
    colours *= 1 - 0.45 * (dark * (shade > -0.12))[..., None]
    flow_x, flow_y, _ = measure_flow(grey, 2 * scale)
    lines = draw_ink(grey, 1.1 * scale, sharpness=22, threshold=0.5 * _find_threshold(grey), steep=9)
    outlines = draw_along(lines, flow_x, flow_y, 3 * scale, steps=4)
    return to_picture(colours * (1 / (1 + np.exp(-12 * (outlines - 0.5))))[..., None])


def paint_in_oil(picture: Image.Image, scale: float, rng: np.random.Generator) -> Image.Image:
    """Paint strokes along the edges, in strong colours, with the relief of bristles under light from the upper left."""
    pixels = to_array(picture)
    flat = flatten(pixels, round(5 * scale))
    flow_x, flow_y, _ = measure_flow(flat.mean(2), 5 * scale)
    painted = draw_along(flat, flow_x, flow_y, 8 * scale)
    painted = flatten(painted, round(4 * scale))
    noise = blur(rng.standard_normal(painted.shape[:2], np.float32), 0.7 * scale)
    bristles = draw_along(noise / (noise.std() + 1e-6), flow_x, flow_y, 11 * scale, steps=8)
    bristles /= bristles.std() + 1e-6
    dy, dx = np.gradient(bristles)
    relief = (-(dx + dy) * 0.9 * scale).clip(-2.5, 2.5)
    colours = saturate((painted - 0.5) * 1.12 + 0.5, 1.35)
    return to_picture(colours + 0.035 * relief[..., None] + 0.012 * bristles[..., None])


def paint_in_watercolour(picture: Image.Image, scale: float, rng: np.random.Generator) -> Image.Image:
    """Paint pale washes with darker rims on uneven paper, which stays white in the lights and at the edge."""
    pixels = to_array(picture)
    height, width = pixels.shape[:2]
    flow_x, flow_y, _ = measure_flow(luminance(picture), 4 * scale)
    flat = flatten(flatten(draw_along(pixels, flow_x, flow_y, 5 * scale), round(5 * scale)), round(5 * scale))
    shake = [blur(make_paper((height, width), 5 * scale, rng), 1.5 * scale) * 1.6 * scale for _ in range(2)]
    rows, columns = np.mgrid[:height, :width]
    moved = flat[
        (rows + shake[0]).round().clip(0, height - 1).astype(np.int32),
        (columns + shake[1]).round().clip(0, width - 1).astype(np.int32),
    ]
    grey = moved.mean(2)
    rims = np.abs(grey - blur(grey, 2.2 * scale)) + 0.5 * np.abs(grey - blur(grey, 5 * scale))
    grain, pools = make_paper((height, width), 1.2 * scale, rng), make_paper((height, width), 24 * scale, rng)
    pigment = 1 - saturate(moved, 1.45).clip(0, 1)
    density = 0.80 + 1.3 * rims + 0.035 * grain + 0.09 * pools
    washes = np.exp(-pigment * 1.15 * density[..., None])
    washes = 1 - (1 - washes) * (1 - 0.85 * _ramp(grey, 0.72, 0.95))[..., None]
    edge = _fade_to_edge(height, width, scale, shake[0])
    paper = 1 - 0.012 * (grain - grain.min()) / 6
    return to_picture((1 - (1 - washes) * edge[..., None]) * paper[..., None])


def _ramp(values: Array, low: float, high: float) -> Array:
    """Return 0 below `low`, 1 above `high`, and a smooth step between them."""
    share = ((values - low) / (high - low)).clip(0, 1)
    step: Array = share * share * (3 - 2 * share)
    return step


def _fade_to_edge(height: int, width: int, scale: float, shake: Array) -> Array:
    """Return 1 within and 0 at the border of the paper, which a brush does not reach evenly; float32 `(H, W)`."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    inside = np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(columns, width - 1 - columns))
    return _ramp(inside + 3 * shake, 4 * scale, 14 * scale)
