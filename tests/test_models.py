"""`img2img models` with a hub on loopback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Outcome
from loopback_hub import LoopbackHub
from twins import make_twin

TOKEN = "hf_verysecrettoken"
LCM = ["stable-diffusion-v1-5/stable-diffusion-v1-5", "latent-consistency/lcm-lora-sdv1-5"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    root = tmp_path_factory.mktemp("repositories")
    for reference in (*LCM, "madebyollin/sdxl-vae-fp16-fix"):
        make_twin(reference, root / reference, "fp16" if reference == LCM[0] else None)
    folders = {reference: root / reference for reference in (*LCM, "madebyollin/sdxl-vae-fp16-fix")}
    two = root / "someone/two"
    two.mkdir(parents=True)
    for name in "ab":
        (two / f"{name}.safetensors").write_bytes((folders[LCM[1]] / "pytorch_lora_weights.safetensors").read_bytes())
    vae = folders["madebyollin/sdxl-vae-fp16-fix"]
    wrong = {f"someone/{fault}": vae for fault in ("cutoff", "slow", "lying")}
    with LoopbackHub(folders | {"someone/two": two} | wrong) as served:
        yield served


@pytest.fixture
def run(fresh: Callable[..., Outcome], hub: LoopbackHub, tmp_path: Path) -> Callable[..., Outcome]:
    """Run `img2img` in a new process with this hub and its own empty cache."""

    def command(*arguments: object, offline: bool = False) -> Outcome:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": TOKEN}
        done = fresh(
            *arguments,
            **environment,
            HF_HUB_OFFLINE="1" if offline else "0",
            HF_HUB_DISABLE_XET="1",
            HF_HUB_DOWNLOAD_TIMEOUT="1",
        )
        assert TOKEN not in done.err + done.out.decode()
        return done

    return command


def blobs(tmp_path: Path) -> list[Path]:
    return [Path(root, name) for root, _, names in os.walk(tmp_path / "cache") for name in names if "blobs" in root]


@pytest.mark.slow
def test_a_preset_is_pulled_and_then_runs_offline(run, hub: LoopbackHub, picture: Path, tmp_path: Path) -> None:
    done = run("models", "pull", "sd15-lcm")
    assert (done.code, done.out) == (0, b""), done.err
    assert done.err.splitlines() == [f"{reference}: here" for reference in LCM]
    asked = len(hub.requests)
    small = ["--set", "image_size=64", "--steps", "2", "--seed", "1"]
    done = run("edit", picture, tmp_path / "o.png", "--preset", "sd15-lcm", "-p", "fog", *small, offline=True)
    assert done.code == 0, done.err
    assert len(hub.requests) == asked
    rows = [json.loads(line) for line in run("models", "list", "--json").out.splitlines()]
    assert [row["reference"] for row in rows] == sorted(LCM)
    assert "sd15-lcm" in rows[1]["presets"]
    assert rows[0]["bytes"] > 1000


@pytest.mark.slow
def test_damage_is_found_and_mended(run, tmp_path: Path) -> None:
    reference = "madebyollin/sdxl-vae-fp16-fix"
    assert run("models", "pull", reference).code == 0
    assert run("models", "verify").code == 0
    largest = max(blobs(tmp_path), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[-1] ^= 1
    largest.write_bytes(content)
    done = run("models", "verify", reference)
    assert done.code == 5
    assert "damaged: diffusion_pytorch_model.safetensors" in done.err
    assert f"img2img models rm {reference}" in done.err
    assert run("models", "rm", reference).code == 0
    assert run("models", "list").out == b""
    assert run("models", "rm", reference).code == 5
    assert run("models", "pull", reference).code == 0
    assert run("models", "verify", reference).code == 0


@pytest.mark.slow
def test_removing_a_preset_keeps_what_others_use(run) -> None:
    run("models", "pull", "sd15-lcm")
    done = run("models", "rm", "sd15-lcm")
    assert done.code == 0
    assert f"{LCM[0]}: kept, " in done.err
    assert f"{LCM[1]}: removed" in done.err
    assert run("models", "rm", "sd15-lcm", "--force").code == 0
    assert run("models", "list").out == b""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("someone/gated", "accept its licence"),
        ("someone/missing", "not on the hub, or private"),
        ("someone/unauthorised", "hf auth login"),
        ("someone/busy", "fewer requests"),
        ("someone/cutoff", "broke off"),
        ("someone/slow", "broke off"),
        ("someone/lying", "other bytes than the hub's checksum says"),
        ("someone/two", "name one: someone/two/FILE"),
        ("no such thing", "no such model"),
    ],
)
def test_each_failure_has_its_sentence(run, tmp_path: Path, reference: str, words: str) -> None:
    done = run("models", "pull", reference)
    assert (done.code, len(done.err.splitlines())) == (5, 1), done.err
    assert words in done.err
    assert not [path for path in blobs(tmp_path) if path.name.endswith(".incomplete")]


@pytest.mark.slow
def test_what_came_wrong_does_not_stay(run, tmp_path: Path, picture: Path) -> None:
    (tmp_path / "p.yaml").write_text("extends: sd15-edit\nvae: someone/lying\nimage_size: 64\nnum_inference_steps: 4\n")
    done = run("edit", picture, tmp_path / "o.png", "-p", "fog", "--preset", tmp_path / "p.yaml")
    assert (done.code, len(done.err.splitlines())) == (5, 1), done.err
    assert "someone/lying: diffusion_pytorch_model.safetensors came with other bytes" in done.err
    assert not (tmp_path / "o.png").exists()
    assert run("models", "verify", "someone/lying").code == 0  # the good files stay


@pytest.mark.slow
def test_offline_opens_no_socket(run, hub: LoopbackHub) -> None:
    asked = len(hub.requests)
    done = run("models", "pull", "sd15-lcm", offline=True)
    assert done.code == 5
    assert len(done.err.splitlines()) == 1
    assert len(hub.requests) == asked


def test_bundled_presets_need_nothing(run, hub: LoopbackHub) -> None:
    asked = len(hub.requests)
    done = run("models", "pull", "colorize")
    assert (done.code, done.err) == (0, "colorize: needs nothing of the hub\n")
    assert len(hub.requests) == asked


def test_doctor_tells_whether_a_preset_runs(here, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("extends: flux-dev\nmodel: someone/nowhere\nmemory_gib: 0.1\n")
    found = json.loads(here("doctor", tmp_path / "small.yaml", "--json").out)
    assert found["model"].startswith("to fetch: someone/nowhere (gated: ")
    (tmp_path / "vast.yaml").write_text("extends: sd15-edit\nmemory_gib: 1000\n")
    done = here("doctor", tmp_path / "vast.yaml")
    assert (done.code, len(done.err.splitlines())) == (8, 1)
    assert "GiB" in done.err
    assert json.loads(here("doctor", "edit", "--json").out)["model"] == "here"
    assert here("doctor", "nonesuch").code == 2
