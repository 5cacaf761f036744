"""Draw a contact sheet of results on unseen pictures at every training checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from img2img_cli.pictures.control_maps import make_control_image
from img2img_cli.train.bundled.degrade import add_noise, compress, shrink_and_enlarge
from img2img_cli.train.bundled.diffusion import Networks
from img2img_cli.train.data import Photograph, cut_view
from img2img_cli.train.loop import autocast

SIZE, STEPS, GUIDANCE = 128, 10, 2.0
PROMPTS = (
    "colorize",
    "upscale",
    "restore",
    "restore",
    "edit, oil painting",
    "edit, pencil sketch",
    "edit, winter",
    "edit, mosaic",
)


def make_controls(view: Image.Image) -> list[Image.Image]:
    """Return the control picture for each of `PROMPTS`."""
    rng = np.random.default_rng(0)
    damaged = [shrink_and_enlarge(view, 4), add_noise(view, 25, rng), compress(view, 15)]
    return [make_control_image(view, "grey"), *damaged, *[view] * (len(PROMPTS) - 4)]


def make_drawer(
    networks: Networks, photographs: Sequence[Photograph], device: torch.device
) -> Callable[[Path, int], None]:
    """Return a function that takes a folder and a step and writes `samples-STEP.jpg` to the folder.

    For each photograph, the sheet shows the photograph and a row of control pictures above the row of results.
    """
    rng = np.random.default_rng(0)
    views = [cut_view(photograph, SIZE, rng, whole=True) for photograph in photographs]

    def draw(folder: Path, step: int) -> None:
        sheet = Image.new("RGB", (SIZE * (len(PROMPTS) + 1), SIZE * 2 * len(views)))
        pipeline = networks.build_pipeline()
        pipeline.set_progress_bar_config(disable=True)
        for row, view in enumerate(views):
            controls = make_controls(view)
            with torch.inference_mode(), autocast(device):
                results = pipeline(
                    prompt=list(PROMPTS),
                    image=controls,
                    control_image=controls,
                    strength=0.7,
                    num_inference_steps=STEPS,
                    guidance_scale=GUIDANCE,
                    generator=torch.Generator().manual_seed(0),
                ).images
            sheet.paste(view, (0, 2 * row * SIZE))
            for column, (control, result) in enumerate(zip(controls, results, strict=True), start=1):
                sheet.paste(control, (column * SIZE, 2 * row * SIZE))
                sheet.paste(result, (column * SIZE, (2 * row + 1) * SIZE))
        sheet.save(folder / f"samples-{step}.jpg", quality=90)

    return draw
