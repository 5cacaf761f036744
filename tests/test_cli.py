"""The three picture commands with the bundled model, as a user runs them in a shell."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pty
import re
import select
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import GREY, psnr
from PIL import Image
from warm import Warm

from img2img_cli.pictures.lab import rgb_to_lab

FAST = ["--set", "num_inference_steps=2", "--set", "image_size=64", "--seed", "5"]


def lab(image: Image.Image) -> np.ndarray:
    return rgb_to_lab(np.asarray(image.convert("RGB")))


@pytest.mark.slow
def test_colorize_keeps_lightness_and_adds_colour(here, tmp_path: Path, photograph: Image.Image) -> None:
    grey = tmp_path / "old.png"
    photograph.convert("L").save(grey)
    done = here("colorize", grey, "--seed", 1)
    assert done.code == 0, done.err
    assert done.out == b""
    result = Image.open(tmp_path / "old-colorize.png")
    assert result.size == photograph.size
    drift = np.abs(lab(result)[..., 0] - lab(Image.open(grey))[..., 0])
    assert drift.mean() <= 0.5
    assert drift.max() <= 2
    assert np.hypot(*np.moveaxis(lab(result)[..., 1:], -1, 0)).mean() > 1


@pytest.mark.slow
def test_saturation_scales_colour(here, tmp_path: Path, picture: Path) -> None:
    chroma = []
    for saturation in (0, 0.5, 1):
        out = tmp_path / f"{saturation}.png"
        assert here("colorize", picture, out, "--saturation", saturation, *FAST).code == 0
        chroma.append(np.hypot(*np.moveaxis(lab(Image.open(out))[..., 1:], -1, 0)).mean())
    assert chroma[0] < 0.5 < chroma[1] < chroma[2]


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 1.5, 2, 3.7, 8])
def test_upscale_has_the_exact_size_and_is_faithful(here, picture: Path, photograph: Image.Image, scale: float) -> None:
    done = here("upscale", picture, "--scale", scale, *FAST)
    assert done.code == 0, done.err
    result = Image.open(picture.with_name(f"photo-x{scale:g}.png"))
    assert result.size == (round(96 * scale), round(72 * scale))
    if scale == int(scale):
        assert psnr(result.resize(photograph.size, Image.Resampling.BICUBIC), photograph) >= 40


@pytest.mark.slow
def test_upscale_is_sharper_than_bicubic(here, tmp_path: Path) -> None:
    from skimage import data

    truth = Image.fromarray(data.astronaut()).crop((128, 0, 384, 256))
    small = truth.resize((128, 128), Image.Resampling.BICUBIC)
    small.save(tmp_path / "small.png")
    assert here("upscale", tmp_path / "small.png", tmp_path / "large.png", "--seed", 1).code == 0
    large, bicubic = Image.open(tmp_path / "large.png"), small.resize((256, 256), Image.Resampling.BICUBIC)

    def detail(image: Image.Image) -> float:
        grey = np.asarray(image.convert("L"), dtype=float)
        return np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()

    assert detail(large) > 1.05 * detail(bicubic)
    assert psnr(large, truth) > psnr(bicubic, truth) - 1


@pytest.mark.slow
def test_upscale_in_tiles_shows_no_seam(here, tmp_path: Path, photograph: Image.Image) -> None:
    photograph.resize((160, 120)).save(tmp_path / "a.png")
    out = tmp_path / "b.png"
    tiles = ["--set", "tile_size=128", "--set", "tile_overlap=32"]
    assert here("upscale", tmp_path / "a.png", out, *tiles, "--seed", 2).code == 0
    values = np.asarray(Image.open(out).convert("L"), dtype=float)
    steps = np.abs(np.diff(values, axis=1)).mean(axis=0)
    borders = [96, 128, 192, 224]
    around = np.array([steps[b - 3 : b + 3].max() for b in borders])
    assert (around < steps.mean() + 4 * steps.std()).all()


@pytest.mark.slow
def test_edit_follows_the_prompt(here, tmp_path: Path, photograph: Image.Image) -> None:
    photograph.resize((256, 192)).save(tmp_path / "a.png")
    brightness = {}
    for prompt in ("night", "pencil sketch"):
        out = tmp_path / f"{prompt}.png"
        small = ["--set", "image_size=256", "--strength", 0.9, "--seed", 3]
        assert here("edit", tmp_path / "a.png", out, "-p", prompt, *small).code == 0
        brightness[prompt] = lab(Image.open(out))[..., 0].mean()
    assert brightness["night"] + 20 < brightness["pencil sketch"]


@pytest.mark.slow
def test_more_strength_changes_more(here, tmp_path: Path, picture: Path, photograph: Image.Image) -> None:
    kept = []
    for strength in (0.2, 0.5, 0.9):
        out = tmp_path / f"{strength}.png"
        small = ["--set", "image_size=256", "--strength", strength, "--seed", 3]
        assert here("edit", picture, out, "-p", "winter", *small).code == 0
        kept.append(psnr(Image.open(out), photograph))
    assert kept[0] > kept[1] > kept[2]


def test_edit_with_a_mask_keeps_the_rest_byte_for_byte(here, tmp_path: Path, picture: Path) -> None:
    mask = Image.new("L", (96, 72))
    mask.paste(255, (30, 20, 70, 50))
    mask.save(tmp_path / "mask.png")
    done = here("edit", picture, tmp_path / "out.png", "-p", "night", "--mask", tmp_path / "mask.png", *FAST)
    assert done.code == 0, done.err
    before, after = np.asarray(Image.open(picture)), np.asarray(Image.open(tmp_path / "out.png"))
    black = np.asarray(mask) == 0
    assert np.array_equal(before[black], after[black])
    assert (before[~black] != after[~black]).any()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(here, tmp_path: Path, picture: Path) -> None:
    def digest(name: str, seed: int) -> str:
        out = tmp_path / name
        assert here("edit", picture, out, "-p", "fog", *FAST[:-2], "--seed", seed).code == 0
        return hashlib.sha256(out.read_bytes()).hexdigest()

    assert digest("a.png", 7) == digest("b.png", 7) != digest("c.png", 8)


@pytest.mark.slow
def test_variations_are_numbered_and_the_same_alone(here, tmp_path: Path, picture: Path) -> None:
    done = here("edit", picture, tmp_path / "v.png", "-p", "fog", "--variations", 3, "--json", *FAST)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["seed"] for row in rows] == [5, 6, 7]
    assert [Path(row["output"]).name for row in rows] == ["v-1.png", "v-2.png", "v-3.png"]
    assert here("edit", picture, tmp_path / "alone.png", "-p", "fog", *FAST[:-1], 6).code == 0
    assert psnr(Image.open(tmp_path / "v-2.png"), Image.open(tmp_path / "alone.png")) >= 40


@pytest.mark.slow
def test_pipes_carry_only_the_picture(fresh, photograph: Image.Image) -> None:
    buffer = io.BytesIO()
    photograph.convert("L").save(buffer, "JPEG")
    done = fresh("colorize", "-", "-", *FAST, stdin=buffer.getvalue())
    assert done.code == 0, done.err
    result = Image.open(io.BytesIO(done.out))
    assert (result.format, result.mode, result.size) == ("JPEG", "RGB", (96, 72))
    assert len(done.err.splitlines()) == 1
    assert "seed 5" in done.err


def test_quiet_says_nothing(here, picture: Path, tmp_path: Path) -> None:
    done = here("colorize", picture, tmp_path / "o.png", "-q", *FAST)
    assert (done.code, done.out, done.err) == (0, b"", "")


def test_alpha_profile_and_metadata_come_through(here, tmp_path: Path, photograph: Image.Image) -> None:
    alpha = Image.linear_gradient("L").resize(photograph.size)
    rgba = photograph.copy()
    rgba.putalpha(alpha)
    rgba.save(tmp_path / "a.png")
    assert here("upscale", tmp_path / "a.png", tmp_path / "b.png", *FAST).code == 0
    result = Image.open(tmp_path / "b.png")
    assert (result.mode, result.size) == ("RGBA", (192, 144))
    assert psnr(result.getchannel("A").resize(alpha.size, Image.Resampling.BICUBIC), alpha) > 40


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_info_prints_the_command_that_makes_it_again(here, tmp_path: Path, picture: Path, extension: str) -> None:
    out = tmp_path / f"made.{extension}"
    arguments = ["-p", "night, déjà vu 猫", "--strength", "0.7", "--set", "negative_prompt=no", *FAST]
    assert here("edit", picture, out, *arguments).code == 0
    shown = here("info", out)
    assert shown.code == 0, shown.err
    command = shlex.split(shown.out.decode().splitlines()[-1].removeprefix("command: "))
    assert command[:3] == ["img2img", "edit", "photo.png"]
    again = tmp_path / f"again.{extension}"
    done = here(command[1], picture, again, *command[3:])
    assert done.code == 0, done.err
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(Image.open(again)))


def test_dry_run_prints_the_job_as_yaml(fresh, picture: Path) -> None:
    done = fresh("upscale", picture, "--scale", 3, "--dry-run", "--seed", 9)
    (job,) = yaml.safe_load_all(done.out)
    assert job["output"] == str(picture.with_name("photo-x3.png"))
    assert (job["seed"], job["parameters"]["scale"]) == (9, 3)
    assert not picture.with_name("photo-x3.png").exists()


@pytest.mark.slow
def test_size_model_and_wxh(here, tmp_path: Path, picture: Path) -> None:
    for size, expected in (("model", (74, 55)), ("50x40", (50, 40))):
        out = tmp_path / f"{size}.png"
        assert here("edit", picture, out, "-p", "fog", "--size", size, *FAST).code == 0
        assert Image.open(out).size == expected


def test_in_place_replaces_only_when_asked(here, picture: Path) -> None:
    before = picture.read_bytes()
    assert here("colorize", picture, picture, "--force", *FAST).code == 6
    assert picture.read_bytes() == before
    assert here("colorize", picture, "--in-place", *FAST).code == 0
    assert picture.read_bytes() != before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"hello", "not a picture"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "picture"),
    ],
)
def test_bad_inputs_get_one_line_and_leave_nothing(here, tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    done = here("colorize", path)
    assert done.code == 3
    assert len(done.err.splitlines()) == 1
    assert "bad.png" in done.err
    assert words in done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.png"]


def test_a_thin_picture_and_a_wrong_mask_are_refused(here, tmp_path: Path, picture: Path) -> None:
    Image.new("RGB", (1, 400)).save(tmp_path / "thin.png")
    thin = here("upscale", tmp_path / "thin.png")
    assert (thin.code, "1 x 400" in thin.err) == (3, True)
    Image.new("L", (50, 50), 255).save(tmp_path / "mask.png")
    wrong = here("edit", picture, "-p", "fog", "--mask", tmp_path / "mask.png", *FAST)
    assert (wrong.code, "50 x 50" in wrong.err) == (3, True)


def test_a_message_cannot_steer_the_terminal(fresh, tmp_path: Path) -> None:
    done = fresh("colorize", tmp_path / "a\x1b[31m\nb.png")
    assert done.code == 3
    assert "\x1b" not in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_cleanly(tmp_path: Path, picture: Path, number: int, code: int) -> None:
    slow = ["--preset", GREY, "--set", "num_inference_steps=1000", "--set", "image_size=64", "--set", "num_samples=1"]
    terminal, its_end = pty.openpty()
    with Warm(["colorize", picture, *slow, "--no-server"], stderr=its_end) as process:
        try:
            told = b""
            while not re.search(rb"[1-9]%", told):  # of the steps, as the progress bar shows
                told += os.read(terminal, 4096)
            process.send_signal(number)
            process.wait(timeout=120)
            os.close(its_end)
            while select.select([terminal], [], [], 0)[0] and (more := read_terminal(terminal)):
                told += more
        finally:
            process.kill()
    os.close(terminal)
    assert process.returncode == code
    assert b"Traceback" not in told
    assert b"img2img: " in told
    assert [p.name for p in tmp_path.iterdir()] == ["photo.png"]


def read_terminal(terminal: int) -> bytes:
    """Return what a terminal shows; nothing if its other end is closed, which Linux reports as an error."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def test_a_batch_takes_the_parameters_that_a_single_command_takes(here, tmp_path: Path, picture: Path) -> None:
    options = ["--strength", "0.4", "--steps", "30", "--guidance-scale", "2.5", "--negative-prompt", "blur"]
    options += ["--size", "model", "--prompt", "fog", "--preset", "edit", "--dry-run", "--seed", "1"]
    alone = yaml.safe_load(here("edit", picture, *options).out)
    (together,) = yaml.safe_load(here("batch", picture, "-o", tmp_path / "out", *options).out)["presets"].values()
    assert together == alone["parameters"]
    assert (together["strength"], together["num_inference_steps"], together["size"]) == (0.4, 30, "model")


@pytest.mark.slow
def test_doctor_passes(here) -> None:
    done = here("doctor", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["self-test"].startswith("passed")
