"""Jobs and a pipeline to results: the only place that knows the order of the stages."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from img2img_cli.pictures.colour import from_srgb
from img2img_cli.pictures.files.sixteen_bit import Deep
from img2img_cli.pictures.hints import fit_hints, follow_hints, spread_hints
from img2img_cli.pictures.keep import (
    colour_luminance,
    enlarge_luminance,
    keep_luminance,
    paste_on_luminance,
    restore_alpha,
    unpad,
)
from img2img_cli.pictures.masks import feather_mask, paste_masked
from img2img_cli.pictures.read import Picture, fit_image, load_image, plan_fit
from img2img_cli.pictures.write import DEEP_FORMATS, choose_format, encode_image, write_output
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.batching import run_works
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.pieces import Piece, Pipeline, Progress, Steps, Work, derive_seed
from img2img_cli.tasks.record import format_parameters, make_record
from img2img_cli.tasks.side_inputs import SideInputs, load_side_inputs
from img2img_cli.tasks.tiled import make_control, output_size, restore_image, transform_directly, upscale_image


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a job.

    Attributes:
        frames: how many the input has, of which the first was taken.
        narrowed: whether the input has more than the 8 bits a channel that were taken.
        damaged: whether only a part of the input could be decoded.
    """

    job: Job
    size: tuple[int, int]
    format: str
    seconds: float
    frames: int
    narrowed: bool = False
    damaged: bool = False


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A job's input and what is given beside it."""

    picture: Picture
    side_inputs: SideInputs


def load_pictures(job: Job) -> Loaded:
    """Decode everything that a job reads, so that what is damaged is refused before a model is loaded.

    Raises:
        InputError: naming the file.
    """
    picture = load_image(job.input, truncated=job.truncated)
    return Loaded(picture=picture, side_inputs=load_side_inputs(job, picture))


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
    for job, finished in finish_jobs(jobs, pipeline, loaded, progress):
        data, format_ = encode_result(finished, loaded.picture, job)
        write_output(data, job.output, replace=job.force or job.in_place)
        yield Result(
            job=job,
            size=finished.size,
            format=format_,
            seconds=time.monotonic() - began,
            frames=loaded.picture.frames,
            narrowed=loaded.picture.narrowed,
            damaged=loaded.picture.damaged,
        )


def finish_jobs(
    jobs: Sequence[Job], pipeline: Pipeline, loaded: Loaded, progress: Progress | None = None
) -> Iterator[tuple[Job, Finished]]:
    """Run jobs as `run_jobs` does, and yield each with its result as it is to be encoded; open and write no file.

    Raises:
        Img2ImgError: as the pipeline does.
    """
    picture, side_inputs = loaded.picture, loaded.side_inputs
    works = [start_work(picture.rgb, job.parameters, job.seed, pipeline, side_inputs) for job in jobs]
    for job, made in zip(jobs, run_works(works, pipeline, progress), strict=True):
        yield job, finish_picture(made, picture, job, side_inputs.mask)


def start_work(
    image: Image.Image,
    parameters: Parameters,
    seed: int,
    pipeline: Pipeline,
    side_inputs: SideInputs | None = None,
) -> Work:
    """What the preset's task does with a picture (8-bit sRGB)."""
    if pipeline.direct and parameters.task in ("edit", "restore"):
        beside = side_inputs or SideInputs()
        mask = beside.mask if pipeline.takes_mask else None
        return transform_directly(image, parameters, seed, pipeline, mask=mask, style=beside.style)
    if parameters.task == "edit":
        return Work(total=1, steps=_edit(image, parameters, seed, pipeline, side_inputs or SideInputs()))
    if parameters.task == "colorize":
        return colorize_image(image, parameters, seed, pipeline, side_inputs)
    start = {"upscale": upscale_image, "restore": restore_image}
    return start[parameters.task](image, parameters, seed, pipeline)


