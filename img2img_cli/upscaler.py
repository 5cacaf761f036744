"""Pictures of any size through the model in overlapping tiles: enlarging and restoring."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from img2img_cli.control import make_control_image
from img2img_cli.errors import InputError
from img2img_cli.finish import back_project
from img2img_cli.images import pad_image
from img2img_cli.parameters import MAX_PIXELS, Parameters
from img2img_cli.pipeline import ImagePipeline
from img2img_cli.tiling import Canvas, Tile, plan_tiles

Progress = Callable[[int, int], None]
TILE_BATCH_PIXELS = 4 * 256 * 256
MAX_FACTOR_PER_PASS = 4.0


def output_size(size: tuple[int, int], content: tuple[int, int], parameters: Parameters) -> tuple[int, int]:
    """The size asked for by `--size`."""
    if parameters.size == "original":
        return size
    if parameters.size == "model":
        return content
    width, height = parameters.size.split("x")
    return int(width), int(height)


def make_control(image: Image.Image, parameters: Parameters, pipeline: ImagePipeline) -> Image.Image | None:
    """The control picture that the preset asks for, or None for a model without a ControlNet."""
    return make_control_image(image, parameters.control or "picture") if pipeline.has_controlnet else None


def upscale_image(
    image: Image.Image, parameters: Parameters, seed: int, pipeline: ImagePipeline, progress: Progress | None
) -> Image.Image:
    """The picture `scale` times larger, in passes of at most x4, each faithful to the one before."""
    width, height = image.size
    final = round(width * parameters.scale), round(height * parameters.scale)
    if parameters.size not in ("original", "model"):
        final = output_size(image.size, image.size, parameters)
    if final[0] * final[1] > MAX_PIXELS:
        raise InputError(
            f"the result would have {final[0]} x {final[1]} pixels, "
            f"over {MAX_PIXELS // 1_000_000} million; use a smaller --scale"
        )
    factor = max(final[0] / width, final[1] / height, 1.0)
    passes = max(1, math.ceil(math.log(factor, MAX_FACTOR_PER_PASS) - 1e-9))
    sizes = [
        tuple(max(1, round(s * (f / s) ** (index / passes))) for s, f in zip((width, height), final, strict=True))
        for index in range(1, passes)
    ] + [final]
    source = result = image
    for number, size in enumerate(sizes):
        step = None if progress is None else _shift_progress(progress, number, passes)
        enlarged = result.resize((size[0], size[1]), Image.Resampling.BICUBIC)
        result = transform_tiles(enlarged, parameters, seed + number, pipeline, step)
        result = back_project(result, source)
    return result


def _shift_progress(progress: Progress, number: int, passes: int) -> Progress:
    return lambda done, total: progress(number * total + done, passes * total)


def restore_image(
    image: Image.Image, parameters: Parameters, seed: int, pipeline: ImagePipeline, progress: Progress | None
) -> Image.Image:
    """The picture without its noise, blur and compression, at its own resolution."""
    result = transform_tiles(image, parameters, seed, pipeline, progress)
    size = output_size(image.size, image.size, parameters)
    return result if size == image.size else result.resize(size, Image.Resampling.LANCZOS)


def transform_tiles(
    image: Image.Image, parameters: Parameters, seed: int, pipeline: ImagePipeline, progress: Progress | None
) -> Image.Image:
    """The model's version of a picture of any size, tile by tile; each tile has its own noise."""
    multiple = pipeline.multiple
    tile_size = -(-parameters.tile_size // multiple) * multiple
    canvas_size = tuple(-(-side // multiple) * multiple for side in image.size)
    padded = pad_image(image, (canvas_size[0], canvas_size[1]))
    tiles = plan_tiles(*padded.size, tile_size, parameters.tile_overlap)
    canvas = Canvas(*padded.size, parameters.tile_overlap)
    batch_size = max(1, TILE_BATCH_PIXELS // (tiles[0].width * tiles[0].height))
    for start, batch in enumerate(_batches(tiles, batch_size)):
        pieces = [padded.crop(tile.box) for tile in batch]
        controls = [make_control(piece, parameters, pipeline) for piece in pieces]
        seeds = [derive_seed(seed, start * batch_size + index) for index in range(len(batch))]
        step = None if progress is None else _shift_progress(progress, start, math.ceil(len(tiles) / batch_size))
        made = pipeline.transform(pieces, [c for c in controls if c is not None] or None, seeds, parameters, step)
        for tile, result in zip(batch, made, strict=True):
            canvas.add(tile, np.asarray(result))
    return Image.fromarray(canvas.merge()).crop((0, 0, *image.size))


def derive_seed(seed: int, index: int) -> int:
    """The seed of a picture's `index`-th part; the first part has the picture's own."""
    if index == 0:
        return seed
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def _batches(tiles: list[Tile], size: int) -> Iterator[list[Tile]]:
    for start in range(0, len(tiles), size):
        yield tiles[start : start + size]
