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
from torch.utils import _pytree as pytree

from img2img_cli.engines.module_calls import Answer, wrap_call
from img2img_cli.errors import UsageError

_active = threading.local()  # lanes share a UNet, and each has a cache of its own


class FeatureCache:
    """What one run of a UNet keeps. Every `interval`-th step computes everything, those between the last layer only."""

    def __init__(self, interval: int) -> None:
        self._interval, self._step = interval, 0
        self._kept: dict[torch.nn.Module, Any] = {}

    def end_step(self) -> None:
        """Count a step."""
        self._step += 1

    @property
    def is_full(self) -> bool:
        """Whether the present step computes everything."""
        return self._step % self._interval == 0

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

    def keep_guided_half(self) -> None:
        """Keep the second half of each batch alone, that of the prompt."""
        self._kept = pytree.tree_map_only(torch.Tensor, lambda kept: kept.chunk(2)[-1], self._kept)


def find_cache() -> FeatureCache | None:
    """The cache of the run in this thread, if it has one."""
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
    """Have the parts of the UNet and the ControlNet ask for a cache, once. Without one they work as ever."""
    unet: Any = getattr(pipe, "unet", None)
    last = unet.up_blocks[-1] if hasattr(unet, "up_blocks") else None
    if last is None or len(unet.up_blocks) < 2 or len(last.resnets) < 2 or last.upsamplers is not None:
        raise UsageError(f"cache_interval is for Stable Diffusion's UNets, not for {type(pipe).__name__}; leave it out")
    inner = [*unet.down_blocks, unet.mid_block, *unet.up_blocks[:-1], getattr(pipe, "controlnet", None)]
    parts: list[tuple[Any, Answer]] = [(block, _keep_output) for block in inner if block is not None]
    parts += [(last, _continue), (last.resnets[-1], _keep_input), (unet, _count_step)]
    with _preparing:
        for module, answer in parts:
            if not getattr(module, "asks_for_cache", False):
                module.asks_for_cache = True
                wrap_call(module, answer)


_preparing = threading.Lock()


def _count_step(unet: Any, compute: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """A UNet's call ends a step; a ControlNet's comes before it."""
    made = compute(*arguments, **options)
    if (cache := find_cache()) is not None:
        cache.end_step()
    return made


def _keep_output(block: Any, compute: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    cache = find_cache()
    if cache is None:
        return compute(*arguments, **options)
    return cache.run(block, lambda: compute(*arguments, **options))


def _keep_input(
    layer: Any, compute: Callable[..., Any], hidden_states: torch.Tensor, *more: Any, **options: Any
) -> Any:
    """The last layer: its input is what it is given from inside, then the outermost skip connection."""
    if (cache := find_cache()) is not None and cache.is_full:
        cache.keep(layer, hidden_states)
    return compute(hidden_states, *more, **options)


def _continue(block: Any, compute: Callable[..., Any], **options: Any) -> Any:
    """The last block: all of it in a full step, else its last layer on what came into that and fresh outer features."""
    cache = find_cache()
    if cache is None or cache.is_full:
        return compute(**options)
    last, inner = block.resnets[-1], block.resnets[-2].out_channels
    outer = options["res_hidden_states_tuple"][0]
    made = last(torch.cat([cache.recall(last)[:, :inner], outer], dim=1), options["temb"])
    if not hasattr(block, "attentions"):
        return made
    names = ("encoder_hidden_states", "cross_attention_kwargs", "attention_mask", "encoder_attention_mask")
    given = {name: options[name] for name in names if name in options}
    return block.attentions[-1](made, return_dict=False, **given)[0]
