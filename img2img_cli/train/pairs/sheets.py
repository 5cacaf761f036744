"""Made pictures beside the wanted ones: figures and contact sheets."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from img2img_cli.train.metrics import measure_psnr, measure_ssim

SIDE = 256  # of a picture on a sheet
WORST = 3
Row = tuple[str, Image.Image, Image.Image, Image.Image]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Pictures that were made of validation pairs.

    Attributes:
        rows: name, input, made and wanted picture of each pair, of one size.
    """

    rows: Sequence[Row]

    @functools.cached_property
    def means(self) -> dict[str, float]:
        """The mean PSNR (dB), SSIM and difference (0..1) of the made pictures, and of the inputs as they are."""
        made = [compare_pictures(row[2], row[3]) for row in self.rows]
        left = [compare_pictures(row[1], row[3]) for row in self.rows]
        means = {key: round(float(np.mean([each[key] for each in made])), 4) for key in made[0]}
        return means | {f"input_{key}": round(float(np.mean([each[key] for each in left])), 4) for key in left[0]}

    def list_worst(self) -> list[tuple[str, float]]:
        """Return names and PSNR of the pairs that came out worst."""
        ranked = sorted(((row[0], measure_psnr(row[2], row[3])) for row in self.rows), key=lambda entry: entry[1])
        return ranked[:WORST]

    def draw(self, most: int) -> Image.Image:
        """Draw up to `most` pairs, evenly spread: input, made, wanted in each line."""
        shown = self.rows[:: max(1, len(self.rows) // most)][:most]
        sheet = Image.new("RGB", (3 * SIDE, len(shown) * SIDE), "white")
        for line, row in enumerate(shown):
            for column, picture in enumerate(row[1:]):
                view = picture.copy()
                view.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
                sheet.paste(view, (column * SIDE, line * SIDE))
        return sheet


def compare_pictures(picture: Image.Image, truth: Image.Image) -> dict[str, float]:
    """Return PSNR in dB, SSIM and the mean difference in 0..1 of two 8-bit RGB pictures of equal size."""
    difference = np.abs(np.asarray(picture, np.float32) - np.asarray(truth, np.float32)).mean() / 255
    ssim = measure_ssim(picture, truth) if min(truth.size) >= 7 else math.nan
    return {"psnr": min(99.0, measure_psnr(picture, truth)), "ssim": ssim, "l1": float(difference)}


def encode_sheet(image: Image.Image) -> bytes:
    """Return a contact sheet as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
