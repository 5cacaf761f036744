"""Batches of aligned crops from pairs. What a batch holds depends on seed and step alone, so that a run can resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from img2img_cli.train.data import mirror_up_to, stack_crops
from img2img_cli.train.pairs.layouts import Pair
from img2img_cli.train.pairs.pictures import read_pair

KEPT_BYTES = 4 << 30  # decoded pictures kept in memory; the rest is read each time


@dataclass(frozen=True, kw_only=True)
class Crops:
    """A batch of crops.

    Attributes:
        source, target: float32 `(B, 3, size, size)` in 0..1.
        places: float32 `(B, 4)`, left, top, right and bottom within the whole picture, in shares of its sides. Left and
            right change places in a crop that is mirrored.
    """

    source: torch.Tensor
    target: torch.Tensor
    places: torch.Tensor

    def to(self, device: torch.device) -> Crops:
        """Return the batch on a device, channels last."""
        source, target = (
            each.to(device, memory_format=torch.channels_last, non_blocking=True) for each in (self.source, self.target)
        )
        return Crops(source=source, target=target, places=self.places.to(device))


class PairData:
    """The training pairs of a run.

    Args:
        pairs: pairs that `check_pairs` found sound.
        longest: pictures are reduced until their longer side has at most so many pixels.
        size: the side of the square crops; a smaller picture is mirrored at its borders.
    """

    def __init__(self, pairs: Sequence[Pair], *, longest: int, size: int) -> None:
        self._pairs, self._longest, self._size = list(pairs), longest, size
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._free = KEPT_BYTES

    def __len__(self) -> int:
        return len(self._pairs)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if index in self._kept:
            return self._kept[index]
        source, target = (
            mirror_up_to(np.asarray(image), self._size) for image in read_pair(self._pairs[index], self._longest)
        )
        if source.nbytes + target.nbytes <= self._free:
            self._kept[index] = source, target
            self._free -= source.nbytes + target.nbytes
        return source, target

    def draw(self, seed: int, step: int, batch_size: int) -> Crops:
        """Return the batch of a step: random crops, mirrored in half of the cases.

        Raises:
            InputError: a picture can no longer be read.
        """
        rng = np.random.default_rng([seed, step])
        sources, targets, places = [], [], []
        for _ in range(batch_size):
            source, target = self._read(int(rng.integers(len(self._pairs))))
            height, width = target.shape[:2]
            top, left = rng.integers(height - self._size + 1), rng.integers(width - self._size + 1)
            cut = np.s_[top : top + self._size, left : left + self._size]
            across = [left / width, (left + self._size) / width]
            crops = [source[cut], target[cut]]
            if rng.random() < 0.5:
                crops, across = [crop[:, ::-1] for crop in crops], across[::-1]
            sources.append(crops[0])
            targets.append(crops[1])
            places.append([across[0], top / height, across[1], (top + self._size) / height])
        return Crops(
            source=stack_crops(sources), target=stack_crops(targets), places=torch.tensor(places, dtype=torch.float32)
        )
