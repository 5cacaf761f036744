"""What is trained on a diffusion model, and what is written: a LoRA, a ControlNet, or an InstructPix2Pix."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers import AutoPipelineForImage2Image, ControlNetModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save

from img2img_cli.engines.traits import find_traits, tell_families
from img2img_cli.errors import OutputError, UsageError, advise
from img2img_cli.pictures.write import write_output_bytes
from img2img_cli.train.diffusion.capture import find_denoiser

MethodName = Literal["lora", "controlnet", "ip2p"]
LORA_FILE, CONTROLNET_FOLDER, MODEL_FOLDER = "lora.safetensors", "controlnet", "model"
# Layers that are given a LoRA: matrices and, in UNets, convolutions, within blocks. Embeddings and the last layer stay.
_WITHIN = re.compile(r"(^|\.)(\w*blocks?|attentions|resnets)(\.|$)")
_NORMS = re.compile(r"norm|time_emb")
_IP2P = {
    "StableDiffusionImg2ImgPipeline": diffusers.StableDiffusionInstructPix2PixPipeline,
    "StableDiffusionXLImg2ImgPipeline": diffusers.StableDiffusionXLInstructPix2PixPipeline,
}


@dataclass(kw_only=True)
class Taught:
    """A pipeline made ready for training.

    Attributes:
        pipe: the diffusers pipeline that the result will run in.
        module: the module that is trained, or holds what is trained.
        parameters: those to train.
        starts_from_picture: whether a run starts from the noised input rather than from noise alone.
        keys: what the preset says beside its base.
    """

    pipe: Any
    module: torch.nn.Module
    parameters: Sequence[torch.nn.Parameter]
    starts_from_picture: bool
    keys: dict[str, Any]


def list_lora_layers(denoiser: torch.nn.Module) -> list[str]:
    """Return the names of the layers that a LoRA changes."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d) if hasattr(denoiser.config, "block_out_channels") else torch.nn.Linear
    return [
        name
        for name, module in denoiser.named_modules()
        if isinstance(module, kinds) and _WITHIN.search(name) and not _NORMS.search(name)
    ]


def teach_lora(pipe: Any, *, rank: int, alpha: float, seed: int) -> Taught:
    """Give a pipeline's UNet or transformer a LoRA, which changes nothing yet."""
    denoiser: Any = find_denoiser(pipe)
    denoiser.requires_grad_(False)
    torch.manual_seed(seed)
    layers = list_lora_layers(denoiser)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        init_lora_weights="gaussian",
        target_modules=layers,
    )
    denoiser.add_adapter(config)
    parameters = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return Taught(
        pipe=pipe, module=denoiser, parameters=parameters, starts_from_picture=starts_from_picture(pipe), keys={}
    )


def save_lora(pipe: Any, folder: Path, *, rank: int, alpha: float) -> None:
    """Write a LoRA in diffusers' format, in half precision; alpha is multiplied in, so that its scale is 1.

    Raises:
        OutputError: it cannot be written.
    """
    start = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
    tensors = {
        f"{start}.{name}": (tensor * (alpha / rank) if "lora_B" in name else tensor).to(torch.float16).contiguous()
        for name, tensor in get_peft_model_state_dict(find_denoiser(pipe)).items()
    }
    write_output_bytes(save(tensors, metadata={"format": "pt"}), str(folder / LORA_FILE))


def save_halved(part: Any, folder: Path) -> None:
    """Write a module or a pipeline in half precision, as a whole; what is trained stays in float32.

    Raises:
        OutputError: it cannot be written.
    """
    modules = (
        [each for each in part.components.values() if isinstance(each, torch.nn.Module)]
        if (hasattr(part, "components"))
        else [part]
    )
    own = [{name: tensor.detach().clone() for name, tensor in each.state_dict().items()} for each in modules]
    half, old = folder.with_suffix(".tmp"), folder.with_suffix(".old")
    try:
        for path in (half, old):
            shutil.rmtree(path, ignore_errors=True)
        for each in modules:
            each.half()
        part.save_pretrained(half, safe_serialization=True)
        if folder.exists():
            folder.rename(old)
        half.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}); {advise(error)}") from None
    finally:
        for each, tensors in zip(modules, own, strict=True):
            each.to(next(iter(tensors.values())).dtype)
            each.load_state_dict(tensors)
        for path in (half, old):
            shutil.rmtree(path, ignore_errors=True)


def teach_controlnet(pipe: Any) -> Taught:
    """Return the pipeline with a ControlNet to train: its own, or a copy of the UNet's first half.

    Raises:
        UsageError: the base is no Stable Diffusion.
    """
    if not tell_families(pipe) & {"sd1", "sd2", "sdxl"} or getattr(pipe, "unet", None) is None:
        raise UsageError("--method controlnet: needs a Stable Diffusion or SDXL base; use --method lora")
    if getattr(pipe, "controlnet", None) is None:
        net = ControlNetModel.from_unet(pipe.unet)
        pipe = AutoPipelineForImage2Image.from_pipe(pipe, controlnet=net)
    pipe.unet.requires_grad_(False)
    net = pipe.controlnet.float().requires_grad_(True)
    return Taught(
        pipe=pipe,
        module=net,
        parameters=list(net.parameters()),
        starts_from_picture=True,
        keys={"control": "picture", "strength": 1.0},
    )


def teach_ip2p(pipe: Any) -> Taught:
    """Return an InstructPix2Pix pipeline whose UNet is given the input's latents beside the noise, to train whole.

    The weights for the new channels start at 0 (Brooks et al. 2023), so that at first nothing changes.

    Raises:
        UsageError: the base is no Stable Diffusion 1, 2 or XL from text.
    """
    kind = _IP2P.get(type(pipe).__name__)
    if kind is None:
        raise UsageError("--method ip2p: needs a Stable Diffusion or SDXL base such as sd15-edit; use --method lora")
    unet = pipe.unet.float()
    old, count = unet.conv_in, unet.config.in_channels
    new = torch.nn.Conv2d(2 * count, old.out_channels, old.kernel_size, old.stride, old.padding)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, :count] = old.weight
        assert new.bias is not None
        new.bias.copy_(old.bias)
    unet.conv_in = new.to(old.weight.device)
    unet.register_to_config(in_channels=2 * count)
    unet.requires_grad_(True)
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    parts = {name: getattr(pipe, name) for name in names if getattr(pipe, name, None) is not None}
    spare = {} if "text_encoder_2" in parts else dict.fromkeys(("safety_checker", "feature_extractor"))
    more = {} if "text_encoder_2" in parts else {"requires_safety_checker": False}
    made = kind(unet=unet, **parts, **spare, **more)
    return Taught(
        pipe=made,
        module=unet,
        parameters=list(unet.parameters()),
        starts_from_picture=False,
        keys={"strength": 1.0, "image_guidance_scale": 1.5},
    )


def starts_from_picture(pipe: Any) -> bool:
    """Return whether a run starts from the noised input, and the model sees nothing else of it."""
    return find_traits(pipe).takes_latents or "Img2Img" in type(pipe).__name__


def list_keys(method: MethodName, base_lora: Sequence[str]) -> dict[str, Any]:
    """Return the keys of a preset that name what was trained.

    Args:
        base_lora: the LoRAs of the base, which the new one comes after.
    """
    if method == "lora":
        return {"lora": [*base_lora, f"./{LORA_FILE}"]}
    if method == "controlnet":
        return {"controlnet": f"./{CONTROLNET_FOLDER}"}
    return {"model": f"./{MODEL_FOLDER}", "revision": None, "variant": None, "vae": None}
