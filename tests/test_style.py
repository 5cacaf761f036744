"""`--style`: an IP-Adapter on a tiny Stable Diffusion, alone and in batches, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import psnr
from PIL import Image
from twins import make_twin

from img2img_cli.engines.device import choose_placement
from img2img_cli.engines.diffusion.build import build_pipeline
from img2img_cli.engines.diffusion.latents import LatentsPipeline
from img2img_cli.presets.references import split_folder
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.pieces import Piece
from img2img_cli.tasks.record import read_record, replay_command
from img2img_cli.tasks.side_inputs import load_style

RED, BLUE = (Image.new("RGB", (40, 50), colour) for colour in ("red", "blue"))
FEW = {"num_inference_steps": 3, "strength": 1.0, "image_size": 64, "ip_adapter_scale": 2.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("style")
    make_twin("stable-diffusion-v1-5/stable-diffusion-v1-5", root / "sd")
    make_twin("h94/IP-Adapter", root / "ip")
    return root


def keys(folder: Path) -> dict[str, str]:
    return {
        "model": str(folder / "sd"),
        "ip_adapter": str(folder / "ip" / "models" / "ip-adapter_sd15.safetensors"),
        "ip_adapter_image_encoder": str(folder / "ip" / "models" / "image_encoder"),
    }


@pytest.fixture(params=[1.0, 5.0], ids=["unguided", "guided"])
def pipeline(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[LatentsPipeline, Parameters]]:
    parameters = Parameters.model_validate({**keys(folder), **FEW, "prompt": "fog", "guidance_scale": request.param})
    yield build_pipeline(parameters, choose_placement("cpu", "float32")), parameters


def make(pipeline: tuple[LatentsPipeline, Parameters], *styles: Image.Image) -> list[Image.Image]:
    image = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    pieces = [Piece(image=image, control=None, seed=1, parameters=pipeline[1], style=style) for style in styles]
    return pipeline[0].transform(pieces)


@pytest.mark.slow
def test_the_style_picture_tells(pipeline) -> None:
    red, blue = make(pipeline, RED)[0], make(pipeline, BLUE)[0]
    assert psnr(red, blue) < 50
    assert np.array_equal(np.asarray(red), np.asarray(make(pipeline, RED)[0]))


@pytest.mark.slow
def test_pictures_of_one_style_share_a_batch(pipeline) -> None:
    for made in make(pipeline, RED, RED):
        assert psnr(made, make(pipeline, RED)[0]) > 50


def test_pictures_of_several_styles_do_not(pipeline) -> None:
    image, parameters = Image.new("RGB", (64, 64)), pipeline[1]
    groups = [
        Piece(image=image, control=None, seed=1, parameters=parameters, style=style).group for style in (RED, RED, BLUE)
    ]
    assert groups[0] == groups[1] != groups[2]


def test_a_style_is_read_once_until_it_changes(tmp_path: Path) -> None:
    RED.save(tmp_path / "style.png")
    first = load_style(str(tmp_path / "style.png"))
    assert load_style(str(tmp_path / "style.png")) is first
    BLUE.save(tmp_path / "style.png")
    os.utime(tmp_path / "style.png", ns=(0, 1))
    assert load_style(str(tmp_path / "style.png")).getpixel((0, 0)) == (0, 0, 255)


def test_style_acts_in_the_layers_that_hold_it(pipeline) -> None:
    scales = {
        name: list(processor.scale)
        for name, processor in pipeline[0].pipe.unet.attn_processors.items()
        if hasattr(processor, "scale")
    }
    assert {name for name, scale in scales.items() if scale != [0.0]} == {
        name for name in scales if name.startswith("up_blocks.0.")
    }


def test_no_weight_is_no_style(folder: Path) -> None:
    parameters = Parameters.model_validate({**keys(folder), **FEW, "prompt": "fog", "ip_adapter_scale": 0.0})
    pipeline = build_pipeline(parameters, choose_placement("cpu", "float32"))
    red, blue = make((pipeline, parameters), RED, BLUE)
    assert torch.equal(torch.tensor(np.asarray(red)), torch.tensor(np.asarray(blue)))


@pytest.mark.slow
def test_the_command_takes_it_and_tells_it_again(here, folder: Path, tmp_path: Path) -> None:
    RED.save(tmp_path / "in.png")
    BLUE.save(tmp_path / "style.png")
    options = [word for key, value in {**keys(folder), **FEW}.items() for word in ("--set", f"{key}={value}")]
    out = tmp_path / "out.png"
    done = here("edit", tmp_path / "in.png", out, "-p", "fog", "--style", tmp_path / "style.png", *options)
    assert done.code == 0, done.err
    assert Image.open(out).size == RED.size
    assert "--style style.png" in replay_command(read_record(str(out)))


@pytest.mark.slow
def test_what_cannot_be_is_refused_before_torch(fresh, tmp_path: Path) -> None:
    RED.save(tmp_path / "in.png")
    for options, code, words in (
        (["--style", tmp_path / "in.png"], 2, "preset 'edit' takes no --style; use --preset style"),
        (["--preset", "sd15-style"], 2, "give one with --style"),
        (["--preset", "sd15-style", "--style", tmp_path / "no.png"], 3, "no.png"),
        (["--preset", "sd15-style", "--style", "-"], 2, "stdin"),
    ):
        done = fresh("edit", tmp_path / "in.png", "-p", "fog", *options)
        assert (done.code, len(done.err.splitlines())) == (code, 1), done.err
        assert words in done.err


def test_a_batch_is_refused_alike(fresh, tmp_path: Path) -> None:
    RED.save(tmp_path / "in.png")
    done = fresh("batch", tmp_path / "in.png", "-o", tmp_path / "out", "--preset", "sd15-style")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "give one with --style" in done.err


def test_folders_on_the_hub_and_here(tmp_path: Path) -> None:
    assert split_folder("owner/name/some/folder") == ("owner/name", "some/folder")
    assert split_folder(str(tmp_path)) == (str(tmp_path), "")
