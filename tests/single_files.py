"""Single-file checkpoints with the tensor names of the original layout, made from tiny models in diffusers' layout."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from img2img_cli.engines.checkpoints.single_file import ARCHITECTURES

_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _replace(text: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        text = re.sub(rf"(?<![\w]){re.escape(old)}(?![\w])", new, text)
    return text


def name_unet(key: str, layers: int) -> str:
    """Return a UNet tensor's name in the original layout, without prefix, given `layers` per level."""
    step = layers + 1
    for old, new in _TOP.items():
        if key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    if match := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", key):
        side, level, kind, place, rest = match.groups()
        number = step * int(level) + int(place) + (side == "down")
        rest = _replace(rest, _RESNET) if kind == "resnets" else rest
        return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{int(kind == 'attentions')}.{rest}"
    if match := re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv(.*)", key):
        return f"input_blocks.{step * (int(match[1]) + 1)}.0.op{match[2]}"
    if match := re.match(r"up_blocks\.(\d)\.upsamplers\.0\.(.*)", key):
        return f"output_blocks.{step * int(match[1]) + layers}.2.{match[2]}"
    if match := re.match(r"mid_block\.resnets\.(\d)\.(.*)", key):
        return f"middle_block.{2 * int(match[1])}.{_replace(match[2], _RESNET)}"
    return re.sub(r"^mid_block\.attentions\.0", "middle_block.1", key)


def name_vae(key: str, levels: int = 4) -> str:
    """Return a VAE tensor's name in the original layout, without prefix."""
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    if "mid_block.attentions.0" in key:
        key = _replace(key.replace("mid_block.attentions.0", "mid.attn_1"), _ATTENTION)
    return key


def name_parts(pipe: Any, encoder: str = "cond_stage_model.transformer.text_model.") -> dict[str, torch.Tensor]:
    """Return the tensors of a Stable Diffusion 1 by their names in a single file."""
    layers = pipe.unet.config.layers_per_block
    found = {f"model.diffusion_model.{name_unet(k, layers)}": v for k, v in pipe.unet.state_dict().items()}
    for key, value in pipe.vae.state_dict().items():
        name = name_vae(key)
        found[f"first_stage_model.{name}"] = value[..., None, None] if "attn_1" in name and value.ndim == 2 else value
    found |= {encoder + k.removeprefix("text_model."): v for k, v in pipe.text_encoder.state_dict().items()}
    return found


_OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj"}
_OPEN_CLIP |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def name_open_clip(encoder: Any) -> dict[str, torch.Tensor]:
    """Return a text encoder's tensors by OpenCLIP's names, with its three projections in one matrix."""
    state = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    found = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T,
    }
    for key, value in state.items():
        if match := re.match(r"encoder\.layers\.(\d+)\.(.*)", key):
            start, rest = f"transformer.resblocks.{match[1]}.", match[2]
            if not re.search(r"[qkv]_proj", rest):
                found[start + _replace(rest, _OPEN_CLIP)] = value
            elif "q_proj" in rest:
                parts = [state[key.replace("q_proj", f"{name}_proj")] for name in "qkv"]
                found[f"{start}attn.in_proj_{rest.rpartition('.')[2]}"] = torch.cat(parts)
    return found


def name_parts_xl(pipe: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a Stable Diffusion XL by their names in a single file."""
    start = "conditioner.embedders."
    found = name_parts(pipe, f"{start}0.transformer.text_model.")
    return found | {f"{start}1.model.{key}": value for key, value in name_open_clip(pipe.text_encoder_2).items()}


def write_file(path: Path, weights: dict[str, torch.Tensor], **metadata: str) -> Path:
    """Write a .safetensors file."""
    save_file({key: value.clone().contiguous() for key, value in weights.items()}, path, metadata or None)
    return path


def make_architectures(folder: Path, model: Path, family: str = "sd15") -> Path:
    """Return a copy of our folder of architectures with a tiny model's configs for one family."""
    shutil.copytree(ARCHITECTURES, folder)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if (model / part).exists():
            shutil.copy(model / part / "config.json", folder / family / part / "config.json")
    return folder
