"""Single-file checkpoints, VAEs and ControlNets load offline and completely, or fail without a traceback."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from PIL import Image
from safetensors.torch import load_file
from single_files import make_architectures, name_parts, name_parts_xl, name_vae, write_file
from transformers import CLIPTextModelWithProjection
from twins import fix_up, make_clip, make_twin, make_vae, unet_options

from img2img_cli.engines.checkpoints import single_file
from img2img_cli.engines.checkpoints.contents import tell_contents
from img2img_cli.engines.checkpoints.single_file import load_clip_tokenizer
from img2img_cli.engines.device import choose_placement
from img2img_cli.engines.diffusion.build import build_pipeline
from img2img_cli.errors import ModelError
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.pieces import Piece

SD, XL = "stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"
FLUX = "black-forest-labs/FLUX.1-schnell"
VAE, ENCODER, UNET = "first_stage_model.", "cond_stage_model.", "model.diffusion_model."
OPTIONS = ["-p", "fog", "--seed", "4", "--set", "image_size=64"]


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models")
    make_twin(SD, folder / "sd")
    pipe = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder / "sd", safety_checker=None)
    pipe.folder, pipe.architectures = folder / "sd", make_architectures(folder / "architectures", folder / "sd")
    return pipe


@pytest.fixture
def weights(twin, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Return the twin's tensors by their original names, and make files with them find the twin's configs."""
    monkeypatch.setattr(single_file, "ARCHITECTURES", twin.architectures)
    monkeypatch.setattr(single_file, "DEFAULTS", {"sd1": (str(twin.folder / "nowhere"), "sd15-edit")})
    return name_parts(twin)


def build(path: Path, **keys: object) -> Any:
    return build_pipeline(Parameters(model=str(path), **keys), choose_placement("cpu", "float32"))


def check_equal(pipe: Any, twin: Any) -> None:
    for name in ("unet", "vae", "text_encoder"):
        made = getattr(pipe, name).state_dict()
        for key, weight in getattr(twin, name).state_dict().items():
            assert torch.equal(made[key], weight), (name, key)


def without(weights: dict[str, torch.Tensor], *starts: str) -> dict[str, torch.Tensor]:
    return {key: weight for key, weight in weights.items() if not key.startswith(starts)}


def refuse(here, words: str, *command: object) -> None:
    done = here(*command)
    assert done.code == 5, done.err
    assert words in done.err.splitlines()[-1]
    assert len(done.err.splitlines()) == 1 + (command[0] == "batch")


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."])
def test_a_checkpoint_is_what_it_was(twin, weights, tmp_path: Path, encoder: str) -> None:
    """Include the names from before transformers added `text_model`."""
    pipeline = build(write_file(tmp_path / "model.safetensors", name_parts(twin, encoder)))
    check_equal(pipeline.pipe, twin)
    assert not pipeline.notes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("starts", "titles"),
    [((VAE,), ["VAE"]), ((ENCODER,), ["text encoder"]), ((VAE, ENCODER), ["text encoder", "VAE"])],
)
def test_parts_that_lack_are_the_familys_own(twin, weights, tmp_path, monkeypatch, starts, titles) -> None:
    monkeypatch.setattr(single_file, "DEFAULTS", {"sd1": (str(twin.folder), "sd15-edit")})
    pipeline = build(write_file(tmp_path / "model.safetensors", without(weights, *starts)))
    check_equal(pipeline.pipe, twin)
    assert [note.split(" holds no ")[1].split(";")[0] for note in pipeline.notes] == titles


@pytest.mark.slow
def test_a_part_that_is_nowhere_is_one_line(here, weights, tmp_path: Path, picture: Path) -> None:
    path = write_file(tmp_path / "model.safetensors", without(weights, VAE))
    refuse(here, "holds no VAE; give one with --vae", "edit", picture, *OPTIONS, "--model", path)
    path = write_file(tmp_path / "model.safetensors", without(weights, ENCODER))
    batch = ["batch", picture, "-o", tmp_path / "out", "--preset", "sd15-edit"]
    refuse(here, "holds no text encoder; give a whole checkpoint, or fetch", *batch, *OPTIONS, "--model", path)


@pytest.mark.slow
def test_a_vae_file_fills_the_gap(here, twin, weights, tmp_path: Path, picture: Path) -> None:
    path = write_file(tmp_path / "model.safetensors", without(weights, VAE))
    vae = write_file(tmp_path / "vae.safetensors", {name_vae(k): v for k, v in twin.vae.state_dict().items()})
    check_equal(build(path, vae=str(vae)).pipe, twin)
    done = here("edit", picture, tmp_path / "o.png", *OPTIONS, "--model", path, "--vae", vae)
    assert done.code == 0, done.err


