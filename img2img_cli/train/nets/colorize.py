"""What `colorize` learns from: whole photographs, upright, and the colours of their blocks of pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from img2img_cli.engines.nets.colour_net import FOLD, ColourNet, list_bins, to_lightness
from img2img_cli.pictures.lab import rgb_to_lab
from img2img_cli.train.data import Photograph
from img2img_cli.train.loop import Batch
from img2img_cli.train.nets.features import SqueezeNetFeatures
from img2img_cli.train.nets.photographs import HIGH_RESOLUTION, CleanCrops

SIDE, BATCH_SIZE = 160, 8
WHOLE = 0.8  # share of views of the whole photograph; the others are parts of it
NEAREST, SPREAD = 5, 5.0  # bins that share a pixel's colour, and by which deviation, as Zhang et al. 2016
EVENLY = 0.5  # share of an even distribution in the one that rare colours are weighed by
UNDONE = 1.0  # share of that weight which is taken out again after the training, as an exponent
COUNTED = 400  # photographs that tell how rare each colour is
FEATURES, FEATURES_SHARE = 512, 2.0  # features to learn, and what share of the loss they are
HINTED, MEAN_HINTS, LARGEST_HINT = 0.35, 4, 5  # share of pictures with hints, how many, and their sides in blocks
GAMMA = 0.3  # the largest logarithm of the gamma by which the contrast of training pictures varies
INDOORS = ("GroceryStoreDataset", "clothing-dataset", "trashnet")  # sources taken in the light of lamps
MINKOWSKI, MOST_GAIN = 6.0, 1.5
FAVOURED = 3.0  # how much more often sources of scenery, streets and people are drawn than by their size


def draw_pairs(crops: CleanCrops, *, size: int = SIDE, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
    """Yield batches of `input`, uint8 sRGB as float32 in 0..1 `(B, 3, size, size)`, `colours` and `hints`.

    `colours` are the mean a* and b* of blocks of pixels, float32 `(B, 2, size / 4, size / 4)`; `hints` are some of
    them, as a net's `predict` takes them. Seeded by torch's generator.
    """
    rng = np.random.default_rng(torch.initial_seed())
    while True:
        views = [crops.draw_view(size, rng, whole=rng.random() < WHOLE) for _ in range(batch_size)]
        pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 255
        colours = torch.stack([measure_colours(view) for view in views])
        hints = torch.stack([draw_hints(each, rng) for each in colours])
        yield {"input": pixels, "colours": colours, "hints": hints}


def draw_hints(colours: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return the hints of a picture: none for most, or the mean colours of a few strokes; `(3, h, w)`.

    Args:
        colours: a* and b*, `(2, h, w)`.
    """
    hints = torch.zeros(3, *colours.shape[1:])
    if rng.random() >= HINTED:
        return hints
    for _ in range(rng.geometric(1 / MEAN_HINTS)):
        height, width = rng.integers(1, LARGEST_HINT + 1, 2)
        top, left = (int(rng.integers(side)) for side in colours.shape[1:])
        stroke = np.s_[:, top : top + int(height), left : left + int(width)]
        hints[:2][stroke] = colours[stroke].mean((1, 2), keepdim=True) / 100
        hints[2:][stroke] = 1
    return hints


def measure_colours(pixels: np.ndarray) -> torch.Tensor:
    """Return the mean a* and b* of blocks of uint8 pixels `(H, W, 3)`: float32 `(2, H / FOLD, W / FOLD)`."""
    colours = torch.from_numpy(rgb_to_lab(np.ascontiguousarray(pixels))[..., 1:]).permute(2, 0, 1)[None]
    return functional.avg_pool2d(colours, FOLD)[0]


