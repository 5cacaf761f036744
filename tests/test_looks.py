"""Looks: styles by image processing, at the picture's own size, with a seed, a strength and a mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from conftest import psnr
from PIL import Image

from img2img_cli.engines.looks.fields import blur, draw_along, flatten, measure_flow
from img2img_cli.engines.looks.pipeline import LOOKS, MOST_PIXELS, apply_look
from img2img_cli.presets.catalogue import resolve
from img2img_cli.presets.files import load_preset
from img2img_cli.presets.schema import Look

COLOURLESS = ("bw", "ink", "pencil")


def test_each_look_has_a_preset_and_a_function() -> None:
    assert set(LOOKS) | {"erase", "style"} == set(get_args(Look))
    for look in LOOKS:
        parameters = resolve(load_preset(f"style-{look}"), {}).parameters
        assert (parameters.look, parameters.model, parameters.task) == (look, "none", "edit")


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_keeps_size_and_content_and_follows_the_seed(photograph: Image.Image, look: Look) -> None:
    image = photograph.resize((203, 151))
    made, again = apply_look(image, look, 3), apply_look(image, look, 3)
    assert (made.size, made.mode) == (image.size, "RGB")
    assert (np.asarray(made) == np.asarray(again)).all()
    assert psnr(made, image) < 26, "it changes hardly anything"
    grey, drawn = (np.asarray(blur(np.asarray(p.convert("L"), np.float32), 4)).ravel() for p in (image, made))
    assert np.corrcoef(grey, drawn)[0, 1] > 0.5, "the picture cannot be recognised"
    channels = np.asarray(made, int)
    assert (look in COLOURLESS) == bool((channels == channels[..., :1]).all())


@pytest.mark.parametrize("look", LOOKS)
def test_a_larger_copy_of_a_picture_gets_the_same_look(photograph: Image.Image, look: Look) -> None:
    small, large = photograph.resize((320, 240)), photograph.resize((640, 480), Image.Resampling.LANCZOS)
    made = [apply_look(image, look, 0).resize((80, 60), Image.Resampling.BOX) for image in (small, large)]
    assert psnr(*made) > 19


@pytest.mark.parametrize("size", [(8, 8), (8, 300), (300, 9)])
@pytest.mark.parametrize("look", LOOKS)
def test_small_and_narrow_pictures_have_looks_too(look: Look, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    for image in (Image.fromarray(pixels), Image.new("RGB", size, "black"), Image.new("RGB", size, "white")):
        assert apply_look(image, look, 0).size == size


def test_large_pictures_are_worked_on_smaller_and_keep_their_size(photograph: Image.Image) -> None:
    image = photograph.resize((2600, 1900))
    assert image.width * image.height > MOST_PIXELS
    made = apply_look(image, "pixel", 0)
    assert made.size == image.size
    assert len(made.getcolors(maxcolors=1000)) <= 28


def test_what_the_looks_are_known_by(photograph: Image.Image) -> None:
    image = photograph.resize((480, 360))
    levels = {look: np.asarray(apply_look(image, look, 0), np.float32) for look in LOOKS}
    before = np.asarray(image, np.float32)
    ink = levels["ink"][..., 0]
    assert ((ink < 40) | (ink > 215)).mean() > 0.85
    red, _, blue = levels["sepia"].mean((0, 1))
    assert red > blue + 15
    assert levels["night"].mean() < 0.5 * before.mean()
    assert levels["night"].mean((0, 1)).argmax() == 2
    warmth = {look: float(np.subtract(*levels[look].mean((0, 1))[[0, 2]])) for look in ("golden", "winter")}
    plain = float(np.subtract(*before.mean((0, 1))[[0, 2]]))
    assert warmth["golden"] > plain > warmth["winter"]
    assert levels["fog"].std() < 0.6 * before.std()


def test_the_flow_runs_along_edges_and_strokes_keep_to_it() -> None:
    _, columns = np.mgrid[:40, :60].astype(np.float32)
    stripes = (np.sin(columns) > 0).astype(np.float32)
    flow_x, flow_y, clear = measure_flow(stripes, 3.0)
    inside = np.s_[8:-8, 8:-8]
    assert np.abs(flow_y[inside]).min() > 0.99 and np.abs(flow_x[inside]).max() < 0.1
    assert clear[inside].min() > 0.9
    assert np.abs(draw_along(stripes, flow_x, flow_y, 6)[inside] - stripes[inside]).max() < 0.05
    noise = np.random.default_rng(0).standard_normal(stripes.shape).astype(np.float32)
    drawn = draw_along(noise, flow_x, flow_y, 6)
    assert np.abs(np.diff(drawn, axis=0)).mean() < 0.5 * np.abs(np.diff(drawn, axis=1)).mean()


def test_flat_patches_lose_texture_and_keep_edges() -> None:
    rng = np.random.default_rng(0)
    picture = np.full((60, 60, 3), 0.2, np.float32)
    picture[:, 30:] = 0.8
    noisy = picture + 0.05 * rng.standard_normal(picture.shape).astype(np.float32)
    flat = flatten(noisy, 6)
    assert flat[10:-10, 5:24].std() < 0.4 * noisy[10:-10, 5:24].std()
    assert np.abs(flat - picture).mean(axis=(0, 2)).max() < 0.12
    wide = blur(picture, 5.0)
    assert abs(float(wide.mean() - picture.mean())) < 0.01
    spot = np.zeros((101, 101), np.float32)
    spot[50, 50] = 1
    spread = blur(spot, 6.0)
    rows = np.arange(101) - 50
    assert abs(float((spread.sum(1) * rows**2).sum()) ** 0.5 - 6) < 0.3


def test_a_look_is_a_preset_like_any_other(here, tmp_path: Path, photograph: Image.Image) -> None:
    photograph.resize((120, 90)).save(tmp_path / "in.png")
    mask = Image.new("L", (120, 90))
    mask.paste(255, (0, 0, 60, 90))
    mask.save(tmp_path / "mask.png")
    common = ["edit", tmp_path / "in.png", "--preset", "style-ink", "--seed", 1]
    for name, more in {"whole": [], "half": ["--strength", 0.5], "part": ["--mask", tmp_path / "mask.png"]}.items():
        done = here(*common, tmp_path / f"{name}.png", *more)
        assert done.code == 0, done.err
    before, whole, half, part = (
        np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"), int) for name in ("in", "whole", "half", "part")
    )
    assert np.abs(half - (before + whole) / 2).max() <= 1
    assert (part[:, 60:] == before[:, 60:]).all()
    assert (part[:, :50] == whole[:, :50]).all()
    record = here("info", tmp_path / "whole.png", "--json")
    assert json.loads(record.out)["parameters"]["look"] == "ink"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--preset", "style-oil", "--prompt", "a cat"], "reads no words"),
        (["--preset", "style-oil", "--set", "model=bundled"], "look is for presets whose task is edit"),
        (["--preset", "style-oil", "--vae", "{folder}"], "works in one pass"),
        (["--preset", "style-oil", "--set", "look=crayon"], "look"),
    ],
)
def test_what_a_look_cannot_use_is_refused(here, tmp_path: Path, photograph: Image.Image, words, said) -> None:
    photograph.resize((64, 64)).save(tmp_path / "in.png")
    (tmp_path / "config.json").write_text("{}")
    given = [word.format(folder=tmp_path) for word in words]
    done = here("edit", tmp_path / "in.png", tmp_path / "out.png", *given)
    assert done.code in (2, 5), done.err
    assert said in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "out.png").exists()
