"""A UNet's deep features kept for a few steps: what changes from step to step is mostly in its outermost layers.

Ma, Fang & Wang, "DeepCache: Accelerating Diffusion Models for Free" (CVPR 2024), with the outermost layer computed anew
at every step. diffusers' own cache hooks are for transformers and do nothing to `UNet2DConditionModel`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from img2img_cli.errors import UsageError

_active = threading.local()  # lanes share a UNet, and each has a cache of its own


class FeatureCache:
    """What one run of a UNet keeps. Every `interval`-th step computes everything, those between the last layer only."""

    def __init__(self, interval: int) -> None:
        self._interval, self._steps = interval, -1
        self._kept: dict[torch.nn.Module, Any] = {}

    def begin_step(self) -> None:
        """Count a step."""
        self._steps += 1

    @property
    def is_full(self) -> bool:
        """Whether the present step computes everything."""
        return self._steps % self._interval == 0

    def run(self, module: torch.nn.Module, compute: Callable[[], Any]) -> Any:
        """A module's output: computed and kept, or what was kept."""
        if self.is_full:
            self.keep(module, compute())
        return self.recall(module)

    def keep(self, module: torch.nn.Module, value: Any) -> None:
        """Keep what belongs to a module until the next full step."""
        self._kept[module] = value

    def recall(self, module: torch.nn.Module) -> Any:
        """What was kept."""
        return self._kept[module]


def _find_cache() -> FeatureCache | None:
    return getattr(_active, "cache", None)


@contextlib.contextmanager
def cache_features(pipe: Any, interval: int) -> Iterator[None]:
    """While it lasts, steps of the pipeline's UNet and ControlNet in this thread share what they keep.

    Args:
        interval: steps from one full one to the next; 1 keeps nothing.

    Raises:
        UsageError: a transformer, or a UNet without a last layer to go on with.
    """
    if interval == 1:
        yield
        return
    _prepare(pipe)
    _active.cache = FeatureCache(interval)
    try:
        yield
    finally:
        _active.cache = None


def _prepare(pipe: Any) -> None:
    """Have the parts of the UNet ask for a cache, once. Without one they work as ever."""
    unet: Any = getattr(pipe, "unet", None)
    controlnet = getattr(pipe, "controlnet", None)
    last = unet.up_blocks[-1] if hasattr(unet, "up_blocks") else None
    if last is None or len(unet.up_blocks) < 2 or len(last.resnets) < 2 or last.upsamplers is not None:
        raise UsageError(f"cache_interval is for Stable Diffusion's UNets, not for {type(pipe).__name__}; leave it out")
    if getattr(unet, "prepared_for_cache", False):
        return
    unet.prepared_for_cache = True
    for block in [*unet.down_blocks, unet.mid_block, *unet.up_blocks[:-1], controlnet]:
        if block is not None:
            _keep_output(block)
    _continue_in(last)
    _count_steps(unet if controlnet is None else controlnet)  # whichever comes first in a step


def _count_steps(module: Any) -> None:
    compute = module.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        if (cache := _find_cache()) is not None:
            cache.begin_step()
        return compute(*arguments, **options)

    module.forward = forward


def _keep_output(module: Any) -> None:
    compute = module.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        cache = _find_cache()
        if cache is None:
            return compute(*arguments, **options)
        return cache.run(module, lambda: compute(*arguments, **options))

    module.forward = forward


def _continue_in(block: Any) -> None:
    """The last block: all of it in a full step, else its last layer on what came into that and fresh outer features."""
    last, compute = block.resnets[-1], block.forward
    compute_last = last.forward
    inner = block.resnets[-2].out_channels  # the last layer's input is this, then the outermost skip connection

    def forward_last(hidden_states: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if (cache := _find_cache()) is not None and cache.is_full:
            cache.keep(last, hidden_states[:, :inner])
        return compute_last(hidden_states, *arguments, **options)

    def forward(**options: Any) -> Any:
        cache = _find_cache()
        if cache is None or cache.is_full:
            return compute(**options)
        outer = options["res_hidden_states_tuple"][0]
        made = compute_last(torch.cat([cache.recall(last), outer], dim=1), options["temb"])
        if not hasattr(block, "attentions"):
            return made
        names = ("encoder_hidden_states", "cross_attention_kwargs", "attention_mask", "encoder_attention_mask")
        given = {name: options[name] for name in names if name in options}
        return block.attentions[-1](made, return_dict=False, **given)[0]

    last.forward, block.forward = forward_last, forward
