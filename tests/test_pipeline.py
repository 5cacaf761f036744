"""Load and run real checkpoints: folders, hub ids, refusals, and equality with plain diffusers."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Outcome, psnr
from diffusers import ControlNetModel, StableDiffusionControlNetImg2ImgPipeline, StableDiffusionImg2ImgPipeline
from loopback_hub import LoopbackHub
from PIL import Image
from safetensors.torch import load_file

from img2img_cli.engines.device import choose_placement, make_generators
from img2img_cli.engines.diffusion.build import build_pipeline
from img2img_cli.presets.references import bundled_dir
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.pieces import Piece

OPTIONS = ["--seed", "4", "--steps", "4", "--strength", "0.5", "--set", "image_size=64", "--dtype", "float32"]


@pytest.fixture(scope="module")
def square() -> Image.Image:
    from skimage import data

    return Image.fromarray(data.astronaut()).resize((64, 64), Image.Resampling.LANCZOS)


@pytest.mark.slow
def test_edit_equals_a_script_with_plain_diffusers(here, tmp_path: Path, tiny_sd: Path, square: Image.Image) -> None:
    square.save(tmp_path / "in.png")
    done = here("edit", tmp_path / "in.png", tmp_path / "out.png", "-p", "a cat", "--model", tiny_sd, *OPTIONS)
    assert done.code == 0, done.err
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_sd, safety_checker=None)
    from diffusers import DPMSolverMultistepScheduler

    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    expected = pipe(
        "a cat",
        image=square,
        strength=0.5,
        num_inference_steps=4,
        guidance_scale=7.5,
        generator=torch.Generator("cpu").manual_seed(4),
    ).images[0]
    assert psnr(Image.open(tmp_path / "out.png"), expected) >= 40


@pytest.mark.slow
def test_noise_depends_on_seed_and_size_alone(tiny_sd: Path, square: Image.Image) -> None:
    parameters = Parameters(model=str(tiny_sd), num_inference_steps=2, strength=1.0, dtype="float32")
    pipeline = build_pipeline(parameters, choose_placement("cpu", "float32"))
    other = square.rotate(90)

    def piece(image: Image.Image, seed: int) -> Piece:
        return Piece(image=image, control=None, seed=seed, parameters=parameters)

    (alone,) = pipeline.transform([piece(square, 3)])
    together = pipeline.transform([piece(other, 9), piece(square, 3), piece(other, 11)])
    assert psnr(alone, together[1]) >= 40
    assert psnr(alone, together[0]) < 40


def test_generators_ignore_the_batch() -> None:
    draws = [torch.randn(5, generator=g) for g in make_generators([1, 2, 1])]
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


@pytest.mark.slow
def test_a_separate_controlnet_is_loaded(here, tmp_path: Path, tiny_sd: Path, picture: Path) -> None:
    torch.manual_seed(1)
    ControlNetModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        conditioning_embedding_out_channels=(16, 32),
    ).save_pretrained(tmp_path / "cn")
    done = here(
        "colorize", picture, "--model", tiny_sd, "--set", f"controlnet={tmp_path / 'cn'}", "--dtype", "float32",
        "--set", "num_inference_steps=2", "--set", "image_size=64", "--seed", 1,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert Image.open(picture.with_name("photo-colorize.png")).size == (96, 72)


def test_plain_diffusers_loads_the_bundled_model() -> None:
    pipe = StableDiffusionControlNetImg2ImgPipeline.from_pretrained(bundled_dir(), use_safetensors=True)
    configs = [json.loads(file.read_text()) for file in bundled_dir().rglob("*.json")]
    assert not any("_name_or_path" in config for config in configs)  # a path of the machine it was trained on
    sizes = sum(f.stat().st_size for f in bundled_dir().rglob("*.safetensors"))
    assert sizes < 60e6
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.scheduler.alphas_cumprod[-1] == 0
    assert all(torch.isfinite(p).all() for p in pipe.unet.parameters())


@pytest.mark.slow
def test_the_bundled_autoencoder_is_trained() -> None:
    from skimage import data

    pipeline = build_pipeline(Parameters(), choose_placement("cpu", "float32"))
    for array in (data.coffee(), data.chelsea(), data.astronaut()):
        image = Image.fromarray(array).resize((256, 256), Image.Resampling.LANCZOS)
        (decoded,) = pipeline.decode(pipeline.encode([image], make_generators([0])))
        assert psnr(decoded, image) > 25


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("weights.ckpt", "pickle"),
        ("missing.safetensors", "no such file"),
        ("no-such-model", "no such model"),
        ("EMPTY", "model_index.json"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(here, picture: Path, tmp_path: Path, reference: str, words: str) -> None:
    if reference == "EMPTY":
        reference = str(tmp_path)
    done = here("edit", picture, "-p", "fog", "--model", reference)
    assert done.code == 5
    assert words in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("damage", ["truncated", "pickle", "index"])
def test_a_damaged_folder_is_one_line(here, picture: Path, tmp_path: Path, tiny_sd: Path, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_sd, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "pickle":
        torch.save(load_file(weights), weights.with_suffix(".bin"))  # whole, so that nothing but its kind is wrong
        weights.unlink()
    else:
        (folder / "model_index.json").write_text(json.dumps({"_class_name": "os.system"}))
    done = here("edit", picture, "-p", "fog", "--model", folder, "--set", "image_size=64")
    assert done.code == 5, done.err
    assert len(done.err.splitlines()) == 1
    assert not picture.with_name("photo-edit.png").exists()


@pytest.mark.slow
def test_overflow_in_16_bits_is_decoded_again_in_float32(tiny_sd: Path, square: Image.Image) -> None:
    parameters = Parameters(model=str(tiny_sd), num_inference_steps=2)
    pipeline = build_pipeline(parameters, choose_placement("cpu", "float16"))
    torch.nn.init.constant_(pipeline.pipe.vae.decoder.conv_in.weight, 6e4)
    latents = torch.full((1, 4, 32, 32), 50.0, dtype=torch.float16)
    assert not torch.isfinite(pipeline._decode(latents)).all()
    (image,) = pipeline.decode(latents)
    assert np.asarray(image).shape == (64, 64, 3)


@pytest.mark.slow
def test_a_hub_id_is_downloaded_once_and_then_offline(fresh, picture: Path, tmp_path: Path, tiny_sd: Path) -> None:
    cache = {"HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": "hf_secretsecret"}

    def edit(model: str, offline: str, url: str | None = None) -> Outcome:
        output = tmp_path / f"{model.replace('/', '-')}.png"
        arguments = ["edit", picture, output, "-p", "fog", "--model", model, *OPTIONS, "--force"]
        return fresh(*arguments, HF_ENDPOINT=url or hub.url, HF_HUB_OFFLINE=offline, **cache)

    with LoopbackHub({}) as gone:
        pass
    with LoopbackHub({"someone/tiny-sd": tiny_sd}) as hub, ThreadPoolExecutor() as pool:
        # The library tries five times, so meanwhile there is time for the rest.
        waiting = pool.submit(edit, "someone/else", "0", gone.url)
        online = edit("someone/tiny-sd", "0")
        assert online.code == 0, online.err
        asked = len(hub.requests)
        gated, missing = edit("someone/gated", "0"), edit("someone/missing", "0")
        assert len(hub.requests) > asked > 0
        asked = len(hub.requests)
        offline = edit("someone/tiny-sd", "1")
        assert len(hub.requests) == asked
        unreachable = waiting.result()
    assert offline.code == 0, offline.err
    assert (gated.code, "hf auth login" in gated.err) == (5, True), gated.err
    assert (missing.code, "not on the hub" in missing.err) == (5, True), missing.err
    assert (unreachable.code, "cannot be reached" in unreachable.err) == (5, True), unreachable.err
    for done in (online, gated, missing, offline, unreachable):
        assert "secret" not in done.err
        assert len(done.err.splitlines()) == 1


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path) -> Path:
    """Return a LoRA for the tiny model whose second matrices are not zero."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(1)
    unet = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_sd, safety_checker=None).unet
    unet.add_adapter(LoraConfig(r=4, lora_alpha=64, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    folder = tmp_path_factory.mktemp("lora")
    StableDiffusionImg2ImgPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    return folder / "pytorch_lora_weights.safetensors"


def build(**keys: object) -> object:
    return build_pipeline(Parameters.model_validate(keys), choose_placement("cpu", "float32")).pipe.unet


def weights_of(unet: object) -> torch.Tensor:
    return torch.cat([p.flatten() for name, p in unet.state_dict().items() if name.endswith("to_q.weight")])


@pytest.mark.slow
def test_a_lora_is_fused_as_strongly_as_asked(tiny_sd: Path, lora: Path) -> None:
    plain, half, full, twice = (
        weights_of(build(model=str(tiny_sd), lora=given))
        for given in ((), (f"{lora}:0.5",), (str(lora),), (f"{lora}:0.5", f"{lora}:0.5"))
    )
    assert (full - plain).abs().max() > 1e-3
    assert torch.allclose(half - plain, (full - plain) / 2, atol=1e-6)
    assert torch.allclose(twice, full, atol=1e-6)


@pytest.mark.slow
def test_a_lora_leaves_only_plain_layers(tiny_sd: Path, lora: Path) -> None:
    unet = build(model=str(tiny_sd), lora=(str(lora),))
    assert not [name for name in unet.state_dict() if "lora" in name]


@pytest.mark.slow
def test_lora_on_the_command_line_is_in_the_metadata(here, tmp_path: Path, tiny_sd: Path, lora: Path, picture) -> None:
    common = ["-p", "a cat", "--model", tiny_sd, *OPTIONS]
    assert here("edit", picture, tmp_path / "plain.png", *common).code == 0
    done = here("edit", picture, tmp_path / "lora.png", *common, "--lora", f"{lora}:0.5")
    assert done.code == 0, done.err
    assert psnr(Image.open(tmp_path / "plain.png"), Image.open(tmp_path / "lora.png")) < 50
    command = here("info", tmp_path / "lora.png").out.decode()
    assert f"--lora {lora}:0.5" in command


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("someone/style:much", "'much' is not a scale"),
        ("style.ckpt", "pickle"),
        ("nowhere.safetensors", "no such file"),
        ("someone/../secret.safetensors", "no such file"),
        (":0.5", "not a scale"),
    ],
)
def test_a_wrong_lora_is_refused_before_torch(fresh, picture: Path, text: str, words: str) -> None:
    done = fresh("edit", picture, "-p", "fog", "--lora", text)
    assert (done.code, len(done.err.splitlines())) == (5, 1), done.err
    assert words in done.err


def test_a_lora_for_another_family_is_refused(here, picture: Path, tiny_sd: Path, tmp_path: Path) -> None:
    from twins import make_lora_xl

    torch.manual_seed(0)
    make_lora_xl(tmp_path / "xl", None)
    file = tmp_path / "xl" / "pytorch_lora_weights.safetensors"
    done = here("edit", picture, "-p", "fog", "--model", tiny_sd, *OPTIONS, "--lora", file)
    assert (done.code, len(done.err.splitlines())) == (5, 1), done.err


@pytest.mark.slow
def test_another_vae_takes_the_place_of_the_models_own(here, picture: Path, tiny_sd: Path, tmp_path: Path) -> None:
    vae = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_sd, safety_checker=None).vae
    torch.nn.init.zeros_(vae.decoder.conv_out.weight)
    torch.nn.init.constant_(vae.decoder.conv_out.bias, 1.0)
    vae.save_pretrained(tmp_path / "vae")
    done = here(
        "edit", picture, tmp_path / "o.png", "-p", "fog", "--model", tiny_sd, *OPTIONS, "--vae", tmp_path / "vae"
    )
    assert done.code == 0, done.err
    assert np.asarray(Image.open(tmp_path / "o.png").convert("RGB")).min() == 255
