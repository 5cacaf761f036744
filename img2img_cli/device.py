"""Where and in which number format the model runs, and its random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from img2img_cli.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A device, a dtype, and why that dtype."""

    device: torch.device
    dtype: torch.dtype
    reason: str


def choose_device(name: str) -> torch.device:
    """`auto` is the best there is: CUDA, then MPS, then the CPU.

    Raises:
        UsageError: no such device on this machine.
    """
    if name == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(
            f"--device {name}: not available here; use auto, cpu or a device that `img2img doctor` lists"
        ) from None
    return device


def choose_placement(device_name: str, dtype_name: str) -> Placement:
    """16 bits where the device multiplies them fast, else float32."""
    device = choose_device(device_name)
    if dtype_name != "auto":
        return Placement(device=device, dtype=DTYPES[dtype_name], reason="asked for")
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return Placement(device=device, dtype=torch.bfloat16, reason="compute capability 8.0 or later")
        return Placement(device=device, dtype=torch.float16, reason="compute capability under 8.0")
    if device.type == "cpu":
        for probe, name in (("_is_amx_tile_supported", "AMX"), ("_is_avx512_bf16_supported", "AVX512-BF16")):
            if getattr(torch.cpu, probe, bool)():
                return Placement(device=device, dtype=torch.bfloat16, reason=f"the processor has {name}")
        return Placement(device=device, dtype=torch.float32, reason="the processor has no fast 16-bit arithmetic")
    return Placement(device=device, dtype=torch.float16, reason=f"{device.type} multiplies float16 fast")


def make_generators(seeds: list[int]) -> list[torch.Generator]:
    """One CPU generator a picture, so that noise depends on neither the batch nor the device."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
