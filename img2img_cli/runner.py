"""Jobs and a pipeline to results: the only place that knows the order of the stages."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from img2img_cli.errors import UsageError
from img2img_cli.finish import feather_mask, keep_luminance, paste_masked, restore_alpha, unpad
from img2img_cli.images import Picture, fit_image, from_srgb, load_image, load_mask, plan_fit
from img2img_cli.job import Job
from img2img_cli.parameters import Parameters
from img2img_cli.pipeline import ImagePipeline
from img2img_cli.record import format_parameters, make_record
from img2img_cli.upscaler import Progress, derive_seed, make_control, output_size, restore_image, upscale_image
from img2img_cli.writer import choose_format, encode_image, write_output


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
    elif parameters.task == "restore":
        results = [restore_image(picture.rgb, parameters, seed, pipeline, progress) for seed in seeds]
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


def edit_image(
    image: Image.Image, parameters: Parameters, seeds: list[int], pipeline: ImagePipeline, progress: Progress | None
) -> list[Image.Image]:
    """The picture under the prompt, one result a seed, as one batch."""
    fit = plan_fit(image.size, parameters.image_size, pipeline.multiple)
    working = fit_image(image, fit)
    control = make_control(working, parameters, pipeline)
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
    control = make_control(working, parameters, pipeline)
    seeds = [derive_seed(seed, index) for index in range(parameters.num_samples)]
    controls = [control] * len(seeds) if control is not None else None
    made = pipeline.transform([working] * len(seeds), controls, seeds, parameters, progress)
    size = output_size(image.size, fit.content, parameters)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return keep_luminance(image, [result.crop((0, 0, *fit.content)) for result in made], parameters.saturation)
