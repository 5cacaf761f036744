"""A net that paints a picture in the style of another, which it has never seen before, in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from img2img_cli.engines.nets.picture_unet import fill_up

EPSILON = 1e-5


def measure_channels(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the deviation of each channel of `(B, C, H, W)`: `(B, C)` each."""
    variance, mean = torch.var_mean(x, (2, 3), correction=0)
    return mean, (variance + EPSILON).sqrt()


class _Styled(nn.Module):
    """A convolution, instance normalisation, and a scale and shift of each channel that come from the style."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.outputs, self._pad = outputs, kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, bias=False)

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Return `(B, outputs, h, w)`.

        Args:
            told: `(B, 2 * outputs)`, by how much each scale differs from 1, and the shifts.
        """
        x = self.conv(functional.pad(x, [self._pad] * 4, mode="reflect"))
        mean, deviation = measure_channels(x.float())
        scale, shift = told.float().chunk(2, 1)
        scale = (1 + scale) / deviation
        return x * scale[..., None, None].to(x.dtype) + (shift - mean * scale)[..., None, None].to(x.dtype)


class StyleEncoder(nn.Module):
    """Tells a style by the means and deviations of features at several resolutions.

    Args:
        widths: channels of the levels, the finest first; each has half the resolution of the one before.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        inputs = [3, *widths[:-1]]
        self.levels = nn.ModuleList(
            nn.Conv2d(wide, width, 3, stride=1 if index == 0 else 2, padding=1, padding_mode="reflect")
            for index, (wide, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.features = 2 * sum(widths) + 6

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Return `(B, features)` for `(B, 3, H, W)` in 0..1."""
        x, told = picture, [*measure_channels(picture.float())]
        for level in self.levels:
            x = functional.relu(level(x))
            told += measure_channels(x.float())
        return torch.cat(told, 1)


class StyleNet(nn.Module):
    """Conditional instance normalisation whose scales and shifts a second net reads from the style picture.

    After Ghiasi et al. 2017, "Exploring the structure of a real-time, arbitrary neural artistic stylization network",
    at a size that a processor runs.

    Args:
        widths: channels at half and quarter resolution; the picture is folded by 2 before and unfolded after.
        blocks: residual blocks at quarter resolution.
        style_widths: channels of the levels of the net that reads the style picture.
        hidden: features of a style.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (32, 64),
        blocks: int = 4,
        style_widths: Sequence[int] = (16, 32, 64, 96),
        hidden: int = 128,
    ) -> None:
        super().__init__()
        self.config = {
            "widths": list(widths),
            "blocks": blocks,
            "style_widths": list(style_widths),
            "hidden": hidden,
        }
        half, quarter = widths
        self.style = StyleEncoder(style_widths)
        self.down = nn.ModuleList([_Styled(12, half), _Styled(half, quarter, stride=2)])
        self.blocks = nn.ModuleList(
            nn.ModuleList([_Styled(quarter, quarter), _Styled(quarter, quarter)]) for _ in range(blocks)
        )
        self.up = nn.ModuleList([_Styled(quarter, half)])
        self.leave = nn.Conv2d(half, 12, 3, padding=1, padding_mode="reflect")
        self._parts = [module.outputs for module in self.modules() if isinstance(module, _Styled)]
        self.normalise = nn.LayerNorm(self.style.features)
        self.read = nn.Linear(self.style.features, hidden)
        self.tell = nn.Linear(hidden, 2 * sum(self._parts))
        nn.init.normal_(self.tell.weight, std=0.02)
        nn.init.zeros_(self.tell.bias)

    def read_style(self, picture: torch.Tensor) -> torch.Tensor:
        """Return the features of a style, float32 `(B, hidden)`, for `(B, 3, H, W)` in 0..1, sides of at least 32."""
        told = self.style(picture.to(self.leave.weight.dtype))
        return functional.relu(self.read(self.normalise(told.to(self.read.weight.dtype)))).float()

    def paint(self, picture: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Return the picture `(B, 3, H, W)` in 0..1 in a style that `read_style` has read.

        The weights may be of another dtype than the picture, whose dtype the result has.
        """
        height, width = picture.shape[-2:]
        told = list(self.tell(style.to(self.tell.weight.dtype)).split([2 * part for part in self._parts], 1))
        x = functional.pixel_unshuffle(fill_up(picture, 4), 2).to(self.leave.weight.dtype)
        for layer in self.down:
            x = functional.relu(layer(x, told.pop(0)))
        pairs: Iterable[Any] = self.blocks
        for first, second in pairs:
            x = x + second(functional.relu(first(x, told.pop(0))), told.pop(0))
        for layer in self.up:
            x = functional.relu(layer(functional.interpolate(x, scale_factor=2, mode="nearest"), told.pop(0)))
        made: torch.Tensor = functional.pixel_shuffle(torch.sigmoid(self.leave(x)), 2)
        return made[..., :height, :width].to(picture.dtype)

    def forward(self, picture: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Return the picture `(B, 3, H, W)` in the style of another, `(B, 3, h, w)`, both in 0..1."""
        return self.paint(picture, self.read_style(style))
