"""Colour hints: strokes of colour that tell `colorize` what is where."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from img2img_cli.errors import InputError
from img2img_cli.pictures.lab import lab_to_rgb, rgb_to_lab, rgb_to_lightness
from img2img_cli.pictures.read import Fit, Picture

LEAST_CHROMA = 8.0  # of a stroke on a copy of the picture, and how far it is from the picture there, after JPEG too
GIVEN = 24  # opacity from which on a pixel is a hint
REACH, EDGE_COST, TEXTURE = (
    26.0,
    3.0,
    1.5,
)  # in pixels of the working size, and pixels a unit of L* beyond those of texture


def read_hints(picture: Picture, copied: Image.Image) -> Image.Image:
    """Return hints as RGBA, opaque where a colour is given and transparent elsewhere.

    In a picture with transparent parts, what is opaque is given, grey too. In any other, such as a copy of the grey
    picture that was painted on, what has a colour is given, unless the picture has the same one: old prints are toned.

    Args:
        copied: the picture to colorize, RGB of about the same shape.

    Raises:
        InputError: no pixel is given.
    """
    if picture.alpha is not None and np.asarray(picture.alpha).min() < 255:
        given = np.asarray(picture.alpha) >= GIVEN
        advice = "it is all transparent"
    else:
        own, other = (
            rgb_to_lab(np.asarray(each))[..., 1:]
            for each in (picture.rgb, copied.resize(picture.size, Image.Resampling.BICUBIC))
        )
        given = np.minimum(np.hypot(*np.moveaxis(own, -1, 0)), np.hypot(*np.moveaxis(own - other, -1, 0)))
        given = given >= LEAST_CHROMA
        advice = "it has neither transparent parts nor colours that the picture lacks"
    if not given.any():
        raise InputError(f"{picture.name}: {advice}, so it hints at nothing; paint strokes of the colours on it")
    hints = picture.rgb.copy()
    hints.putalpha(Image.fromarray(given))
    return hints


def fit_hints(hints: Image.Image, fit: Fit) -> Image.Image:
    """Scale RGBA hints onto the model's canvas: opaque wherever anything was given, in the mean colour of what was."""
    pixels = np.asarray(hints)
    given = (pixels[..., 3] > 0).astype(np.float32)
    shares, *colours = (
        np.asarray(Image.fromarray(plane).resize(fit.content, Image.Resampling.BOX))
        for plane in (given, *(given * pixels[..., channel] for channel in range(3)))
    )
    told = np.stack([*(colour / np.maximum(shares, 1e-9) for colour in colours), 255.0 * (shares > 0)], -1)
    canvas = Image.new("RGBA", fit.canvas)
    canvas.paste(Image.fromarray(told.round().clip(0, 255).astype(np.uint8)))
    return canvas


def spread_hints(hints: Image.Image, picture: Image.Image) -> Image.Image:
    """Carry the colours of RGBA hints on over what lies around them, up to the edges of the picture they belong to.

    Each pixel takes the colour of the hint that it is reached from on the shortest way, where steps in lightness make a
    way longer, and is given the less, the longer that way is (geodesic distances, as in Yatziv and Sapiro 2006).

    Args:
        picture: RGB of the hints' size.
    """
    smooth = picture.filter(ImageFilter.GaussianBlur(1.5))
    lightness, pixels = rgb_to_lightness(np.asarray(smooth)), np.asarray(hints)
    given = pixels[..., 3] > GIVEN
    distances = np.where(given, np.float32(0), np.float32(np.inf))
    colours = pixels[..., :3].copy()
    for _ in range(round(2.5 * REACH)):
        for axis in (0, 1):
            for step in (1, -1):
                climb = np.maximum(np.abs(lightness - np.roll(lightness, step, axis)) - TEXTURE, 0)
                ways = np.roll(distances, step, axis) + 1 + EDGE_COST * climb
                border = (0 if step > 0 else -1,)
                ways[(slice(None),) * axis + border] = np.inf
                nearer = ways < distances
                distances = np.where(nearer, ways, distances)
                colours[nearer] = np.roll(colours, step, axis)[nearer]
    spread = Image.fromarray(colours)
    spread.putalpha(Image.fromarray((255 * np.exp(-((distances / REACH) ** 2))).round().astype(np.uint8)))
    return spread


def follow_hints(result: Image.Image, spread: Image.Image) -> Image.Image:
    """Return an RGB result with its a* and b* mixed with those of spread hints, by their opacity; L* stays."""
    lab, pixels = rgb_to_lab(np.asarray(result)), np.asarray(spread)
    share = pixels[..., 3:].astype(np.float32) / 255
    lab[..., 1:] += share * (rgb_to_lab(np.ascontiguousarray(pixels[..., :3]))[..., 1:] - lab[..., 1:])
    return Image.fromarray(lab_to_rgb(lab))
