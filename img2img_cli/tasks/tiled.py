"""Upscale and restore pictures of any size in overlapping tiles."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence

import numpy as np
from PIL import Image

from img2img_cli.errors import InputError
from img2img_cli.pictures.control_maps import make_control_image
from img2img_cli.pictures.keep import back_project, keep_base, keep_detail
from img2img_cli.pictures.read import pad_image
from img2img_cli.pictures.tiles import Canvas, Tile, plan_tiles
from img2img_cli.presets.schema import MAX_PIXELS, Parameters
from img2img_cli.tasks.pieces import Piece, Pipeline, Steps, Work, derive_seed

TILES_AT_ONCE_PIXELS = 16 * 256 * 256
MAX_FACTOR_PER_PASS = 4.0


def output_size(size: tuple[int, int], content: tuple[int, int], parameters: Parameters) -> tuple[int, int]:
    """Return the output width and height in pixels that `--size` asks for.

    Args:
        size: the size for `original`.
        content: the size for `model`.
    """
    if parameters.size == "original":
        return size
    if parameters.size == "model":
        return content
    width, height = parameters.size.split("x")
    return int(width), int(height)


def make_control(image: Image.Image, parameters: Parameters, pipeline: Pipeline) -> Image.Image | None:
    """Make the control picture that the parameters ask for; return None for a pipeline without a ControlNet."""
    return make_control_image(image, parameters.control or "picture") if pipeline.has_controlnet else None


def upscale_image(image: Image.Image, parameters: Parameters, seed: int, pipeline: Pipeline) -> Work:
    """Enlarge an RGB picture `scale` times, or to `--size`, in passes of at most x4 or the factor of the net.

    With `faithful`, each pass ends with a correction, so that its result, scaled down, matches the input of the pass.

    Returns:
        the work; nothing runs yet.

    Raises:
        InputError: the result would have more than `MAX_PIXELS` pixels.
    """
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
    passes = max(1, math.ceil(math.log(factor, max(pipeline.enlargements, default=MAX_FACTOR_PER_PASS)) - 1e-9))
    sizes = [_between(image.size, final, index / passes) for index in range(1, passes)] + [final]
    worked_on = [image.size, *sizes[:-1]] if pipeline.enlargements else []
    total = sum(len(_plan(size, parameters, pipeline)) for size in [*worked_on, *(sizes if pipeline.refines else [])])
    return Work(total=total, steps=_upscale(image, sizes, parameters, seed, pipeline))


def _between(first: tuple[int, int], last: tuple[int, int], share: float) -> tuple[int, int]:
    width, height = (max(1, round(a * (b / a) ** share)) for a, b in zip(first, last, strict=True))
    return width, height


def _upscale(
    image: Image.Image, sizes: list[tuple[int, int]], parameters: Parameters, seed: int, pipeline: Pipeline
) -> Steps:
    for number, size in enumerate(sizes):
        if pipeline.enlargements:
            factor = _choose_factor(image.size, size, pipeline.enlargements)
            large = yield from _transform_tiles(image, parameters, seed + number, pipeline, enlarge=factor)
            result = large if large.size == size else large.resize(size, Image.Resampling.LANCZOS)
        else:
            result = image.resize(size, Image.Resampling.BICUBIC)
        if pipeline.refines:
            result = yield from _transform_tiles(result, parameters, seed + number, pipeline)
        image = back_project(result, image) if parameters.faithful else result
    return image


def _choose_factor(small: tuple[int, int], large: tuple[int, int], factors: Sequence[int]) -> int:
    """Return the smallest factor that is enough, or the largest there is."""
    wanted = max(b / a for a, b in zip(small, large, strict=True))
    return next((factor for factor in factors if factor > wanted - 0.01), factors[-1])


def restore_image(image: Image.Image, parameters: Parameters, seed: int, pipeline: Pipeline) -> Work:
    """Restore an RGB picture at its own resolution, then resize it to `--size` if that differs.

    Returns:
        the work; nothing runs yet.
    """
    passes = 2 if parameters.keep_detail else 1
    total = passes * len(_plan(image.size, parameters, pipeline))
    return Work(total=total, steps=_restore(image, parameters, seed, pipeline))


def _restore(image: Image.Image, parameters: Parameters, seed: int, pipeline: Pipeline) -> Steps:
    result = yield from _transform_tiles(image, parameters, seed, pipeline)
    if parameters.keep_detail:
        reconstructed = yield from _transform_tiles(image, parameters, seed, pipeline, reconstruct=True)
        result = keep_detail(result, image, reconstructed, parameters.keep_detail)
    result = keep_base(result, image)
    return _scale_to_wanted(result, parameters)


def transform_directly(
    image: Image.Image,
    parameters: Parameters,
    seed: int,
    pipeline: Pipeline,
    *,
    mask: Image.Image | None = None,
    style: Image.Image | None = None,
) -> Work:
    """Pass an RGB picture through a direct network at its own resolution, and blend the result in by `strength`.

    Args:
        mask: `L` of the picture's size, for a pipeline that takes one.
        style: RGB of any size, for a look that takes one.

    Returns:
        the work; nothing runs yet.
    """
    total = len(_plan(image.size, parameters, pipeline))
    return Work(total=total, steps=_transform_directly(image, parameters, seed, pipeline, mask, style))


def _transform_directly(
    image: Image.Image,
    parameters: Parameters,
    seed: int,
    pipeline: Pipeline,
    mask: Image.Image | None,
    style: Image.Image | None,
) -> Steps:
    result = yield from _transform_tiles(image, parameters, seed, pipeline, mask=mask, style=style)
    if parameters.strength < 1:
        result = Image.blend(image, result, parameters.strength)
    return _scale_to_wanted(result, parameters)


def _scale_to_wanted(result: Image.Image, parameters: Parameters) -> Image.Image:
    size = output_size(result.size, result.size, parameters)
    return result if size == result.size else result.resize(size, Image.Resampling.LANCZOS)


def _canvas_size(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple


def _plan(size: tuple[int, int], parameters: Parameters, pipeline: Pipeline) -> list[Tile]:
    width, height = _canvas_size(size, pipeline.multiple)
    if pipeline.whole:
        return [Tile(left=0, top=0, width=width, height=height)]
    tile_size = -(-parameters.tile_size // pipeline.multiple) * pipeline.multiple
    multiple = pipeline.multiple if pipeline.direct else 1
    return plan_tiles(width, height, tile_size, parameters.tile_overlap, multiple)


def _transform_tiles(
    image: Image.Image,
    parameters: Parameters,
    seed: int,
    pipeline: Pipeline,
    *,
    enlarge: int = 0,
    reconstruct: bool = False,
    mask: Image.Image | None = None,
    style: Image.Image | None = None,
) -> Generator[list[Piece], list[Image.Image], Image.Image]:
    """Pass a picture of any size through the model tile by tile, with separate noise for each tile.

    Args:
        enlarge: the factor to enlarge by; 0 keeps the size.
        reconstruct: only encode and decode the picture with the autoencoder.
        mask: `L` of the size of `image`, for a pipeline that takes one.
        style: RGB of any size, for a look that takes one.

    Returns:
        the picture merged from the tiles, of the size of `image` times the factor.
    """
    factor = enlarge or 1
    padded = pad_image(image, _canvas_size(image.size, pipeline.multiple))
    covered = None if mask is None else pad_image(mask, padded.size)
    tiles = _plan(image.size, parameters, pipeline)
    canvas = Canvas(padded.width * factor, padded.height * factor, parameters.tile_overlap * factor)
    at_once = max(1, TILES_AT_ONCE_PIXELS // (tiles[0].width * tiles[0].height))
    for start, batch in _batches(tiles, at_once):
        pieces = []
        for index, tile in enumerate(batch, start):
            crop = padded.crop(tile.box)
            pieces.append(
                Piece(
                    image=crop,
                    control=None if reconstruct or enlarge else make_control(crop, parameters, pipeline),
                    seed=derive_seed(seed, index),
                    parameters=parameters,
                    mask=None if covered is None else covered.crop(tile.box),
                    style=style,
                    enlarge=enlarge,
                    reconstruct=reconstruct,
                    place=(
                        tile.left / image.width,
                        tile.top / image.height,
                        (tile.left + tile.width) / image.width,
                        (tile.top + tile.height) / image.height,
                    ),
                )
            )
        made = yield pieces
        for tile, result in zip(batch, made, strict=True):
            canvas.add(tile.scale(factor), np.asarray(result))
    return Image.fromarray(canvas.merge()).crop((0, 0, image.width * factor, image.height * factor))


def _batches(tiles: list[Tile], size: int) -> Iterator[tuple[int, list[Tile]]]:
    for start in range(0, len(tiles), size):
        yield start, tiles[start : start + size]
