"""Jobs and a pipeline to results: the only place that knows the order of the stages."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from img2img_cli.batcher import run_works
from img2img_cli.colour import from_srgb
from img2img_cli.deep import Deep
from img2img_cli.finish import (
    colour_luminance,
    enlarge_luminance,
    feather_mask,
    keep_luminance,
    paste_masked,
    paste_on_luminance,
    restore_alpha,
    unpad,
)
from img2img_cli.guides import Guides, load_guides, load_mask
from img2img_cli.images import Picture, fit_image, load_image, plan_fit
from img2img_cli.job import Job
from img2img_cli.parameters import Parameters
from img2img_cli.record import format_parameters, make_record
from img2img_cli.upscaler import make_control, output_size, restore_image, upscale_image
from img2img_cli.work import Piece, Pipeline, Progress, Steps, Work, derive_seed
from img2img_cli.writer import DEEP_FORMATS, choose_format, encode_image, write_output


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a job.

    Attributes:
        frames: how many the input has, of which the first was taken.
        narrowed: whether the input has more than the 8 bits a channel that were taken.
    """

    job: Job
    size: tuple[int, int]
    format: str
    seconds: float
    frames: int
    narrowed: bool = False


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A job's input and what is given beside it."""

    picture: Picture
    guides: Guides


def load_pictures(job: Job) -> Loaded:
    """Decode everything that a job reads, so that what is damaged is refused before a model is loaded.

    Raises:
        InputError: naming the file.
    """
    picture = load_image(job.input)
    return Loaded(picture=picture, guides=load_guides(job, picture.size))


def run_jobs(
    jobs: Sequence[Job], pipeline: Pipeline, progress: Progress | None = None, loaded: Loaded | None = None
) -> Iterator[Result]:
    """Run jobs that share their input and parameters and differ in seed and output; they go through as one batch.

    Args:
        loaded: their pictures, if they are decoded already.

    Raises:
        Img2ImgError: before anything was written for the job it concerns.
    """
    began = time.monotonic()
    loaded = loaded or load_pictures(jobs[0])
    picture, guides = loaded.picture, loaded.guides
    works = [start_work(picture.rgb, job.parameters, job.seed, pipeline, guides) for job in jobs]
    for job, made in zip(jobs, run_works(works, pipeline, progress), strict=True):
        result = finish_picture(made, picture, job)
        data, format_ = encode_result(result, picture, job)
        write_output(data, job.output, replace=job.force or job.in_place)
        yield Result(
            job=job,
            size=result.size,
            format=format_,
            seconds=time.monotonic() - began,
            frames=picture.frames,
            narrowed=picture.narrowed,
        )


def start_work(
    image: Image.Image,
    parameters: Parameters,
    seed: int,
    pipeline: Pipeline,
    guides: Guides | None = None,
) -> Work:
    """What the preset's task does with a picture (8-bit sRGB)."""
    if parameters.task == "edit":
        return Work(total=1, steps=_edit(image, parameters, seed, pipeline, guides or Guides()))
    start = {"colorize": colorize_image, "upscale": upscale_image, "restore": restore_image}
    return start[parameters.task](image, parameters, seed, pipeline)


def transform_image(image: Image.Image, parameters: Parameters, seed: int, pipeline: Pipeline) -> Image.Image:
    """One picture (8-bit sRGB) to its result (the same)."""
    return run_works([start_work(image, parameters, seed, pipeline)], pipeline)[0]


def finish_picture(result: Image.Image, picture: Picture, job: Job) -> Image.Image:
    """Back to the input's colour space, the mask's black and the alpha as they were."""
    result = from_srgb(result, picture.icc_profile)
    if job.mask is not None:
        result = paste_masked(result, picture.native, _load_soft_mask(job, picture))
    elif picture.grey and job.parameters.task in ("upscale", "restore"):
        result = result.convert("L")
    return restore_alpha(result, picture.alpha)


def _load_soft_mask(job: Job, picture: Picture) -> Image.Image:
    assert job.mask is not None
    return feather_mask(load_mask(job.mask, picture.size), job.parameters.mask_feather)


def _deepen(result: Image.Image, picture: Picture, job: Job) -> Deep | None:
    """A result in 16 bits, where the input has them and the task keeps them."""
    if picture.luminance is None or picture.alpha is not None:
        return None
    if job.mask is not None:
        return paste_on_luminance(result, picture.luminance, _load_soft_mask(job, picture))
    keep = {"colorize": colour_luminance, "upscale": enlarge_luminance}.get(job.parameters.task)
    return keep(result, picture.luminance) if keep else None


def encode_result(result: Image.Image, picture: Picture, job: Job, **provenance: str) -> tuple[bytes, str]:
    """A finished picture as a file's bytes, and their format."""
    format_ = choose_format(job, picture.format)
    record = make_record(job, **provenance) if job.metadata else None
    text = format_parameters(job, result.size)
    deep = _deepen(result, picture, job) if format_ in DEEP_FORMATS else None
    data = encode_image(result, picture, format_, quality=job.quality, record=record, text=text, deep=deep)
    return data, format_


def _edit(
    image: Image.Image,
    parameters: Parameters,
    seed: int,
    pipeline: Pipeline,
    guides: Guides,
) -> Steps:
    """The picture under the prompt."""
    fit = plan_fit(image.size, parameters.image_size, pipeline.multiple)
    working = fit_image(image, fit)
    seen = working if guides.control is None else fit_image(guides.control, fit)
    control = make_control(seen, parameters, pipeline)
    mask = None
    if guides.mask is not None and pipeline.takes_mask:
        mask = fit_image(guides.mask.convert("RGB"), fit).convert("L")
    (made,) = yield [
        Piece(image=working, control=control, seed=seed, parameters=parameters, mask=mask, style=guides.style)
    ]
    return unpad(made, fit.content, output_size(image.size, fit.content, parameters))


def colorize_image(image: Image.Image, parameters: Parameters, seed: int, pipeline: Pipeline) -> Work:
    """The picture's own luminance with the mean colour of `num_samples` results."""
    return Work(total=parameters.num_samples, steps=_colorize(image, parameters, seed, pipeline))


def _colorize(image: Image.Image, parameters: Parameters, seed: int, pipeline: Pipeline) -> Steps:
    fit = plan_fit(image.size, parameters.image_size, pipeline.multiple)
    working = fit_image(image.convert("L").convert("RGB"), fit)
    control = make_control(working, parameters, pipeline)
    made = yield [
        Piece(image=working, control=control, seed=derive_seed(seed, index), parameters=parameters)
        for index in range(parameters.num_samples)
    ]
    size = output_size(image.size, fit.content, parameters)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return keep_luminance(image, [result.crop((0, 0, *fit.content)) for result in made], parameters.saturation)
