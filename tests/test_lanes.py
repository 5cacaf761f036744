"""Two pictures at once through one model: equal results, independent lanes, and one lane if memory is short."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GREY, psnr
from PIL import Image

from img2img_cli.engines.base import BasePipeline
from img2img_cli.engines.device import choose_placement
from img2img_cli.engines.diffusion.build import build_pipeline
from img2img_cli.engines.diffusion.latents import LatentsPipeline
from img2img_cli.errors import OutOfMemoryError
from img2img_cli.presets.catalogue import resolve
from img2img_cli.presets.files import load_preset

QUICK = ["--set", "num_inference_steps=2", "--set", "num_samples=1", "--set", "image_size=64"]


@pytest.fixture
def folder(tmp_path: Path, photograph: Image.Image, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "in").mkdir()
    for index in range(6):
        photograph.rotate(60 * index).resize((96, 64 + 8 * index)).save(tmp_path / "in" / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield tmp_path
    torch.set_num_threads(before)


@pytest.mark.slow
def test_lanes_give_what_the_single_command_gives(here, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, together = set(), []
    barrier = threading.Barrier(2, timeout=30)
    denoise = LatentsPipeline.denoise

    def note(self, *arguments, **options):
        names.add(threading.current_thread().name)
        if not together:
            barrier.wait()  # passes only when two are in it
            together.append(torch.get_num_threads())
        return denoise(self, *arguments, **options)

    monkeypatch.setattr(LatentsPipeline, "denoise", note)
    done = here("batch", "in", "-o", "out", "--preset", GREY, "--seed", 3, *QUICK)
    assert done.code == 0, done.err
    assert len(names) == 2
    assert together[0] == 1
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(LatentsPipeline, "denoise", denoise)
    assert here("batch", "in", "-o", "again", "--preset", GREY, "--seed", 3, *QUICK).code == 0
    for index in range(6):
        name = f"{index}.png"
        assert here("colorize", f"in/{name}", f"single-{name}", "--seed", 3, "--preset", GREY, *QUICK).code == 0
        made, again, single = (np.asarray(Image.open(f)) for f in (f"out/{name}", f"again/{name}", f"single-{name}"))
        assert (made == again).all()
        assert psnr(made, single) > 40


def test_a_lane_of_its_own_changes_nothing_for_the_other() -> None:
    pipeline = build_pipeline(resolve(load_preset(GREY), {}).parameters, choose_placement("cpu", "float32"))
    torch.set_num_threads(2)
    first, second = pipeline.make_lanes()
    first.pipe.scheduler.set_timesteps(7)
    assert second.pipe.scheduler.num_inference_steps != 7
    first.pipe.vae.use_tiling = True
    assert not getattr(second.pipe.vae, "use_tiling", False)
    assert first.pipe.unet is second.pipe.unet


def test_a_lane_reads_its_prompt_whole_while_another_counts_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline = build_pipeline(resolve(load_preset(GREY), {}).parameters, choose_placement("cpu", "float32"))
    torch.set_num_threads(2)
    first, second = pipeline.make_lanes()
    tokenizer, settle = first.pipe.tokenizer, type(first.pipe.tokenizer).set_truncation_and_padding
    parameters = resolve(load_preset(GREY), {"prompt": "a tulip"}).parameters
    others: list[threading.Thread] = []

    def interrupt(self, **settings: object) -> None:
        settle(self, **settings)
        if threading.current_thread() is threading.main_thread():
            # Another lane's turn, just between this one's settings and its reading.
            others.append(threading.Thread(target=second.find_cuts, args=([parameters],)))
            others[0].start()
            others[0].join(0.3)

    monkeypatch.setattr(type(tokenizer), "set_truncation_and_padding", interrupt)
    assert len(tokenizer("a red tulip", padding="max_length", max_length=32, truncation=True)["input_ids"]) == 32
    others[0].join(60)


def test_a_second_try_in_float32_leaves_the_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = build_pipeline(resolve(load_preset(GREY), {}).parameters, choose_placement("cpu", "bfloat16"))
    used = []
    decode = LatentsPipeline._decode

    def overflow(self, latents, vae=None):
        used.append((vae or self.pipe.vae).dtype)
        made = decode(self, latents, vae)
        return made * float("nan") if vae is None else made

    monkeypatch.setattr(LatentsPipeline, "_decode", overflow)
    pipeline.decode(torch.zeros(1, pipeline.pipe.vae.config.latent_channels, 8, 8, dtype=torch.bfloat16))
    assert used == [torch.bfloat16, torch.float32]
    assert pipeline.pipe.vae.dtype == torch.bfloat16


@pytest.mark.slow
def test_out_of_memory_goes_on_with_one_lane(here, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transform, working = BasePipeline.transform, []

    def scarce(self, pieces, progress=None):
        working.append(1)
        try:
            if len(working) > 1:
                raise OutOfMemoryError("no room for two")
            threading.Event().wait(0.2)
            return transform(self, pieces, progress)
        finally:
            working.pop()

    monkeypatch.setattr(BasePipeline, "transform", scarce)
    done = here("batch", "in", "-o", "out", "--preset", GREY, "--json", *QUICK)
    assert done.code == 0, done.err
    events = [json.loads(line) for line in done.out.splitlines()]
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert notes == ["out of memory; going on with one picture at a time"]
    assert len(list(Path("out").glob("*.png"))) == 6
