"""Colours for a grey picture: a distribution over a grid of a* and b*, and the mean of its likely part.

Quantised colours with rebalanced classes and the annealed mean are Zhang et al.'s (2016): a mean over all that is
possible is brown, and the likeliest alone is patchy.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from img2img_cli.engines.nets.picture_unet import UNetLevels, fill_up, zeroed
from img2img_cli.pictures.lab import rgb_to_lab

STEP = 10  # of a* and b* between bins
WAVES, WAVE_LENGTH = 16, 40.0  # of a random liking for colours, in steps of a* and b*
FOLD = 4  # the side of the pixel blocks that get one colour
# sRGB to linear light relative to D65's white, by rows of X, Y and Z, and back (IEC 61966-2-1).
_TO_XYZ = torch.tensor(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _TO_XYZ.sum(1)
_EPSILON, _KAPPA = 216 / 24389, 24389 / 27  # CIE 15:2004


@functools.cache
def list_bins() -> torch.Tensor:
    """Return the bins that hold a colour of sRGB: float32 a* and b*, `(Q, 2)`, multiples of `STEP`."""
    codes = np.arange(0, 256, 5, dtype=np.uint8)
    colours = np.stack(np.meshgrid(codes, codes, codes), -1).reshape(-1, 3)
    found = np.unique(np.round(rgb_to_lab(colours)[:, 1:] / STEP), axis=0) * STEP
    return torch.from_numpy(found.astype(np.float32))


def _to_linear(picture: torch.Tensor) -> torch.Tensor:
    """Return the linear light of sRGB in 0..1."""
    return torch.where(picture <= 0.04045, picture / 12.92, ((picture.clamp_min(0) + 0.055) / 1.055) ** 2.4)


def _compress(relative: torch.Tensor) -> torch.Tensor:
    """Apply CIE's f: a cube root that is linear near zero."""
    return torch.where(relative > _EPSILON, relative.clamp_min(_EPSILON) ** (1 / 3), (_KAPPA * relative + 16) / 116)


def to_lightness(picture: torch.Tensor) -> torch.Tensor:
    """Return L* of sRGB `(B, 3, H, W)` in 0..1: float32 `(B, 1, H, W)` in 0..100."""
    y = (_to_linear(picture) * _TO_XYZ[1].to(picture)[:, None, None]).sum(1, keepdim=True) / float(_WHITE[1])
    return 116 * _compress(y) - 16


