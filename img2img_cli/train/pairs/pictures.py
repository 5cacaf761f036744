"""Read the two pictures of a pair, as pixels that lie on each other, and divide pairs into training and validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from img2img_cli.errors import InputError
from img2img_cli.pictures.read import load_image
from img2img_cli.train.pairs.layouts import Pair, Side

VALIDATION_SHARE = 0.1
MOST_VALIDATION = 64  # more say nothing new and take time from training
ASPECT_TOLERANCE = 0.02  # of the sides' ratio, above which two pictures do not show the same


def read_sides(pair: Pair) -> tuple[Image.Image, Image.Image]:
    """Return input and output, 8-bit sRGB, upright, each in its own size.

    Raises:
        InputError: a picture cannot be read, or the two have different shapes; the message names the file.
    """
    source = _read_side(pair.input, pair.input_side)
    target = _read_side(pair.output, pair.output_side)
    ratio = source.width * target.height / (source.height * target.width)
    if abs(ratio - 1) > ASPECT_TOLERANCE:
        raise InputError(
            f"{pair.input}: {source.width} x {source.height}, but {pair.output.name} is {target.width} x "
            f"{target.height}; crop one of them to the shape of the other"
        )
    return source, target


def read_pair(pair: Pair, longest: int) -> tuple[Image.Image, Image.Image]:
    """Return input and output as `read_sides`, both in the output's size, with sides of at most `longest` pixels.

    Raises:
        InputError: as `read_sides`.
    """
    source, target = read_sides(pair)
    scale = min(1.0, longest / max(target.size))
    size = max(1, round(target.width * scale)), max(1, round(target.height * scale))
    return _resize(source, size), _resize(target, size)


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _read_side(path: Path, side: Side) -> Image.Image:
    image = load_image(str(path)).rgb
    if side == "whole":
        return image
    middle = image.width // 2
    return image.crop((0, 0, middle, image.height) if side == "left" else (middle, 0, 2 * middle, image.height))


def divide_pairs(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs to train on and those to validate with.

    What the data calls test pairs is for validation. If it says nothing, a tenth is chosen by a hash of the name, so
    that a pair stays where it is when others come; of fewer than two pairs, none is taken away from training.
    """
    told = [pair for pair in pairs if pair.split == "test"]
    rest = [pair for pair in pairs if pair.split != "test"]
    if told or len(rest) < 2:
        return rest, told[:MOST_VALIDATION]
    ranked = sorted(rest, key=lambda pair: _hash_name(pair.name))
    chosen = [pair for pair in ranked if _hash_name(pair.name) < VALIDATION_SHARE] or ranked[:1]
    names = {id(pair) for pair in chosen[:MOST_VALIDATION]}
    return [pair for pair in rest if id(pair) not in names], chosen[:MOST_VALIDATION]


def _hash_name(name: str) -> float:
    """Return a number in 0..1 that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64
