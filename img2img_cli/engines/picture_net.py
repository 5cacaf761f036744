"""Pipelines around networks of our own, which turn a picture into the result in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from img2img_cli.engines.base import BasePipeline, to_images
from img2img_cli.engines.cpu_kernels import mend_convolutions
from img2img_cli.engines.device import Placement
from img2img_cli.engines.looks.style import limit, paint_small
from img2img_cli.engines.nets.colour_net import ColourNet, draw_taste
from img2img_cli.engines.nets.folder import load_net_folder
from img2img_cli.engines.nets.picture_unet import PictureUNet
from img2img_cli.engines.nets.style_net import StyleNet
from img2img_cli.engines.nets.upscale_net import UpscaleNet
from img2img_cli.tasks.pieces import Piece, Progress

AnyNet = TypeVar("AnyNet", bound=torch.nn.Module)
PAINTED_PIXELS, STYLE_PIXELS = 800_000, 120_000  # of what a style network paints, and of the style picture it looks at
STRONGEST_TASTE = 4.0  # deviation of what is added to the scores of colours at a variety of 1


class PictureNetPipeline(BasePipeline):
    """A network from a picture to a picture of the same size, which is the result."""

    direct = True

    def __init__(self, net: PictureUNet | ColourNet, placement: Placement) -> None:
        super().__init__(placement)
        self._net, self.multiple = _place(net, placement), net.multiple

    @torch.inference_mode()
    def _run(self, pieces: Sequence[Piece], progress: Progress | None) -> list[Image.Image]:
        places = torch.tensor([piece.place for piece in pieces], device=self.placement.device)
        return to_images(self._net(_stack(pieces, self.placement.device), places))


class ColourNetPipeline(PictureNetPipeline):
    """A network from a grey picture to the same in colour, led by hints and, with `variety`, by the seed."""

    @torch.inference_mode()
    def _run(self, pieces: Sequence[Piece], progress: Progress | None) -> list[Image.Image]:
        device = self.placement.device
        hints = tastes = None
        if any(piece.hints is not None for piece in pieces):
            nothing = Image.new("RGBA", pieces[0].image.size)
            hints = _to_tensor([piece.hints or nothing for piece in pieces], device)
        if any(piece.parameters.variety for piece in pieces):
            drawn = [STRONGEST_TASTE * piece.parameters.variety * draw_taste(piece.seed) for piece in pieces]
            tastes = torch.stack(drawn).to(device)
        return to_images(self._net(_stack(pieces, device), hints, tastes))


class StyleNetPipeline(BasePipeline):
    """A network that paints a whole picture in the style of another."""

    direct = True
    whole = True

    def __init__(self, net: StyleNet, placement: Placement) -> None:
        super().__init__(placement)
        self._net = _place(net, placement)

    @torch.inference_mode()
    def _run(self, pieces: Sequence[Piece], progress: Progress | None) -> list[Image.Image]:
        return [self._paint(piece.image, piece.style or piece.image) for piece in pieces]

    def _paint(self, picture: Image.Image, style: Image.Image) -> Image.Image:
        device = self.placement.device
        told = self._net.read_style(_to_tensor([limit(style, STYLE_PIXELS)], device))

        def paint(small: Image.Image) -> Image.Image:
            return to_images(self._net.paint(_to_tensor([small], device), told))[0]

        return paint_small(picture, PAINTED_PIXELS, paint)


class UpscaleNetPipeline(BasePipeline):
    """A network with a head for each of several factors; it takes the one that is nearest above what is asked for."""

    def __init__(self, net: UpscaleNet, placement: Placement) -> None:
        super().__init__(placement)
        self._net = _place(net, placement)
        self.enlargements = tuple(sorted(net.scales))

    @torch.inference_mode()
    def _run(self, pieces: Sequence[Piece], progress: Progress | None) -> list[Image.Image]:
        return to_images(self._net(_stack(pieces, self.placement.device), pieces[0].enlarge))


def load_picture_net(folder: Path, placement: Placement) -> BasePipeline:
    """Build the pipeline of the network in a folder.

    Raises:
        ModelError: as `load_net_folder`.
    """
    net = load_net_folder(folder)
    if isinstance(net, UpscaleNet):
        return UpscaleNetPipeline(net, placement)
    if isinstance(net, ColourNet):
        return ColourNetPipeline(net, placement)
    if isinstance(net, StyleNet):
        return StyleNetPipeline(net, placement)
    return PictureNetPipeline(net, placement)


def _place(net: AnyNet, placement: Placement) -> AnyNet:
    net.to(placement.device, placement.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    mend_convolutions(net, placement.device)
    return net


def _stack(pieces: Sequence[Piece], device: torch.device) -> torch.Tensor:
    """Return the pictures of pieces of one size as float32 `(B, 3, H, W)` in 0..1."""
    return _to_tensor([piece.image for piece in pieces], device)


def _to_tensor(pictures: Sequence[Image.Image], device: torch.device) -> torch.Tensor:
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return (pixels.to(device).float() / 255).permute(0, 3, 1, 2)
