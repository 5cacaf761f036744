"""Colour hints: strokes of colour that tell `colorize` what is where."""

from __future__ import annotations

import numpy as np
from PIL import Image

from img2img_cli.errors import InputError
from img2img_cli.pictures.lab import rgb_to_lab
from img2img_cli.pictures.read import Fit, Picture

LEAST_CHROMA = 8.0  # of a stroke on a copy of the grey picture, whose own pixels have less even after JPEG


def read_hints(picture: Picture) -> Image.Image:
    """Return hints as RGBA, opaque where a colour is given.

    In a picture with transparent parts, what is opaque is given, grey too. In any other, such as a copy of the grey
    picture that was painted on, what has a colour is given.

    Raises:
        InputError: no pixel is given.
    """
    if picture.alpha is not None and np.asarray(picture.alpha).min() < 255:
        given = picture.alpha
        advice = "it is all transparent"
    else:
        chroma = np.hypot(*np.moveaxis(rgb_to_lab(np.asarray(picture.rgb))[..., 1:], -1, 0))
        given = Image.fromarray(((chroma >= LEAST_CHROMA) * 255).astype(np.uint8))
        advice = "it has neither colours nor transparent parts"
    if not np.asarray(given).any():
        raise InputError(f"{picture.name}: {advice}, so it hints at nothing; paint strokes of the colours on it")
    hints = picture.rgb.copy()
    hints.putalpha(given)
    return hints


def fit_hints(hints: Image.Image, fit: Fit) -> Image.Image:
    """Scale RGBA hints onto the model's canvas; the colour of what is transparent does not leak into the rest."""
    canvas = Image.new("RGBA", fit.canvas)
    canvas.paste(hints.resize(fit.content, Image.Resampling.BOX))
    return canvas
