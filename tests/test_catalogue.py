"""Download every shipped preset's model from a hub on loopback, then build and run it with the model's tiny twin."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback_hub import LoopbackHub
from PIL import Image
from twins import RECIPES, make_twin
from warm import Warm

from img2img_cli.presets.catalogue import resolve
from img2img_cli.presets.files import list_presets, load_preset
from img2img_cli.presets.references import NO_MODEL, is_bundled, parse_lora
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.record import read_record, replay_command

SIZE = (72, 56)  # neither side a multiple of anything that models like


def parameters_of(name: str) -> Parameters:
    return resolve(load_preset(name), {}).parameters


REMOTE = [
    name for name in list_presets() if not is_bundled(parameters_of(name).model) and parameters_of(name).look is None
]


def references(parameters: Parameters) -> list[tuple[str, str | None]]:
    """Return every hub id that a preset needs for a run, with its variant."""
    found: list[tuple[str, str | None]] = []
    if parameters.model != NO_MODEL:
        found.append((parameters.model, parameters.variant))
    if parameters.refiner:
        found.append((parameters.refiner, parameters.variant))
    found += [(part, None) for part in (parameters.vae, parameters.controlnet) if part]
    files = [*parameters.lora, *(text for text in (parameters.ip_adapter, parameters.upscaler) if text)]
    return found + [(parse_lora(text).repository, None) for text in files]


def mask_of(size: tuple[int, int]) -> np.ndarray:
    """Return a mask that is white in the middle."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[16:40, 20:50] = 255
    return mask


@dataclass(frozen=True)
class Run:
    """The results of one batch over all presets."""

    folder: Path
    events: dict[str, dict[str, Any]]
    code: int
    err: str
    requests: list[str]


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("twins")
    folders = {}
    for name in REMOTE:
        for reference, variant in references(parameters_of(name)):
            if reference not in folders:
                folders[reference] = root / reference
                make_twin(reference, folders[reference], variant)
    return folders


