"""Evaluate a trained model on unseen photographs: metrics and a contact sheet, also for the model card."""

from __future__ import annotations

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from img2img_cli.engines.device import Placement, make_generators
from img2img_cli.engines.diffusion.latents import LatentsPipeline
from img2img_cli.engines.open import open_pipeline
from img2img_cli.errors import ModelError
from img2img_cli.presets.catalogue import resolve
from img2img_cli.presets.files import load_preset
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.run import transform_image
from img2img_cli.train.bundled.classifier import classify, train_classifier
from img2img_cli.train.bundled.styles import STYLES
from img2img_cli.train.card import fill_card
from img2img_cli.train.data import list_shards, read_shard
from img2img_cli.train.metrics import correlate_structure, measure_psnr

SIDE, EDIT_SIDE, SHEET_SIDE = 256, 512, 256
Row = tuple[str, float]
Figures = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        counts: the number of pictures in each set, and under `styles` the number used for each style.
        figures: the mean of each metric for each set of pictures.
        styles: the metrics of `edit` for each style.
        sheet: the contact sheet.
    """

    counts: dict[str, int]
    figures: Figures
    styles: Figures
    sheet: Image.Image


class Model:
    """One model with a method for what it is used for.

    Args:
        reference: the model, as `--model` takes it.
    """

    def __init__(self, reference: str, placement: Placement) -> None:
        self._reference = reference
        pipeline = open_pipeline(self.parameters("fog"), placement)
        if not isinstance(pipeline, LatentsPipeline):
            raise ModelError(f"{reference}: cannot be evaluated; give a Stable Diffusion model")
        self.pipeline = pipeline

    def parameters(self, prompt: str) -> Parameters:
        """Return the parameters of the preset `edit` for this model and a prompt."""
        return resolve(load_preset("edit"), {"model": self._reference, "prompt": prompt}).parameters

    def edit(self, image: Image.Image, prompt: str) -> Image.Image:
        """Edit a picture with the preset `edit`."""
        return transform_image(image, self.parameters(prompt), 0, self.pipeline)


def crop_square(pixels: np.ndarray, side: int) -> Image.Image:
    """Crop the central square of uint8 pixels `(H, W, 3)` and scale it to `side` by `side` pixels."""
    image = Image.fromarray(pixels)
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    return image.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + short, top + short))


def evaluate_model(
    reference: str, *, data: Path, count: int, placement: Placement, say: Callable[[str], None]
) -> Evaluation:
    """Evaluate a model on the held-out shard of `data` and, if scikit-image is installed, on its photographs.

    If `data` holds a single shard, that shard is used.

    Args:
        reference: the model, as `--model` takes it.
        count: the number of photographs from the held-out shard, evenly spaced. A quarter of them is also edited in
            every style.
        say: takes progress messages.

    Raises:
        UsageError: `data` holds no shard.
    """
    shards, held_out = list_shards(data)
    strangers = read_shard(held_out or shards[0])
    held_out_pixels = [p.pixels for p in strangers[:: max(1, len(strangers) // count)][:count]]
    sets = {"held out": held_out_pixels, "scikit-image": _load_scikit_images()}
    model = Model(reference, placement)
    columns: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, pictures in sets.items():
        for index, pixels in enumerate(pictures):
            say(f"{name} {index + 1}/{len(pictures)}")
            for key, value in _measure_picture(crop_square(pixels, SIDE), model):
                columns[key][name].append(value)
    say("style classifier")
    # One shard is enough, because the classifier learns the styles, not the photographs.
    classifier = train_classifier(read_shard(shards[0]))
    subjects = [
        crop_square(pixels, EDIT_SIDE) for pixels in [*held_out_pixels[: max(1, count // 4)], *sets["scikit-image"]]
    ]
    return Evaluation(
        counts={name: len(pictures) for name, pictures in sets.items()} | {"styles": len(subjects)},
        figures={key: {name: float(np.mean(v)) for name, v in row.items()} for key, row in columns.items()}
        | _time_edit(subjects[-1], model),
        styles=_measure_styles(subjects, model, classifier, say),
        sheet=draw_sheet(subjects[-3:], model),
    )


def _load_scikit_images() -> list[np.ndarray]:
    try:
        from skimage import data
    except ImportError:
        return []
    return [getattr(data, name)() for name in ("astronaut", "coffee", "chelsea")]


def _measure_picture(truth: Image.Image, model: Model) -> Iterator[Row]:
    (decoded,) = model.pipeline.decode(model.pipeline.encode([truth], make_generators([0])))
    yield "autoencoder: PSNR, dB", measure_psnr(decoded, truth)


def _measure_styles(
    subjects: Sequence[Image.Image], model: Model, classifier: nn.Module, say: Callable[[str], None]
) -> Figures:
    rows: Figures = {}
    for style, apply in STYLES.items():
        say(style)
        results = [model.edit(subject, style) for subject in subjects]
        truths = [apply(subject, np.random.default_rng(0)) for subject in subjects]
        pairs, own = zip(results, subjects, strict=True), zip(truths, subjects, strict=True)
        rows[style] = {
            "accuracy": float(np.mean([classify(classifier, r) == style for r in results])),
            "structure": float(np.mean([correlate_structure(*pair) for pair in pairs])),
            "accuracy of the style itself": float(np.mean([classify(classifier, t) == style for t in truths])),
            "its structure": float(np.mean([correlate_structure(*pair) for pair in own])),
        }
    return rows


def _time_edit(picture: Image.Image, model: Model) -> Figures:
    began = time.monotonic()
    model.edit(picture, "oil painting")
    return {"edit: seconds for a result of 512 px, loaded": {"scikit-image": time.monotonic() - began}}


def draw_sheet(subjects: Sequence[Image.Image], model: Model) -> Image.Image:
    """Draw a contact sheet with the results for each picture.

    Each picture takes two lines: the picture itself, and then every style.
    """
    rows = [[subject, *(model.edit(subject, style) for style in STYLES)] for subject in subjects]
    columns = -(-len(rows[0]) // 2)
    sheet = Image.new("RGB", (SHEET_SIDE * columns, SHEET_SIDE * 2 * len(rows)), "white")
    for number, row in enumerate(rows):
        for index, picture in enumerate(row):
            corner = (index % columns * SHEET_SIDE, (2 * number + index // columns) * SHEET_SIDE)
            sheet.paste(picture.resize((SHEET_SIDE, SHEET_SIDE), Image.Resampling.LANCZOS), corner)
    return sheet


def format_tables(evaluation: Evaluation) -> str:
    """Format the metrics as two Markdown tables."""
    sets = [name for name in ("held out", "scikit-image") if evaluation.counts.get(name)]
    lines = [
        "| mean of | " + " | ".join(f"{name} ({evaluation.counts[name]})" for name in sets) + " |",
        "| --- |" + " --- |" * len(sets),
    ]
    for key, row in evaluation.figures.items():
        lines.append(f"| {key} | " + " | ".join(f"{row[s]:.2f}" if s in row else "" for s in sets) + " |")
    keys = ["accuracy", "structure", "accuracy of the style itself", "its structure"]
    lines += [
        "",
        f"| edit, mean of {evaluation.counts['styles']} | " + " | ".join(keys) + " |",
        "| --- |" + " --- |" * len(keys),
    ]
    for style, row in evaluation.styles.items():
        lines.append(f"| {style} | " + " | ".join(f"{row[key]:.2f}" for key in keys) + " |")
    return "\n".join(lines)


def write_evaluation(evaluation: Evaluation, folder: Path, card: Path | None) -> None:
    """Write `evaluation.json`, `evaluation.md` and `evaluation.jpg` to a folder.

    Args:
        card: the model card. The text between its marks is replaced by the tables; `evaluation.json` and the
            contact sheet at half size are written next to it. None for no card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"counts": evaluation.counts, "figures": evaluation.figures, "styles": evaluation.styles}
    (folder / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n")
    tables = format_tables(evaluation)
    (folder / "evaluation.md").write_text(tables + "\n")
    evaluation.sheet.save(folder / "evaluation.jpg", quality=85)
    if card is not None:
        fill_card(card, tables)
        shutil.copy(folder / "evaluation.json", card.parent)
        evaluation.sheet.reduce(2).save(card.parent / "evaluation.jpg", quality=85)
