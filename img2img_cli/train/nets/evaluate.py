"""Measure `restore`, `upscale` and `colorize` on photographs that no network was trained on, beside what needs none."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from img2img_cli.engines.device import Placement
from img2img_cli.engines.nets.colour_net import ColourNet
from img2img_cli.engines.nets.folder import tell_architecture
from img2img_cli.engines.open import open_pipeline
from img2img_cli.pictures.keep import back_project
from img2img_cli.pictures.lab import lab_to_rgb, rgb_to_lab
from img2img_cli.presets.catalogue import resolve
from img2img_cli.presets.files import load_preset
from img2img_cli.presets.references import locate_model
from img2img_cli.tasks.pieces import Pipeline
from img2img_cli.tasks.run import transform_image
from img2img_cli.train.bundled.degrade import add_noise, compress
from img2img_cli.train.card import fill_card
from img2img_cli.train.data import list_shards, read_shard
from img2img_cli.train.metrics import measure_chroma, measure_detail, measure_psnr
from img2img_cli.train.nets.photographs import is_set_aside, shrink

WITHOUT = "without a network"  # the column of the best classical method
SHEET_SIDE, SHEET_ROWS, WORST = 256, 6, 3
COLOURED = 256  # pictures are coloured at about this squared, as the network is trained
SHARPEST = 1024  # longer sides of one's own pictures are reduced to this


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One damaged picture and what was made of it.

    Attributes:
        name: the kind of damage.
        results: the pictures by column: as it is, without a network, with it.
        figures: a figure for each column and, for `upscale` and `colorize`, more.
        are_errors: whether the figures of the columns are errors, of which less is better, or PSNR in dB.
    """

    name: str
    truth: Image.Image
    results: Mapping[str, Image.Image]
    figures: Mapping[str, float]
    are_errors: bool = False

    @property
    def gain(self) -> float:
        """By how much the network is better than the best that needs none."""
        *others, own = (self.figures[key] for key in self.results)
        return min(others) - own if self.are_errors else own - max(others)


def read_strangers(data: Path, pictures: Path | None) -> dict[str, list[Image.Image]]:
    """Return sets of pictures that are not trained on: the last shard, what is set aside, and a folder of one's own.

    Photographs of the shards are reduced as for training, because they carry compression; those of a folder are not,
    unless a side is longer than `SHARPEST`.

    Raises:
        UsageError: there is no shard.
    """
    shards, held_out = list_shards(data)
    sets = {"held out": [Image.fromarray(shrink(p.pixels)) for p in read_shard(held_out or shards[0])]}
    if held_out is not None:
        aside = [p.pixels for shard in shards for p in read_shard(shard) if is_set_aside(p)]
        sets["set aside"] = [Image.fromarray(shrink(pixels)) for pixels in aside]
    if pictures is not None:
        own = []
        for path in sorted(pictures.iterdir()):
            with Image.open(path) as image:
                picture = image.convert("RGB")
            picture.thumbnail((SHARPEST, SHARPEST), Image.Resampling.LANCZOS)
            own.append(picture)
        sets[pictures.name] = own
    return sets