class ColourLoss(nn.Module):
    """The cross-entropy of a net's scores and the colours, in which rare colours count more.

    With trained features, the net's coarsest level must also tell the features of the picture in colour, from which
    it learns what things are sooner than from their colours alone.

    Args:
        weights: how much each bin counts, as `weigh_bins` returns it.
        features: `FEATURES` features of a picture.
        width: channels of the net's coarsest level.
    """

    def __init__(self, weights: torch.Tensor, features: SqueezeNetFeatures | None, width: int) -> None:
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)
        self.weights: torch.Tensor
        self._features = (features,)  # in a tuple, so that it is not part of what is trained and saved
        self.head = nn.Conv2d(width, FEATURES, 1) if features is not None else None

    def forward(self, net: ColourNet, batch: Batch, device: torch.device) -> torch.Tensor:
        """Return the loss of a net on a batch of `draw_pairs`."""
        pixels = batch["input"].to(device)
        scores, known = net.predict(vary_lightness(to_lightness(pixels)), batch["hints"].to(device))
        bins, shares = encode(batch["colours"].to(device))
        likelihoods = scores.float().log_softmax(1).gather(1, bins)
        weight = self.weights[bins[:, 0]]
        loss = -((shares * likelihoods).sum(1) * weight).mean()
        features = self._features[0]
        if features is None or self.head is None:
            return loss
        with torch.no_grad():
            right = functional.adaptive_avg_pool2d(
                features.to(device)(pixels).float(), (known.shape[2], known.shape[3])
            )
        wrong = functional.mse_loss(self.head(known).float(), right) / right.var()
        return loss + FEATURES_SHARE * wrong


@torch.no_grad()
def finish(net: ColourNet, loss: ColourLoss) -> None:
    """Take the weight of rare colours out of a trained net's scores again, by its last bias.

    The net learns from that weight to tell rare colours from others. Left in, it makes whatever is unsure colourful,
    further from the truth than grey is.
    """
    assert net.leave.bias is not None
    net.leave.bias -= UNDONE * loss.weights.to(net.leave.bias).log()


@torch.no_grad()
def take_up(net: ColourNet, loss: ColourLoss) -> None:
    """Undo `finish`, for a finished net that is trained further."""
    assert net.leave.bias is not None
    net.leave.bias += UNDONE * loss.weights.to(net.leave.bias).log()


def make_loss(crops: CleanCrops, net: ColourNet, features: SqueezeNetFeatures | None = None) -> ColourLoss:
    """Return the loss for a net and the photographs that it is trained on."""
    rng = np.random.default_rng(0)
    seen = torch.stack([measure_colours(crops.draw_view(64, rng, whole=True)) for _ in range(COUNTED)])
    return ColourLoss(weigh_bins(seen), features, net.width)


def vary_lightness(lightness: torch.Tensor) -> torch.Tensor:
    """Return L* `(B, 1, H, W)` in 0..100 with the contrast of other cameras and films: a random gamma a picture."""
    gamma = torch.exp(torch.empty(len(lightness), 1, 1, 1, device=lightness.device).uniform_(-GAMMA, GAMMA))
    return 100 * (lightness.clamp(0, 100) / 100 + 1e-6) ** gamma


def balance_white(photograph: Photograph) -> np.ndarray:
    """Return the pixels as under white light, if the photograph was taken indoors: uint8 `(H, W, 3)`.

    The light's colour is estimated by the Minkowski mean of each channel ("shades of gray", Finlayson and Trezzi 2004).
    Under open sky and of flowers, which fill the picture, that mean is the colour of the scene, which stays.
    """
    if photograph.source not in INDOORS:
        return photograph.pixels
    linear = (photograph.pixels.astype(np.float32) / 255) ** 2.2
    light = (linear.reshape(-1, 3) ** MINKOWSKI).mean(0) ** (1 / MINKOWSKI)
    gains = np.clip(light.mean() / np.maximum(light, 1e-3), 1 / MOST_GAIN, MOST_GAIN)
    balanced: np.ndarray = ((linear * gains).clip(0, 1) ** (1 / 2.2) * 255).round().astype(np.uint8)
    return balanced


def read_photographs(folder: Path) -> CleanCrops:
    """Read the training shards of a folder, indoor light made white; scenery, streets and people are drawn more often.

    Raises:
        UsageError: the folder holds no shard.
    """
    return CleanCrops.read(folder, prepare=balance_white, favour={HIGH_RESOLUTION: FAVOURED})


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
