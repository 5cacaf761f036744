"""Features of single model families: refiner, int8, Qwen's vision model, scheduler settings, control maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import GREY, psnr
from PIL import Image
from twins import make_twin

from img2img_cli.engines.device import choose_placement
from img2img_cli.engines.diffusion.build import build_pipeline
from img2img_cli.engines.diffusion.offload import measure_parts
from img2img_cli.presets.catalogue import resolve
from img2img_cli.presets.files import load_preset
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.run import transform_image


@pytest.mark.slow
def test_the_refiner_goes_over_the_result(tmp_path: Path) -> None:
    base, refiner = "stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/stable-diffusion-xl-refiner-1.0"
    make_twin(base, tmp_path / "base")
    make_twin(refiner, tmp_path / "refiner")
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    few = {"model": str(tmp_path / "base"), "num_inference_steps": 4, "prompt": "a house", "negative_prompt": "a tree"}
    results = []
    for more in (
        {},
        {"refiner": str(tmp_path / "refiner")},
        {"refiner": str(tmp_path / "refiner"), "refiner_strength": 0.8},
    ):
        parameters = Parameters(**few, **more)
        pipeline = build_pipeline(parameters, choose_placement("cpu", "float32"))
        results.append(np.asarray(transform_image(image, parameters, 3, pipeline)))
    changes = [np.abs(result.astype(int) - results[0]).mean() for result in results[1:]]
    assert 0 < changes[0] < changes[1]


@pytest.mark.slow
def test_a_refiner_that_is_none_is_refused(here, tmp_path: Path, picture: Path) -> None:
    make_twin("stable-diffusion-v1-5/stable-diffusion-v1-5", tmp_path / "sd")
    options = ["--model", tmp_path / "sd", "--set", f"refiner={tmp_path / 'sd'}", "-p", "fog", "--seed", 1]
    done = here("edit", picture, tmp_path / "o.png", *options)
    assert (done.code, len(done.err.splitlines())) == (5, 1), done.err
    assert "Stable Diffusion XL" in done.err
    done = here("edit", picture, tmp_path / "o.png", *options, "--set", "refiner_strength=0.01")
    assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
    assert "no step to run" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    "reference", ["stable-diffusion-v1-5/stable-diffusion-v1-5", "black-forest-labs/FLUX.1-schnell"]
)
def test_eight_bits_take_less_and_make_nearly_the_same(tmp_path: Path, reference: str) -> None:
    pytest.importorskip("torchao")
    make_twin(reference, tmp_path / "twin")
    image = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    results, sizes = [], []
    for quantization in ("none", "int8"):
        parameters = Parameters(
            model=str(tmp_path / "twin"), prompt="a house", num_inference_steps=4, quantization=quantization
        )
        pipeline = build_pipeline(parameters, choose_placement("cpu", "float32"))
        results.append(np.asarray(transform_image(image, parameters, 3, pipeline)))
        sizes.append(sum(measure_parts(pipeline.pipe)))
    assert sizes[1] < sizes[0]
    assert (results[0] != results[1]).any()
    assert psnr(*results) > 25


def test_quantization_and_loras_exclude_each_other(here, picture: Path) -> None:
    done = here("edit", picture, "-p", "fog", "--preset", "sd15-lcm", "--set", "quantization=int8", "--dry-run")
    assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
    assert "LoRA" in done.err


def test_qwen_sees_the_picture_at_the_results_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_twin("Qwen/Qwen-Image-Edit-2511", tmp_path / "twin")
    parameters = Parameters(
        model=str(tmp_path / "twin"), prompt="a house", num_inference_steps=2, strength=1.0, image_size=64
    )
    pipeline = build_pipeline(parameters, choose_placement("cpu", "float32"))
    shapes = []
    forward = pipeline.pipe.transformer.forward
    monkeypatch.setattr(
        pipeline.pipe.transformer, "forward", lambda **keys: shapes.append(keys["img_shapes"][0]) or forward(**keys)
    )
    made = transform_image(Image.effect_noise((200, 90), 60).convert("RGB"), parameters, 3, pipeline)
    assert made.size == (200, 90)
    assert shapes
    assert all(result == seen for result, seen in shapes)  # in patches: neither shifted nor zoomed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "words"),
    [("{timestep_spacing: trailing}", None), ("{timestep_spaceing: trailing}", "timestep_spacing")],
)
def test_a_preset_sets_up_its_scheduler(here, tmp_path: Path, picture: Path, settings: str, words: str | None) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"extends: edit\nscheduler: DDIMScheduler\nscheduler_config: {settings}\nnum_inference_steps: 4\n"
    )
    common = ["-p", "fog", "--preset", tmp_path / "mine.yaml", "--seed", 1, "--set", "image_size=64"]
    done = here("edit", picture, tmp_path / "o.png", *common)
    if words is None:
        assert done.code == 0, done.err
        resolved = resolve(load_preset(str(tmp_path / "mine.yaml")), {"prompt": "fog"}).parameters
        pipeline = build_pipeline(resolved, choose_placement("cpu", "float32"))
        assert pipeline.pipe.scheduler.config.timestep_spacing == "trailing"
    else:
        assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
        assert words in done.err


@pytest.fixture
def controlled(tmp_path: Path) -> list[object]:
    """Return options for a model with a ControlNet for depth and one for edges."""
    make_twin("stable-diffusion-v1-5/stable-diffusion-v1-5", tmp_path / "sd")
    make_twin("lllyasviel/control_v11f1p_sd15_depth", tmp_path / "net")
    (tmp_path / "mine.yaml").write_text(
        f"extends: sd15-edit\nmodel: {tmp_path / 'sd'}\nvariant: null\nimage_size: 64\nnum_inference_steps: 4\n"
        f"controlnets:\n  depth: {tmp_path / 'net'}\n  canny: {tmp_path / 'net'}\n"
    )
    return [
        "--preset",
        tmp_path / "mine.yaml",
        "--seed",
        1,
        "-p",
        "a house",
        "--set",
        "controlnet_conditioning_scale=4",
    ]


@pytest.mark.slow
def test_a_control_picture_is_looked_at_instead(here, tmp_path: Path, picture: Path, controlled: list[object]) -> None:
    size = Image.open(picture).size
    Image.linear_gradient("L").resize(size).save(tmp_path / "down.png")
    Image.linear_gradient("L").rotate(180).resize((size[0] * 2, size[1] * 2)).save(tmp_path / "up.png")
    results = {}
    for name, control in (
        ("down", f"depth={tmp_path / 'down.png'}"),
        ("up", f"depth={tmp_path / 'up.png'}"),
        ("own", "canny"),
        ("same", f"canny={picture}"),
        ("other", f"canny={tmp_path / 'up.png'}"),
    ):
        done = here("edit", picture, tmp_path / f"{name}-out.png", "--control", control, *controlled)
        assert done.code == 0, done.err
        results[name] = np.asarray(Image.open(tmp_path / f"{name}-out.png"))
    assert (results["down"] != results["up"]).any()
    assert (results["own"] == results["same"]).all()
    assert (results["own"] != results["other"]).any()
    told = here("info", tmp_path / "down-out.png").out.decode()
    assert "control_image: down.png" in told
    assert "--control depth=down.png" in told


@pytest.mark.slow
def test_a_manifest_names_control_pictures(
    here, tmp_path: Path, picture: Path, controlled: list[object], one_thread: None
) -> None:
    Image.linear_gradient("L").resize(Image.open(picture).size).save(tmp_path / "map.png")
    row = {"input": str(picture), "control": "depth", "control_image": "map.png", "output": "a.png", "seed": 1}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(row))
    options = [option for option in controlled if option not in ("--seed", 1)]
    events = []
    for _ in range(3):
        done = here("batch", tmp_path / "jobs.jsonl", "-o", tmp_path / "out", "--json", *options)
        assert done.code == 0, done.err
        events.append([json.loads(line)["event"] for line in done.out.splitlines()])
        if len(events) == 2:
            Image.new("L", Image.open(picture).size, 90).save(tmp_path / "map.png")
    assert ["done" in event for event in events] == [True, False, True]
    single = here("edit", picture, tmp_path / "b.png", "--control", f"depth={tmp_path / 'map.png'}", *controlled)
    assert single.code == 0, single.err
    assert (np.asarray(Image.open(tmp_path / "out" / "a.png")) == np.asarray(Image.open(tmp_path / "b.png"))).all()


@pytest.mark.parametrize(
    ("control", "code", "words"),
    [
        ("depth", 2, "give the map"),
        ("depth=nowhere.png", 3, "nowhere.png"),
        ("depth={wide}", 3, "same shape"),
        ("depth=-", 2, "stdin"),
        ("=x.png", 2, "control"),
    ],
)
def test_a_control_picture_that_cannot_be_is_one_line(
    here, tmp_path: Path, picture: Path, controlled: list[object], control: str, code: int, words: str
) -> None:
    Image.new("L", (200, 40)).save(tmp_path / "wide.png")
    text = control.format(wide=tmp_path / "wide.png")
    done = here("edit", picture, tmp_path / "o.png", "--control", text, *controlled)
    assert (done.code, len(done.err.splitlines())) == (code, 1), done.err
    assert words in done.err
    assert not (tmp_path / "o.png").exists()


@pytest.mark.slow
def test_every_row_is_checked_though_rows_share_parameters(
    here, tmp_path: Path, picture: Path, controlled: list[object]
) -> None:
    Image.new("L", Image.open(picture).size, 90).save(tmp_path / "map.png")
    row = {"input": str(picture), "control": "depth", "seed": 1}
    rows = [row | {"output": "a.png", "control_image": "map.png"}, row | {"output": "b.png"}]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = [option for option in controlled if option not in ("--seed", 1)]
    done = here("batch", tmp_path / "jobs.jsonl", "-o", tmp_path / "out", *options)
    assert done.code == 3, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("img2img: ")]
    assert "jobs.jsonl:2" in line
    assert "give the map" in line
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["a.png"]


def test_a_control_picture_without_control_is_refused(here, tmp_path: Path, picture: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text(json.dumps({"input": str(picture), "control_image": str(picture)}))
    done = here("batch", tmp_path / "jobs.jsonl", "-o", tmp_path / "out", "--preset", GREY)
    assert done.code == 3, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("img2img: ")]
    assert "jobs.jsonl:1" in line
    assert "control" in line
