"""Where a pipeline's parts lie while they wait: on the device, or in main memory until their turn comes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate.utils import align_module_device

from img2img_cli.presets.schema import Offload

# What accelerate and diffusers set on a module that they move. Some of it leads to the other modules of a pipeline.
HOOK_ATTRIBUTES = ("_hf_hook", "_old_forward", "_diffusers_hook", "forward")


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


def copy_alone(module: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Copy a module's weights, wherever they lie, to a device in a dtype; the copy stays there, without any hook."""
    copied = copy.copy(module)
    for name in HOOK_ATTRIBUTES:
        copied.__dict__.pop(name, None)
    with align_module_device(module):  # weights that are moved layer by layer are with a hook otherwise
        copied._parameters = {name: _copy_tensor(tensor, device, dtype) for name, tensor in module._parameters.items()}
        copied._buffers = {name: _copy_tensor(tensor, device, dtype) for name, tensor in module._buffers.items()}
    copied._modules = {
        name: None if part is None else copy_alone(part, device, dtype) for name, part in module._modules.items()
    }
    return copied


def _copy_tensor(tensor: torch.Tensor | None, device: torch.device, dtype: torch.dtype) -> torch.Tensor | None:
    if tensor is None:
        return None
    copied = tensor.detach().to(device, dtype if tensor.is_floating_point() else None, copy=True)
    return torch.nn.Parameter(copied, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else copied