def to_colours(picture: torch.Tensor) -> torch.Tensor:
    """Return a* and b* of sRGB `(B, 3, H, W)` in 0..1: float32 `(B, 2, H, W)`."""
    f = _compress(torch.einsum("ij,bjhw->bihw", (_TO_XYZ / _WHITE[:, None]).to(picture), _to_linear(picture)))
    return torch.stack([500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def to_srgb(lightness: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """Return sRGB in 0..1, `(B, 3, H, W)`, of L* `(B, 1, H, W)` and a*, b* `(B, 2, H, W)`, cut off at its limits."""
    fy = (lightness + 16) / 116
    f = torch.cat([fy + colours[:, :1] / 500, fy, fy - colours[:, 1:] / 200], 1)
    xyz = torch.where(f > 6 / 29, f**3, (116 * f - 16) / _KAPPA) * _WHITE.to(f)[:, None, None]
    linear = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(_TO_XYZ).to(f), xyz).clamp(0, 1)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp_min(1e-8) ** (1 / 2.4) - 0.055)


def fold_hints(colours: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Return what a net is told of colours that are known: `(B, 3, H / FOLD, W / FOLD)`.

    The channels are a* and b* divided by 100, times the share, and the share of each block that is given.

    Args:
        colours: a* and b*, `(B, 2, H, W)`; sides are multiples of `FOLD`.
        given: how much each pixel is given, in 0..1, `(B, 1, H, W)`.
    """
    return functional.avg_pool2d(torch.cat([colours / 100 * given, given], 1), FOLD)


def draw_taste(seed: int) -> torch.Tensor:
    """Return a random liking for each bin in each ninth of a picture, of deviation 1: float32 `(Q, 3, 3)`.

    Bins of similar colours are liked about as much: it is a sum of waves over the plane of a* and b* (random Fourier
    features, Rahimi and Recht 2007), each with another weight in each part of the picture.
    """
    generator = torch.Generator().manual_seed(seed)
    frequencies = torch.randn(2, WAVES, generator=generator) / WAVE_LENGTH
    phases = torch.rand(WAVES, generator=generator) * 2 * torch.pi
    waves = torch.cos(list_bins() @ frequencies + phases) * (2 / WAVES) ** 0.5
    weights = torch.randn(WAVES, 1, 1, generator=generator) + 0.5 * torch.randn(WAVES, 3, 3, generator=generator)
    return torch.einsum("qk,kyx->qyx", waves, weights / 1.25**0.5)


class ContextBlock(nn.Module):
    """A 7x7 convolution of each channel and two 1x1 convolutions, added to the input: `(B, C, H, W)` to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.narrow = zeroed(nn.Conv2d(2 * channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input plus what is made of it."""
        out: torch.Tensor = x + self.narrow(functional.gelu(self.widen(self.spread(x))))
        return out


class Attention(nn.Module):
    """Self-attention among all places, added to the input: `(B, C, H, W)` to the same."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self._heads = heads
        self.norm = nn.LayerNorm(channels)
        self.ask = nn.Linear(channels, 3 * channels)
        self.answer = nn.Linear(channels, channels)
        nn.init.zeros_(self.answer.weight)
        nn.init.zeros_(self.answer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input plus what each place has learnt of the others."""
        count, channels, height, width = x.shape
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        parts = self.ask(tokens).view(count, height * width, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(count, height * width, channels)
        out: torch.Tensor = x + self.answer(seen).transpose(1, 2).view(count, channels, height, width)
        return out


class ColourNet(UNetLevels):
    """A U-Net from lightness to colours, which sees the whole picture at its coarsest level.

    Args:
        widths: channels of the levels, the finest, of blocks of `FOLD` pixels, first; each has half the resolution.
        blocks: blocks of the levels, on the way down and, but for the coarsest, on the way up.
        temperature: of the annealed mean; 1 is the mean, towards 0 the likeliest bin.

    Attributes:
        width: channels of the coarsest level.
        multiple: what the sides of a picture must be multiples of, for `predict`.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (48, 88, 128, 176),
        blocks: Sequence[int] = (2, 2, 2, 3),
        temperature: float = 0.9,
    ) -> None:
        super().__init__()
        self.config = {"widths": list(widths), "blocks": list(blocks), "temperature": temperature}
        self._temperature = temperature
        self.width = widths[-1]
        self.multiple: int = FOLD * 2 ** (len(widths) - 1)
        self.enter = nn.Conv2d(FOLD * FOLD, widths[0], 3, padding=1)
        self.take_hints = zeroed(nn.Conv2d(3, widths[0], 3, padding=1, bias=False))
        self.build_levels(widths, blocks, ContextBlock)
        self.middle = nn.Sequential(*(ContextBlock(widths[-1]) for _ in range(blocks[-1])), Attention(widths[-1]))
        self.leave = nn.Conv2d(widths[0], len(list_bins()), 1)

    def predict(self, lightness: torch.Tensor, hints: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores of the bins, before softmax, and what the coarsest level knows of the picture.

        Args:
            lightness: L* in 0..100, `(B, 1, H, W)`; sides are multiples of `multiple`.
            hints: colours that are known, as `fold_hints` returns them.

        Returns:
            `(B, Q, H / FOLD, W / FOLD)` and `(B, widths[-1], H / multiple, W / multiple)`.
        """
        x = self.enter(functional.pixel_unshuffle(lightness / 50 - 1, FOLD).to(self.enter.weight.dtype))
        if hints is not None:
            x = x + self.take_hints(hints.to(x.dtype))
        known, kept = self.go_down(x)
        return self.leave(self.go_up(known, kept)), known

    def forward(
        self, picture: torch.Tensor, hints: torch.Tensor | None = None, tastes: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the picture in colour: sRGB `(B, 3, H, W)` in 0..1 to the same, with its lightness.

        Sides need not be multiples of `multiple`: what is missing is filled up with the last row and column.

        Args:
            hints: sRGB in 0..1 and how much each pixel of it is given, `(B, 4, H, W)`; the whole picture's guess is
                drawn towards them.
            tastes: what is added to the scores, as `draw_taste` returns it, `(B, Q, 1 or more, 1 or more)`.
        """
        height, width = picture.shape[-2:]
        lightness = to_lightness(picture.float())
        told = None
        if hints is not None:
            filled = fill_up(hints.float(), self.multiple)
            told = fold_hints(to_colours(filled[:, :3]), filled[:, 3:])
        scores = self.predict(fill_up(lightness, self.multiple), told)[0].float()
        if tastes is not None:
            scores = scores + functional.interpolate(tastes, scores.shape[-2:], mode="bilinear", align_corners=True)
        colours = torch.einsum("bqhw,qc->bchw", (scores / self._temperature).softmax(1), list_bins().to(scores))
        large = functional.interpolate(colours, scale_factor=FOLD, mode="bilinear", align_corners=False)
        return to_srgb(lightness, large[..., :height, :width]).to(picture.dtype)
