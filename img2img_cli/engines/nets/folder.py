"""The folder of a network: `net.json` says its class and settings, `model.safetensors` holds its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from img2img_cli.engines.nets.colour_net import ColourNet
from img2img_cli.engines.nets.picture_unet import PictureUNet
from img2img_cli.engines.nets.style_net import StyleNet
from img2img_cli.engines.nets.upscale_net import UpscaleNet
from img2img_cli.errors import ModelError
from img2img_cli.pictures.write import write_output_bytes
from img2img_cli.presets.references import MAX_CONFIG_BYTES, NET_CONFIG
from img2img_cli.presets.weight_files import check_weights

ARCHITECTURES = {net.__name__: net for net in (PictureUNet, UpscaleNet, ColourNet, StyleNet)}
WEIGHTS = "model.safetensors"
ADVICE = "copy the whole folder that training has written"
Net = PictureUNet | UpscaleNet | ColourNet | StyleNet


def save_net(net: Net, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a network into a folder, which is made if it is missing; each file is replaced as a whole.

    Raises:
        OutputError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().to(dtype).contiguous() for name, value in net.state_dict().items()}
    write_output_bytes(save(weights), str(folder / WEIGHTS))
    config = {"architecture": type(net).__name__, "settings": net.config}
    write_output_bytes((json.dumps(config, indent=2) + "\n").encode(), str(folder / NET_CONFIG))


def tell_architecture(folder: Path) -> str:
    """Return the name of the class of the network in a folder.

    Raises:
        ModelError: the folder does not describe a network of this version.
    """
    return _read_config(folder / NET_CONFIG)[0]


def load_net_folder(folder: Path) -> Net:
    """Read a network in float32, in evaluation mode.

    Raises:
        ModelError: the folder is not what `save_net` writes; the message names the file.
    """
    name, settings = _read_config(folder / NET_CONFIG)
    path = folder / WEIGHTS
    if not path.is_file():
        raise ModelError(f"{path}: no such file; {ADVICE}")
    check_weights(path)
    try:
        with torch.device("meta"):
            net = ARCHITECTURES[name](**settings)
        weights = {key: value.float() for key, value in load_file(path).items()}
        net.load_state_dict(weights, assign=True)
    except (TypeError, ValueError, RuntimeError, LookupError, OSError) as error:
        told = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise ModelError(f"{path}: does not hold the network that {NET_CONFIG} describes ({told[0].strip()})") from None
    return net.eval().requires_grad_(False)


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        with path.open("rb") as file:
            told = json.loads(file.read(MAX_CONFIG_BYTES))
        name, settings = told["architecture"], told["settings"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ModelError(f"{path}: no description of a network; {ADVICE}") from None
    if name not in ARCHITECTURES or not isinstance(settings, dict):
        known = ", ".join(ARCHITECTURES)
        raise ModelError(f"{path}: '{str(name)[:80]}' is no network of this version, which knows {known}")
    if any(_is_too_large(value) for value in settings.values()):
        raise ModelError(f"{path}: describes a network of impossible size; {ADVICE}")
    return name, settings


def _is_too_large(value: Any) -> bool:
    """Whether a setting asks for more than any network has, which would take all memory before the weights are read."""
    if isinstance(value, list):
        return len(value) > 16 or any(map(_is_too_large, value))
    return isinstance(value, int | float) and not 0 <= value <= 4096
