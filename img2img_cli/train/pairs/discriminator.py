"""The adversary of `--method gan`: it sees input and output together, patch by patch, and learns to tell them apart."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

SHIFT, HOLE = 0.125, 0.4  # shares of the side, as DiffAugment has them


class PatchDiscriminator(nn.Module):
    """A PatchGAN (Isola et al. 2017) with spectral normalisation (Miyato et al. 2018): a score for each patch of 70 px.

    Args:
        channels: channels of input plus output.
        width: channels of the first layer; doubled in each of the next two.
    """

    def __init__(self, channels: int = 6, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in (
            (channels, width, 2),
            (width, 2 * width, 2),
            (2 * width, 4 * width, 2),
            (4 * width, 4 * width, 1),
        ):
            layers += [spectral_norm(nn.Conv2d(before, after, 4, stride, 1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(4 * width, 1, 4, 1, 1)))

    def forward(self, source: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        """Return scores `(B, 1, h, w)` of pictures `(B, 3, H, W)` in 0..1 beside their inputs; H, W at least 48."""
        scores: torch.Tensor = self.layers(torch.cat([source, picture], 1) * 2 - 1)
        return scores


def compare(real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """Return the discriminator's loss, halved: the hinge loss (Lim and Ye 2017) of scores of real and made pictures."""
    loss: torch.Tensor = 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + made).mean())
    return loss


def augment(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move pictures `(B, C, H, W)` by up to an eighth and blank out a square in each, alike in all channels.

    DiffAugment (Zhao et al. 2020) without its changes of colour, which a look consists of.
    """
    count, _, height, width = pictures.shape
    rows, columns = torch.arange(height), torch.arange(width)
    made = []
    for index in range(count):
        down, right = (
            int(torch.randint(-round(side * SHIFT), round(side * SHIFT) + 1, (), generator=generator))
            for side in (height, width)
        )
        top, left = (int(torch.randint(0, side, (), generator=generator)) for side in (height, width))
        moved = functional.pad(pictures[index], (width, width, height, height))
        moved = moved[:, height - down : 2 * height - down, width - right : 2 * width - right]
        tall, wide = height * HOLE / 2, width * HOLE / 2
        hole = ((rows - top).abs() < tall)[:, None] & ((columns - left).abs() < wide)[None, :]
        made.append(moved.masked_fill(hole.to(pictures.device), 0.5))
    return torch.stack(made)
