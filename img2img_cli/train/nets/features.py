"""Trained features to learn from and to measure with: SqueezeNet 1.0 (Iandola et al. 2016). They do not ship."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from img2img_cli.errors import ModelError

_MEANS = (104.0, 117.0, 123.0)  # of blue, green and red, which Caffe's networks are given in this order
# squeeze and expand channels of fire2 ... fire9, and before which the maximum of 3x3 places is taken
_FIRES = {2: (16, 64), 3: (16, 64), 4: (32, 128), 5: (32, 128), 6: (48, 192), 7: (48, 192), 8: (64, 256), 9: (64, 256)}
_POOLED, LAST = ("fire2", "fire5", "fire9"), "fire9"


class _Fire(nn.Module):
    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.squeeze(x))
        return functional.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1))


class SqueezeNetFeatures(nn.Module):
    """SqueezeNet 1.0 without its classifier, whose weights do not change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2)
        channels = 96
        for number, (squeezed, expanded) in _FIRES.items():
            self.add_module(f"fire{number}", _Fire(channels, squeezed, expanded))
            channels = 2 * expanded
        self.requires_grad_(False)

    @classmethod
    def read(cls, path: Path) -> SqueezeNetFeatures:
        """Return the network with the weights of a safetensors file.

        Raises:
            ModelError: the file cannot be read, or holds other weights.
        """
        net = cls()
        try:
            weights = load_file(path)
            net.load_state_dict({name: weights[name].float() for name in net.state_dict()})
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise ModelError(f"{path}: not the weights of SqueezeNet 1.0 as safetensors: {error}") from error
        return net.eval()

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Return the features of `fire9`: float32 `(B, 512, h, w)` at about a sixteenth of the size, not negative.

        Args:
            picture: sRGB in 0..1, `(B, 3, H, W)`.
        """
        return self.list_levels(picture, [LAST])[LAST]

    def list_levels(self, picture: torch.Tensor, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Return the features of several levels, `conv1` and `fire2` to `fire9`, without running those after the last.

        Args:
            picture: as `forward` takes it.
        """
        levels = {}
        means = torch.tensor(_MEANS, device=picture.device)[:, None, None]
        x = functional.relu(self.conv1(picture.flip(1) * 255 - means))
        for name in ("conv1", *(f"fire{number}" for number in _FIRES)):
            if name != "conv1":
                x = self.get_submodule(name)(functional.max_pool2d(x, 3, 2, ceil_mode=True) if name in _POOLED else x)
            if name in names:
                levels[name] = x
            if len(levels) == len(set(names)):
                break
        return levels
