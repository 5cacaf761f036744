"""What `colorize` learns from: whole photographs, upright, and the colours of their blocks of pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn import functional

from img2img_cli.engines.nets.colour_net import FOLD, ColourNet, list_bins, to_lightness
from img2img_cli.pictures.lab import rgb_to_lab
from img2img_cli.train.loop import Batch
from img2img_cli.train.nets.photographs import CleanCrops

SIDE, BATCH_SIZE = 160, 8
WHOLE = 0.8  # share of views of the whole photograph; the others are parts of it
NEAREST, SPREAD = 5, 5.0  # bins that share a pixel's colour, and by which deviation, as Zhang et al. 2016
EVENLY = 0.5  # share of an even distribution in the one that rare colours are weighed by
COUNTED = 400  # photographs that tell how rare each colour is


def draw_pairs(crops: CleanCrops, *, size: int = SIDE, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
    """Yield batches of `input`, uint8 sRGB as float32 in 0..1 `(B, 3, size, size)`, and `colours`.

    `colours` are the mean a* and b* of blocks of pixels, float32 `(B, 2, size / 4, size / 4)`. Seeded by torch's
    generator.
    """
    rng = np.random.default_rng(torch.initial_seed())
    while True:
        views = [crops.draw_view(size, rng, whole=rng.random() < WHOLE) for _ in range(batch_size)]
        pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 255
        yield {"input": pixels, "colours": torch.stack([measure_colours(view) for view in views])}


def measure_colours(pixels: np.ndarray) -> torch.Tensor:
    """Return the mean a* and b* of blocks of uint8 pixels `(H, W, 3)`: float32 `(2, H / FOLD, W / FOLD)`."""
    colours = torch.from_numpy(rgb_to_lab(np.ascontiguousarray(pixels))[..., 1:]).permute(2, 0, 1)[None]
    return functional.avg_pool2d(colours, FOLD)[0]


def make_loss(crops: CleanCrops) -> Callable[[ColourNet, Batch, torch.device], torch.Tensor]:
    """Return the loss: the cross-entropy of a net's scores and the colours, in which rare colours count more."""
    rng = np.random.default_rng(0)
    seen = torch.stack([measure_colours(crops.draw_view(64, rng, whole=True)) for _ in range(COUNTED)])
    weights = weigh_bins(seen)

    def compute(net: ColourNet, batch: Batch, device: torch.device) -> torch.Tensor:
        scores = net.predict(to_lightness(batch["input"].to(device))).float()
        bins, shares = encode(batch["colours"].to(device))
        likelihoods = scores.log_softmax(1).gather(1, bins)
        weight = weights.to(device)[bins[:, 0]]
        return -((shares * likelihoods).sum(1) * weight).mean()

    return compute


def weigh_bins(colours: torch.Tensor) -> torch.Tensor:
    """Return how much each bin counts, float32 `(Q,)`: by its rarity, and 1 in the mean over the colours seen.

    Args:
        colours: `(N, 2, h, w)`.
    """
    bins, _ = encode(colours)
    shares = torch.bincount(bins[:, 0].flatten(), minlength=len(list_bins())).float()
    shares = shares / shares.sum()
    weights = 1 / ((1 - EVENLY) * shares + EVENLY / len(shares))
    return weights / (shares * weights).sum()


def encode(colours: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest bins of colours, nearest first, and their shares by a Gaussian of the distance.

    Args:
        colours: a* and b*, `(B, 2, h, w)`.

    Returns:
        indices and shares, `(B, NEAREST, h, w)`.
    """
    flat = colours.permute(0, 2, 3, 1).reshape(-1, 2)
    distances, bins = torch.cdist(flat, list_bins().to(flat)).topk(NEAREST, largest=False)
    shares = (-(distances**2) / (2 * SPREAD**2)).softmax(1)
    count, _, height, width = colours.shape
    return tuple(  # type: ignore[return-value]
        each.view(count, height, width, NEAREST).permute(0, 3, 1, 2) for each in (bins, shares)
    )
