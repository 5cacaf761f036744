"""The recipes of the bundled networks: what they are shown, that they learn, and how they are measured."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from img2img_cli.engines.nets.folder import load_net_folder
from img2img_cli.engines.nets.picture_unet import PictureUNet
from img2img_cli.train.data import Photograph
from img2img_cli.train.nets import damage, restore, upscale
from img2img_cli.train.nets.evaluate import draw_trials, format_trials
from img2img_cli.train.nets.photographs import CleanCrops, is_set_aside, shrink


@pytest.fixture(scope="module")
def crops() -> CleanCrops:
    from skimage import data

    pictures = [getattr(data, name)() for name in ("astronaut", "coffee", "chelsea")]
    return CleanCrops([Photograph(pixels=shrink(pixels), caption="", source="test") for pixels in pictures])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two shards of a crop each, the second for evaluation."""
    from skimage import data

    folder = tmp_path_factory.mktemp("shards")
    for number, name in enumerate(("chelsea", "astronaut")):
        blob = io.BytesIO()
        Image.fromarray(getattr(data, name)()[60:220, 100:260]).save(blob, "PNG")
        row = json.dumps({"file": "0.png", "caption": name, "source": "test"}).encode()
        with tarfile.open(folder / f"photos-{number:02}.tar", "w") as tar:
            for file, content in (("0.png", blob.getvalue()), ("captions.jsonl", row)):
                info = tarfile.TarInfo(file)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return folder


def test_crops_are_clean_turned_and_of_the_size_asked_for(crops: CleanCrops) -> None:
    rng = np.random.default_rng(0)
    for size in (40, 64, 400):
        crop = crops(size, rng)
        assert (crop.shape, crop.dtype) == ((size, size, 3), np.uint8)
        assert crop.std() > 1


def test_what_is_set_aside_depends_on_the_pixels_alone() -> None:
    rng = np.random.default_rng(0)
    photographs = [
        Photograph(pixels=rng.integers(0, 256, (8, 8, 3), np.uint8), caption="", source="hires_x") for _ in range(500)
    ]
    aside = [is_set_aside(photograph) for photograph in photographs]
    assert 8 < sum(aside) < 40
    assert aside == [is_set_aside(photograph) for photograph in photographs]
    other = [Photograph(pixels=p.pixels, caption="", source="flowers") for p in photographs]
    assert not any(map(is_set_aside, other))


def test_each_kind_of_damage_occurs_and_none_moves_the_picture(crops: CleanCrops) -> None:
    rng = np.random.default_rng(1)
    clean = np.ascontiguousarray(crops(96, rng))
    changes, untouched = [], 0
    for _ in range(120):
        damaged = damage.damage(clean, rng)
        assert (damaged.shape, damaged.dtype) == (clean.shape, np.uint8)
        change = np.abs(damaged.astype(int) - clean).mean()
        untouched += change == 0
        changes.append(change)
        first, second = (pixels.mean(2) - pixels.mean() for pixels in (damaged.astype(float), clean.astype(float)))
        assert (first * second).sum() > 0.4 * np.sqrt((first**2).sum() * (second**2).sum())
    assert 2 <= untouched <= 30
    assert min(change for change in changes if change) < 3 and max(changes) > 20


def test_a_compressed_picture_lies_where_it_was(crops: CleanCrops) -> None:
    rng = np.random.default_rng(2)
    clean = np.ascontiguousarray(crops(128, rng))
    for _ in range(20):
        error = np.abs(damage.compress(clean, rng).astype(int) - clean)[16:-16, 16:-16].mean()
        assert error < 20


@pytest.mark.parametrize("module", [restore, upscale])
def test_batches_are_pairs_and_repeat_with_their_seed(crops: CleanCrops, module) -> None:
    batches = []
    for _ in range(2):
        torch.manual_seed(3)
        batches.append(next(module.draw_pairs(crops)))
    first, again = batches
    assert torch.equal(first["input"], again["input"]) and torch.equal(first["target"], again["target"])
    factor = first.get("scale", 1)
    assert first["target"].shape[-1] == factor * first["input"].shape[-1]
    assert first["input"].min() >= 0 and first["input"].max() <= 1
    small = torch.nn.functional.interpolate(first["target"], size=first["input"].shape[-2:], mode="area")
    assert (small - first["input"]).abs().mean() < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["restore", "upscale"])
def test_a_network_is_trained_resumed_and_measured(here, tmp_path: Path, shards: Path, name: str) -> None:
    command = ["train", "net", name, "--data", shards, "--out", tmp_path / "net"]
    assert here(*command, "--steps", 1).code == 0
    assert here(*command, "--steps", 2, "--resume").code == 0
    assert torch.load(tmp_path / "net" / f"{name}.pt", weights_only=True)["step"] == 2
    net = load_net_folder(tmp_path / "net")
    assert isinstance(net, PictureUNet) == (name == "restore")
    again = [*command[:-1], tmp_path / "again", "--from", tmp_path / "net", "--steps", 1]
    assert here(*again).code == 0
    other = ["train", "net", "upscale" if name == "restore" else "restore", *again[3:]]
    done = here(*other)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    measured = ["train", "measure", "--model", tmp_path / "net", "--data", shards, "--out", tmp_path / "figures"]
    done = here(*measured, "--count", 1)
    assert done.code == 0, done.err
    wanted = "| no damage |" if name == "restore" else "| x4 |"
    assert wanted in done.out.decode()
    for file in ("evaluation.md", "evaluation.json", "evaluation.jpg"):
        assert (tmp_path / "figures" / file).stat().st_size > 0


def test_nothing_to_show_is_an_empty_table() -> None:
    assert format_trials({"held out": []}) == ""
    assert draw_trials({"held out": []}).size == (256, 256)
