"""Offloading: the choice by free memory, unchanged results, and the VAE in tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import psnr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from img2img_cli.engines.device import choose_placement
from img2img_cli.engines.diffusion.build import build_pipeline
from img2img_cli.engines.diffusion.latents import LatentsPipeline
from img2img_cli.engines.diffusion.offload import apply_offload, choose_offload, measure_parts
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.pieces import Piece

GIB = 2**30
BYTES = st.integers(0, 80 * GIB)


@given(parts=st.lists(BYTES, max_size=6), work=BYTES, free=BYTES)
def test_what_is_chosen_fits_and_nothing_faster_would(parts: list[int], work: int, free: int) -> None:
    whole, largest = sum(parts) + work, max(parts, default=0) + work
    chosen = choose_offload(parts, work, free)
    assert (chosen == "none") == (whole <= free)
    assert (chosen == "group") == (largest > free)


@pytest.fixture
def pipeline(tiny_sd: Path) -> LatentsPipeline:
    parameters = Parameters(model=str(tiny_sd), num_inference_steps=4, strength=0.5, prompt="a cat", image_size=64)
    return build_pipeline(parameters, choose_placement("cpu", "float32"))


def make_piece(side: int) -> Piece:
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
    parameters = Parameters(num_inference_steps=4, strength=0.5, prompt="a cat")
    return Piece(image=image, control=None, seed=1, parameters=parameters)


@pytest.mark.slow
def test_a_cpu_has_nowhere_to_move_parts_to(here, tmp_path: Path, tiny_sd: Path, pipeline: LatentsPipeline) -> None:
    assert pipeline.offload == "none"
    make_piece(64).image.save(tmp_path / "in.png")
    options = ["--model", tiny_sd, "--steps", "2", "--strength", "0.5", "--set", "image_size=64", "--device", "cpu"]
    done = here("edit", tmp_path / "in.png", tmp_path / "out.png", "-p", "fog", "--offload", "model", *options)
    assert done.code == 0, done.err
    assert "--offload" not in done.err


@pytest.mark.slow
@pytest.mark.parametrize("offload", ["model", "group"])
def test_results_stay_when_parts_move(pipeline: LatentsPipeline, offload) -> None:
    expected = pipeline.transform([make_piece(64)])[0]
    apply_offload(pipeline.pipe, offload, torch.device("cpu"))
    for _ in range(2):  # parts have to come back for the second picture
        assert psnr(pipeline.transform([make_piece(64)])[0], expected) > 60


def test_parts_are_measured(pipeline: LatentsPipeline) -> None:
    parts = measure_parts(pipeline.pipe)
    assert len(parts) == 3  # UNet, VAE, text encoder
    assert sum(p.nbytes for p in pipeline.pipe.unet.parameters()) in parts


@pytest.mark.slow
def test_the_vae_tiles_large_pictures_only(pipeline: LatentsPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_tiling_pixels", 128 * 128)
    seen: list[bool] = []
    decode = pipeline.pipe.vae.decode
    monkeypatch.setattr(
        pipeline.pipe.vae, "decode", lambda *a, **k: seen.append(pipeline.pipe.vae.use_tiling) or decode(*a, **k)
    )
    for side in (64, 128, 192, 64):
        assert pipeline.transform([make_piece(side)])[0].size == (side, side)
    assert seen == [False, False, True, False]


@pytest.mark.slow
def test_out_of_memory_tiles_the_vae_from_then_on(pipeline: LatentsPipeline) -> None:
    assert pipeline.save_memory() == "the VAE in tiles"
    pipeline.transform([make_piece(64)])
    assert pipeline.pipe.vae.use_tiling
    assert pipeline.save_memory() is None  # on a CPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("offload", ["model", "group", "sequential"])
def test_results_stay_on_a_gpu(tiny_sd: Path, offload) -> None:
    parameters = Parameters(model=str(tiny_sd))
    made = [
        build_pipeline(parameters, choose_placement("cuda", "float32", how)).transform([make_piece(64)])[0]
        for how in ("none", offload)
    ]
    assert psnr(*made) > 40


@pytest.mark.slow
def test_an_unknown_way_is_refused_before_torch(fresh, tmp_path: Path) -> None:
    make_piece(64).image.save(tmp_path / "in.png")
    for command in (
        ["edit", tmp_path / "in.png", "-p", "fog"],
        ["batch", tmp_path, "-o", tmp_path / "out", "--preset", "edit"],
    ):
        done = fresh(*command, "--offload", "modle")
        assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
        assert "did you mean 'model'" in done.err
