"""Other ways to compute the same, where a library's own way is slow or wrong on the device at hand."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from img2img_cli.engines.module_calls import wrap_call

FEW_CHANNELS, SMALL_MAP = 8, 1024
MOST_TEXTS = 16


class GroupNorm(torch.nn.GroupNorm):
    """`torch.nn.GroupNorm` for groups of few channels and small maps on a CPU.

    Of a channels_last map with under 1,024 positions torch's kernel reads a group a few numbers at a time: with two
    channels a group, 2.4 ms where the contiguous kernel takes 0.07 and copying there and back 0.07 more (4 x 64 x 32 x
    24 in bfloat16 on two cores). Larger maps have a kernel of their own, which is several times faster than copying.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` to the same, in the same memory format."""
        is_small = input.ndim == 4 and input.shape[2] * input.shape[3] < SMALL_MAP
        if not is_small or not input.is_contiguous(memory_format=torch.channels_last):
            return super().forward(input)
        made = functional.group_norm(input.contiguous(), self.num_groups, self.weight, self.bias, self.eps)
        return made.contiguous(memory_format=torch.channels_last)


class Conv2d(torch.nn.Conv2d):
    """`torch.nn.Conv2d` that computes in float32 what oneDNN gets wrong in 16 bits: maps of a single column.

    Where a stride makes the output one column wide, oneDNN's kernels for AMX (`brg_conv_fwd`, found in 3.12) take the
    rows of their input to lie farther apart than they do. They read wrong rows, then memory past their buffer: the
    output differs from call to call, and some of it is NaN. Such maps are small, and the float32 kernels are right.
    """

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`(B, C, H, W)` to `(B, C', H', W')` in the same dtype and memory format."""
        made: torch.Tensor
        if input.dtype not in (torch.bfloat16, torch.float16) or self._count_columns(input) != 1:
            made = super()._conv_forward(input, weight, bias)
        else:
            made = super()._conv_forward(input.float(), weight.float(), None if bias is None else bias.float())
        return made.to(input.dtype)

    def _count_columns(self, input: torch.Tensor) -> int:
        """The output's width."""
        padding = 0 if isinstance(self.padding, str) else self.padding[1]  # "same" is not for strides
        kernel = self.dilation[1] * (self.kernel_size[1] - 1) + 1
        return (input.shape[-1] + 2 * padding - kernel) // self.stride[1] + 1


class PointwiseConv2d(torch.nn.Conv2d):
    """`torch.nn.Conv2d` with a kernel of one pixel, whose float32 result does not depend on the number of threads.

    oneDNN splits the sum over 224 and more input channels by threads, so that one picture differs in its last bits
    alone and beside another. A matrix product of the same numbers does not.
    """

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`(B, C, H, W)` to `(B, C', H, W)` in the same dtype, channels last."""
        made: torch.Tensor
        if input.dtype != torch.float32 or input.ndim != 4:
            made = super()._conv_forward(input, weight, bias)
        else:
            made = functional.linear(input.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
        return made


def mend_convolutions(module: torch.nn.Module, device: torch.device) -> None:
    """Keep a module's convolutions from kernels that are wrong or differ with the threads, in place.

    Weights and their names stay.
    """
    if device.type != "cpu":
        return
    for layer in module.modules():
        if type(layer) is not torch.nn.Conv2d:
            continue
        if layer.stride[1] > 1:
            layer.__class__ = Conv2d
        elif _is_pointwise(layer):
            layer.__class__ = PointwiseConv2d


def _is_pointwise(layer: torch.nn.Conv2d) -> bool:
    return (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((1, 1), (1, 1), (0, 0), 1)


def remember_texts(encoder: torch.nn.Module) -> None:
    """Have a text encoder compute each prompt once: pictures of a folder, or lanes, often share theirs.

    Its outputs are used and never changed by diffusers' pipelines. A prompt that is known moves no weights.
    """
    known, guard = OrderedDict[tuple[object, ...], Any](), threading.Lock()

    def answer(module: torch.nn.Module, compute: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            key = tuple(_describe(value) for value in (*arguments, *sorted(options.items())))
        except TypeError:  # an argument that may differ where it looks the same
            return compute(*arguments, **options)
        with guard:
            if key in known:
                return known[key]
        made = compute(*arguments, **options)
        with guard:
            known[key] = made
            while len(known) > MOST_TEXTS:
                known.popitem(last=False)
        return made

    wrap_call(encoder, answer)


def _describe(value: Any) -> object:
    """What two equal arguments have in common."""
    if isinstance(value, tuple):
        return tuple(map(_describe, value))
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, str(value.device), tuple(value.flatten().tolist())
    if isinstance(value, bool | int | str | None):
        return value
    raise TypeError(value)


def replace_kernels(module: torch.nn.Module, device: torch.device) -> None:
    """Give a module's layers the faster way, in place. Weights and their names stay."""
    if device.type != "cpu":
        return
    for layer in module.modules():
        if type(layer) is torch.nn.GroupNorm and layer.num_channels < FEW_CHANNELS * layer.num_groups:
            layer.__class__ = GroupNorm
