"""Measure any preset on pairs, so that two runs, or a run and Stable Diffusion, can be compared."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.pieces import Pipeline
from img2img_cli.tasks.run import transform_image
from img2img_cli.train.pairs.layouts import Pair
from img2img_cli.train.pairs.pictures import read_sides
from img2img_cli.train.pairs.sheets import Figures


def measure_preset(parameters: Parameters, pipeline: Pipeline, pairs: Sequence[Pair], *, seed: int) -> Figures:
    """Return what a preset makes of the inputs, as a command would, beside the wanted outputs.

    A preset that enlarges is given the input in its own size; others in the output's. A result of another size than the
    output's is scaled to it, and so is the input that it is compared with.

    Raises:
        InputError: a picture cannot be read.
        ModelError, OutOfMemoryError: as the pipeline.
    """
    rows = []
    for pair in pairs:
        given, target = read_sides(pair)
        source = given.resize(target.size, Image.Resampling.LANCZOS)
        if parameters.task != "upscale":
            given = source
        own = parameters if not pair.caption else parameters.model_copy(update={"prompt": pair.caption})
        made = transform_image(given, own, seed, pipeline)
        if made.size != target.size:
            made = made.resize(target.size, Image.Resampling.LANCZOS)
        rows.append((pair.name, source, made, target))
    return Figures(rows=rows)


def format_table(preset: str, figures: Figures) -> str:
    """Return the figures as a Markdown table, with the pairs that came out worst."""
    means = figures.means
    lines = [f"| {len(figures.rows)} pairs | {preset} | input as it is |", "| --- | --- | --- |"]
    for key, name, digits in (("psnr", "PSNR, dB", 2), ("ssim", "SSIM", 4), ("l1", "mean difference", 4)):
        lines.append(f"| {name} | {means[key]:.{digits}f} | {means[f'input_{key}']:.{digits}f} |")
    worst = ", ".join(f"{name} ({psnr:.1f} dB)" for name, psnr in figures.list_worst())
    return "\n".join([*lines, "", f"worst: {worst}"])