def transform_image(image: Image.Image, parameters: Parameters, seed: int, pipeline: Pipeline) -> Image.Image:
    """One picture (8-bit sRGB) to its result (the same)."""
    return run_works([start_work(image, parameters, seed, pipeline)], pipeline)[0]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A result as it will be encoded.

    Attributes:
        image: 8 bits a channel, grey or RGB, with or without alpha.
        deep: the same in 16 bits, `(H, W)` or `(H, W, 3)`, where the input has them and task and format keep them.
    """

    image: Image.Image
    format: str
    deep: Deep | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size


def finish_picture(made: Image.Image, picture: Picture, job: Job, mask: Image.Image | None = None) -> Finished:
    """Back to the input's colour space, the mask's black and the alpha as they were.

    Args:
        made: 8-bit sRGB from the model.
        mask: as it was loaded with the input, for a job that has one.
    """
    result, format_ = from_srgb(made, picture.icc_profile), choose_format(job.format, job.output, picture.format)
    soft = None if mask is None else feather_mask(mask, job.parameters.mask_feather)
    deep = _deepen(result, picture, job, soft) if format_ in DEEP_FORMATS else None
    if soft is not None:
        result = paste_masked(result, picture.native, soft)
    elif picture.grey and job.parameters.task in ("upscale", "restore"):
        result = result.convert("L")
    return Finished(image=restore_alpha(result, picture.alpha), format=format_, deep=deep)


def _deepen(result: Image.Image, picture: Picture, job: Job, soft: Image.Image | None) -> Deep | None:
    """What the model made in 16 bits, where the input has them and the task keeps them."""
    if picture.luminance is None or picture.alpha is not None:
        return None
    if soft is not None:
        return paste_on_luminance(result, picture.luminance, soft)
    if job.parameters.task == "upscale" and not job.parameters.faithful:
        return None  # the net's own 8 bits; those of the input would bring its noise back
    keep = {"colorize": colour_luminance, "upscale": enlarge_luminance}.get(job.parameters.task)
    return keep(result, picture.luminance) if keep else None


def encode_result(result: Finished, picture: Picture, job: Job, **provenance: str) -> tuple[bytes, str]:
    """A finished picture as a file's bytes, and their format."""
    record = make_record(job, **provenance) if job.metadata else None
    text = format_parameters(job, result.size)
    data = encode_image(
        result.image, picture, result.format, quality=job.quality, record=record, text=text, deep=result.deep
    )
    return data, result.format


def _edit(
    image: Image.Image,
    parameters: Parameters,
    seed: int,
    pipeline: Pipeline,
    side_inputs: SideInputs,
) -> Steps:
    """The picture under the prompt."""
    fit = plan_fit(image.size, parameters.image_size, pipeline.multiple)
    working = fit_image(image, fit)
    seen = working if side_inputs.control is None else fit_image(side_inputs.control, fit)
    control = make_control(seen, parameters, pipeline)
    mask = None
    if side_inputs.mask is not None and pipeline.takes_mask:
        mask = fit_image(side_inputs.mask.convert("RGB"), fit).convert("L")
    (made,) = yield [
        Piece(image=working, control=control, seed=seed, parameters=parameters, mask=mask, style=side_inputs.style)
    ]
    return unpad(made, fit.content, output_size(image.size, fit.content, parameters))


def colorize_image(
    image: Image.Image,
    parameters: Parameters,
    seed: int,
    pipeline: Pipeline,
    side_inputs: SideInputs | None = None,
) -> Work:
    """The picture's own luminance with the mean colour of `num_samples` results."""
    if pipeline.direct:  # it has no noise, and so all samples are one
        parameters = parameters.model_copy(update={"num_samples": 1})
    steps = _colorize(image, parameters, seed, pipeline, side_inputs or SideInputs())
    return Work(total=parameters.num_samples, steps=steps)


def _colorize(
    image: Image.Image, parameters: Parameters, seed: int, pipeline: Pipeline, side_inputs: SideInputs
) -> Steps:
    fit = plan_fit(image.size, parameters.image_size, pipeline.multiple)
    working = fit_image(image.convert("L").convert("RGB"), fit)
    control = make_control(working, parameters, pipeline)
    hints = None if side_inputs.hints is None else fit_hints(side_inputs.hints, fit)
    made = yield [
        Piece(image=working, control=control, seed=derive_seed(seed, index), parameters=parameters, hints=hints)
        for index in range(parameters.num_samples)
    ]
    if hints is not None:
        spread = spread_hints(hints, working)
        made = [follow_hints(result, spread) for result in made]
    size = output_size(image.size, fit.content, parameters)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    # Without noise, the strength is the share of the colours, as it is that of the change in other tasks.
    share = parameters.saturation * (parameters.strength if pipeline.direct else 1)
    return keep_luminance(image, [result.crop((0, 0, *fit.content)) for result in made], share)
