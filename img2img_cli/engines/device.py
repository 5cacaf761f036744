"""Where and in which number format the model runs, and its random numbers."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from img2img_cli.errors import OutOfMemoryError, UsageError, is_shortage
from img2img_cli.presets.schema import Offload
from img2img_cli.system import processors

DEFAULT_THREADS = torch.get_num_threads()  # before anybody has set them
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ADVICE = "use a smaller --set image_size or tile_size, fewer variations, or --device cpu"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A device, a dtype, why that dtype, and how the model shares its memory with main memory."""

    device: torch.device
    dtype: torch.dtype
    reason: str
    offload: Offload = "auto"


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


def choose_placement(device_name: str, dtype_name: str, offload: Offload = "auto") -> Placement:
    """16 bits where the device multiplies them fast, else float32."""
    device = choose_device(device_name)
    dtype, reason = (DTYPES[dtype_name], "asked for") if dtype_name != "auto" else _choose_dtype(device)
    return Placement(device=device, dtype=dtype, reason=reason, offload=offload)


def _choose_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        told = f"compute capability {capability[0]}.{capability[1]}"
        if capability >= (8, 0):
            return torch.bfloat16, told
        # Before 7.0 there are no tensor cores, and most chips multiply float16 far slower than float32.
        return (torch.float16, told) if capability >= (7, 0) else (torch.float32, f"{told}: float16 would be slower")
    if device.type == "cpu":
        for probe, name in (("_is_amx_tile_supported", "AMX"), ("_is_avx512_bf16_supported", "AVX512-BF16")):
            if getattr(torch.cpu, probe, bool)():
                return torch.bfloat16, f"the processor has {name}"
        return torch.float32, "the processor has no fast 16-bit arithmetic"
    return torch.float16, f"{device.type} multiplies float16 fast"


def prepare_device(device: torch.device) -> None:
    """Settings of torch for this process: threads on a CPU, and what a GPU may round to be faster."""
    if device.type == "cpu":
        threads = count_threads(device)
        if threads < torch.get_num_threads():
            torch.set_num_threads(threads)
    elif device.type == "cuda":
        # float32 is left to a few layers here, and TF32 keeps more digits than the 16 bits around them.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def count_threads(device: torch.device) -> int:
    """How many threads a command of its own computes with on a device. Their number decides how sums are rounded."""
    return min(DEFAULT_THREADS, choose_threads()[0]) if device.type == "cpu" else DEFAULT_THREADS


def choose_threads() -> tuple[int, str]:
    """How many threads to compute with on a CPU, and why."""
    return processors.count_threads() or (DEFAULT_THREADS, "torch's choice")


def measure_memory_gib(device: torch.device) -> tuple[float, float]:
    """GiB that are free and GiB in all of the device's memory; a file cache counts as free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free / 2**30, total / 2**30
    total_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return total_gib, total_gib
    return available / 2**20, total_gib


@contextlib.contextmanager
def explain_memory_errors(device: torch.device, advice: str = ADVICE) -> Iterator[None]:
    """Turn the several ways of running out of memory into one error with a remedy."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        raise OutOfMemoryError(f"{device}: out of memory; {advice}") from None


def measure_free_bytes(device: torch.device) -> int:
    """Free memory of a CUDA device, with what torch keeps there for its next tensors."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def send(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A copy on the device; to CUDA from locked pages, so that the processor need not wait for it."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, dtype, non_blocking=True)
    return tensor.to(device, dtype)


@contextlib.contextmanager
def share_threads(lanes: int) -> Iterator[Callable[[], None]]:
    """Give each of several lanes that work at once its part of torch's threads: it calls what this yields first."""
    before = torch.get_num_threads()
    share = functools.partial(torch.set_num_threads, max(1, before // lanes))
    try:
        yield share
    finally:
        torch.set_num_threads(before)


def make_generators(seeds: list[int]) -> list[torch.Generator]:
    """One CPU generator a picture, so that noise depends on neither the batch nor the device."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
