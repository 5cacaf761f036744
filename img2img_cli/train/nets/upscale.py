"""What `upscale` learns from: photographs, and the same reduced 2, 3 or 4 times."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from img2img_cli.train.loop import Batch
from img2img_cli.train.nets.damage import encode_jpeg
from img2img_cli.train.nets.photographs import CleanCrops, to_batch

CROP = 32  # of the small picture
BATCH_SIZE = 12
SCALES, SHARES = (2, 3, 4), (0.45, 0.15, 0.4)
DAMAGED = 0.15  # share of small pictures with noise or JPEG, which must not become detail


def draw_pairs(crops: CleanCrops, *, size: int = CROP, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
    """Yield batches of one `scale` each: `input` `(B, 3, size, size)` and `target`, float32 in 0..1.

    Seeded by torch's generator.
    """
    rng = np.random.default_rng(torch.initial_seed())
    while True:
        scale = int(rng.choice(SCALES, p=SHARES))
        pairs = []
        for _ in range(batch_size):
            large = np.ascontiguousarray(crops(size * scale, rng))
            small = np.asarray(Image.fromarray(large).resize((size, size), Image.Resampling.BICUBIC))
            pairs.append((_damage(small, rng) if rng.random() < DAMAGED else small, large))
        yield {"scale": scale, **to_batch(pairs)}


def _damage(small: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.5:
        return encode_jpeg(small, rng)
    noisy = small + rng.uniform(0, 10) * rng.standard_normal(small.shape, dtype=np.float32)
    return np.asarray(noisy.round().clip(0, 255), np.uint8)