def evaluate_net(
    model: str,
    sets: Mapping[str, Sequence[Image.Image]],
    *,
    count: int,
    placement: Placement,
    say: Callable[[str], None],
) -> dict[str, list[Trial]]:
    """Try a network on up to `count` pictures of each set, evenly spaced; return the trials of each set.

    A network that enlarges is measured with the preset `upscale`, one that colours with `colorize`, any other with
    `restore`.

    Args:
        model: the network, as `--model` takes it.

    Raises:
        ModelError: as `open_pipeline`.
    """
    pipeline = open_pipeline(resolve(load_preset("restore"), {"model": model, "strength": 1.0}).parameters, placement)
    try_out: Callable[[Image.Image, str, Pipeline], Iterator[Trial]] = _try_restoring
    if pipeline.enlargements:
        try_out = _try_upscaling
    elif tell_architecture(Path(locate_model(model)[1])) == ColourNet.__name__:
        tint = find_tint([picture for pictures in sets.values() for picture in pictures])
        try_out = functools.partial(_try_colouring, tint=tint)
    found: dict[str, list[Trial]] = {}
    for name, pictures in sets.items():
        chosen = pictures[:: max(1, len(pictures) // count)][:count]
        found[name] = []
        for index, truth in enumerate(chosen):
            say(f"{name}: {index + 1}/{len(chosen)}")
            found[name] += try_out(truth, model, pipeline)
    return found


def _try_restoring(truth: Image.Image, model: str, pipeline: Pipeline) -> Iterator[Trial]:
    parameters = resolve(load_preset("restore"), {"model": model, "strength": 1.0}).parameters
    damages: list[tuple[str, Image.Image, float]] = []
    for sigma in (10.0, 25.0, 50.0):
        damages.append((f"noise of sigma {sigma:g}", add_noise(truth, sigma, np.random.default_rng(0)), sigma))
    damages += [(f"JPEG quality {quality}", compress(truth, quality), 0.0) for quality in (10, 20, 40)]
    damages.append(("blur of sigma 1", truth.filter(ImageFilter.GaussianBlur(1)), 0.0))
    damages.append(("no damage", truth, 0.0))
    for name, damaged, sigma in damages:
        results = {"as it is": damaged, WITHOUT: _denoise(damaged, sigma) if sigma else damaged}
        results["restore"] = transform_image(damaged, parameters, 0, pipeline)
        yield Trial(
            name=name,
            truth=truth,
            results=results,
            figures={key: min(99.0, measure_psnr(result, truth)) for key, result in results.items()},
        )


def _denoise(picture: Image.Image, sigma: float) -> Image.Image:
    """Return what non-local means makes of a picture whose noise is known; the picture itself without scikit-image."""
    try:
        from skimage.restoration import denoise_nl_means
    except ImportError:
        return picture
    pixels = np.asarray(picture, np.float32) / 255
    made = denoise_nl_means(
        pixels, patch_size=5, patch_distance=6, h=0.6 * sigma / 255, sigma=sigma / 255, fast_mode=True, channel_axis=-1
    )
    return Image.fromarray((made * 255).round().clip(0, 255).astype(np.uint8))


def _try_upscaling(truth: Image.Image, model: str, pipeline: Pipeline) -> Iterator[Trial]:
    truth = truth.crop((0, 0, truth.width // 12 * 12, truth.height // 12 * 12))
    for scale in (2, 3, 4):
        parameters = resolve(load_preset("upscale"), {"model": model, "scale": float(scale)}).parameters
        small = truth.resize((truth.width // scale, truth.height // scale), Image.Resampling.BICUBIC)
        bicubic = small.resize(truth.size, Image.Resampling.BICUBIC)
        results = {"bicubic": bicubic, WITHOUT: back_project(bicubic, small)}
        results["upscale"] = large = transform_image(small, parameters, 0, pipeline)
        figures = {key: measure_psnr(_grey(result), _grey(truth)) for key, result in results.items()}
        figures["detail beside the truth's"] = measure_detail(large) / measure_detail(truth)
        figures["input given back, dB"] = measure_psnr(large.resize(small.size, Image.Resampling.BICUBIC), small)
        yield Trial(name=f"x{scale}", truth=truth, results=results, figures=figures)


def find_tint(pictures: Sequence[Image.Image]) -> np.ndarray:
    """Return the a* and b* that are right for all pictures together more than any others are: their medians."""
    seen = [rgb_to_lab(np.asarray(picture.resize((32, 32), Image.Resampling.BOX)))[..., 1:] for picture in pictures]
    tint: np.ndarray = np.median(np.stack(seen).reshape(-1, 2), 0)
    return tint


def _try_colouring(truth: Image.Image, model: str, pipeline: Pipeline, *, tint: np.ndarray) -> Iterator[Trial]:
    given = {"model": model, "image_size": COLOURED, "prompt": ""}
    parameters = resolve(load_preset("colorize"), given).parameters
    grey = _grey(truth)
    lightness = rgb_to_lab(np.asarray(grey))[..., :1]
    tinted = np.concatenate([lightness, np.broadcast_to(tint, (*lightness.shape[:2], 2))], -1).astype(np.float32)
    results = {"grey": grey, WITHOUT: Image.fromarray(lab_to_rgb(tinted))}
    results["colorize"] = made = transform_image(grey, parameters, 0, pipeline)
    figures = {key: measure_chroma(result, truth)[0] for key, result in results.items()}
    colours = [rgb_to_lab(np.asarray(picture))[..., 1:].reshape(-1, 2) for picture in (made, truth)]
    figures["share of the truth's chroma"] = measure_chroma(made, truth)[2] / max(1.0, measure_chroma(truth, truth)[2])
    for axis, name in enumerate(("a*", "b*")):
        first, second = colours[0][:, axis], colours[1][:, axis]
        known = min(first.std(), second.std()) > 0
        figures[f"correlation of {name}"] = float(np.corrcoef(first, second)[0, 1]) if known else 0.0
    yield Trial(name="chroma error", truth=truth, results=results, figures=figures, are_errors=True)


def _grey(picture: Image.Image) -> Image.Image:
    return picture.convert("L").convert("RGB")


def format_trials(found: Mapping[str, Sequence[Trial]]) -> str:
    """Format the means of the figures as a Markdown table for each set of pictures."""
    lines = []
    for name, trials in found.items():
        if not trials:
            continue
        rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for trial in trials:
            for column, value in trial.figures.items():
                rows[trial.name][column].append(value)
        columns = list(trials[0].figures)
        kinds = len({trial.name for trial in trials})
        lines += [f"| {name} ({len(trials) // kinds}) | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
        lines += [
            f"| {kind} | " + " | ".join(f"{np.mean(row[column]):.2f}" for column in columns) + " |"
            for kind, row in rows.items()
        ]
        lines.append("")
    return "\n".join(lines).strip()


def draw_trials(found: Mapping[str, Sequence[Trial]]) -> Image.Image:
    """Draw a contact sheet: a row a trial, with the truth and then each result, cut to their middle squares.

    The first rows are spread over the sets; the last `WORST` are those in which the network gains least.
    """
    every = [trial for trials in found.values() for trial in trials]
    shown = every[:: max(1, len(every) // SHEET_ROWS)][:SHEET_ROWS]
    shown += sorted(every, key=lambda trial: trial.gain)[:WORST]
    columns = 1 + max((len(trial.results) for trial in shown), default=0)
    sheet = Image.new("RGB", (SHEET_SIDE * columns, SHEET_SIDE * max(1, len(shown))), "white")
    for row, trial in enumerate(shown):
        for column, picture in enumerate([trial.truth, *trial.results.values()]):
            view = picture.crop(_middle(picture.size))
            sheet.paste(view, (column * SHEET_SIDE, row * SHEET_SIDE))
    return sheet


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top = max(0, size[0] - SHEET_SIDE) // 2, max(0, size[1] - SHEET_SIDE) // 2
    return left, top, min(left + SHEET_SIDE, size[0]), min(top + SHEET_SIDE, size[1])


def write_trials(found: Mapping[str, Sequence[Trial]], folder: Path, card: Path | None = None) -> None:
    """Write `evaluation.md`, `evaluation.json` and `evaluation.jpg` to a folder.

    Args:
        card: the model card, whose text between the marks is replaced by the tables, with the sheet beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.md").write_text(format_trials(found) + "\n", encoding="utf-8")
    rows = [
        {"set": name, "kind": trial.name, **{key: round(value, 3) for key, value in trial.figures.items()}}
        for name, trials in found.items()
        for trial in trials
    ]
    (folder / "evaluation.json").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    sheet = draw_trials(found)
    sheet.save(folder / "evaluation.jpg", quality=88)
    if card is not None:
        fill_card(card, format_trials(found))
        sheet.save(card.with_name("evaluation.jpg"), quality=80)
