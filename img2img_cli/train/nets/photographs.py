"""Clean photographs to learn restoring and enlarging from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from img2img_cli.train.data import (
    BalancedDraw,
    Photograph,
    cut_view,
    list_shards,
    mirror_up_to,
    read_shard,
    stack_crops,
)

HIGH_RESOLUTION = "hires_"  # how the names of sources of larger pictures begin
SHRINK = 1.6  # stored photographs are compressed, and smaller they show less of it
SET_ASIDE = 25  # one in so many of the high-resolution photographs is never trained on


def is_set_aside(photograph: Photograph) -> bool:
    """Return whether a photograph of the training shards belongs to those that are only measured on.

    The choice is by a hash of the pixels, so that it stays when shards are added or put in another order.
    """
    if not photograph.source.startswith(HIGH_RESOLUTION):
        return False
    return int.from_bytes(hashlib.sha256(photograph.pixels.tobytes()).digest()[:4], "big") % SET_ASIDE == 0


def shrink(pixels: np.ndarray, factor: float = SHRINK) -> np.ndarray:
    """Return uint8 `(H, W, 3)` pixels scaled down by `factor` with Lanczos."""
    height, width = (max(1, round(side / factor)) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


class CleanCrops:
    """Square crops of clean photographs, drawn balanced by source, turned and mirrored at random."""

    def __init__(self, photographs: Sequence[Photograph], favour: Mapping[str, float] | None = None) -> None:
        self._draw = BalancedDraw(photographs, favour)

    @classmethod
    def read(
        cls,
        folder: Path,
        *,
        prepare: Callable[[Photograph], np.ndarray] | None = None,
        favour: Mapping[str, float] | None = None,
    ) -> CleanCrops:
        """Read the training shards of a folder, without what is set aside, scaled down.

        Args:
            prepare: returns the pixels that are used, of a photograph that was scaled down.
            favour: as `BalancedDraw` takes it.

        Raises:
            UsageError: the folder holds no shard.
        """
        shards, _ = list_shards(folder)
        photographs = []
        for shard in shards:
            for each in read_shard(shard):
                if not is_set_aside(each):
                    smaller = replace(each, pixels=shrink(each.pixels))
                    photographs.append(replace(smaller, pixels=prepare(smaller)) if prepare else smaller)
        return cls(photographs, favour)

    def __call__(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Return a crop: uint8 `(size, size, 3)`.

        A smaller photograph is mirrored at its borders until it is large enough.
        """
        pixels = mirror_up_to(self._draw(rng).pixels, size)
        height, width = pixels.shape[:2]
        top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
        crop = pixels[top : top + size, left : left + size]
        crop = np.rot90(crop, int(rng.integers(4)))
        return crop[:, ::-1] if rng.random() < 0.5 else crop

    def draw_view(self, size: int, rng: np.random.Generator, *, whole: bool) -> np.ndarray:
        """Return a view, upright, as `train.data.cut_view` cuts it: uint8 `(size, size, 3)`."""
        return np.asarray(cut_view(self._draw(rng), size, rng, whole=whole))


def to_batch(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Return uint8 pairs `(H, W, 3)` as `input` and `target`, float32 `(B, 3, H, W)` in 0..1."""
    damaged, clean = zip(*pairs, strict=True)
    return {"input": stack_crops(damaged), "target": stack_crops(clean)}
