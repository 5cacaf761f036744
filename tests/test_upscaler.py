"""Upscaling nets, models that upscale by themselves, and a net before a diffusion model."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import psnr
from PIL import Image
from safetensors.torch import save_file
from twins import make_twin

from img2img_cli.engines import feed_forward
from img2img_cli.engines.device import choose_placement
from img2img_cli.engines.diffusion.build import build_pipeline
from img2img_cli.errors import ModelError
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.run import transform_image

pytest.importorskip("einops", reason="spandrel is not installed")
ALONE = ["upscale", "--preset", "esrgan-upscale", "--set", "tile_overlap=16"]


@pytest.fixture(scope="module")
def sharp_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Real-ESRGAN that repeats each pixel four by four, with the right colours and positions."""
    feed_forward.import_spandrel("test")
    from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet

    weights = RRDBNet(num_filters=8, num_blocks=1, scale=4).state_dict()
    for name, tensor in weights.items():
        tensor.zero_()
        if tensor.ndim == 4 and "RDB" not in name and "model.1.sub.1" not in name:
            for channel in range(3):
                tensor[channel, channel, 1, 1] = 1
    path = tmp_path_factory.mktemp("net") / "copy-x4.safetensors"
    save_file(weights, path)
    return path


def test_a_net_alone_keeps_the_picture(here, picture: Path, photograph: Image.Image, sharp_net: Path) -> None:
    out = picture.with_name("large.png")
    done = here(*ALONE, "--upscaler", sharp_net, "--set", "tile_size=64", picture, out)
    assert done.code == 0, done.err
    before, after = Image.open(picture).convert("RGB"), Image.open(out)
    assert after.size == (before.width * 4, before.height * 4)
    back = after.resize(before.size, Image.Resampling.BICUBIC)
    assert psnr(np.asarray(back), np.asarray(before)) > 34


@pytest.mark.parametrize(("scale", "size"), [(1.5, (144, 108)), (3, (288, 216)), (6, (576, 432))])
def test_any_scale_comes_from_a_net_of_four(here, picture: Path, sharp_net: Path, scale: float, size) -> None:
    out = picture.with_name("large.png")
    done = here(*ALONE, "--upscaler", sharp_net, "--scale", scale, picture, out)
    assert done.code == 0, done.err
    assert Image.open(out).size == size


def test_tiles_of_a_net_leave_no_seam(here, tmp_path: Path, photograph: Image.Image, sharp_net: Path) -> None:
    photograph.resize((150, 130)).save(tmp_path / "a.png")
    results = []
    for tile in (512, 64):
        done = here(
            *ALONE, "--upscaler", sharp_net, "--set", f"tile_size={tile}", tmp_path / "a.png", tmp_path / f"{tile}.png"
        )
        assert done.code == 0, done.err
        results.append(np.asarray(Image.open(tmp_path / f"{tile}.png")))
    assert psnr(*results) > 45


@pytest.mark.slow
def test_a_net_comes_before_the_model(here, picture: Path, sharp_net: Path) -> None:
    preset = picture.with_name("diffusion.yaml")
    preset.write_text(
        "task: upscale\ndescription: The bundled diffusion model\nlicense: Apache-2.0\n"
        "model: bundled\ncontrol: picture\nstrength: 0.3\nnum_inference_steps: 5\nguidance_scale: 1.0\n"
    )
    results = []
    for options in ([], ["--upscaler", sharp_net]):
        out = picture.with_name(f"{len(results)}.png")
        done = here("upscale", picture, out, "--seed", 1, "--preset", preset, *options)
        assert done.code == 0, done.err
        results.append(np.asarray(Image.open(out)))
    assert results[0].shape == results[1].shape
    assert (results[0] != results[1]).any()


def test_a_net_takes_the_place_of_the_bundled_network(here, picture: Path, sharp_net: Path) -> None:
    for name, command in (("own", ["upscale", "--scale", 4, "--set", "faithful=false"]), ("alone", ALONE)):
        done = here(
            *command, "--upscaler", sharp_net, "--set", "tile_overlap=16", picture, picture.with_name(name + ".png")
        )
        assert done.code == 0, done.err
    own, alone = (np.asarray(Image.open(picture.with_name(f"{name}.png"))) for name in ("own", "alone"))
    assert (own == alone).all()


