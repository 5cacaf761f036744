"""The recipes of the bundled networks: what they are shown, that they learn, and how they are measured."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from img2img_cli.engines.nets import colour_net
from img2img_cli.engines.nets.folder import load_net_folder
from img2img_cli.engines.nets.picture_unet import PictureUNet
from img2img_cli.pictures.lab import rgb_to_lab
from img2img_cli.train.data import BalancedDraw, Photograph, read_shard
from img2img_cli.train.nets import colorize, damage, features, recipe, restore, upscale
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


def test_lightness_and_colours_give_the_picture_back(crops: CleanCrops) -> None:
    pixels = np.ascontiguousarray(crops(64, np.random.default_rng(0)))
    picture = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    lab = torch.from_numpy(rgb_to_lab(pixels)).permute(2, 0, 1)[None]
    assert torch.allclose(colour_net.to_lightness(picture), lab[:, :1], atol=0.02)
    assert torch.allclose(colour_net.to_srgb(lab[:, :1], lab[:, 1:]), picture, atol=2e-3)


def test_bins_hold_the_colours_of_srgb_and_rare_ones_count_more(crops: CleanCrops) -> None:
    bins = colour_net.list_bins()
    assert 200 < len(bins) < 320
    assert (bins % colour_net.STEP == 0).all()
    nearest, shares = colorize.encode(torch.tensor([[41.0, 1.0], [-3.0, 77.0]]).T[None, :, :, None])
    assert bins[nearest[0, 0, :, 0]].tolist() == [[40, 0], [0, 80]]
    assert torch.allclose(shares.sum(1), torch.ones(1, 2, 1))
    weights = colorize.weigh_bins(torch.cat([torch.zeros(1, 2, 30, 30), torch.full((1, 2, 1, 30), 40.0)], 2))
    grey, red = ((bins == torch.tensor(colour)).all(1).nonzero().item() for colour in ([0.0, 0.0], [40.0, 40.0]))
    assert weights[red] > 3 * weights[grey]


@pytest.mark.slow
def test_a_network_learns_colours_and_colorize_uses_it(here, shards: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(colorize, "COUNTED", 8)
    monkeypatch.setattr(recipe, "RECIPES", {"colorize": replace(recipe.RECIPES["colorize"], make_net=make_small)})
    command = ["train", "net", "colorize", "--data", shards, "--out", tmp_path / "net", "--steps", 20]
    done = here(*command)
    assert done.code == 0, done.err
    losses = []
    torch.manual_seed(0)
    net = make_small()
    one = CleanCrops([read_shard(shards / "photos-00.tar")[0]])
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    batches, compute = colorize.draw_pairs(one, size=64, batch_size=2), colorize.make_loss(one, net)
    for _ in range(25):
        loss = compute(net, next(batches), torch.device("cpu"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    Image.fromarray(one.draw_view(70, np.random.default_rng(0), whole=True)[:50]).convert("L").save(tmp_path / "g.png")
    done = here(
        "colorize", tmp_path / "g.png", tmp_path / "out.png", "--model", tmp_path / "net", "--preset", "colorize"
    )
    assert done.code == 0, done.err
    with Image.open(tmp_path / "out.png") as made, Image.open(tmp_path / "g.png") as grey:
        assert made.size == grey.size
        drift = rgb_to_lab(np.asarray(made))[..., 0] - rgb_to_lab(np.asarray(grey.convert("RGB")))[..., 0]
        assert np.abs(drift).mean() < 0.3
    done = here(
        "train", "measure", "--model", tmp_path / "net", "--data", shards, "--out", tmp_path / "e", "--count", 1
    )
    assert done.code == 0, done.err
    assert b"correlation of b*" in done.out


def make_small() -> colour_net.ColourNet:
    return colour_net.ColourNet(widths=(16, 24, 32), blocks=(1, 1, 1))


def test_features_have_the_layout_of_squeezenet(trained_features: Path) -> None:
    net = features.SqueezeNetFeatures.read(trained_features)
    assert net(torch.rand(2, 3, 227, 227)).shape == (2, 512, 13, 13)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert sum(parameter.numel() for parameter in net.parameters()) == 735_424  # 1,248,424 without conv10's 513,000


def test_a_colour_net_learns_features_too(
    here, shards: Path, trained_features: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(colorize, "COUNTED", 4)
    monkeypatch.setattr(recipe, "RECIPES", {**recipe.RECIPES, "colorize": replace(
        recipe.RECIPES["colorize"], make_net=make_small
    )})  # fmt: skip
    command = ["train", "net", "colorize", "--data", shards, "--out", tmp_path / "net", "--features", trained_features]
    for steps in (2, 4):
        done = here(*command, "--steps", steps, "--resume")
        assert done.code == 0, done.err
    kept = torch.load(tmp_path / "net" / "colorize.pt", weights_only=True)
    assert kept["step"] == 4
    assert set(kept["modules"]["loss"]) == {"head.weight", "head.bias"}
    assert not any("head" in name for name in load_file(tmp_path / "net" / "model.safetensors"))
    done = here(*command[:-2], "--steps", 6, "--resume")
    assert done.code == 2 and "made with other options" in done.err, done.err
    (tmp_path / "other.safetensors").write_bytes(b"no")
    for words, code, said in (
        ([*command[:-1], tmp_path / "other.safetensors"], 5, "not the weights of SqueezeNet"),
        (["train", "net", "restore", *command[3:]], 2, "restore is learnt without"),
    ):
        done = here(*words, "--steps", 1)
        assert (done.code, done.err.count("\n")) == (code, 1), done.err
        assert said in done.err


def test_the_weight_of_rare_colours_is_taken_out_again() -> None:
    net = make_small()
    before = net.leave.bias.detach().clone()
    weights = torch.linspace(0.5, 4, len(colour_net.list_bins()))
    colorize.finish(net, colorize.ColourLoss(weights, None, net.width))
    assert torch.allclose(before - net.leave.bias, colorize.UNDONE * weights.log(), atol=1e-6)
    colorize.take_up(net, colorize.ColourLoss(weights, None, net.width))
    assert torch.allclose(before, net.leave.bias, atol=1e-6)


def test_hints_are_some_of_the_colours_and_most_pictures_have_none() -> None:
    rng = np.random.default_rng(0)
    colours = torch.full((2, 20, 20), 30.0)
    drawn = [colorize.draw_hints(colours, rng) for _ in range(200)]
    hinted = [hints for hints in drawn if hints[2].any()]
    assert 0.25 < len(hinted) / len(drawn) < 0.45
    for hints in hinted:
        assert torch.equal(hints[0], 0.3 * hints[2]) and set(hints[2].unique().tolist()) <= {0.0, 1.0}
    told = colour_net.fold_hints(torch.full((1, 2, 8, 8), 30.0), torch.ones(1, 1, 8, 8))
    assert torch.allclose(told, torch.tensor([0.3, 0.3, 1.0])[None, :, None, None].expand(1, 3, 2, 2))


def test_the_light_of_lamps_is_made_white_and_that_of_the_sky_stays() -> None:
    scene = np.random.default_rng(0).integers(0, 200, (32, 32, 1)).repeat(3, 2)
    warm = (scene * np.array([1.1, 1.0, 0.85])).clip(0, 255).astype(np.uint8)
    cast = []
    for source in ("GroceryStoreDataset", "hires_x"):
        made = colorize.balance_white(Photograph(pixels=warm, caption="", source=source))
        red, _, blue = made.reshape(-1, 3).mean(0)
        cast.append(float(red - blue))
    assert abs(cast[0]) < 0.25 * cast[1]
    assert cast[1] == pytest.approx(float(np.subtract(*warm.reshape(-1, 3).mean(0)[[0, 2]])))


def test_favoured_sources_are_drawn_more_often() -> None:
    photographs = [
        Photograph(pixels=np.full((8, 8, 3), index, np.uint8), caption="", source=source)
        for index, source in enumerate(["hires_a"] * 9 + ["b"] * 9)
    ]
    draw, rng = BalancedDraw(photographs, {"hires_": 3.0}), np.random.default_rng(0)
    drawn = [draw(rng).source for _ in range(400)]
    assert 0.68 < drawn.count("hires_a") / len(drawn) < 0.82
