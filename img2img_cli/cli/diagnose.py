"""What `doctor` finds out about this machine, and its self-test."""

from __future__ import annotations

import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image

from img2img_cli import __version__
from img2img_cli.engines.device import choose_placement, choose_threads, measure_memory_gib
from img2img_cli.engines.open import open_pipeline
from img2img_cli.errors import Img2ImgError, ModelError, OutOfMemoryError
from img2img_cli.pictures.lab import rgb_to_lab
from img2img_cli.presets.catalogue import resolve
from img2img_cli.presets.files import list_presets, load_preset
from img2img_cli.presets.repositories import is_fetched, list_repositories
from img2img_cli.server.client import ServerGoneError, ServerSilentError, ask_server
from img2img_cli.tasks.run import transform_image

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
        **_explain_policy(placement.device),
        "memory": _memory(placement.device),
        "model cache": _cache(),
        "presets": str(len(list_presets())),
        "server": _find_server(),
        "self-test": _self_test(),
    }


def diagnose_preset(name: str) -> dict[str, str]:
    """Whether this machine can run a preset, and what it still has to fetch.

    Raises:
        PresetError, ModelError: no such preset, or one whose local model is not there.
        OutOfMemoryError: the device is too small even when nothing else runs on it.
    """
    p = resolve(load_preset(name), {}).parameters
    p.check_references()
    placement = choose_placement("auto", p.dtype)
    need = p.memory_gib * (2 if placement.dtype == torch.float32 else 1)
    free, total = measure_memory_gib(placement.device)
    waits = 0.0 if placement.device.type == "cpu" else measure_memory_gib(torch.device("cpu"))[1]
    if need > max(total, waits):
        raise OutOfMemoryError(
            f"{name}: needs about {need:.0f} GiB on {placement.device}, which has {total:.0f}; "
            + (
                "--set quantization=int8 halves that"
                if need / 2 < max(total, waits)
                else "`img2img presets list` shows smaller ones"
            )
        )
    missing = [r.reference for r in list_repositories(p) if not is_fetched(r)]
    access = " (gated: accept the licence on the hub, then `hf auth login`)" if p.gated else ""
    return {
        "preset": f"{name}: {p.description}",
        "licence": p.license,
        "model": f"to fetch: {', '.join(missing)}{access}; `img2img models pull {name}`" if missing else "here",
        "runs on": f"{placement.device}, {str(placement.dtype).removeprefix('torch.')} ({placement.reason})",
        "memory": f"about {need:.0f} GiB, {free:.1f} of {total:.1f} GiB free",
        "how": _advise(need, free, can_offload=waits > 0),
    }


def _advise(need: float, free: float, *, can_offload: bool) -> str:
    if need <= free:
        return "as a whole (--offload none is what auto chooses)"
    if can_offload:
        return (
            "part by part from main memory (--offload model or group, which auto chooses), or --set quantization=int8"
        )
    return "close other programs first, or try --set quantization=int8"


def _explain_policy(device: torch.device) -> dict[str, str]:
    """How models are laid out and computed here, and why."""
    if device.type == "cuda":
        return {
            "memory format": "channels_last (tensor cores read it so)",
            "arithmetic": "TF32 where layers stay in float32, scaled_dot_product_attention",
        }
    threads, reason = choose_threads()
    return {
        "memory format": "channels_last (convolutions need no reordering), contiguous in narrow group norms",
        "threads": f"{threads} ({reason}); a batch works on two pictures at once and halves them",
    }


def _find_server() -> str:
    try:
        told = ask_server("GET", "/img2img/status")
    except ServerSilentError as error:
        return str(error)
    except ServerGoneError:
        return "none (`img2img serve`, or --keep-warm 10m with any command)"
    return f"running as process {told['pid']}, with {len(told['warm'])} models warm"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    cuda = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def _memory(device: torch.device) -> str:
    free, total = measure_memory_gib(device)
    return f"{free:.1f} of {total:.1f} GiB free"


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
        pipeline = open_pipeline(parameters, choose_placement("auto", "auto"))
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
