"""Feed-forward upscaling nets, of the ESRGAN family and later ones, through spandrel."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from img2img_cli.device import Placement
from img2img_cli.errors import ModelError
from img2img_cli.explain import explain_model_errors
from img2img_cli.hub import fetch_file
from img2img_cli.kernels import mend_convolutions
from img2img_cli.modelref import parse_file
from img2img_cli.weights import check_sequences


class UpscalingNet:
    """A net that enlarges RGB pictures by a whole factor.

    Attributes:
        scale: the factor.
    """

    def __init__(self, descriptor: Any, placement: Placement) -> None:
        can = {torch.float16: descriptor.supports_half, torch.bfloat16: descriptor.supports_bfloat16}
        dtype = placement.dtype if can.get(placement.dtype, True) else torch.float32
        self._descriptor = descriptor.eval().to(placement.device, dtype)
        self._descriptor.model.to(memory_format=torch.channels_last)
        mend_convolutions(self._descriptor.model, placement.device)
        self._device, self._dtype = placement.device, dtype
        self.scale: int = descriptor.scale

    def enlarge(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """RGB pictures of one size to float32 `(B, 3, H * scale, W * scale)` in 0..1."""
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
        made: torch.Tensor = self._descriptor(pixels.to(self._device, self._dtype) / 255)
        return made.float().cpu()


def load_net(reference: str, placement: Placement) -> UpscalingNet:
    """The net in a .safetensors file, its architecture told from its weights.

    Raises:
        ModelError: spandrel is not installed; the file is missing, damaged or no upscaling net for RGB.
    """
    spandrel = import_spandrel(reference)
    with explain_model_errors(f"upscaler {reference}"):
        file = fetch_file(parse_file("upscaler", reference), "upscaler")
        weights = load_file(file)
        check_sequences(file, weights)
        try:
            descriptor = spandrel.ModelLoader().load_from_state_dict(weights)
        except spandrel.UnsupportedModelError:
            descriptor = None
    wanted = isinstance(descriptor, spandrel.ImageModelDescriptor) and descriptor.scale > 1
    if not wanted or descriptor.input_channels != 3 or descriptor.output_channels != 3:
        raise ModelError(f"upscaler {reference}: no net that enlarges colour pictures, as Real-ESRGAN does")
    return UpscalingNet(descriptor, placement)


def import_spandrel(reference: str) -> Any:
    """The package, which is an extra.

    Raises:
        ModelError: it is not installed.
    """
    try:
        with _StandInForTorchvision():
            return importlib.import_module("spandrel")
    except ImportError:
        raise ModelError(
            f"upscaler {reference}: needs the package spandrel; run `pip install 'img2img-cli[esrgan]'`, "
            "or, where there is no torchvision, `pip install --no-deps spandrel einops`"
        ) from None


class _StandInForTorchvision:
    """Two of spandrel's thirty architectures, neither an upscaler, import three names of torchvision; a machine
    without it, or with one that does not fit its torch, is given names that nothing calls."""

    NAMES = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")

    def __enter__(self) -> None:
        self._added: list[str] = []
        if "spandrel" in sys.modules or _works("torchvision.transforms.functional"):
            return
        for name in self.NAMES:
            module = sys.modules[name] = ModuleType(name)
            for missing in ("InterpolationMode", "rotate", "normalize"):
                setattr(module, missing, None)
            self._added.append(name)

    def __exit__(self, *error: object) -> None:
        for name in self._added:
            del sys.modules[name]


def _works(module: str) -> bool:
    try:
        importlib.import_module(module)
    except (ImportError, RuntimeError):  # RuntimeError: built for another torch
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        return False
    return True