@pytest.fixture(scope="session")
def catalogue(
    twins: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, photograph: Image.Image
) -> Iterator[Run]:
    """Run every preset in one process, so that torch is imported once."""
    root = tmp_path_factory.mktemp("catalogue")
    photograph.resize(SIZE).save(root / "in.png")
    Image.fromarray(mask_of(SIZE)).save(root / "mask.png")
    Image.effect_noise((90, 70), 80).convert("RGB").save(root / "style.png")
    rows = []
    for name in REMOTE:
        p = parameters_of(name)
        least = min(p.strength, p.refiner_strength) if p.refiner else p.strength
        few = {"num_inference_steps": max(2, int(np.ceil(1 / least))), "image_size": 64, "tile_size": 64}
        row = {"input": "in.png", "output": f"{name}.png", "preset": name, "seed": 5, "tile_overlap": 16, **few}
        if "inpaint" in name:
            row["mask"] = "mask.png"
        if p.ip_adapter:
            row["style"] = "style.png"
        rows.append(row | ({"prompt": "a red house"} if p.task == "edit" else {}))
    (root / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    with LoopbackHub(twins) as hub:
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(root / "cache"), "HF_HUB_DISABLE_XET": "1"}
        command = ["batch", "jobs.jsonl", "-o", "out", "--json"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with Warm(command, cwd=root, env=environment, **pipes) as process:
            out, err = process.communicate(timeout=600)
        requests = list(hub.requests)
    lines = [json.loads(line) for line in out.splitlines()]
    events = {Path(line["output"]).stem: line for line in lines if line.get("output")}
    yield Run(root, events, process.returncode, err, requests)


@pytest.mark.slow
@pytest.mark.parametrize("name", REMOTE)
def test_a_preset_is_pulled_built_and_run(catalogue: Run, name: str) -> None:
    event = catalogue.events[name]
    assert event["event"] == "done", event
    with Image.open(catalogue.folder / "out" / f"{name}.png") as image:
        p = parameters_of(name)
        factor = p.scale if p.task == "upscale" else 1
        assert image.size == (SIZE[0] * factor, SIZE[1] * factor)
        made = np.asarray(image.convert("RGB"), np.float32)
    assert made.std() > 1  # random weights, but a picture
    with Image.open(catalogue.folder / "in.png") as given:
        unchanged = np.asarray(given.resize(image.size, Image.Resampling.BICUBIC), np.float32)
    changed = np.abs(made - unchanged).mean(2)
    if "inpaint" in name:
        assert not changed[mask_of(SIZE) == 0].any()
        changed = changed[mask_of(SIZE) == 255]
    assert changed.mean() > 2, "the input came back"


@pytest.mark.slow
@pytest.mark.parametrize("name", REMOTE)
def test_its_metadata_tells_the_command(catalogue: Run, name: str) -> None:
    record = read_record(str(catalogue.folder / "out" / f"{name}.png"))
    words = replay_command(record)
    assert f"--preset {name} --seed 5" in words
    assert "num_inference_steps=" in words
    assert "lora" not in words  # the preset's own is not repeated


@pytest.mark.parametrize("name", REMOTE)
def test_it_says_what_a_person_needs_to_know(name: str) -> None:
    p = parameters_of(name)
    assert p.description
    assert p.license
    assert p.memory_gib > 1
    assert len(p.description) < 100


def test_every_model_has_a_twin() -> None:
    named = {reference for name in REMOTE for reference, _ in references(parameters_of(name))}
    named |= {reference for name in REMOTE for reference in parameters_of(name).controlnets.values()}
    assert not named - set(RECIPES)


@pytest.mark.parametrize(
    ("preset", "kind", "other"), [("sd15-edit", "canny", "sd15-canny"), ("sdxl-edit", "canny", "sdxl-canny")]
)
def test_control_chooses_the_familys_controlnet(here, tmp_path: Path, preset: str, kind: str, other: str) -> None:
    Image.new("RGB", SIZE).save(tmp_path / "in.png")
    done = here("edit", tmp_path / "in.png", "-p", "fog", "--preset", preset, "--control", kind, "--dry-run")
    assert done.code == 0, done.err
    wanted = parameters_of(other)
    assert f"controlnet: {wanted.controlnet}\n" in done.out.decode()
    assert f"control: {wanted.control}\n" in done.out.decode()


def test_control_that_is_not_there_is_refused(here, tmp_path: Path) -> None:
    Image.new("RGB", SIZE).save(tmp_path / "in.png")
    for options, words in (
        (["--preset", "sdxl-edit", "--control", "softedge"], "has canny, picture"),
        (["--control", "canny"], "has picture"),
        (["--preset", "flux-dev", "--control", "canny"], "has none"),
        (["--control", "cany"], "'canny'"),
    ):
        done = here("edit", tmp_path / "in.png", "-p", "fog", "--dry-run", *options)
        assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
        assert words in done.err


@pytest.mark.slow
def test_variants_are_what_is_downloaded(catalogue: Run) -> None:
    paths = [path for path in catalogue.requests if "stable-diffusion-xl-base-1.0/resolve" in path]
    assert any("unet/diffusion_pytorch_model.fp16.safetensors" in path for path in paths)
    assert not any("/vae/" in path and path.endswith(".safetensors") for path in paths)  # another one is asked for


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in REMOTE if "inpaint" in name])
def test_inpainting_keeps_what_is_black(catalogue: Run, name: str) -> None:
    before = np.asarray(Image.open(catalogue.folder / "in.png").convert("RGB"))
    after = np.asarray(Image.open(catalogue.folder / "out" / f"{name}.png").convert("RGB"))
    white = mask_of(SIZE) > 0
    assert (before[~white] == after[~white]).all()
    assert (before[white] != after[white]).any(-1).mean() > 0.5
