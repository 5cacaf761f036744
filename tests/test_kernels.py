"""Replacement kernels compute the same as the library's."""

from __future__ import annotations

import pytest
import torch
from conftest import GREY
from pictures import make_picture

from img2img_cli.engines.cpu_kernels import Conv2d, GroupNorm, mend_convolutions, replace_kernels
from img2img_cli.engines.device import choose_placement
from img2img_cli.engines.diffusion.build import build_pipeline
from img2img_cli.presets.catalogue import resolve
from img2img_cli.presets.files import load_preset
from img2img_cli.tasks.pieces import Piece


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


def test_the_bundled_model_uses_them() -> None:
    pipeline = build_pipeline(resolve(load_preset(GREY), {}).parameters, choose_placement("cpu", "auto"))
    assert any(type(layer) is GroupNorm for layer in pipeline.pipe.unet.modules())
    for part in (pipeline.pipe.unet, pipeline.pipe.controlnet, pipeline.pipe.vae):
        strided = [layer for layer in part.modules() if isinstance(layer, torch.nn.Conv2d) and layer.stride[1] > 1]
        assert {type(layer) for layer in strided} == {Conv2d}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kernel", "stride", "padding", "width"), [(3, 2, 1, 2), (3, 2, 0, 4), (2, 2, "valid", 3)])
def test_a_convolution_to_one_column_is_right(
    dtype: torch.dtype, kernel: int, stride: int, padding, width: int
) -> None:
    """With AMX, oneDNN reads wrong rows and memory outside the picture."""
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Conv2d(64, 64, kernel, stride=stride, padding=padding))
    values = torch.randn(2, 64, 52, width).to(dtype).contiguous(memory_format=torch.channels_last)
    layer.to(dtype=dtype, memory_format=torch.channels_last)
    mend_convolutions(layer, torch.device("cpu"))
    assert type(layer[0]) is Conv2d
    with torch.inference_mode():
        made = layer(values)
        expected = layer.double()(values.double())
    assert made.dtype == dtype
    assert made.shape == expected.shape
    assert made.shape[-1] == 1
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(made.double(), expected, atol=0.02)


@pytest.mark.slow
def test_a_narrow_picture_has_one_result() -> None:
    """At 16 pixels, the innermost maps of the bundled model have one column."""
    parameters = resolve(load_preset(GREY), {"num_inference_steps": 1}).parameters
    pipeline = build_pipeline(parameters, choose_placement("cpu", "bfloat16"))
    working = make_picture("gradient", (16, 416)).convert("L").convert("RGB")
    pieces = [Piece(image=working, control=working, seed=0, parameters=parameters)]
    made = {pipeline.transform(pieces)[0].tobytes() for _ in range(8)}
    assert len(made) == 1


@pytest.mark.parametrize("last", [False, True])
def test_a_convolution_of_one_pixel_does_not_depend_on_the_threads(last: bool, one_thread: None) -> None:
    """A picture would differ in its last bits alone and in a lane beside another."""
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Conv2d(448, 224, 1))
    values = torch.randn(2, 448, 16, 16)
    if last:
        values = values.contiguous(memory_format=torch.channels_last)
        layer.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = layer(values)
        mend_convolutions(layer, torch.device("cpu"))
        made = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.append(layer(values))
    assert torch.allclose(made[0], expected, atol=1e-4)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
