"""Split a picture into overlapping tiles and merge them with feathered seams, for any size in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A rectangle in pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom, as Pillow's `crop` takes them."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    def scale(self, factor: int) -> Tile:
        """Return the same part of a picture that is `factor` times as large."""
        return Tile(
            left=self.left * factor, top=self.top * factor, width=self.width * factor, height=self.height * factor
        )


def _starts(length: int, tile: int, overlap: int, multiple: int) -> list[int]:
    """Return evenly spaced starts of tiles; neighbours share at least `overlap` pixels."""
    if length <= tile:
        return [0]
    overlap += multiple - 1  # what rounding may take away
    count = -(-(length - overlap) // (tile - overlap))
    return [round(index * (length - tile) / (count - 1) / multiple) * multiple for index in range(count)]


def plan_tiles(width: int, height: int, tile: int, overlap: int, multiple: int = 1) -> list[Tile]:
    """Cover `width` x `height` pixels with tiles of one size, at most `tile` a side, that share at least `overlap`.

    Args:
        multiple: of which all starts are multiples, for networks that fold pixels; sides must be multiples too.
    """
    return [
        Tile(left=left, top=top, width=min(tile, width), height=min(tile, height))
        for top in _starts(height, tile, overlap, multiple)
        for left in _starts(width, tile, overlap, multiple)
    ]


def _ramp(length: int, fade_in: int, fade_out: int) -> NDArray[np.float32]:
    position = np.arange(length, dtype=np.float32) + 0.5
    ramp = np.ones(length, np.float32)
    for fade, distance in ((fade_in, position), (fade_out, length - position)):
        if fade:
            ramp *= (0.5 - 0.5 * np.cos(np.pi * (distance / fade).clip(0, 1))).astype(np.float32)
    return np.maximum(ramp, 1e-3)


class Canvas:
    """Merges tiles into a `(H, W, 3)` picture, as a mean weighted by each pixel's distance from its tile's border."""

    def __init__(self, width: int, height: int, overlap: int) -> None:
        self._sum = np.zeros((height, width, 3), np.float32)
        self._weight = np.zeros((height, width, 1), np.float32)
        self._overlap = overlap

    def add(self, tile: Tile, pixels: NDArray[np.uint8]) -> None:
        """Add a tile's pixels `(tile.height, tile.width, 3)`, 8-bit. Sides on the picture's border are not faded."""
        height, width = self._weight.shape[:2]
        left, top, right, bottom = tile.box
        across = _ramp(tile.width, self._overlap * (left > 0), self._overlap * (right < width))
        down = _ramp(tile.height, self._overlap * (top > 0), self._overlap * (bottom < height))
        weight = (down[:, None] * across[None, :])[..., None]
        self._sum[top:bottom, left:right] += pixels * weight
        self._weight[top:bottom, left:right] += weight

    def merge(self) -> NDArray[np.uint8]:
        """Return the weighted mean as 8-bit `(H, W, 3)`. Call it once, after all tiles are added."""
        self._sum /= self._weight
        return np.asarray(self._sum.round().clip(0, 255), dtype=np.uint8)
