"""Compose training captions from the task, the style, the subject and the colours measured in the picture."""

from __future__ import annotations

import colorsys
import re

import numpy as np
from PIL import Image

TASKS = ("colorize", "upscale", "restore", "edit")
HUES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
_HUE_LIMITS = (15, 42, 68, 165, 195, 258, 292, 345)


def clean_caption(caption: str) -> str:
    """Lower-case a caption, keep only letters and commas, and cut off file names ("a photo, jane doe x7f unsplash")."""
    subject = re.sub(r"^a photo,.*", "a photo", caption.lower())
    return re.sub(r"\s+", " ", re.sub(r"[^a-z ,]", " ", subject)).replace(" ,", ",").strip(" ,")


def name_colour(red: int, green: int, blue: int) -> str:
    """Return the common English name of an 8-bit sRGB colour."""
    hue, lightness, _ = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    chroma = max(red, green, blue) - min(red, green, blue)
    if chroma < 28:
        return "black" if lightness < 0.2 else "white" if lightness > 0.8 else "grey"
    name = next((n for n, limit in zip(HUES, _HUE_LIMITS, strict=True) if hue * 360 < limit), "red")
    return "brown" if name in ("red", "orange") and lightness < 0.35 else name


def measure_colours(picture: Image.Image, count: int = 2) -> list[str]:
    """Return up to `count` names of the most frequent colours, each of which covers at least 1/8 of the picture."""
    pixels = np.asarray(picture.convert("RGB").resize((12, 12), Image.Resampling.BOX)).reshape(-1, 3)
    names = [name_colour(*map(int, pixel)) for pixel in pixels]
    ranked = sorted(set(names), key=names.count, reverse=True)[:count]
    return [name for name in ranked if names.count(name) >= len(names) / 8]


def compose_caption(task: str, subject: str, colours: list[str], style: str | None, rng: np.random.Generator) -> str:
    """Join the parts of a caption, leaving some out at random so that the model learns to use each part alone.

    12 % of captions are empty, for classifier-free guidance. Task and style alone form the most common caption, because
    they are the most common prompt. An edit without a style always names its subject or its colours.
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
