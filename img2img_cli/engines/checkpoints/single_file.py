"""Checkpoints, VAEs and ControlNets in one .safetensors file of the original layout, from configs that are shipped."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders.single_file_utils import (
    SingleFileComponentError,
    create_diffusers_clip_model_from_ldm,
    infer_diffusers_model_type,
)
from safetensors import safe_open
from transformers import CLIPTokenizer

from img2img_cli import PACKAGE
from img2img_cli.engines.checkpoints.contents import (
    FAMILY_NAMES,
    Contents,
    Shapes,
    advise_option,
    advise_preset,
    tell_contents,
)
from img2img_cli.engines.traits import Family, find_traits
from img2img_cli.errors import ModelError
from img2img_cli.presets.references import locate_model
from img2img_cli.presets.weight_files import read_metadata, read_shapes

ARCHITECTURES = Path(PACKAGE) / "architectures"
_FOLDERS: dict[Family, str] = {"sd1": "sd15", "sd2": "sd2", "sdxl": "sdxl"}
_PIPELINES = {
    "v1": "StableDiffusion",
    "v2": "StableDiffusion",
    "xl_base": "StableDiffusionXL",
    "sd3": "StableDiffusion3",
}
_KINDS: dict[str, Family] = {"v1": "sd1", "v2": "sd2", "xl_base": "sdxl", "sd3": "sd3"}
# Where parts that a file lacks are taken from, and the preset that fetches them.
DEFAULTS: dict[Family, tuple[str, str]] = {
    "sd1": ("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd15-edit"),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl-edit"),
}
# The text encoders of each family: their class, and a tensor by which diffusers knows them.
_ENCODERS: dict[Family, dict[str, tuple[str, str]]] = {
    "sd1": {
        "text_encoder": (
            "CLIPTextModel",
            "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
        )
    },
    "sd2": {"text_encoder": ("CLIPTextModel", "cond_stage_model.model.token_embedding.weight")},
    "sdxl": {
        "text_encoder": (
            "CLIPTextModel",
            "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
        ),
        "text_encoder_2": ("CLIPTextModelWithProjection", "conditioner.embedders.1.model.positional_embedding"),
    },
}
_UNET = "model.diffusion_model."
_OLD_ENCODER = "cond_stage_model.transformer."  # of files from before transformers named it `text_model`
_SPREAD_KEY = f"{_UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
_SPREAD_OF_V = 0.09  # ComfyUI's threshold between Stable Diffusion 2.1's two models
_V_NAMES = ("v", "v_prediction", "v-prediction", "v_pred", "vpred")


def load_clip_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """OpenAI CLIP's tokenizer, as Stable Diffusion 1.x uses it, from the merges that are shipped.

    Args:
        pad: the token that fills up short prompts; `!` for OpenCLIP.
    """
    lines = (ARCHITECTURES / "sd15" / "tokenizer" / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    alphabet = list(_byte_alphabet())
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(line.split()) for line in lines)]
    vocab = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    merges = [tuple(line.split()) for line in lines]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77, pad_token=pad)


def _byte_alphabet() -> Iterator[str]:
    """Printable characters that stand for the 256 bytes, in the order of CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    yield from map(chr, printable)
    yield from (chr(256 + index) for index in range(256 - len(printable)))


def load_single_file(
    path: Path, dtype: torch.dtype, given: dict[str, Any], variant: str | None, notes: list[str]
) -> Any:
    """A checkpoint in one file. Stable Diffusion 1, 2 and XL need nothing else; 3 takes its config from the hub.

    A VAE or text encoder that the file lacks is taken from the family's own model, if that is in the cache.

    Args:
        given: components that take the place of the file's.
        variant: of the family's own model.
        notes: takes what is to be told.

    Raises:
        ModelError: no checkpoint, of a family that cannot be loaded so, or without a part that is nowhere else.
    """
    shapes = read_shapes(path)
    contents = tell_contents(shapes)
    kind, family = _find_kind(path, shapes, contents)
    options: dict[str, Any] = {"dtype": dtype, **given}
    if family in _FOLDERS:
        options["config"] = str(ARCHITECTURES / _FOLDERS[family])
        options |= _make_tokenizers(family)
    if kind in ("v1", "v2"):
        options |= {"safety_checker": None, "requires_safety_checker": False}
    options |= _find_missing(path, shapes, contents, family, options, variant, notes)
    middle = "ControlNet" if "controlnet" in given else ""
    pipeline_class = getattr(diffusers, f"{_PIPELINES[kind]}{middle}Img2ImgPipeline")
    try:
        pipe = pipeline_class.from_single_file(str(path), **options)
    except SingleFileComponentError as error:  # of families whose parts are not looked for above
        first = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{path}: lacks a part ({first[:200]}); use a whole checkpoint or a diffusers folder"
        ) from None
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            check_whole(path, name, part)
    settings = read_prediction(path, shapes)
    if settings:
        pipe.scheduler = set_prediction(pipe.scheduler, settings)
        zero = " with zero terminal SNR" if "rescale_betas_zero_snr" in settings else ""
        notes.append(f"{path}: a v-prediction model{zero}; its scheduler is set to that")
    return pipe


