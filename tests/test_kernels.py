"""Replaced kernels compute what the library's own do."""

from __future__ import annotations

import pytest
import torch

from img2img_cli.building import build_pipeline
from img2img_cli.device import choose_placement
from img2img_cli.kernels import GroupNorm, replace_kernels
from img2img_cli.preset import resolve
from img2img_cli.preset_files import load_preset


@pytest.mark.parametrize("shape", [(2, 64, 8, 6), (1, 64, 1, 1), (2, 64, 5)])
@pytest.mark.parametrize("last", [False, True])
def test_group_norm_is_the_same(shape: tuple[int, ...], last: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.GroupNorm(32, 64))
    torch.nn.init.normal_(layer[0].weight)
    values = torch.randn(shape)
    if last and len(shape) == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    expected = layer(values)
    replace_kernels(layer, torch.device("cpu"))
    made = layer(values)
    assert type(layer[0]) is GroupNorm
    assert torch.allclose(made, expected, atol=1e-5)
    assert made.stride() == expected.stride()


def test_groups_of_many_channels_and_other_devices_keep_theirs() -> None:
    for channels, device in ((320, "cpu"), (64, "cuda")):
        layer = torch.nn.Sequential(torch.nn.GroupNorm(32, channels))
        replace_kernels(layer, torch.device(device))
        assert type(layer[0]) is torch.nn.GroupNorm


def test_the_bundled_model_uses_it() -> None:
    pipeline = build_pipeline(resolve(load_preset("colorize"), {}).parameters, choose_placement("cpu", "auto"))
    assert any(type(layer) is GroupNorm for layer in pipeline.pipe.unet.modules())
