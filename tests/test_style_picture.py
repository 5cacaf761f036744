"""`--style` without a prompt: a picture painted with patches of another, or by a network that reads a style."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import psnr
from PIL import Image

from img2img_cli.engines.looks import style
from img2img_cli.engines.looks.fields import blur, luminance
from img2img_cli.engines.nets.folder import load_net_folder, save_net
from img2img_cli.engines.nets.style_net import StyleNet
from img2img_cli.presets.references import is_style_network
from img2img_cli.tasks.record import read_record, replay_command
from img2img_cli.train.nets import recipe
from img2img_cli.train.nets import style as lesson


def draw_waves(width: int, height: int, step: float, low: str, high: str, *, down: bool = False) -> Image.Image:
    """Return stripes of two colours that are `step` pixels wide and a little uneven."""
    rows, columns = np.mgrid[:height, :width]
    along, across = (rows, columns) if down else (columns, rows)
    share = 0.5 + 0.5 * np.sin(np.pi * (across + 2 * np.sin(along / 9)) / step)
    grey = Image.fromarray((255 * share).astype(np.uint8))
    return Image.composite(Image.new("RGB", grey.size, high), Image.new("RGB", grey.size, low), grey)


BLUE = draw_waves(120, 90, 4, "#102050", "#80b0f0")
RED = draw_waves(90, 120, 4, "#501010", "#f0a060", down=True)


@pytest.fixture(scope="module")
def wide() -> Image.Image:
    from skimage import data

    return Image.fromarray(data.astronaut()).resize((200, 160), Image.Resampling.LANCZOS)


def test_a_picture_takes_palette_and_strokes_and_stays_what_it_shows(wide: Image.Image) -> None:
    blue, red = (style.paint_like(wide, other, 1) for other in (BLUE, RED))
    for made, other in ((blue, BLUE), (red, RED)):
        assert (made.size, made.mode) == (wide.size, "RGB")
        means = (np.asarray(picture, float).mean((0, 1)) for picture in (made, other))
        assert np.abs(np.subtract(*means)).max() < 25
        before, after = (blur(luminance(picture), 4.0).ravel() for picture in (wide, made))
        assert np.corrcoef(before, after)[0, 1] > 0.6, "the picture cannot be recognised"
    sky = np.s_[10:60, 60:90]  # a wall without texture, where strokes show
    slopes = {name: [np.abs(np.diff(luminance(made)[sky], axis=axis)).mean() for axis in (0, 1)]
              for name, made in (("blue", blue), ("red", red))}  # fmt: skip
    assert slopes["blue"][0] > 1.3 * slopes["blue"][1], "the strokes do not lie as those of the style"
    assert slopes["red"][1] > 1.3 * slopes["red"][0]


def test_the_same_seed_gives_the_same_picture(wide: Image.Image) -> None:
    first, again, other = (np.asarray(style.paint_like(wide, BLUE, seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("size", [(8, 8), (300, 9), (40, 70)])
def test_every_size_of_picture_and_style_is_painted(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    for picture in (Image.fromarray(noise), Image.new("RGB", size, "black")):
        for other in (Image.new("RGB", (1, 1), "red"), Image.new("RGB", (5, 400), "white"), BLUE):
            made = style.paint_like(picture, other, 0)
            assert made.size == size
    flat = np.asarray(style.paint_like(Image.fromarray(noise), Image.new("RGB", (60, 60), "#c02040"), 0), int)
    assert np.abs(flat.mean((0, 1)) - (0xC0, 0x20, 0x40)).max() < 12


def test_large_pictures_are_painted_small_and_keep_their_size(wide: Image.Image, monkeypatch) -> None:
    monkeypatch.setattr(style, "MOST_PIXELS", 8_000)
    assert style.paint_like(wide, BLUE, 0).size == wide.size
    flat = Image.new("RGB", (60, 60), "grey")  # has no detail of its own
    made = style.paint_like(wide, flat, 0)
    monkeypatch.setattr(style, "FINEST", 0.0)
    smooth = style.paint_like(wide, flat, 0)
    fine = [float((luminance(each) - blur(luminance(each), 1.5)).std()) for each in (made, smooth)]
    assert fine[0] > 3 * fine[1]


def test_the_palette_moves_mean_and_covariance() -> None:
    rng = np.random.default_rng(0)
    content = (0.5 + 0.1 * rng.standard_normal((50, 60, 3)) @ np.diag([1, 0.5, 0.2])).astype(np.float32)
    other = (0.4 + 0.05 * rng.standard_normal((40, 40, 3)) @ rng.standard_normal((3, 3))).astype(np.float32)
    moved = style.take_palette(content, other).reshape(-1, 3)
    assert np.abs(moved.mean(0) - other.reshape(-1, 3).mean(0)).max() < 0.01
    assert np.abs(np.cov(moved.T) - np.cov(other.reshape(-1, 3).T)).max() < 0.003


def test_a_style_without_prompt_needs_no_model(here, tmp_path: Path, wide: Image.Image) -> None:
    wide.save(tmp_path / "in.png")
    RED.save(tmp_path / "style.png")
    mask = Image.new("L", wide.size)
    mask.paste(255, (0, 0, 100, 160))
    mask.save(tmp_path / "mask.png")
    common = ["edit", tmp_path / "in.png", "--style", tmp_path / "style.png", "--seed", 1]
    for name, more in {"whole": [], "half": ["--strength", 0.5], "part": ["--mask", tmp_path / "mask.png"]}.items():
        done = here(*common, tmp_path / f"{name}.png", *more)
        assert done.code == 0, done.err
    whole, half, part = (Image.open(tmp_path / f"{name}.png") for name in ("whole", "half", "part"))
    assert psnr(whole, style.paint_like(wide, RED, 1)) > 60
    assert psnr(half, Image.blend(wide, whole, 0.5)) > 50
    assert (np.asarray(part)[:, 101:] == np.asarray(wide)[:, 101:]).all()
    assert "--preset style" in replay_command(read_record(str(tmp_path / "whole.png")))


def test_a_batch_takes_one_style_or_one_for_each_picture(here, tmp_path: Path, wide: Image.Image) -> None:
    wide.save(tmp_path / "in.png")
    BLUE.save(tmp_path / "blue.png")
    RED.save(tmp_path / "red.png")
    done = here("batch", tmp_path / "in.png", "-o", tmp_path / "one", "--style", tmp_path / "red.png", "--seed", 1)
    assert done.code == 0, done.err
    assert psnr(Image.open(tmp_path / "one" / "in.png"), style.paint_like(wide, RED, 1)) > 60
    rows = [{"input": "in.png", "output": f"{name}.png", "style": f"{name}.png"} for name in ("blue", "red")]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = here("batch", tmp_path / "jobs.jsonl", "-o", tmp_path / "each", "--preset", "style", "--seed", 1)
    assert done.code == 0, done.err
    for name, other in (("blue", BLUE), ("red", RED)):
        assert psnr(Image.open(tmp_path / "each" / f"{name}.png"), style.paint_like(wide, other, 1)) > 60


def test_what_goes_with_no_style_is_refused(here, tmp_path: Path, wide: Image.Image) -> None:
    wide.save(tmp_path / "in.png")
    for options, words in (
        (["--preset", "style"], "give one with --style"),
        (["--style", tmp_path / "in.png", "--preset", "style-oil"], "takes no --style; use --preset style"),
        (["--style", tmp_path / "in.png", "--preset", "style", "-p", "fog"], "reads no words"),
    ):
        done = here("edit", tmp_path / "in.png", tmp_path / "out.png", *options)
        assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
        assert words in done.err
    assert not (tmp_path / "out.png").exists()


def make_small() -> StyleNet:
    return StyleNet(widths=(8, 16), blocks=1, style_widths=(4, 8), hidden=16)


@torch.no_grad()
def test_a_network_paints_any_size_by_the_style_alone() -> None:
    torch.manual_seed(0)
    net = make_small().eval()
    picture = torch.rand(2, 3, 37, 50)
    styles = torch.rand(2, 3, 64, 40)
    made = net(picture, styles)
    assert made.shape == picture.shape
    assert 0 <= float(made.min()) <= float(made.max()) <= 1
    assert torch.allclose(net.paint(picture, net.read_style(styles)), made)
    other = net(picture, styles.roll(1, 0))
    assert not torch.allclose(other, made, atol=1e-3)
    one = net(picture[:1], styles[:1])
    assert torch.allclose(one, made[:1], atol=1e-5)


def test_a_folder_with_a_style_network_takes_a_style(here, tmp_path: Path, wide: Image.Image) -> None:
    torch.manual_seed(0)
    save_net(make_small(), tmp_path / "net")
    assert is_style_network(str(tmp_path / "net"))
    assert not is_style_network("bundled-restore") and not is_style_network(str(tmp_path))
    wide.save(tmp_path / "in.png")
    results = {}
    for name, other in (("blue", BLUE), ("red", RED)):
        other.save(tmp_path / f"{name}-style.png")
        chosen = ["--model", tmp_path / "net", "--style", tmp_path / f"{name}-style.png"]
        done = here("edit", tmp_path / "in.png", tmp_path / f"{name}.png", *chosen)
        assert done.code == 0, done.err
        results[name] = Image.open(tmp_path / f"{name}.png")
        assert results[name].size == wide.size
    assert psnr(results["blue"], results["red"]) < 60
    done = here("edit", tmp_path / "in.png", tmp_path / "no.png", "--model", tmp_path / "net")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "give one with --style" in done.err


@pytest.fixture
def paintings(tmp_path: Path, wide: Image.Image) -> Path:
    """Return a folder with a shard of one photograph and two paintings."""
    with tarfile.open(tmp_path / "photos-00.tar", "w") as tar:
        rows = []
        for name, source, picture in (("p", "photo", wide), ("b", "style_x", BLUE), ("r", "style_x", RED)):
            blob = io.BytesIO()
            picture.save(blob, "PNG")
            info = tarfile.TarInfo(f"{name}.png")
            info.size = len(blob.getvalue())
            tar.addfile(info, io.BytesIO(blob.getvalue()))
            rows.append(json.dumps({"file": f"{name}.png", "caption": name, "source": source}))
        info = tarfile.TarInfo("captions.jsonl")
        info.size = len("\n".join(rows))
        tar.addfile(info, io.BytesIO("\n".join(rows).encode()))
    return tmp_path


@pytest.mark.slow
def test_a_network_learns_styles(here, paintings: Path, trained_features: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lesson, "LOOK_PICTURES", 1)
    monkeypatch.setattr(lesson, "LOOKS", ("pencil",))
    monkeypatch.setattr(recipe, "RECIPES", {"style": replace(recipe.RECIPES["style"], make_net=make_small)})
    command = ["train", "net", "style", "--data", paintings, "--out", tmp_path / "net", "--steps", 2]
    done = here(*command)
    assert (done.code, len(done.err.splitlines())) == (2, 3), done.err
    assert "--features" in done.err.splitlines()[-1]
    done = here(*command, "--features", trained_features)
    assert done.code == 0, done.err
    assert is_style_network(str(tmp_path / "net"))
    assert isinstance(load_net_folder(tmp_path / "net"), StyleNet)

    crops = lesson.StylePictures.read(paintings)
    torch.manual_seed(0)
    net = make_small()
    compute = lesson.make_loss(crops, net, lesson.SqueezeNetFeatures.read(trained_features))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    batches, losses = lesson.draw_pairs(crops, size=64, batch_size=2), []
    for _ in range(25):
        loss = compute(net, next(batches), torch.device("cpu"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.9 * losses[0]


def test_paintings_are_wanted(here, tmp_path: Path, paintings: Path) -> None:
    (tmp_path / "other").mkdir()
    with tarfile.open(tmp_path / "other" / "photos-00.tar", "w") as tar:
        info = tarfile.TarInfo("captions.jsonl")
        tar.addfile(info, io.BytesIO(b""))
    done = here("train", "net", "style", "--data", tmp_path / "other", "--out", tmp_path / "net", "--steps", 1)
    assert done.code == 2
    assert "holds paintings" in done.err


def test_styles_are_compared_by_their_statistics() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(2, 5, 20, 30)
    shuffled = wanted.flatten(2)[..., torch.randperm(600)].view_as(wanted)
    assert float(lesson.compare_styles(shuffled, wanted)) < 1e-8
    assert float(lesson.compare_styles(2 * wanted, wanted)) == pytest.approx(9 + 1, rel=1e-3)
    flat = lesson.flatten_contrast(wanted)
    assert torch.allclose(lesson.flatten_contrast(3 * wanted + 1), flat, atol=0.02)
