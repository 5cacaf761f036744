"""Jobs and a pipeline to results: the only place that knows the order of the stages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from img2img_cli.control import make_control_image
from img2img_cli.errors import InputError, UsageError
from img2img_cli.finish import back_project, feather_mask, keep_luminance, paste_masked, restore_alpha, unpad
from img2img_cli.images import Picture, fit_image, from_srgb, load_image, load_mask, pad_image, plan_fit
from img2img_cli.job import Job
from img2img_cli.parameters import MAX_PIXELS, Parameters
from img2img_cli.pipeline import ImagePipeline
from img2img_cli.record import format_parameters, make_record
from img2img_cli.tiling import Canvas, Tile, plan_tiles
from img2img_cli.writer import choose_format, encode_image, write_output

Progress = Callable[[int, int], None]
TILE_BATCH_PIXELS = 4 * 256 * 256
MAX_FACTOR_PER_PASS = 4.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a job; `frames` is how many the input has, of which the first was taken."""

    job: Job
    size: tuple[int, int]
    format: str
    seconds: float
    frames: int


def run_jobs(jobs: Sequence[Job], pipeline: ImagePipeline, progress: Progress | None = None) -> Iterator[Result]:
    """Run jobs that share their input and parameters and differ in seed and output; they go through as one batch.

    Raises:
        Img2ImgError: before anything was written for the job it concerns.
    """
    began = time.monotonic()
    job = jobs[0]
    picture = load_image(job.input)
    results = make_results(picture, job, [j.seed for j in jobs], pipeline, progress)
    for job, result in zip(jobs, results, strict=True):
        format_ = choose_format(job, picture.format)
        record = make_record(job) if job.metadata else None
        data = encode_image(
            result,
            picture,
            format_,
            quality=job.quality,
            record=record,
            text=format_parameters(job, result.size),
        )
        write_output(data, job.output, replace=job.force or job.in_place)
        yield Result(job=job, size=result.size, format=format_, seconds=time.monotonic() - began, frames=picture.frames)


def make_results(
    picture: Picture, job: Job, seeds: list[int], pipeline: ImagePipeline, progress: Progress | None
) -> list[Image.Image]:
    """The finished pictures, RGB or RGBA in the input's colour space, one a seed."""
    parameters = job.parameters
    mask = load_mask(job.mask, picture.size) if job.mask else None
    if parameters.task == "upscale":
        results = [upscale_image(picture.rgb, parameters, seed, pipeline, progress) for seed in seeds]
    elif parameters.task == "colorize":
        results = [colorize_image(picture.rgb, parameters, seed, pipeline, progress) for seed in seeds]
    else:
        results = edit_image(picture.rgb, parameters, seeds, pipeline, progress)
    return [_finish(result, picture, mask, parameters) for result in results]


def _finish(result: Image.Image, picture: Picture, mask: Image.Image | None, parameters: Parameters) -> Image.Image:
    result = from_srgb(result, picture.icc_profile)
    if mask is not None:
        if result.size != picture.size:
            raise UsageError("--mask keeps the picture's own pixels, so it needs --size original and no upscaling")
        result = paste_masked(result, picture.native, feather_mask(mask, parameters.mask_feather))
    return restore_alpha(result, picture.alpha)


def output_size(size: tuple[int, int], content: tuple[int, int], parameters: Parameters) -> tuple[int, int]:
    """The size asked for by `--size`."""
    if parameters.size == "original":
        return size
    if parameters.size == "model":
        return content
    width, height = parameters.size.split("x")
    return int(width), int(height)


def _control(image: Image.Image, parameters: Parameters, pipeline: ImagePipeline) -> Image.Image | None:
    return make_control_image(image, parameters.control or "picture") if pipeline.has_controlnet else None


def edit_image(
    image: Image.Image, parameters: Parameters, seeds: list[int], pipeline: ImagePipeline, progress: Progress | None
) -> list[Image.Image]:
    """The picture under the prompt, one result a seed, as one batch."""
    fit = plan_fit(image.size, parameters.image_size, pipeline.multiple)
    working = fit_image(image, fit)
    control = _control(working, parameters, pipeline)
    controls = [control] * len(seeds) if control is not None else None
    made = pipeline.transform([working] * len(seeds), controls, seeds, parameters, progress)
    return [unpad(result, fit.content, output_size(image.size, fit.content, parameters)) for result in made]


def colorize_image(
    image: Image.Image, parameters: Parameters, seed: int, pipeline: ImagePipeline, progress: Progress | None
) -> Image.Image:
    """The picture's own luminance with the mean colour of `num_samples` results."""
    grey = image.convert("L").convert("RGB")
    fit = plan_fit(image.size, parameters.image_size, pipeline.multiple)
    working = fit_image(grey, fit)
    control = _control(working, parameters, pipeline)
    seeds = [derive_seed(seed, index) for index in range(parameters.num_samples)]
    controls = [control] * len(seeds) if control is not None else None
    made = pipeline.transform([working] * len(seeds), controls, seeds, parameters, progress)
    size = output_size(image.size, fit.content, parameters)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return keep_luminance(image, [result.crop((0, 0, *fit.content)) for result in made], parameters.saturation)


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
        result = _enlarge(result, (size[0], size[1]), parameters, seed + number, pipeline, step)
        result = back_project(result, source)
    return result


def _shift_progress(progress: Progress, number: int, passes: int) -> Progress:
    return lambda done, total: progress(number * total + done, passes * total)


def _enlarge(
    image: Image.Image,
    size: tuple[int, int],
    parameters: Parameters,
    seed: int,
    pipeline: ImagePipeline,
    progress: Progress | None,
) -> Image.Image:
    enlarged = image.resize(size, Image.Resampling.BICUBIC)
    multiple = pipeline.multiple
    tile_size = -(-parameters.tile_size // multiple) * multiple
    canvas_size = tuple(-(-side // multiple) * multiple for side in size)
    padded = pad_image(enlarged, (canvas_size[0], canvas_size[1]))
    tiles = plan_tiles(*padded.size, tile_size, parameters.tile_overlap)
    canvas = Canvas(*padded.size, parameters.tile_overlap)
    batch_size = max(1, TILE_BATCH_PIXELS // (tiles[0].width * tiles[0].height))
    for start, batch in enumerate(_batches(tiles, batch_size)):
        pieces = [padded.crop(tile.box) for tile in batch]
        controls = [_control(piece, parameters, pipeline) for piece in pieces]
        seeds = [derive_seed(seed, start * batch_size + index) for index in range(len(batch))]
        step = None if progress is None else _shift_progress(progress, start, math.ceil(len(tiles) / batch_size))
        made = pipeline.transform(pieces, [c for c in controls if c is not None] or None, seeds, parameters, step)
        for tile, result in zip(batch, made, strict=True):
            canvas.add(tile, np.asarray(result))
    return Image.fromarray(canvas.merge()).crop((0, 0, *size))


def derive_seed(seed: int, index: int) -> int:
    """The seed of a picture's `index`-th part; the first part has the picture's own."""
    if index == 0:
        return seed
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def _batches(tiles: list[Tile], size: int) -> Iterator[list[Tile]]:
    for start in range(0, len(tiles), size):
        yield tiles[start : start + size]
