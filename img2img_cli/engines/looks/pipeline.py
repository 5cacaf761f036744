"""The pipeline of presets with a `look`, which need no model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from img2img_cli.engines.base import BasePipeline
from img2img_cli.engines.looks import drawn, graded
from img2img_cli.engines.looks.erase import erase
from img2img_cli.engines.looks.style import paint_like
from img2img_cli.pictures.read import pad_image
from img2img_cli.presets.schema import Look
from img2img_cli.tasks.pieces import Piece, Progress

Draw = Callable[[Image.Image, float, np.random.Generator], Image.Image]
LOOKS: Mapping[Look, Draw] = {
    "bw": graded.make_black_and_white,
    "comic": drawn.draw_comic,
    "fog": graded.make_fog,
    "golden": graded.make_golden,
    "ink": drawn.draw_in_ink,
    "mosaic": graded.make_mosaic,
    "night": graded.make_night,
    "oil": drawn.paint_in_oil,
    "pencil": drawn.draw_pencil,
    "pixel": graded.make_pixels,
    "sepia": graded.make_sepia,
    "watercolour": drawn.paint_in_watercolour,
    "winter": graded.make_winter,
}
USUAL_PIXELS = 500_000  # of a picture whose scale is 1
MOST_PIXELS = 4_000_000  # larger pictures are worked on at this size, because memory and time grow with it
SMALLEST, SMALLEST_SCALE = 16, 0.3  # sides of what is worked on, and scale


class LookPipeline(BasePipeline):
    """Image processing that takes whole pictures; noise, stones and flakes follow the seed."""

    direct = True
    whole = True
    takes_mask = True

    def _run(self, pieces: Sequence[Piece], progress: Progress | None) -> list[Image.Image]:
        return [self._apply(piece) for piece in pieces]

    def _apply(self, piece: Piece) -> Image.Image:
        look = piece.parameters.look
        assert look is not None, "engines.open chooses this pipeline by it"
        if look == "erase":
            return piece.image if piece.mask is None else erase(piece.image, piece.mask, piece.seed)
        if look == "style":
            return piece.image if piece.style is None else paint_like(piece.image, piece.style, piece.seed)
        return apply_look(piece.image, look, piece.seed)


def apply_look(picture: Image.Image, look: Look, seed: int) -> Image.Image:
    """Return an RGB picture in a look; strokes and stones are as large beside the picture in every size of it."""
    size = picture.size
    if size[0] * size[1] > MOST_PIXELS:
        factor = math.sqrt(MOST_PIXELS / (size[0] * size[1]))
        picture = picture.resize([max(1, round(side * factor)) for side in size], Image.Resampling.LANCZOS)
    canvas = max(SMALLEST, picture.width), max(SMALLEST, picture.height)
    scale = max(SMALLEST_SCALE, math.sqrt(picture.width * picture.height / USUAL_PIXELS))
    made = LOOKS[look](pad_image(picture, canvas), scale, np.random.default_rng(seed)).crop((0, 0, *picture.size))
    if made.size == size:
        return made
    return made.resize(size, Image.Resampling.NEAREST if look == "pixel" else Image.Resampling.LANCZOS)
