"""Colorize by a network: hints lead it, a seed varies it if asked to, and it says that it reads no words."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GREY
from PIL import Image, ImageDraw

from img2img_cli.engines.nets import colour_net
from img2img_cli.engines.nets.folder import save_net
from img2img_cli.errors import InputError
from img2img_cli.pictures.hints import fit_hints, follow_hints, read_hints, spread_hints
from img2img_cli.pictures.lab import rgb_to_lab
from img2img_cli.pictures.read import load_image, plan_fit

STROKE = (30, 20, 60, 50)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """Return the folder of a small network that takes over the hints and likes grey elsewhere."""
    torch.manual_seed(0)
    net = colour_net.ColourNet(widths=(16, 24), blocks=(1, 1))
    bins = colour_net.list_bins() / 100
    with torch.no_grad():
        net.take_hints.weight.zero_()
        net.take_hints.weight[:3, :, 1, 1] = 4 * torch.eye(3)
        net.enter.weight[:3], net.enter.bias[:3] = 0, 0
        net.grow[0].weight.zero_()
        net.grow[0].bias.zero_()
        net.leave.weight.zero_()
        net.leave.weight[:, :2] = (80 * bins / 4)[..., None, None]
        net.leave.bias.copy_(-40 * (bins**2).sum(1))
    save_net(net, tmp_path / "net")
    return tmp_path / "net"


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    ramp = np.tile(np.linspace(90, 160, 96, dtype=np.uint8), (72, 1))
    ramp[:, 76:] = 40  # an edge, behind which another thing lies
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    return tmp_path / "grey.png"


def chroma(path: Path) -> np.ndarray:
    return rgb_to_lab(np.asarray(Image.open(path).convert("RGB")))[..., 1:]


@pytest.mark.parametrize("kind", ["transparent", "painted"])
def test_hints_lead_the_colours_where_they_are(here, tmp_path: Path, grey: Path, net: Path, kind: str) -> None:
    hints = Image.new("RGBA", (96, 72)) if kind == "transparent" else Image.open(grey).convert("RGB")
    ImageDraw.Draw(hints).rectangle(STROKE, fill=(200, 40, 40))
    hints.save(tmp_path / "hints.png")
    common = ["--model", net, "--preset", "colorize", "--set", "image_size=96", "--seed", 5]
    done = here("colorize", grey, tmp_path / "led.png", "--hints", tmp_path / "hints.png", *common)
    assert done.code == 0, done.err
    assert here("colorize", grey, tmp_path / "free.png", *common).code == 0
    led, free = chroma(tmp_path / "led.png"), chroma(tmp_path / "free.png")
    left, top, right, bottom = STROKE
    assert led[top + 8 : bottom - 8, left + 8 : right - 8, 0].mean() > 30
    assert np.abs(free).max() < 8
    assert np.abs(led[:, 84:]).mean() < 8, "behind the edge nothing was hinted at"
    assert led[36, 66, 0] > 15, "the stroke's colour goes on up to the edge"
    told = here("info", tmp_path / "led.png")
    assert b"--hints hints.png" in told.out


def test_variety_makes_seeds_differ_and_none_makes_them_agree(here, tmp_path: Path, grey: Path, net: Path) -> None:
    common = ["--model", net, "--preset", "colorize", "--set", "image_size=96"]
    assert here("colorize", grey, tmp_path / "v.png", "--variations", 3, "--seed", 0, *common).code == 0
    many = [chroma(tmp_path / f"v-{index}.png") for index in (1, 2, 3)]
    assert all(np.abs(one - other).mean() > 1 for one, other in itertools.pairwise(many))
    alone = ["--seed", 1, "--variety", 0.5]
    assert here("colorize", grey, tmp_path / "again.png", *alone, *common).code == 0
    assert np.abs(chroma(tmp_path / "again.png") - many[1]).max() < 2
    for seed in (1, 2):
        assert here("colorize", grey, tmp_path / f"plain{seed}.png", "--seed", seed, *common).code == 0
    assert (tmp_path / "plain1.png").stat().st_size == (tmp_path / "plain2.png").stat().st_size
    assert (chroma(tmp_path / "plain1.png") == chroma(tmp_path / "plain2.png")).all()


def test_strength_is_the_share_of_the_colours(here, tmp_path: Path, grey: Path, net: Path) -> None:
    Image.new("RGBA", (96, 72), (200, 40, 40)).save(tmp_path / "hints.png")
    hints = Image.open(tmp_path / "hints.png")
    hints.putpixel((0, 0), (0, 0, 0, 0))
    hints.save(tmp_path / "hints.png")
    common = ["--model", net, "--preset", "colorize", "--set", "image_size=96", "--hints", tmp_path / "hints.png"]
    for strength in (1, 0.5):
        assert here("colorize", grey, tmp_path / f"{strength}.png", "--strength", strength, *common).code == 0
    whole, half = (np.hypot(*np.moveaxis(chroma(tmp_path / f"{s}.png"), -1, 0)).mean() for s in (1, 0.5))
    assert 0.4 * whole < half < 0.6 * whole


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "red"], "reads no words"),
        (["--preset", GREY, "--hints", "{hints}"], "takes no hints"),
        (["--hints", "{grey}"], "neither transparent parts nor colours"),
        (["--hints", "{empty}"], "all transparent"),
        (["--hints", "{wide}"], "hints are 300 x 72, the picture 96 x 72"),
        (["--hints", "missing.png"], "missing.png: no such file"),
        (["--hints", "-"], "--hints cannot be read from stdin"),
    ],
)
def test_what_is_no_hint_is_told_in_one_line(here, tmp_path: Path, grey: Path, net: Path, words, said) -> None:
    files = {"grey": grey} | {name: tmp_path / f"{name}.png" for name in ("hints", "empty", "wide")}
    Image.new("RGB", (96, 72), "red").save(files["hints"])
    Image.new("RGBA", (96, 72)).save(files["empty"])
    Image.new("RGB", (300, 72), "red").save(files["wide"])
    given = [word.format(**files) for word in words]
    model = [] if "--preset" in given else ["--model", net, "--preset", "colorize"]
    done = here("colorize", grey, tmp_path / "out.png", *model, *given)
    assert done.code in (2, 3), done.err
    assert said in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


def test_small_strokes_keep_their_colour_on_the_models_canvas(tmp_path: Path) -> None:
    hints = Image.new("RGBA", (400, 300))
    hints.putpixel((101, 102), (250, 10, 10, 255))  # one of fifty that become one
    hints.save(tmp_path / "hints.png")
    picture = Image.new("RGB", hints.size, "grey")
    read = read_hints(load_image(str(tmp_path / "hints.png")), picture)
    fitted = np.asarray(fit_hints(read, plan_fit((400, 300), 64, 32)))
    given = fitted[fitted[..., 3] > 0]
    assert len(given) > 0
    assert (given == (250, 10, 10, 255)).all()
    with pytest.raises(InputError, match="transparent"):
        Image.new("RGBA", (9, 9)).save(tmp_path / "none.png")
        read_hints(load_image(str(tmp_path / "none.png")), picture)


def test_a_painted_copy_of_a_toned_print_hints_only_where_it_was_painted(tmp_path: Path) -> None:
    toned = Image.merge("RGB", [Image.linear_gradient("L").point(lambda v, f=f: int(v * f)) for f in (1, 0.82, 0.6)])
    painted = toned.copy()
    painted.paste((40, 80, 200), (50, 60, 90, 100))
    painted.save(tmp_path / "painted.jpg", quality=85)
    given = np.asarray(read_hints(load_image(str(tmp_path / "painted.jpg")), toned).getchannel("A")) > 0
    assert given[64:96, 56:84].all()
    given[50:110, 40:100] = False
    assert given.mean() < 0.01
    plain = read_hints(load_image(str(tmp_path / "painted.jpg")), toned.resize((128, 128)))
    assert np.asarray(plain.getchannel("A"))[64:96, 56:84].all()


def test_hints_spread_to_edges_and_the_nearer_one_wins() -> None:
    levels = np.full((60, 90), 120, np.uint8)
    levels[:, 50:] = 200
    picture = Image.fromarray(levels).convert("RGB")
    hints = Image.new("RGBA", (90, 60))
    hints.paste((200, 30, 30, 255), (8, 20, 12, 40))
    hints.paste((30, 30, 200, 255), (38, 20, 42, 40))
    spread = np.asarray(spread_hints(hints, picture))
    assert (spread[30, 10, :3] == (200, 30, 30)).all() and spread[30, 10, 3] == 255
    assert spread[30, 18, 0] > 150 and spread[30, 33, 2] > 150
    assert spread[30, 18, 3] > 150 > 20 > spread[30, 56, 3]
    made = np.asarray(follow_hints(picture, Image.fromarray(spread)), int)
    assert made[30, 12, 0] > made[30, 12, 2] + 60
    assert np.abs(made[:, 60:] - 200).max() < 12


def test_tastes_are_smooth_seeded_and_of_one_size() -> None:
    tastes = torch.stack([colour_net.draw_taste(seed) for seed in range(40)])
    assert torch.equal(tastes[3], colour_net.draw_taste(3))
    assert 0.8 < float(tastes.std()) < 1.2
    bins = colour_net.list_bins()
    distances = torch.cdist(bins, bins)
    differences = (tastes[:, :, None, 1, 1] - tastes[:, None, :, 1, 1]).abs().mean(0)
    assert differences[distances == colour_net.STEP].mean() < 0.5 * differences[distances > 100].mean()
