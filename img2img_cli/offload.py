"""Where a pipeline's parts lie while they wait: on the device, or in main memory until their turn comes."""

from __future__ import annotations

from typing import Any

import torch

from img2img_cli.parameters import Offload


def measure_parts(pipe: Any) -> list[int]:
    """Bytes of each of a diffusers pipeline's modules."""
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return [sum(map(_measure_tensor, module.parameters())) for module in modules]


def _measure_tensor(tensor: torch.Tensor) -> int:
    """Bytes that are stored; a quantized tensor tells those of what it stands for."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(_measure_tensor(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


def choose_offload(parts: list[int], work: int, free: int) -> Offload:
    """What `auto` means on a device with its own memory: the fastest that fits.

    Args:
        parts: bytes of each module.
        work: bytes that activations need.
        free: bytes free on the device.

    Returns:
        `none` when all fit together, `model` when each fits alone, else `group`, which moves layer by layer.
    """
    if sum(parts) + work <= free:
        return "none"
    return "model" if max(parts, default=0) + work <= free else "group"


def apply_offload(pipe: Any, offload: Offload, device: torch.device) -> None:
    """Place a pipeline that lies in main memory, or move on from one way of placing it to another.

    Args:
        offload: anything but `auto`, which `choose_offload` turns into one of the others.
    """
    assert offload != "auto"
    if offload == "none":
        pipe.to(device)
        return
    pipe.remove_all_hooks()
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to("cpu")
        # A stream copies the next layers while the present ones work; it exists on CUDA alone.
        pipe.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=device.type == "cuda")
