"""A residual U-Net in pixel space: picture in, picture of the same size out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Set a layer's weights and bias to zero, so that at first it adds nothing, and return it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions whose sum with the input is returned: `(B, C, H, W)` to `(B, C, H, W)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input plus what the two convolutions make of it."""
        out: torch.Tensor = x + self.second(functional.relu(self.first(x)))
        return out


class UNetLevels(nn.Module):
    """The levels of a U-Net, between the first layer and the last; a network's own class adds those.

    Attributes:
        down, up, shrink, grow, middle: the parts of the levels, the finest first.
    """

    down: nn.ModuleList
    up: nn.ModuleList
    shrink: nn.ModuleList
    grow: nn.ModuleList
    middle: nn.Module

    def build_levels(self, widths: Sequence[int], blocks: Sequence[int], block: Callable[[int], nn.Module]) -> None:
        """Make all parts but `middle`.

        Args:
            block: returns a block of so many channels.
        """
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        for width, wider, count in zip(widths[:-1], widths[1:], blocks[:-1], strict=True):
            self.down.append(nn.Sequential(*(block(width) for _ in range(count))))
            self.shrink.append(nn.Conv2d(width, wider, 2, stride=2))
            self.grow.append(nn.Conv2d(wider, 4 * width, 1))
            self.up.append(nn.Sequential(*(block(width) for _ in range(count))))

    def pass_levels(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the levels make of `(B, widths[0], h, w)`, of the same shape."""
        return self.go_up(*self.go_down(x))

    def go_down(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the features of the coarsest level, and those of the others, which `go_up` takes, finest first."""
        kept = []
        for down, shrink in zip(self.down, self.shrink, strict=True):
            x = down(x)
            kept.append(x)
            x = shrink(x)
        return self.middle(x), kept

    def go_up(self, x: torch.Tensor, kept: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the finest level's features from what `go_down` returned."""
        for up, grow, skip in reversed(list(zip(self.up, self.grow, kept, strict=True))):
            x = up(functional.pixel_shuffle(grow(x), 2) + skip)
        return x


def fill_up(picture: torch.Tensor, multiple: int) -> torch.Tensor:
    """Return `(B, C, H, W)` with sides that are multiples, filled up with the last row and column."""
    height, width = picture.shape[-2:]
    extra = -width % multiple, -height % multiple
    return functional.pad(picture, (0, extra[0], 0, extra[1]), mode="replicate") if any(extra) else picture


class PictureUNet(UNetLevels):
    """A U-Net without normalisation, so that a tile is treated as it is within the whole picture.

    The picture is folded by `patch` (pixel unshuffle) before the first level and unfolded (pixel shuffle) after the
    last, which leaves no checkerboard and costs little at full resolution.

    Args:
        channels: input and output channels.
        widths: channels of the levels, the finest first; each level has half the resolution of the one before.
        blocks: residual blocks of the levels, on the way down and again on the way up; the last level has twice as
            many.
        patch: the factor of the folding.
        residual: whether the net predicts the difference from its input.
        places: whether the net is told where in the whole picture each pixel lies, as vignettes need it.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        widths: Sequence[int] = (48, 96, 192),
        blocks: Sequence[int] = (2, 2, 2),
        patch: int = 2,
        residual: bool = True,
        places: bool = False,
    ) -> None:
        super().__init__()
        self.config = {
            "channels": channels,
            "widths": list(widths),
            "blocks": list(blocks),
            "patch": patch,
            "residual": residual,
            "places": places,
        }
        self._patch, self._residual, self._places = patch, residual, places
        self.multiple: int = patch * 2 ** (len(widths) - 1)
        folded = channels * patch * patch
        self.enter = nn.Conv2d(folded + 2 * places, widths[0], 3, padding=1)
        self.build_levels(widths, blocks, ResidualBlock)
        self.middle = nn.Sequential(*(ResidualBlock(widths[-1]) for _ in range(2 * blocks[-1])))
        self.leave = zeroed(nn.Conv2d(widths[0], folded, 3, padding=1))

    def forward(self, picture: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
        """Return the picture that the net makes of `(B, C, H, W)` in 0..1; it may leave that range a little.

        Sides need not be multiples of `multiple`: what is missing is filled up with the last row and column. The
        weights may be of another dtype than the picture, whose dtype the result has.

        Args:
            places: float32 `(B, 4)`, left, top, right and bottom of each picture within the whole one, in shares of its
                sides; the whole one if None.
        """
        height, width = picture.shape[-2:]
        folded = functional.pixel_unshuffle(fill_up(picture, self.multiple), self._patch)
        if self._places:
            folded = torch.cat([folded, self._draw_places(folded, places, (height, width))], 1)
        out = self.leave(self.pass_levels(self.enter(folded.to(self.enter.weight.dtype))))
        made = functional.pixel_shuffle(out, self._patch)[..., :height, :width].to(picture.dtype)
        return picture + made if self._residual else made

    def _draw_places(self, folded: torch.Tensor, places: torch.Tensor | None, size: tuple[int, int]) -> torch.Tensor:
        """Return `(B, 2, h, w)`: how far right and down each folded pixel lies in the whole picture, in -1..1."""
        count, _, rows, columns = folded.shape
        if places is None:
            places = folded.new_tensor([[0.0, 0.0, 1.0, 1.0]]).expand(count, 4)
        lines = []
        for axis, (steps, side) in enumerate(((columns, size[1]), (rows, size[0]))):
            centres = (torch.arange(steps, device=folded.device, dtype=folded.dtype) + 0.5) * self._patch / side
            first, last = places[:, axis, None].to(folded), places[:, axis + 2, None].to(folded)
            lines.append(2 * (first + centres * (last - first)) - 1)
        right = lines[0][:, None, :].expand(count, rows, columns)
        down = lines[1][:, :, None].expand(count, rows, columns)
        return torch.stack([right, down], 1)