@pytest.mark.slow
def test_xl_needs_nothing_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cover two text encoders of different widths, and v-prediction, which many derived models use."""
    torch.manual_seed(0)
    encoders = [make_clip(), make_clip(CLIPTextModelWithProjection, hidden_size=48, projection_dim=48)]
    options = unet_options(xl=True) | {"cross_attention_dim": 80, "projection_class_embeddings_input_dim": 96}
    parts = {
        "unet": diffusers.UNet2DConditionModel(**fix_up(options)), "vae": make_vae(force_upcast=True),
        "text_encoder": encoders[0], "text_encoder_2": encoders[1],
        "tokenizer": load_clip_tokenizer(), "tokenizer_2": load_clip_tokenizer("!"),
        "scheduler": diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
    }  # fmt: skip
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(**parts)
    pipe.save_pretrained(tmp_path / "xl")
    monkeypatch.setattr(
        single_file, "ARCHITECTURES", make_architectures(tmp_path / "architectures", tmp_path / "xl", "sdxl")
    )
    weights = name_parts_xl(pipe) | {"v_pred": torch.ones(1), "ztsnr": torch.ones(1)}
    made = build(write_file(tmp_path / "model.safetensors", weights))
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        for key, weight in getattr(pipe, name).state_dict().items():
            assert torch.equal(getattr(made.pipe, name).state_dict()[key], weight), (name, key)
    assert made.pipe.tokenizer_2.pad_token == "!"
    assert made.pipe.scheduler.config.rescale_betas_zero_snr
    parameters = Parameters(model="x", prompt="a house", strength=1.0, num_inference_steps=2, guidance_scale=3.0)
    piece = Piece(image=Image.new("RGB", (64, 64), "grey"), control=None, seed=3, parameters=parameters)
    assert made.transform([piece])[0].size == (64, 64)
    monkeypatch.setattr(single_file, "DEFAULTS", {})
    with pytest.raises(ModelError, match="holds no second text encoder"):
        build(write_file(tmp_path / "model.safetensors", without(weights, "conditioner.embedders.1")))


def test_a_family_whose_parts_are_the_hubs_is_one_line(here, twin, tmp_path, picture, monkeypatch) -> None:
    """A Stable Diffusion 3 in a single file often has no text encoders."""
    weights = {f"{UNET}joint_blocks.0.context_block.adaLN_modulation.1.bias": torch.ones(4)}
    path = write_file(tmp_path / "model.safetensors", weights)
    refuse(here, "not in the cache and the hub cannot be reached", "edit", picture, *OPTIONS, "--model", path)

    def fail(*_: object, **__: object) -> None:
        raise SingleFileComponentError("Failed to load CLIPTextModel. Weights appear to be missing.\nand\nmore")

    monkeypatch.setattr(diffusers.StableDiffusion3Img2ImgPipeline, "from_single_file", fail)
    refuse(here, "lacks a part (Failed to load CLIPTextModel", "edit", picture, *OPTIONS, "--model", path)


def make_wrong(name: str, twin: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    unet, vae = twin.unet.state_dict(), twin.vae.state_dict()
    return {
        "lora": {"lora_unet_x.lora_up.weight": torch.ones(4, 2), "lora_unet_x.lora_down.weight": torch.ones(2, 4)},
        "embedding": {"emb_params": torch.ones(2, 32)},
        "vae": {name_vae(key): value for key, value in vae.items()},
        "vae in diffusers' names": vae,
        "unet": unet,
        "encoder": twin.text_encoder.state_dict(),
        "controlnet": {"control_model.input_hint_block.0.weight": torch.ones(4, 3, 3, 3)},
        "ip-adapter": {"image_proj.proj.weight": torch.ones(4, 3)},
        "nonsense": {"a.b": torch.ones(3, 3, 3)},
        "nothing": {},
        "inpainting": {**weights, f"{UNET}input_blocks.0.0.weight": torch.ones(32, 9, 3, 3)},
        "pix2pix": {**weights, f"{UNET}input_blocks.0.0.weight": torch.ones(32, 8, 3, 3)},
        "cosxl": {**weights, "edm_vpred.sigma_max": torch.ones(1)},
        "flux": {f"{UNET}double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(4)},
        "torn": {key: value for key, value in weights.items() if "middle_block.1.norm" not in key},
        "torn encoder": {key: value for key, value in weights.items() if "layers.0.layer_norm1" not in key},
        "of other sizes": {**weights, f"{UNET}time_embed.0.weight": torch.ones(7, 7)},
    }[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [("lora", "a LoRA, not a model; give it with --lora"), ("embedding", "give it with --embedding"),
     ("vae", "a VAE, not a model; give it with --vae"), ("vae in diffusers' names", "give it with --vae"),
     ("unet", "a UNet alone"), ("encoder", "a text encoder, not a model"),
     ("controlnet", "a ControlNet, not a model; give it with --controlnet"),
     ("ip-adapter", "an IP-Adapter, not a model"),
     ("nonsense", "no weights of a known kind, not a model"), ("nothing", "no weights of a known kind"),
     ("inpainting", "of kind 'inpainting'"), ("pix2pix", "of kind 'instruct-pix2pix'"), ("cosxl", "of kind 'EDM'"),
     ("flux", "use a diffusers folder"), ("torn", "some of its tensors are missing"),
     ("torn encoder", "its text_encoder lacks 2 tensors"), ("of other sizes", "tensors have other sizes")],
)  # fmt: skip
def test_what_is_no_whole_checkpoint_is_one_line(here, twin, weights, tmp_path, picture, name, words) -> None:
    path = write_file(tmp_path / "model.safetensors", make_wrong(name, twin, weights))
    refuse(here, words, "edit", picture, *OPTIONS, "--model", path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "metadata", "wanted"),
    [
        ({}, {}, ("epsilon", False, "leading")),
        ({"v_pred": torch.ones(1)}, {}, ("v_prediction", False, "leading")),
        ({"v_pred": torch.ones(1), "ztsnr": torch.ones(1)}, {}, ("v_prediction", True, "trailing")),
        ({}, {"modelspec.prediction_type": "v"}, ("v_prediction", False, "leading")),
        ({}, {"modelspec.prediction_type": "epsilon"}, ("epsilon", False, "leading")),
        ({"v_pred": torch.zeros(0)}, {"ss_zero_terminal_snr": "True"}, ("v_prediction", True, "trailing")),
    ],
)
def test_v_prediction_is_noticed(weights, tmp_path: Path, more, metadata, wanted) -> None:
    path = write_file(tmp_path / "model.safetensors", weights | more, **metadata)
    pipeline = build(path, scheduler="EulerDiscreteScheduler" if "ztsnr" in more else None)
    config = pipeline.pipe.scheduler.config
    found = config.prediction_type, config.get("rescale_betas_zero_snr", False), config.timestep_spacing
    assert (found[0], found[1] or False) == wanted[:2]
    assert found[2] == wanted[2] or wanted[2] == "leading"
    assert [("v-prediction" in note, "zero terminal SNR" in note) for note in pipeline.notes] == (
        [(True, wanted[1])] if wanted[0] != "epsilon" else []
    )


@pytest.mark.slow
def test_the_users_own_settings_come_last(weights, tmp_path: Path) -> None:
    path = write_file(tmp_path / "model.safetensors", weights | {"v_pred": torch.ones(1)})
    pipeline = build(path, scheduler_config={"prediction_type": "sample"})
    assert pipeline.pipe.scheduler.config.prediction_type == "sample"


@pytest.mark.parametrize(("spread", "is_v"), [(0.03, False), (0.2, True)])
def test_the_two_stable_diffusions_2_are_told_apart(tmp_path: Path, spread: float, is_v: bool) -> None:
    bias = torch.linspace(-2 * spread, 2 * spread, 320)
    weights = {
        f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias": bias,
        f"{UNET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(1, 1024),
    }
    path = write_file(tmp_path / "model.safetensors", weights)
    found = single_file.read_prediction(path, {key: tuple(value.shape) for key, value in weights.items()})
    assert found == ({"prediction_type": "v_prediction"} if is_v else {})


# VAEs and ControlNets.


@pytest.mark.slow
@pytest.mark.parametrize(("reference", "original"), [(SD, True), (XL, False), (FLUX, True)])
def test_a_vae_file_takes_the_place_of_a_folders(tmp_path: Path, reference: str, original: bool) -> None:
    make_twin(reference, tmp_path / "model")
    state = load_file(tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors")
    state["decoder.conv_out.bias"] += 1
    if original:
        named = {name_vae(key): value for key, value in state.items()}
        state = {k: v[..., None, None] if "attn_1" in k and v.ndim == 2 else v for k, v in named.items()}
    vae = write_file(tmp_path / "vae.safetensors", state)
    before, after = (build(tmp_path / "model", **keys).pipe.vae for keys in ({}, {"vae": str(vae)}))
    assert torch.equal(after.decoder.conv_out.bias, before.decoder.conv_out.bias + 1)
    for key, weight in before.state_dict().items():
        assert key == "decoder.conv_out.bias" or torch.equal(weight, after.state_dict()[key]), key
    assert after.config.scaling_factor == before.config.scaling_factor
    assert after.config.shift_factor == before.config.shift_factor


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["lllyasviel/control_v11p_sd15_canny", "diffusers/controlnet-canny-sdxl-1.0"])
def test_a_controlnet_file_is_used(here, tmp_path: Path, picture: Path, reference: str) -> None:
    make_twin(XL if "sdxl" in reference else SD, tmp_path / "model")
    make_twin(reference, tmp_path / "net")
    file = tmp_path / "net.safetensors"
    shutil.copy(tmp_path / "net" / "diffusion_pytorch_model.safetensors", file)
    done = here("edit", picture, tmp_path / "o.png", "--model", tmp_path / "model", "--controlnet", file,
                "--set", "control=canny", *OPTIONS)  # fmt: skip
    assert done.code == 0, done.err
    made = [
        build(tmp_path / "model", controlnet=str(net), control="canny").pipe.controlnet
        for net in (tmp_path / "net", file)
    ]
    for key, weight in made[0].state_dict().items():
        assert torch.equal(weight, made[1].state_dict()[key]), key


@pytest.mark.parametrize(
    ("option", "shapes", "words"),
    [
        ("--vae", {"decoder.conv_in.weight": (8, 16, 3, 3)}, "its latents have 16 channels, the model's have 4"),
        ("--vae", {"decoder.conv_in.weight": (8, 4, 3, 3)}, "tensors have other sizes"),
        ("--vae", {"emb_params": (1, 32)}, "an embedding, not a VAE; give it with --embedding"),
        ("--controlnet", {"decoder.conv_in.weight": (8, 4, 3, 3)}, "a VAE, not a ControlNet; give it with --vae"),
        ("--controlnet", {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
                          "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (64, 2048)},
         "made for another family, Stable Diffusion XL; choose a preset of that family, such as sdxl-edit"),
        ("--controlnet", {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "task_embedding": (6, 3)},
         "Union"),
        ("--controlnet", {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}, "cannot be loaded"),
    ],
)  # fmt: skip
def test_a_part_that_does_not_fit_is_one_line(here, twin, tmp_path, picture, option, shapes, words) -> None:
    file = write_file(tmp_path / "part.safetensors", {key: torch.zeros(shape) for key, shape in shapes.items()})
    control = ["--set", "control=canny"] if option == "--controlnet" else []
    refuse(here, words, "edit", picture, *OPTIONS, *control, "--model", twin.folder, option, file)


@pytest.mark.parametrize(
    ("option", "part", "words"),
    [("--vae", "unet", "a UNet2DConditionModel, not a VAE"), ("--vae", "text_encoder", "a CLIPTextModel, not a VAE"),
     ("--controlnet", "unet", "a UNet2DConditionModel, not a ControlNet"),
     ("--controlnet", "vae", "an AutoencoderKL, not a ControlNet")],
)  # fmt: skip
def test_a_folder_of_another_kind_is_one_line(here, twin, picture: Path, option: str, part: str, words: str) -> None:
    control = ["--set", "control=canny"] if option == "--controlnet" else []
    refuse(here, words, "edit", picture, *OPTIONS, *control, "--model", twin.folder, option, twin.folder / part)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_folder_that_lacks_tensors_is_one_line(here, twin, tmp_path: Path, picture: Path, part: str) -> None:
    model = shutil.copytree(twin.folder, tmp_path / "model")
    (file,) = (model / part).glob("*.safetensors")
    weights = load_file(file)
    weights.pop(next(key for key in weights if key.endswith("norm1.weight")))
    write_file(file, weights, format="pt")
    refuse(here, f"its {part} lacks 1 tensor", "edit", picture, *OPTIONS, "--model", model)


@pytest.mark.slow
def test_the_shipped_configs_are_those_of_the_real_models() -> None:
    sizes = {
        "sd15/unet": 859_520_964, "sd2/unet": 865_910_724, "sdxl/unet": 2_567_463_684,
        "sd15/vae": 83_653_863, "sd2/vae": 83_653_863, "sdxl/vae": 83_653_863,
    }  # fmt: skip
    for place, size in sizes.items():
        family, _, part = place.partition("/")
        kind = diffusers.UNet2DConditionModel if part == "unet" else diffusers.AutoencoderKL
        with torch.device("meta"):
            made = kind.from_config(kind.load_config(single_file.ARCHITECTURES / family, subfolder=part))
        assert sum(parameter.numel() for parameter in made.parameters()) == size, place


def test_kinds_are_told_by_names_alone(twin, weights) -> None:
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    assert tell_contents(shapes).parts == {"unet", "vae", "text_encoder"}
    shapes[f"{UNET}label_emb.0.0.weight"] = (4, 4)
    assert tell_contents(shapes).family == "sdxl"
    with pytest.raises(ModelError, match="holds no text encoder"):
        single_file._find_missing(Path("x"), shapes, tell_contents(shapes), "sdxl", {"dtype": None}, None, [])