@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 38), ("float32", 60)])
def test_a_net_in_sixteen_bits_is_close(sharp_net: Path, photograph: Image.Image, dtype: str, least: float) -> None:
    image = photograph.resize((64, 48))
    expected = feed_forward.load_net(str(sharp_net), choose_placement("cpu", "float32")).enlarge([image], [0])
    made = feed_forward.load_net(str(sharp_net), choose_placement("cpu", dtype)).enlarge([image], [0])
    assert made.shape == (1, 3, 192, 256)
    assert made.dtype == torch.float32
    small = torch.nn.functional.avg_pool2d(made, 4)[0].permute(1, 2, 0).numpy() * 255
    assert psnr(small, np.asarray(image)) > 36  # where it was, in its own colours
    assert psnr(made.numpy() * 255, expected.numpy() * 255) > least


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("net.pth", {}, "pickle"),
        ("other.safetensors", {"weight": torch.zeros(3)}, "no net that enlarges"),
        ("torn.safetensors", None, "damaged"),
        ("nowhere.safetensors", {}, "no such file"),
    ],
)
def test_what_is_no_net_is_one_line(here, picture: Path, tmp_path: Path, name: str, content, words: str) -> None:
    if content is None:
        (tmp_path / name).write_bytes(b"\0" * 64)
    elif content:
        save_file(content, tmp_path / name)
    done = here(*ALONE, "--upscaler", tmp_path / name, picture, tmp_path / "o.png")
    assert (done.code, len(done.err.splitlines())) == (5, 1), done.err
    assert words in done.err
    assert not (tmp_path / "o.png").exists()


def test_an_upscaler_belongs_to_upscale(here, picture: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["edit", "-p", "fog", "--set", "upscaler=a/b"], "task is upscale"),
        (["upscale", "--set", "model=none"], "needs an upscaler"),
    ):
        done = here(*arguments, picture, tmp_path / "o.png")
        assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
        assert words in done.err


@pytest.mark.slow
def test_without_spandrel_it_says_what_to_install(picture: Path, sharp_net: Path) -> None:
    code = "import sys; sys.modules['spandrel'] = None; from img2img_cli.cli.app import main; main()"
    words = [*ALONE, "--upscaler", str(sharp_net), str(picture)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (5, 1), done.stderr
    assert "pip install" in done.stderr


def test_a_stand_in_for_torchvision_stays_nowhere() -> None:
    feed_forward.import_spandrel("test")
    stands = [name for name in sys.modules if name.startswith("torchvision")]
    assert all(hasattr(sys.modules[name], "__file__") for name in stands)


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["stabilityai/stable-diffusion-x4-upscaler", "stabilityai/sd-x2-latent-upscaler"])
def test_models_that_enlarge_work_in_tiles_and_keep_the_picture(
    tmp_path: Path, photograph: Image.Image, reference: str
) -> None:
    make_twin(reference, tmp_path / "twin")
    few = {"num_inference_steps": 2, "strength": 1.0, "prompt": "a house", "tile_size": 64, "tile_overlap": 16}
    parameters = Parameters(task="upscale", model=str(tmp_path / "twin"), scale=4.0, **few)
    pipeline = build_pipeline(parameters, choose_placement("cpu", "float32"))
    image = photograph.resize((100, 76))
    first, again, other = (transform_image(image, parameters, seed, pipeline) for seed in (1, 1, 2))
    assert first.size == (400, 304)
    assert (np.asarray(first) == np.asarray(again)).all()
    assert (np.asarray(first) != np.asarray(other)).any()
    # Random weights make noise; back-projection makes it a picture again that scales down to the input.
    assert psnr(np.asarray(first.resize(image.size, Image.Resampling.BICUBIC)), np.asarray(image)) > 22


