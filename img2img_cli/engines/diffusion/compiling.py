"""`--compile auto`: a UNet compiled for the shapes that come often enough to pay for it."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from img2img_cli.engines.module_calls import wrap_forward

Shape = tuple[object, ...]

# Measured with Stable Diffusion 1.5's UNet at 512 pixels in bfloat16 (benchmarks/RESULTS.md): what compiling saves of
# each call, and seconds that it takes, for each layer that the module has. Without AMX a processor's products take so
# much of a call that next to nothing is saved.
SAVING = {"cpu": 0.10 if getattr(torch.cpu, "_is_amx_tile_supported", bool)() else 0.01, "cuda": 0.25}
SECONDS_PER_LAYER = {"cpu": 0.09, "cuda": 0.09}
MARGIN = 1.5  # compile only when it is likely to be well worth it: the plan may end early


@dataclass
class _Seen:
    """Calls of one shape."""

    count: int = 0
    fastest_s: float = float("inf")
    compiled: bool = False


@dataclass
class Plan:
    """How many calls of the model a run will make in all, as far as it is known, and how many it has made."""

    calls: int = 0
    made: int = 0
    is_open: bool = False  # nobody knows when it ends: then as much is likely to come as has come
    is_off: bool = False  # nothing compiled is used any more: weights have begun to move

    @property
    def left(self) -> int:
        """Calls to come."""
        return max(0, self.calls - self.made, self.made if self.is_open else 0)


class Compiled:
    """A module's `forward` that compiles itself for a shape when the rest of the plan pays for it.

    A shape that comes seldom stays with the module as it is, so that nothing is compiled in vain in the middle of a
    batch; each shape is compiled by itself, once.
    """

    def __init__(self, module: torch.nn.Module, plan: Plan, kind: str, *, counts: bool = True) -> None:
        self._eager: Callable[..., Any] = module.forward
        self._fast: Callable[..., Any] | None = None
        self._plan, self._counts = plan, counts
        self._saving = SAVING[kind]
        self.cost_s = SECONDS_PER_LAYER[kind] * sum(1 for _ in module.modules())
        self._seen: dict[Shape, _Seen] = defaultdict(_Seen)
        self._guard = threading.Lock()

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """As the module's own."""
        if self._plan.is_off:
            return self._eager(*arguments, **options)
        shape = _shape_of(arguments) + _shape_of(options.values())
        seen = self._seen[shape]
        if not seen.compiled and self.pays(shape):
            with self._guard:  # one at a time
                result = self._call_fast(*arguments, **options)
                seen.compiled = True
        elif seen.compiled:
            result = self._call_fast(*arguments, **options)
        else:
            began = time.monotonic()
            result = self._eager(*arguments, **options)
            if seen.count:  # the first one also warms up
                seen.fastest_s = min(seen.fastest_s, time.monotonic() - began)
        seen.count += 1
        if self._counts:
            self._plan.made += 1
        return result

    def pays(self, shape: Shape) -> bool:
        """Whether the calls of this shape that are still to come save more than compiling takes."""
        seen, total = self._seen[shape], sum(other.count for other in self._seen.values())
        if seen.count < 2 or not self._plan.left:
            return False
        to_come = self._plan.left * seen.count / total
        return to_come * seen.fastest_s * self._saving > MARGIN * self.cost_s

    def _call_fast(self, *arguments: Any, **options: Any) -> Any:
        if self._fast is None:
            self._fast = torch.compile(self._eager, dynamic=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._fast(*arguments, **options)


def _call_compiled(compiled: Compiled, module: Any, compute: Any, *arguments: Any, **options: Any) -> Any:
    return compiled(*arguments, **options)


def _shape_of(values: Any) -> Shape:
    return tuple(tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__ for value in values)


def can_compile(device: torch.device) -> str | None:
    """Why nothing can be compiled here; None when it can."""
    if device.type == "cpu":
        compiler = os.environ.get("CXX", "g++")
        return None if shutil.which(compiler) else f"there is no C++ compiler ({compiler})"
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton is missing"
    return f"torch cannot compile for {device.type} well"


def compile_parts(pipe: Any, device: torch.device, plan: Plan) -> list[Compiled]:
    """Have the pipeline's UNet, or transformer, and its ControlNet compile themselves when it pays."""
    # Kept between runs: a shape that was compiled before takes a fraction of the time.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "img2img" / "compiled"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    torch._dynamo.config.recompile_limit = 64  # a shape is a version, and whoever adds one has made sure that it pays
    made = []
    for part in (getattr(pipe, "unet", None), getattr(pipe, "transformer", None), getattr(pipe, "controlnet", None)):
        if isinstance(part, torch.nn.Module):
            compiled = Compiled(part, plan, device.type, counts=part is not getattr(pipe, "controlnet", None))
            wrap_forward(part, functools.partial(_call_compiled, compiled))
            made.append(compiled)
    return made
