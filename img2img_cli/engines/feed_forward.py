"""Feed-forward upscaling nets, of the ESRGAN family and later ones, loaded with spandrel."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

from img2img_cli.engines.base import BasePipeline, to_images
from img2img_cli.engines.cpu_kernels import mend_convolutions
from img2img_cli.engines.device import Placement
from img2img_cli.engines.explain import explain_model_errors
from img2img_cli.engines.hub import check_downloads, fetch_file
from img2img_cli.errors import ModelError
from img2img_cli.presets.references import parse_file
from img2img_cli.presets.schema import Parameters
from img2img_cli.presets.weight_files import check_sequences
from img2img_cli.system.silence import silence_stdout
from img2img_cli.tasks.pieces import Piece, Progress


class UpscalingNet:
    """A net that enlarges RGB pictures by a whole factor.

    Attributes:
        scale: the factor.
    """

    def __init__(self, descriptor: Any, placement: Placement) -> None:
        can = {torch.float16: descriptor.supports_half, torch.bfloat16: descriptor.supports_bfloat16}
        dtype = placement.dtype if can.get(placement.dtype, True) else torch.float32
        self._descriptor = descriptor.eval().to(placement.device, dtype)
        self._descriptor.model.to(memory_format=torch.channels_last).requires_grad_(False)
        mend_convolutions(self._descriptor.model, placement.device)
        self._device, self._dtype = placement.device, dtype
        self.scale: int = descriptor.scale

    def share(self) -> UpscalingNet:
        """The same net for another thread: one copy of the weights, and all else that a call may change its own.

        Some nets, such as SPAN, set their parameters and attributes anew in each call.
        """
        shared = copy.copy(self)
        own = {id(weight): _view(weight) for weight in self._descriptor.model.parameters()}
        shared._descriptor = copy.deepcopy(self._descriptor, own)
        return shared

    def enlarge(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> torch.Tensor:
        """RGB pictures of one size to float32 `(B, 3, H * scale, W * scale)` in 0..1.

        One picture a call, as spandrel asks: some nets fail with more, or mix them.

        Args:
            seeds: one a picture, for nets that draw noise.
        """
        return torch.cat([self._enlarge(image, seed) for image, seed in zip(images, seeds, strict=True)])

    def _enlarge(self, image: Image.Image, seed: int) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        with SeededNoise(seed):
            made: torch.Tensor = self._descriptor(pixels.to(self._device, self._dtype) / 255)
        return made.float().cpu()


class NetPipeline(BasePipeline):
    """An upscaling net alone, without a diffusion model."""

    multiple = 2  # some nets halve their input

    def __init__(self, net: UpscalingNet, placement: Placement) -> None:
        super().__init__(placement)
        self._net, self.enlargements = net, (net.scale,)

    def _run(self, pieces: Sequence[Piece], progress: Progress | None) -> list[Image.Image]:
        return enlarge_pieces(self._net, pieces)


@torch.inference_mode()
def enlarge_pieces(net: UpscalingNet, pieces: Sequence[Piece]) -> list[Image.Image]:
    """Enlarge the pictures of pieces of one size `net.scale` times."""
    return to_images(net.enlarge([piece.image for piece in pieces], [piece.seed for piece in pieces]))


def _view(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    """A parameter of its own that shares the memory."""
    return torch.nn.Parameter(weight.detach(), requires_grad=False)


class SeededNoise(TorchFunctionMode):
    """While it lasts, this thread draws normal and uniform noise on the CPU by a seed, whatever others draw."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch's, or its seeded counterpart."""
        options = dict(kwargs or {})
        if func in (torch.randn_like, torch.rand_like):
            draw = torch.randn if func is torch.randn_like else torch.rand
            options = {"dtype": args[0].dtype, "device": args[0].device, **options}
            options.pop("memory_format", None)
            func, args = draw, (args[0].shape,)
        if func in (torch.randn, torch.rand) and options.get("generator") is None:
            device = options.pop("device", None)
            return func(*args, **{**options, "generator": self._generator}).to(device or "cpu")
        return func(*args, **options)


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


def load_net_alone(parameters: Parameters, placement: Placement) -> NetPipeline:
    """Build the pipeline of a preset without a model, whose upscaling net is all there is.

    Raises:
        ModelError: as `load_net`, or the file came damaged from the hub.
    """
    assert parameters.upscaler is not None, "the schema demands an upscaler"
    with silence_stdout(), check_downloads(parameters):
        net = load_net(parameters.upscaler, placement)
    return NetPipeline(net, placement)


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
