"""Looks of light, of stones and of pixels: bw, sepia, golden, night, fog, winter, mosaic and pixel.

Each takes an RGB picture, a scale, 1 at about half a megapixel, and a generator, and returns an RGB picture.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from img2img_cli.engines.looks.fields import Array, blur, luminance, make_paper, saturate, to_array, to_picture

PIXELS_ACROSS, PIXEL_COLOURS = 88, 28  # on the shorter side
STONES_ACROSS = 46
FLAKES = ((0.0016, 1.2, 0.7), (0.0006, 2.2, 0.85), (0.00018, 4.2, 0.95))  # a pixel, radius, opacity: far to near


def make_black_and_white(picture: Image.Image, scale: float, rng: np.random.Generator) -> Image.Image:
    """Show the luminance, with the contrast of a film: a red filter's dark sky, a curve with a toe and a shoulder."""
    grey = (to_array(picture) @ np.array([0.42, 0.46, 0.12], np.float32)).clip(0, 1)
    return to_picture(_curve(grey, 0.55)).convert("RGB")


def make_sepia(picture: Image.Image, scale: float, rng: np.random.Generator) -> Image.Image:
    """Show the luminance in the brown tones of an old print, which is a little darker towards its corners."""
    grey = to_picture(_curve(luminance(picture), 0.25) * _vignette(picture.size, 0.18))
    return ImageOps.colorize(grey, "#21150a", "#fbeed3", mid="#a3794b")


def make_golden(picture: Image.Image, scale: float, rng: np.random.Generator) -> Image.Image:
    """Give a picture the low, warm light of the evening: amber lights that glow, violet shades."""
    pixels = to_array(picture)
    grey = luminance(picture)[..., None]
    warm = pixels * np.array([1.12, 0.97, 0.72], np.float32)
    lights, shades = np.array([1.0, 0.70, 0.32], np.float32), np.array([0.30, 0.17, 0.27], np.float32)
    toned = warm + 0.30 * grey**1.5 * (lights - 0.55) + 0.16 * (1 - grey) ** 2 * (shades - 0.2)
    sun = _sunlight(picture.size)[..., None]
    glow = blur((toned - 0.55).clip(0, None), 14 * scale)
    lit = toned * (0.80 + 0.22 * sun) + 0.55 * glow * lights + 0.14 * sun**2 * lights
    return to_picture(saturate(_curve(lit.clip(0, 1), 0.2), 1.18))


def make_night(picture: Image.Image, scale: float, rng: np.random.Generator) -> Image.Image:
    """Make a picture dark and blue, as eyes see by the moon; what is brightest shines on as lamps do."""
    pixels = to_array(picture)
    grey = luminance(picture)
    faint = saturate(pixels, 0.35) ** 1.5
    moonlit = faint * np.array([0.33, 0.46, 0.76], np.float32) + np.array([0.012, 0.02, 0.05], np.float32)
    moonlit *= _vignette(picture.size, 0.35)[..., None]
    bright = ((grey - max(0.7, float(np.quantile(grey, 0.99)))) / 0.04).clip(0, 1)
    lamps = (0.55 * bright + 1.1 * blur(bright.astype(np.float32), 6 * scale))[..., None]
    return to_picture(moonlit + lamps * np.array([0.95, 0.72, 0.38], np.float32) * 0.5)


def make_fog(picture: Image.Image, scale: float, rng: np.random.Generator) -> Image.Image:
    """Lay a grey veil over a picture that is denser towards the top, where things are further away, and uneven."""
    pixels = to_array(picture)
    height, width = pixels.shape[:2]
    far = np.linspace(1, 0, height, dtype=np.float32)[:, None] ** 0.8
    drift = blur(make_paper((height, width), 40 * scale, rng), 12 * scale)
    density = (0.34 + 0.52 * far + 0.05 * drift / (drift.std() + 1e-6)).clip(0.2, 0.93)[..., None]
    blurred = blur(pixels, 2.5 * scale)
    soft = saturate(pixels + density * (blurred - pixels), 0.65)
    veil = np.array([0.80, 0.82, 0.835], np.float32)
    return to_picture(soft * (1 - density) * 0.95 + veil * density)


def make_winter(picture: Image.Image, scale: float, rng: np.random.Generator) -> Image.Image:
    """Make the light cold, lay snow on what is lit from above and on the ground, and let it snow."""
    pixels, grey = to_array(picture), luminance(picture)
    height, width = grey.shape
    cold = saturate(pixels, 0.45) * np.array([0.92, 1.0, 1.12], np.float32) * 0.94 + 0.03
    smooth = blur(grey, 2.5 * scale)
    facing_up = np.gradient(smooth, axis=0) * -1
    tops = blur((facing_up * 26 * scale).clip(0, 1).astype(np.float32), 1.2 * scale)
    ground = np.linspace(0, 1, height, dtype=np.float32)[:, None] ** 1.5
    cover = (0.9 * tops + 0.85 * ground**0.6 * ((smooth - 0.12) / 0.3).clip(0, 1)).clip(0, 0.92)
    cover = (cover * (1 + 0.12 * make_paper((height, width), 2 * scale, rng))).clip(0, 0.95)[..., None]
    snow = np.array([0.93, 0.955, 1.0], np.float32) * (0.80 + 0.2 * smooth)[..., None]
    whitened = cold * (1 - cover) + snow * cover
    for share, radius, opacity in FLAKES:
        flakes = _draw_flakes((height, width), share / scale**2, radius * scale, rng)
        whitened += opacity * flakes[..., None] * (1 - whitened)
    return to_picture(whitened)


