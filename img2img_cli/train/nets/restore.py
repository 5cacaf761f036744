"""What `restore` learns from: photographs, and the same with noise, JPEG artefacts or light blur."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from img2img_cli.train.loop import Batch
from img2img_cli.train.nets.damage import MARGIN, damage
from img2img_cli.train.nets.photographs import CleanCrops, to_batch

CROP = 64
BATCH_SIZE = 8


def draw_pairs(crops: CleanCrops, *, size: int = CROP, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
    """Yield batches of damaged `input` and clean `target`, float32 `(B, 3, size, size)` in 0..1.

    Seeded by torch's generator.
    """
    rng = np.random.default_rng(torch.initial_seed())
    while True:
        pairs = []
        for _ in range(batch_size):
            clean = crops(size + MARGIN, rng)
            top, left = rng.integers(MARGIN + 1, size=2)
            cut = np.s_[top : top + size, left : left + size]
            pairs.append((damage(clean, rng)[cut], clean[cut]))
        yield to_batch(pairs)
