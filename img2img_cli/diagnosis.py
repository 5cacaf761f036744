"""What `doctor` finds out about this machine, and its self-test."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image

from img2img_cli import __version__
from img2img_cli.device import choose_placement
from img2img_cli.errors import Img2ImgError, ModelError
from img2img_cli.lab import rgb_to_lab
from img2img_cli.pipeline import build_pipeline
from img2img_cli.preset import list_presets, load_preset, resolve
from img2img_cli.runner import transform_image

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "pillow", "peft")


def diagnose() -> dict[str, str]:
    """Findings by name, in the order to show them.

    Raises:
        ModelError: the self-test failed, so the installation does not work.
    """
    placement = choose_placement("auto", "auto")
    return {
        "img2img": f"{__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        **{name: _version(name) for name in _PACKAGES},
        "devices": ", ".join(_devices()),
        "chosen": f"{placement.device}, {str(placement.dtype).removeprefix('torch.')} ({placement.reason})",
        "threads": str(torch.get_num_threads()),
        "memory": _memory(placement.device),
        "model cache": _cache(),
        "presets": str(len(list_presets())),
        "self-test": _self_test(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    cuda = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def _memory(device: torch.device) -> str:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
    else:
        pages = os.sysconf("SC_PAGE_SIZE")
        free, total = pages * os.sysconf("SC_AVPHYS_PAGES"), pages * os.sysconf("SC_PHYS_PAGES")
    return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _cache() -> str:
    folder = Path(HF_HUB_CACHE)
    size = (
        sum(f.lstat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
        if folder.is_dir()
        else 0
    )
    return f"{folder} ({size / 2**30:.2f} GiB)"


def _self_test() -> str:
    """Colorize a grey ramp: the lightness must stay and some colour must come."""
    began = time.monotonic()
    parameters = resolve(load_preset("colorize"), {"num_samples": 1}).parameters
    ramp = np.tile(np.linspace(40, 215, 96, dtype=np.uint8)[:, None, None], (1, 96, 3))
    try:
        pipeline = build_pipeline(parameters, choose_placement("auto", "auto"))
        result = rgb_to_lab(np.asarray(transform_image(Image.fromarray(ramp), parameters, 0, pipeline)))
    except Img2ImgError as error:
        raise ModelError(f"self-test failed: {error}") from None
    drift, chroma = (
        np.abs(result[..., 0] - rgb_to_lab(ramp)[..., 0]).max(),
        np.hypot(*np.moveaxis(result[..., 1:], -1, 0)).mean(),
    )
    if drift > 2 or chroma == 0:
        raise ModelError("self-test failed: the bundled model's colours are not right; reinstall the package")
    return f"passed in {time.monotonic() - began:.1f} s"