def _draw_flakes(size: tuple[int, int], share: float, radius: float, rng: np.random.Generator) -> Array:
    """Return round spots at random places, in 0..1: float32 `(H, W)`."""
    count = max(1, round(share * size[0] * size[1]))
    spots = np.zeros(size, np.float32)
    spots[rng.integers(size[0], size=count), rng.integers(size[1], size=count)] = 1
    sigma = max(0.5, radius / 1.5)
    flakes: Array = np.minimum(1, blur(spots, sigma) * 2 * np.pi * sigma**2 * 0.9)
    return flakes


def make_mosaic(picture: Image.Image, scale: float, rng: np.random.Generator) -> Image.Image:
    """Lay stones of slightly different shape, shade and tilt in light mortar: cells around shifted points of a grid."""
    height, width = picture.height, picture.width
    side = max(6.0, min(height, width) / STONES_ACROSS)
    down, across = int(np.ceil(height / side)) + 2, int(np.ceil(width / side)) + 2
    points_y = (np.arange(down)[:, None] - 0.5 + rng.uniform(-0.28, 0.28, (down, across))) * side
    points_x = (np.arange(across)[None] - 0.5 + rng.uniform(-0.28, 0.28, (down, across))) * side
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    cell_y, cell_x = (rows / side + 1).astype(np.int32), (columns / side + 1).astype(np.int32)
    first, second = (np.full((height, width), np.inf, np.float32) for _ in range(2))
    own = np.zeros((height, width), np.int32)
    for step_y in (-1, 0, 1):
        for step_x in (-1, 0, 1):
            at = (cell_y + step_y).clip(0, down - 1) * across + (cell_x + step_x).clip(0, across - 1)
            distance = np.hypot(rows - points_y.ravel()[at], columns - points_x.ravel()[at]).astype(np.float32)
            nearer = distance < first
            same = at == own
            second = np.where(nearer, first, np.where(same, second, np.minimum(second, distance)))
            first, own = np.where(nearer, distance, first), np.where(nearer, at, own)
    pixels = to_array(picture).reshape(-1, 3)
    counts = np.bincount(own.ravel(), minlength=down * across)[:, None]
    stones = np.stack([np.bincount(own.ravel(), pixels[:, c], down * across) for c in range(3)], -1)
    stones = saturate((stones / np.maximum(counts, 1)).astype(np.float32)[None], 1.25)[0]
    stones = stones * (1 + 0.07 * rng.standard_normal((len(stones), 1))).astype(np.float32)
    gap = second - first
    tilt = ((rows - points_y.ravel()[own]) + (columns - points_x.ravel()[own])) / side
    lit = stones[own] * (1 - 0.12 * tilt[..., None].astype(np.float32))
    shade = (gap / (0.32 * side)).clip(0.72, 1)[..., None]
    mortar = ((0.16 * side - gap) / (0.05 * side) + 0.5).clip(0, 1)[..., None]
    return to_picture(
        (lit * shade * (1 - mortar) + np.array([0.80, 0.78, 0.73], np.float32) * mortar).astype(np.float32)
    )


def make_pixels(picture: Image.Image, scale: float, rng: np.random.Generator) -> Image.Image:
    """Draw square pixels in few colours, chosen for the picture, without mixing them."""
    factor = PIXELS_ACROSS / min(picture.size)
    small = picture.resize([max(1, round(side * min(1.0, factor))) for side in picture.size], Image.Resampling.BOX)
    strong = to_picture(saturate((to_array(small) - 0.5) * 1.12 + 0.5, 1.3))
    few = strong.quantize(PIXEL_COLOURS, Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
    return few.convert("RGB").resize(picture.size, Image.Resampling.NEAREST)


def _curve(values: Array, strength: float) -> Array:
    """Return values in 0..1 with more contrast in the middle: a blend with the smooth step."""
    return values + strength * (values * values * (3 - 2 * values) - values)


def _vignette(size: tuple[int, int], depth: float) -> Array:
    """Return factors that fall from 1 in the middle to `1 - depth` in the corners: float32 `(H, W)`."""
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in (size[1], size[0]))
    return 1 - depth * ((y[:, None] ** 2 + x[None] ** 2) / 2) ** 1.5


def _sunlight(size: tuple[int, int]) -> Array:
    """Return the light of a low sun at the upper left, in 0..1: float32 `(H, W)`."""
    y, x = (np.linspace(0, 1, side, dtype=np.float32) for side in (size[1], size[0]))
    return np.exp(-((y[:, None] + 0.05) ** 2 * 1.3 + (x[None] - 0.1) ** 2) * 1.6).astype(np.float32)