def test_a_net_that_cleans_keeps_its_word(here, picture: Path, sharp_net: Path) -> None:
    """Real-ESRGAN's result is not projected back onto a noisy input, which would restore the noise."""
    noisy = np.random.default_rng(0).normal(128, 20, (48, 64, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(picture)
    made = []
    for options in ([], ["--set", "faithful=true"], ["--set", "faithful=false"]):
        out = picture.with_name(f"{len(made)}.png")
        done = here(*ALONE, "--upscaler", sharp_net, "--set", "tile_size=64", *options, picture, out)
        assert done.code == 0, done.err
        made.append(Image.open(out).convert("RGB"))
    own, unfaithful = np.asarray(made[0]), np.asarray(made[2])
    assert (own == unfaithful).all()
    back = [np.asarray(image.resize((64, 48), Image.Resampling.BICUBIC)) for image in made]
    assert psnr(back[1], noisy) > 40 > psnr(back[0], noisy)
    assert (own == np.asarray(make_expected(noisy, sharp_net))).all()


def make_expected(pixels: np.ndarray, net: Path) -> Image.Image:
    """Return the result of the net alone for a picture."""
    loaded = feed_forward.load_net(str(net), choose_placement("cpu", "auto"))
    made = loaded.enlarge([Image.fromarray(pixels)], [0])[0]
    return Image.fromarray((made.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def find_architectures() -> list[tuple[str, Any]]:
    """Return every net that spandrel can build by itself, at its default size or smaller."""
    try:
        feed_forward.import_spandrel("test")
    except ModelError:
        return []
    from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact
    from spandrel.architectures.DAT.__arch.DAT import DAT
    from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet
    from spandrel.architectures.OmniSR.__arch.OmniSR import OmniSR
    from spandrel.architectures.PLKSR.__arch.PLKSR import PLKSR
    from spandrel.architectures.RealCUGAN.__arch.upcunet_v3 import UpCunet2x
    from spandrel.architectures.SPAN.__arch.span import SPAN
    from spandrel.architectures.SwinIR.__arch.SwinIR import SwinIR

    return [
        ("Compact", lambda: SRVGGNetCompact(num_feat=8, num_conv=2)),
        ("DAT", lambda: DAT(embed_dim=32, depth=[2], num_heads=[2], split_size=[2, 4], upscale=2, img_size=16)),
        ("ESRGAN", lambda: RRDBNet(num_filters=8, num_blocks=1)),
        ("OmniSR", lambda: OmniSR(num_feat=8, res_num=1, block_num=1, window_size=4)),
        ("PLKSR", lambda: PLKSR(dim=8, n_blocks=2, upscaling_factor=2)),
        ("RealCUGAN", lambda: UpCunet2x(pro=False)),
        ("SPAN", lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8)),
        (
            "SwinIR",
            lambda: SwinIR(
                embed_dim=12, depths=(2,), num_heads=(2,), window_size=8, upscale=2, upsampler="pixelshuffledirect"
            ),
        ),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "build"), find_architectures())
def test_lanes_do_not_disturb_each_others_net(tmp_path: Path, photograph: Image.Image, name: str, build: Any) -> None:
    """Two threads that share a net make the same results as one, again and again."""
    torch.manual_seed(0)
    save_file({key: value.contiguous() for key, value in build().state_dict().items()}, tmp_path / "net.safetensors")
    net = feed_forward.load_net(str(tmp_path / "net.safetensors"), choose_placement("cpu", "float32"))
    images = [photograph.rotate(90 * turn).resize((32, 32)) for turn in range(2)]
    lanes = [net.share(), net.share()]
    memory = {weight.data_ptr() for weight in net._descriptor.model.parameters()}
    assert all({weight.data_ptr() for weight in lane._descriptor.model.parameters()} == memory for lane in lanes)
    with torch.inference_mode():
        expected = [net.enlarge([image], [7]) for image in images]
        start = threading.Barrier(2)

        def work(index: int) -> bool:
            start.wait(60)
            with torch.inference_mode():
                return all((lanes[index].enlarge([images[index]], [7]) == expected[index]).all() for _ in range(15))

        with ThreadPoolExecutor(2) as pool:
            assert all(pool.map(work, range(2)))
