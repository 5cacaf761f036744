"""What `style` learns from: photographs, paintings, and a loss that compares features of both with the result's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from img2img_cli.engines.looks.pipeline import apply_look
from img2img_cli.engines.nets.style_net import StyleNet
from img2img_cli.errors import UsageError
from img2img_cli.presets.schema import Look
from img2img_cli.train.data import BalancedDraw, Photograph, cut_view, list_shards, read_shard, stack_crops
from img2img_cli.train.loop import Batch
from img2img_cli.train.nets.features import SqueezeNetFeatures
from img2img_cli.train.nets.photographs import HIGH_RESOLUTION, CleanCrops, is_set_aside

PAINTINGS = "style_"  # how the names of sources of paintings begin
SIDE, BATCH_SIZE = 160, 4
DRAWN = 0.3  # share of styles that a look makes of a photograph
LOOKS: tuple[Look, ...] = ("comic", "ink", "mosaic", "oil", "pencil", "pixel", "watercolour", "night", "golden")
LOOK_PICTURES = 25  # of each look, drawn once
STYLE_LEVELS, CONTENT_LEVEL = ("conv1", "fire3", "fire5", "fire7"), "fire5"
STYLE_SHARES = (1.0, 1.0, 1.0, 1.0)
CONTENT, SMOOTH = 1.0, 0.3  # what content and differences of neighbours weigh beside the style
FAVOURED = 3.0


class StylePictures(CleanCrops):
    """Photographs to paint, and pictures whose style to take."""

    def __init__(self, photographs: list[Photograph], paintings: list[Photograph]) -> None:
        super().__init__(photographs, {HIGH_RESOLUTION: FAVOURED})
        self._paint = BalancedDraw(paintings)
        rng = np.random.default_rng(0)
        self._looks = [
            Photograph(pixels=self._apply(look, rng), caption=look, source="look")
            for look in LOOKS
            for _ in range(LOOK_PICTURES)
        ]

    def _apply(self, look: Look, rng: np.random.Generator) -> np.ndarray:
        picture = Image.fromarray(self._draw(rng).pixels)
        return np.asarray(apply_look(picture, look, int(rng.integers(1 << 31))))

    @classmethod
    def read(cls, folder: Path) -> StylePictures:  # type: ignore[override]
        """Read the training shards of a folder, without what is set aside.

        Raises:
            UsageError: the folder holds no shard, or none with paintings.
        """
        shards, _ = list_shards(folder)
        pictures = [each for shard in shards for each in read_shard(shard) if not is_set_aside(each)]
        paintings = [each for each in pictures if each.source.startswith(PAINTINGS)]
        if not paintings:
            raise UsageError(f"{folder}: no shard holds paintings, rows whose source begins with '{PAINTINGS}'")
        return cls([each for each in pictures if not each.source.startswith(PAINTINGS)], paintings)

    def draw_style(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Return a part of a painting or of a look's result: uint8 `(size, size, 3)`."""
        drawn = self._looks[rng.integers(len(self._looks))] if rng.random() < DRAWN else self._paint(rng)
        return np.asarray(cut_view(drawn, size, rng, whole=rng.random() < 0.5))


def draw_pairs(crops: CleanCrops, *, size: int = SIDE, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
    """Yield batches of `input` and `style`, float32 `(B, 3, size, size)` in 0..1. Seeded by torch's generator."""
    assert isinstance(crops, StylePictures)
    rng = np.random.default_rng(torch.initial_seed())
    while True:
        inputs = [crops.draw_view(size, rng, whole=rng.random() < 0.7) for _ in range(batch_size)]
        yield {
            "input": stack_crops(inputs),
            "style": stack_crops([crops.draw_style(size, rng) for _ in range(batch_size)]),
        }


class StyleLoss(nn.Module):
    """Style by Gram matrices and means of trained features, content by features without their contrast.

    After Gatys et al. 2016 and Johnson et al. 2016. The error of each level is divided by how far the style is from
    nothing, so that no style and no level counts more than others.
    """

    def __init__(self, features: SqueezeNetFeatures) -> None:
        super().__init__()
        self._features = (features,)  # in a tuple, so that it is not part of what is trained and saved

    def forward(self, net: StyleNet, batch: Batch, device: torch.device) -> torch.Tensor:
        """Return the loss of a net on a batch of `draw_pairs`."""
        features = self._features[0].to(device)
        inputs, styles = batch["input"].to(device), batch["style"].to(device)
        with torch.no_grad():
            wanted = features.list_levels(styles, STYLE_LEVELS)
            kept = features.list_levels(inputs, [CONTENT_LEVEL])[CONTENT_LEVEL]
        made = net(inputs, styles).float()
        seen = features.list_levels(made, {*STYLE_LEVELS, CONTENT_LEVEL})
        loss = CONTENT * functional.mse_loss(flatten_contrast(seen[CONTENT_LEVEL]), flatten_contrast(kept))
        for level, share in zip(STYLE_LEVELS, STYLE_SHARES, strict=True):
            loss = loss + share * compare_styles(seen[level], wanted[level])
        rough: torch.Tensor = made.diff(dim=2).abs().mean() + made.diff(dim=3).abs().mean()
        return loss + SMOOTH * rough


def make_loss(crops: CleanCrops, net: StyleNet, features: SqueezeNetFeatures | None = None) -> StyleLoss:
    """Return the loss.

    Raises:
        UsageError: there are no features.
    """
    if features is None:
        raise UsageError("style is learnt by trained features; give SqueezeNet's weights with --features")
    return StyleLoss(features)


def flatten_contrast(x: torch.Tensor) -> torch.Tensor:
    """Return features `(B, C, h, w)` with mean 0 and deviation 1 in each channel."""
    flat: torch.Tensor = functional.instance_norm(x, eps=1e-3 * float(x.detach().var().clamp_min(1e-6)))
    return flat


def compare_styles(seen: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return how far the Gram matrices and means of features `(B, C, h, w)` are apart, relative to those wanted."""
    error = seen.new_zeros(())
    for measure in (_measure_gram, _measure_means):
        ours, theirs = measure(seen), measure(wanted)
        dimensions = tuple(range(1, ours.ndim))
        error = error + ((ours - theirs).square().sum(dimensions) / theirs.square().sum(dimensions)).mean()
    return error


def _measure_gram(x: torch.Tensor) -> torch.Tensor:
    flat = (x - x.mean((2, 3), keepdim=True)).flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def _measure_means(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3))
