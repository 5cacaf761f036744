"""Networks of our own, in folders: `--model FOLDER` for every task, in tiles, in a batch, damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import psnr
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from img2img_cli.engines.device import choose_placement
from img2img_cli.engines.nets.folder import Net, load_net_folder, save_net
from img2img_cli.engines.nets.picture_unet import PictureUNet
from img2img_cli.engines.nets.upscale_net import UpscaleNet
from img2img_cli.engines.open import open_pipeline
from img2img_cli.presets.references import locate_model
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.run import transform_image

SMALL = {"widths": (8, 12), "blocks": (1, 1)}
WHOLE = ["--strength", 1]


def wake(net: Net, scale: float = 0.05) -> Net:
    """Give the layers that start at zero small random weights, so that the network does something."""
    torch.manual_seed(1)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and not layer.weight.any():
            nn.init.normal_(layer.weight, std=scale)
    return net


@pytest.fixture(scope="module")
def lighter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a network that adds a tenth to every channel."""
    net = PictureUNet(**SMALL)
    nn.init.constant_(net.leave.bias, 0.1)
    folder = tmp_path_factory.mktemp("lighter")
    save_net(net, folder)
    return folder


@pytest.fixture(scope="module")
def enlarging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("enlarging")
    save_net(wake(UpscaleNet(width=8, blocks=1)), folder)
    return folder


@pytest.fixture
def picture(tmp_path: Path, photograph: Image.Image) -> Path:
    photograph.resize((101, 75)).save(tmp_path / "in.png")
    return tmp_path / "in.png"


@pytest.mark.parametrize("net", [PictureUNet(**SMALL), PictureUNet(residual=False, patch=1), UpscaleNet(scales=(2, 4))])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, net: Net) -> None:
    save_net(wake(net), tmp_path, torch.float32)
    loaded = load_net_folder(tmp_path)
    x = torch.rand(2, 3, 21, 18)
    arguments = [4] if isinstance(net, UpscaleNet) else []
    assert torch.equal(loaded(x, *arguments), net(x, *arguments))
    assert locate_model(str(tmp_path)) == ("net", str(tmp_path))
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o044 == 0o044, "others can read what is installed"


def test_a_new_network_returns_its_input() -> None:
    x = torch.rand(1, 3, 22, 17)
    assert torch.equal(PictureUNet()(x), x)


def test_strength_blends(here, picture: Path, lighter: Path) -> None:
    before = np.asarray(Image.open(picture), np.float32)
    for strength, wanted in ((1.0, 25.5), (0.4, 10.2)):
        out = picture.with_name("out.png")
        done = here("restore", "--model", lighter, "--strength", strength, picture, out, "--force")
        assert done.code == 0, done.err
        change = np.asarray(Image.open(out), np.float32) - before
        assert abs(change[before < 200].mean() - wanted) < 1


@pytest.mark.parametrize("task", ["restore", "edit"])
def test_a_network_works_at_full_resolution_and_under_a_mask(
    here, tmp_path: Path, picture: Path, lighter: Path, task: str
) -> None:
    mask = Image.new("L", (101, 75), 0)
    mask.paste(255, (0, 0, 50, 75))
    mask.save(tmp_path / "mask.png")
    done = here(task, "--model", lighter, *WHOLE, "--mask", tmp_path / "mask.png", picture, tmp_path / "o.png")
    assert done.code == 0, done.err
    before, after = np.asarray(Image.open(picture), int), np.asarray(Image.open(tmp_path / "o.png"), int)
    assert (before[:, 50:] == after[:, 50:]).all()
    assert 20 < (after - before)[:, :40][before[:, :40] < 200].mean() < 30


def test_tiles_agree_with_the_whole_and_leave_no_seam(photograph: Image.Image, tmp_path: Path) -> None:
    save_net(wake(PictureUNet(**SMALL), 0.1), tmp_path)
    image = photograph.resize((300, 220))
    made = []
    for tile in (1024, 96):
        parameters = Parameters(task="restore", model=str(tmp_path), strength=1.0, tile_size=tile, tile_overlap=32)
        pipeline = open_pipeline(parameters, choose_placement("cpu", "float32"))
        made.append(transform_image(image, parameters, 0, pipeline))
    assert psnr(made[0], image) < 40, "the network changes nothing, and the test says nothing"
    assert psnr(*made) > 55