def _find_kind(path: Path, shapes: Shapes, contents: Contents) -> tuple[str, Family]:
    """What diffusers calls this kind of checkpoint, and its family."""
    if contents.kind == "UNet":
        raise ModelError(f"{path}: a UNet alone, not a model; give a whole checkpoint, or a diffusers folder")
    if contents.kind not in ("checkpoint", "transformer"):
        raise ModelError(f"{path}: {contents.title}, not a model; {advise_option(contents)}")
    kind = infer_diffusers_model_type({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    if kind in ("v1", "v2", "xl_base"):  # told by a text encoder, which the file may lack
        own = {family: name for name, family in _KINDS.items()}
        kind = own.get(contents.family or _KINDS[kind], contents.family or kind)
    first = shapes.get(f"{_UNET}input_blocks.0.0.weight", (0, 4))
    if "edm_mean" in shapes or "edm_vpred.sigma_max" in shapes:
        kind = "EDM"
    elif kind in _KINDS and len(first) > 1 and first[1] != 4:
        kind = f"UNet of {first[1]} channels"
    if kind not in _PIPELINES:
        raise ModelError(
            f"{path}: a checkpoint of kind '{kind}', which cannot be loaded from one file; use a diffusers folder"
        )
    return kind, _KINDS[kind]


def _make_tokenizers(family: Family) -> dict[str, CLIPTokenizer]:
    if family == "sd1":
        return {"tokenizer": load_clip_tokenizer()}
    if family == "sd2":
        return {"tokenizer": load_clip_tokenizer("!")}
    return {"tokenizer": load_clip_tokenizer(), "tokenizer_2": load_clip_tokenizer("!")}


def _find_missing(
    path: Path,
    shapes: Shapes,
    contents: Contents,
    family: Family,
    given: Mapping[str, Any],
    variant: str | None,
    notes: list[str],
) -> dict[str, Any]:
    """The parts that a checkpoint lacks, by component."""
    found: dict[str, Any] = {}
    wanted = {name: (kind, key in shapes) for name, (kind, key) in _ENCODERS.get(family, {}).items()}
    if family == "sd1" and f"{_OLD_ENCODER}embeddings.position_embedding.weight" in shapes:
        found["text_encoder"] = _load_old_encoder(path, given["dtype"])
    if family in _ENCODERS:
        wanted["vae"] = ("AutoencoderKL", "vae" in contents.parts)
    for name, (kind, has) in wanted.items():
        if has or name in given or name in found:
            continue
        found[name] = part = _borrow(family, name, kind, given["dtype"], variant)
        title = {"vae": "VAE", "text_encoder_2": "second text encoder"}.get(name, "text encoder")
        reference, preset = DEFAULTS.get(family, ("", ""))
        if part is None:
            fetch = f", or fetch the family's own with `img2img models pull {preset}`" if preset else ""
            give = "give one with --vae" if name == "vae" else "give a whole checkpoint"
            raise ModelError(f"{path}: holds no {title}; {give}{fetch}")
        notes.append(f"{path}: holds no {title}; that of {reference} is used")
    return found


def _borrow(family: Family, name: str, kind: str, dtype: torch.dtype, variant: str | None) -> Any:
    """A part of the family's own model from the cache; None if it is not there."""
    if family not in DEFAULTS:
        return None
    loader = getattr(diffusers, kind, None) or getattr(transformers, kind)
    for choice in dict.fromkeys((variant, None, "fp16")):
        try:
            return loader.from_pretrained(
                DEFAULTS[family][0],
                subfolder=name,
                variant=choice,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
            )
        except OSError:
            continue
    return None


def _load_old_encoder(path: Path, dtype: torch.dtype) -> Any:
    with safe_open(path, "pt") as file:
        keys = [key for key in file.keys() if key.startswith(_OLD_ENCODER)]  # noqa: SIM118 - not a dict
        weights = {f"{_OLD_ENCODER}text_model.{key.removeprefix(_OLD_ENCODER)}": file.get_tensor(key) for key in keys}
    return create_diffusers_clip_model_from_ldm(
        transformers.CLIPTextModel,
        checkpoint=weights,
        config=str(ARCHITECTURES / "sd15"),
        subfolder="text_encoder",
        torch_dtype=dtype,
    )


def check_whole(path: Path | str, name: str, part: torch.nn.Module) -> None:
    """Refuse what lacks tensors: diffusers leaves them without memory, and says so of some kinds of file alone.

    Raises:
        ModelError: naming the file and a tensor.
    """
    _refuse_missing(path, name, [key for key, tensor in part.state_dict().items() if tensor.is_meta])


def check_clip_folder(folder: Path, name: str, part: torch.nn.Module) -> None:
    """Refuse CLIP's weights in a folder if they lack tensors, in whose place transformers puts random ones.

    Raises:
        ModelError: naming the folder and a tensor.
    """
    files = [read_shapes(file) for file in (folder / name).glob("*.safetensors")]
    known = {key.removeprefix("text_model.") for shapes in files for key in shapes}
    own = [key for key in part.state_dict() if not key.endswith("position_ids")]
    _refuse_missing(folder, name, [key for key in own if key.removeprefix("text_model.") not in known])


def _refuse_missing(path: Path | str, name: str, missing: list[str]) -> None:
    if missing:
        count = f"{len(missing)} tensor{'s' * (len(missing) > 1)}"
        raise ModelError(f"{path}: its {name} lacks {count}, such as {missing[0]}; get the whole model again")


def read_prediction(path: Path, shapes: Shapes) -> dict[str, Any]:
    """The scheduler's settings of a v-prediction checkpoint; empty where it predicts noise or does not tell.

    Keys `v_pred` and `ztsnr` are NoobAI's and ComfyUI's; ModelSpec and kohya's scripts write into the header. A Stable
    Diffusion 2 that tells nothing is known by the spread of one layer's biases, as ComfyUI does.
    """
    metadata = {key: text.lower() for key, text in read_metadata(path).items()}
    told = metadata.get("modelspec.prediction_type")
    is_v = "v_pred" in shapes or told in _V_NAMES or metadata.get("ss_v_parameterization") == "true"
    if not (is_v or told) and tell_contents(shapes).family == "sd2" and _SPREAD_KEY in shapes:
        with safe_open(path, "pt") as file:
            is_v = float(file.get_tensor(_SPREAD_KEY).float().std(unbiased=False)) > _SPREAD_OF_V
    if not is_v:
        return {}
    settings: dict[str, Any] = {"prediction_type": "v_prediction"}
    if "ztsnr" in shapes or metadata.get("ss_zero_terminal_snr") == "true":
        settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return settings


def set_prediction(scheduler: Any, settings: Mapping[str, Any]) -> Any:
    """A scheduler with these settings; DDIM's where it knows no zero terminal SNR. A preset's class inherits them."""
    kind = type(scheduler)
    if not settings.keys() <= inspect.signature(kind.__init__).parameters.keys():
        kind = diffusers.DDIMScheduler
    return kind.from_config(scheduler.config, **settings)


def load_vae_file(path: Path, dtype: torch.dtype, model: str, revision: str | None) -> Any:
    """A VAE in one file, built as that of the model whose place it takes.

    Args:
        model: the model's reference.

    Raises:
        ModelError: no VAE, or one of another family.
    """
    shapes = read_shapes(path)
    contents = tell_contents(shapes)
    if contents.kind != "VAE" and "vae" not in contents.parts:
        raise ModelError(f"{path}: {contents.title}, not a VAE; {advise_option(contents)}")
    place, config = _find_config(model, revision, "vae")
    loader: Any = getattr(diffusers, str(config.get("_class_name")), None)
    if not hasattr(loader, "from_single_file"):
        raise ModelError(f"{path}: {model} takes no VAE in one file; give a diffusers folder")
    wide = next((shape for key, shape in shapes.items() if key.endswith("decoder.conv_in.weight")), (0,))
    channels = config.get("latent_channels")
    if len(wide) > 1 and channels is not None and wide[1] != channels:
        raise ModelError(
            f"{path}: made for another family: its latents have {wide[1]} channels, the model's have {channels}; "
            "give a VAE of the model's family"
        )
    vae = loader.from_single_file(str(path), config=place, subfolder="vae", config_revision=revision, dtype=dtype)
    check_whole(path, "VAE", vae)
    return vae


def load_controlnet_file(path: Path, dtype: torch.dtype, model: str, revision: str | None) -> Any:
    """A ControlNet in one file, built as a copy of the first half of the model's UNet.

    Args:
        model: the model's reference.

    Raises:
        ModelError: no ControlNet, or one of another family.
    """
    shapes = read_shapes(path)
    contents = tell_contents(shapes)
    if contents.kind != "ControlNet":
        raise ModelError(f"{path}: {contents.title}, not a ControlNet; {advise_option(contents)}")
    if any("task_embedding" in key or "control_type" in key for key in shapes):
        raise ModelError(f"{path}: a ControlNet-Union, which is not supported; give one that is for a single control")
    _, unet = _find_config(model, revision, "unet")
    widths = [shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight") and len(shape) == 2]
    if widths and unet.get("cross_attention_dim") not in (None, widths[0]):
        family = contents.family
        made = f", {FAMILY_NAMES[family]}; {advise_preset(family)}" if family else "; give one of the model's"
        raise ModelError(f"{path}: made for another family{made}")
    own = inspect.signature(diffusers.ControlNetModel.__init__).parameters.keys()
    options = {key: value for key, value in unet.items() if key in own and not key.startswith("_")}
    options |= _measure_controlnet(shapes)
    net = diffusers.ControlNetModel.from_single_file(
        str(path), config=str(ARCHITECTURES / "sd15"), subfolder="controlnet", dtype=dtype, **options
    )
    check_whole(path, "ControlNet", net)
    return net


def _measure_controlnet(shapes: Shapes) -> dict[str, Any]:
    """Channels of a ControlNet's input, and of the layers that the control picture goes through."""
    found: dict[str, Any] = {}
    for name in ("control_model.input_blocks.0.0.weight", "conv_in.weight"):
        if name in shapes:
            found["in_channels"] = shapes[name][1]
    start = "controlnet_cond_embedding."
    if (first := shapes.get(f"{start}conv_in.weight")) is not None:
        # Of two convolutions a step the second widens.
        steps = (f"{start}blocks.{place}.weight" for place in range(1, len(shapes), 2))
        found["conditioning_embedding_out_channels"] = [
            first[0],
            *(shapes[name][0] for name in steps if name in shapes),
        ]
        found["conditioning_channels"] = first[1]
    return found


def _find_config(model: str, revision: str | None, part: str) -> tuple[str, dict[str, Any]]:
    """Where a part's config lies, and what it says: in the model's own folder, else in ours for its family."""
    kind, place = locate_model(model)
    if kind == "file":
        family = tell_contents(read_shapes(Path(place))).family
        place = str(ARCHITECTURES / _FOLDERS.get(family or "sd1", "sd15"))
    loader = {"vae": diffusers.AutoencoderKL, "unet": diffusers.UNet2DConditionModel}[part]
    try:
        return place, dict(loader.load_config(place, subfolder=part, revision=revision if kind == "hub" else None))
    except OSError:  # such as an XL of the hub, whose VAE another one takes the place of
        index = diffusers.DiffusionPipeline.load_config(place, revision=revision if kind == "hub" else None)
        folder = find_traits(str(index.get("_class_name"))).architecture
        if folder is None:
            raise
        place = str(ARCHITECTURES / folder)
        return place, dict(loader.load_config(place, subfolder=part))
