"""Load photographs from tar shards, draw them balanced by source, and cut training views from them."""

from __future__ import annotations

import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from img2img_cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A training picture.

    Attributes:
        pixels: uint8 RGB, `(H, W, 3)`.
        caption: a description of the picture.
        source: the name of the data set that it comes from.
    """

    pixels: np.ndarray
    caption: str
    source: str


def list_shards(folder: Path) -> tuple[list[Path], Path | None]:
    """Return the shards to train on and the last shard, held out for evaluation, or None if there is only one.

    Raises:
        UsageError: the folder holds no `.tar` file.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise UsageError(f"{folder} holds no .tar shard; pass the folder that contains photos-*.tar to --data")
    return (shards[:-1], shards[-1]) if len(shards) > 1 else (shards, None)


def read_shard(shard: Path) -> list[Photograph]:
    """Decode every picture of a tar file that has a row in its `captions.jsonl`."""
    with tarfile.open(shard) as tar:
        blobs = {m.name: f.read() for m in tar if m.isfile() and (f := tar.extractfile(m)) is not None}
    rows = [json.loads(line) for line in blobs["captions.jsonl"].splitlines() if line.strip()]

    def decode(row: dict[str, str]) -> Photograph:
        with Image.open(io.BytesIO(blobs[row["file"]])) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        return Photograph(pixels=pixels, caption=row["caption"], source=row["source"])

    with ThreadPoolExecutor() as pool:
        return list(pool.map(decode, rows))


class BalancedDraw:
    """A random draw of photographs in which the share of a source grows with the square root of its size.

    A uniform draw shows mostly produce and clothes, and the model then paints everything in their colours.

    Args:
        favour: how much more often a source is drawn than by its size, by the beginning of its name.
    """

    def __init__(self, photographs: Sequence[Photograph], favour: Mapping[str, float] | None = None) -> None:
        by_source: dict[str, list[Photograph]] = defaultdict(list)
        for photograph in photographs:
            by_source[photograph.source].append(photograph)
        self._groups = list(by_source.values())
        weights = np.sqrt([len(group) for group in self._groups])
        for start, factor in (favour or {}).items():
            weights *= [factor if source.startswith(start) else 1.0 for source in by_source]
        self._weights = weights / weights.sum()

    def __call__(self, rng: np.random.Generator) -> Photograph:
        group = self._groups[rng.choice(len(self._groups), p=self._weights)]
        return group[rng.integers(len(group))]


def mirror_up_to(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return pixels `(H, W, 3)` mirrored at the right and bottom until both sides have at least `size`."""
    missing = [max(0, size - side) for side in pixels.shape[:2]]
    return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric") if any(missing) else pixels


def stack_crops(crops: Sequence[np.ndarray]) -> torch.Tensor:
    """Return uint8 crops `(H, W, 3)` of one size as float32 `(B, 3, H, W)` in 0..1."""
    return torch.from_numpy(np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32) / 255)


def cut_view(photograph: Photograph, size: int, rng: np.random.Generator, *, whole: bool) -> Image.Image:
    """Cut a random square view, mirrored in half of the cases, and scale it to `size` by `size` pixels.

    Args:
        whole: cut a square of 75-100 % of the short side, so that the view shows the subject. Otherwise cut a square
            of 1 to 2 times `size`, or the short side if that is less, so that the view shows detail.
    """
    height, width = photograph.pixels.shape[:2]
    short = min(height, width)
    side = short * rng.uniform(0.75, 1.0) if whole else min(short, size * rng.uniform(1.0, 2.0))
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    picture = Image.fromarray(photograph.pixels).resize(
        (size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)
    )
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else picture
