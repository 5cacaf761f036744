"""Captions: what a picture is of, its colours measured from the pixels, the task and the style."""

from __future__ import annotations

import colorsys
import re

import numpy as np
from PIL import Image

TASKS = ("colorize", "upscale", "restore", "edit")
HUES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
_HUE_LIMITS = (15, 42, 68, 165, 195, 258, 292, 345)


def clean_caption(caption: str) -> str:
    """Lower case, plain punctuation; file names ("a photo, jane doe x7f unsplash") are cut off."""
    subject = re.sub(r"^a photo,.*", "a photo", caption.lower())
    return re.sub(r"\s+", " ", re.sub(r"[^a-z ,]", " ", subject)).replace(" ,", ",").strip(" ,")


def name_colour(red: int, green: int, blue: int) -> str:
    """The plain English word for an 8-bit sRGB colour."""
    hue, lightness, _ = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    chroma = max(red, green, blue) - min(red, green, blue)
    if chroma < 28:
        return "black" if lightness < 0.2 else "white" if lightness > 0.8 else "grey"
    name = next((n for n, limit in zip(HUES, _HUE_LIMITS, strict=True) if hue * 360 < limit), "red")
    return "brown" if name in ("red", "orange") and lightness < 0.35 else name


def measure_colours(picture: Image.Image, count: int = 2) -> list[str]:
    """The `count` most frequent colour words of a picture, each covering at least an eighth of it."""
    pixels = np.asarray(picture.convert("RGB").resize((12, 12), Image.Resampling.BOX)).reshape(-1, 3)
    names = [name_colour(*map(int, pixel)) for pixel in pixels]
    ranked = sorted(set(names), key=names.count, reverse=True)[:count]
    return [name for name in ranked if names.count(name) >= len(names) / 8]


def compose_caption(task: str, subject: str, colours: list[str], style: str | None, rng: np.random.Generator) -> str:
    """Join the parts, leaving some out at random so that each works alone; 12 % are empty, for guidance.

    Task and style alone are the commonest caption, as they are the commonest prompt; an edit without a style is about
    what is named, so something is.
    """
    if rng.random() < 0.12:
        return ""
    about = [subject, " and ".join(colours)] if colours else [subject]
    plain = style is not None or task != "edit"
    if plain and rng.random() < 0.45:
        about = []
    elif len(about) > 1 and rng.random() < 0.5:
        about.pop(rng.integers(2))
    return ", ".join([task, *([style] if style else []), *about])
