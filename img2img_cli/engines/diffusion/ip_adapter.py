"""IP-Adapter: a second picture that tells the style."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import ImageProjection
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection

from img2img_cli.engines.hub import fetch_file
from img2img_cli.engines.traits import find_traits
from img2img_cli.errors import ModelError
from img2img_cli.presets.references import parse_file, split_folder
from img2img_cli.presets.schema import Parameters
from img2img_cli.presets.weight_files import check_folder


def load_ip_adapter(pipe: Any, parameters: Parameters, dtype: torch.dtype) -> None:
    """Add the preset's IP-Adapter and its image encoder to a Stable Diffusion pipeline.

    Raises:
        ModelError: the pipeline takes none, or the file is no IP-Adapter.
    """
    reference = parameters.ip_adapter
    assert reference is not None
    if not hasattr(pipe, "load_ip_adapter") or getattr(pipe, "unet", None) is None:
        raise ModelError(f"{reference}: a {type(pipe).__name__} takes no IP-Adapter; leave --style out")
    weights: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in load_file(fetch_file(parse_file("ip_adapter", reference), "ip_adapter")).items():
        part, _, key = name.partition(".")
        if part not in weights:
            raise ModelError(f"{reference}: its weights '{name}' are none of an IP-Adapter; check the file")
        weights[part][key] = tensor
    place, subfolder = split_folder(parameters.ip_adapter_image_encoder)
    if Path(place).is_dir():
        check_folder(Path(place))
    encoder = CLIPVisionModelWithProjection.from_pretrained(
        place, subfolder=subfolder, dtype=dtype, use_safetensors=True
    )
    pipe.register_modules(image_encoder=encoder)
    pipe.load_ip_adapter(weights, subfolder="", weight_name="")
    pipe.set_ip_adapter_scale(_scale_blocks(pipe, parameters))


def _scale_blocks(pipe: Any, parameters: Parameters) -> Any:
    """Everywhere, or only in the layers that hold style.

    InstantStyle (Wang et al., 2024, arXiv:2404.02733): in SDXL it is the middle attention of the first upward block,
    in Stable Diffusion 1.5 the first upward block that has attention.
    """
    scale = parameters.ip_adapter_scale
    if parameters.ip_adapter_blocks == "all":
        return scale
    blocks = list(pipe.unet.up_blocks)
    index = next(i for i, block in enumerate(blocks) if getattr(block, "has_cross_attention", False))
    layers = range(len(blocks[index].attentions))
    only = find_traits(pipe).style_layer
    return {"up": {f"block_{index}": [scale if only in (None, layer) else 0.0 for layer in layers]}}


def encode_style(pipe: Any, style: Image.Image, device: torch.device, *, guided: bool) -> torch.Tensor:
    """Embeddings of a style picture, `(1, 1, D)`; those of no picture before them when guided.

    diffusers repeats them for every picture of a batch, so that a batch has one style.
    """
    with_states = not isinstance(pipe.unet.encoder_hid_proj.image_projection_layers[0], ImageProjection)
    embeds, nothing = pipe.encode_image(style, device, 1, with_states)
    return torch.cat([nothing, embeds] if guided else [embeds])[:, None]
