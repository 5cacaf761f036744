"""A net that enlarges pictures 2, 3 or 4 times: one body at the input's resolution, a head for each factor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from img2img_cli.engines.nets.picture_unet import ResidualBlock, zeroed


class UpscaleNet(nn.Module):
    """A residual net whose head folds details into pixels (pixel shuffle), on top of bicubic interpolation.

    Args:
        channels: input and output channels.
        width: channels of the body.
        blocks: residual blocks of the body.
        scales: the factors that there are heads for.
    """

    def __init__(
        self, *, channels: int = 3, width: int = 48, blocks: int = 10, scales: Sequence[int] = (2, 3, 4)
    ) -> None:
        super().__init__()
        self.config = {"channels": channels, "width": width, "blocks": blocks, "scales": list(scales)}
        self.scales = tuple(scales)
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.gather = nn.Conv2d(width, width, 3, padding=1)
        self.heads = nn.ModuleDict({str(s): zeroed(nn.Conv2d(width, channels * s * s, 3, padding=1)) for s in scales})

    def forward(self, picture: torch.Tensor, scale: int) -> torch.Tensor:
        """Return `(B, C, H * scale, W * scale)` for `(B, C, H, W)` in 0..1; it may leave that range a little.

        The weights may be of another dtype than the picture, whose dtype the result has.

        Raises:
            KeyError: there is no head for `scale`.
        """
        x = self.enter(picture.to(self.enter.weight.dtype))
        x = functional.relu(self.gather(self.body(x)) + x)
        detail = functional.pixel_shuffle(self.heads[str(scale)](x), scale).to(picture.dtype)
        return functional.interpolate(picture, scale_factor=scale, mode="bicubic", align_corners=False) + detail