@pytest.mark.parametrize(("scale", "size"), [(2, (202, 150)), (3, (303, 225)), (1.5, (152, 112)), (6, (606, 450))])
def test_each_factor_is_reached_and_scaled_down_gives_the_picture_back(
    here, picture: Path, enlarging: Path, scale: float, size: tuple[int, int]
) -> None:
    out = picture.with_name("large.png")
    done = here("upscale", "--model", enlarging, *WHOLE, "--scale", scale, picture, out)
    assert done.code == 0, done.err
    with Image.open(out) as large, Image.open(picture) as small:
        assert large.size == size
        assert psnr(large.resize(small.size, Image.Resampling.BICUBIC), small) > 35


def test_each_factor_has_a_head_of_its_own(photograph: Image.Image, enlarging: Path) -> None:
    net = load_net_folder(enlarging)
    x = torch.rand(1, 3, 16, 16)
    twice, fourfold = (net(x, scale) for scale in (2, 4))
    assert (twice.shape[-1], fourfold.shape[-1]) == (32, 64)
    pipeline = open_pipeline(Parameters(task="upscale", model=str(enlarging)), choose_placement("cpu", "float32"))
    assert pipeline.enlargements == (2, 3, 4)


def test_a_batch_and_a_record(here, picture: Path, lighter: Path) -> None:
    out = picture.with_name("out")
    done = here("batch", picture.parent, "-o", out, "--preset", "restore", "--model", lighter)
    assert done.code == 0, done.err
    (result,) = out.glob("*.png")
    told = json.loads(here("info", "--json", result).out)
    assert told["parameters"]["model"] == str(lighter)


@pytest.mark.slow
def test_without_diffusers(fresh, picture: Path, lighter: Path) -> None:
    """A network starts in the time that torch takes; diffusers would take twice as long."""
    done = fresh("restore", "--model", lighter, picture, picture.with_name("o.png"), PYTHONPROFILEIMPORTTIME="1")
    assert done.code == 0
    assert "diffusers.pipelines" not in done.err
    assert "torch" in done.err


def spoil_config(folder: Path) -> None:
    (folder / "net.json").write_text('{"architecture": "PictureUNet"')


def spoil_architecture(folder: Path) -> None:
    (folder / "net.json").write_text('{"architecture": "os.system", "settings": {}}')


def spoil_settings(folder: Path) -> None:
    (folder / "net.json").write_text('{"architecture": "PictureUNet", "settings": {"depth": 3}}')


def spoil_size(folder: Path) -> None:
    (folder / "net.json").write_text('{"architecture": "PictureUNet", "settings": {"widths": [100000, 200000]}}')


def spoil_width(folder: Path) -> None:
    (folder / "net.json").write_text(
        '{"architecture": "PictureUNet", "settings": {"widths": [16, 12], "blocks": [1, 1]}}'
    )


def spoil_shape(folder: Path) -> None:
    (folder / "net.json").write_text('{"architecture": "PictureUNet", "settings": {"widths": [], "blocks": "ab"}}')


def spoil_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:200])


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def spoil_numbers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: torch.full_like(value, torch.nan) for name, value in weights.items()}, folder / "model.safetensors"
    )


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_config,
        spoil_architecture,
        spoil_settings,
        spoil_size,
        spoil_width,
        spoil_shape,
        spoil_weights,
        remove_weights,
        spoil_numbers,
    ],
)
def test_a_damaged_folder_is_one_line(here, tmp_path: Path, picture: Path, spoil) -> None:
    folder = tmp_path / "net"
    save_net(PictureUNet(**SMALL), folder)
    spoil(folder)
    done = here("restore", "--model", folder, picture)
    assert (done.code, done.err.count("\n")) == (5, 1), done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "in-restore.png").exists()


@pytest.mark.parametrize("option", ["lora", "embedding", "vae", "refiner"])
def test_parts_of_diffusion_models_are_refused(here, tmp_path: Path, picture: Path, lighter: Path, option: str) -> None:
    part = lighter if option == "refiner" else tmp_path / "part.safetensors"
    save_file({"weight": torch.zeros(2)}, tmp_path / "part.safetensors")
    given = [f"{option}={part}", *(["refiner_strength=1"] if option == "refiner" else [])]
    done = here("restore", "--model", lighter, *(word for each in given for word in ("--set", each)), picture)
    assert (done.code, done.err.count("\n")) == (5, 1), done.err
    assert f"{option}: " in done.err and "works in one pass" in done.err


@pytest.mark.parametrize("option", ["--controlnet", "--vae", "--set=refiner"])
def test_a_network_is_no_part_of_another_model(here, picture: Path, lighter: Path, option: str) -> None:
    words = [f"{option}={lighter}"] if "=" in option else [option, lighter]
    done = here("edit", "--prompt", "fog", *words, picture)
    assert done.code in (2, 5) and done.err.count("\n") == 1, done.err
