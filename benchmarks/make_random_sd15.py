"""Write a full-size Stable Diffusion 1.5 with seeded random weights, with the layout, size and speed of the real one.

Where the real weights are not available, it serves to check that checkpoints in both layouts load and match diffusers.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

import img2img_cli
from img2img_cli.engines.checkpoints.single_file import load_clip_tokenizer

ARCHITECTURE = Path(img2img_cli.__file__).parent / "architectures" / "sd15"
UNET_PREFIX, VAE_PREFIX, CLIP_PREFIX = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
LATENT_STD, PIXEL_STD = 5.0, 0.5  # about the deviations of the real encoder and decoder
LOG_VARIANCE = -6.0

Weights = dict[str, torch.Tensor]
Convert = Callable[[Weights, Mapping[str, Any]], Weights]


def build_pipeline(seed: int) -> Any:
    """Build a float16 `StableDiffusionPipeline` with random weights and without a safety checker."""
    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel.from_config(_config(diffusers.UNet2DConditionModel, "unet"))
    vae = diffusers.AutoencoderKL.from_config(_config(diffusers.AutoencoderKL, "vae"))
    text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(ARCHITECTURE / "text_encoder"))
    scale_outputs(unet, vae)
    pipe = diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=load_clip_tokenizer(),
        scheduler=diffusers.PNDMScheduler.from_pretrained(ARCHITECTURE / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe.to(dtype=torch.float16)


def _config(class_: Any, folder: str) -> dict[str, Any]:
    config: dict[str, Any] = class_.load_config(ARCHITECTURE / folder)
    return config


@torch.inference_mode()
def scale_outputs(unet: Any, vae: Any) -> None:
    """Scale the last layers so that noise, latents and pixels have about the same deviation as in the real model.

    With the initial weights, the encoder hides the picture in noise, and the decoder gives a nearly uniform grey, so
    that any two results would match.
    """
    latents, text = torch.randn(1, 4, 32, 32), torch.randn(1, 77, unet.config.cross_attention_dim)
    _standardise(unet.conv_out, unet(latents, 500, text).sample, 1.0)
    pixels = torch.nn.functional.interpolate(torch.rand(1, 3, 16, 16) * 2 - 1, size=256, mode="bilinear")
    _standardise(vae.quant_conv, vae.encode(pixels).latent_dist.parameters, LATENT_STD)
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = LOG_VARIANCE
    _standardise(vae.decoder.conv_out, vae.decode(latents * LATENT_STD).sample, PIXEL_STD)


def _standardise(layer: torch.nn.Conv2d, output: torch.Tensor, std: float) -> None:
    """Scale a convolution so that each channel of its `output` `(B, C, H, W)` gets mean 0 and deviation `std`."""
    assert layer.bias is not None
    deviation, mean = torch.std_mean(output, dim=(0, 2, 3))
    layer.bias.sub_(mean).mul_(std / deviation)
    layer.weight.mul_((std / deviation)[:, None, None, None])


def save_folder(pipe: Any, folder: Path) -> None:
    """Write a diffusers folder with the scheduler settings of the real repository.

    `save_pretrained` would add PNDM's `timestep_spacing`. This value would override the default of any other scheduler
    created from the folder, and the same weights from a single file would be denoised at other timesteps.
    """
    pipe.save_pretrained(folder, safe_serialization=True)
    shutil.copy(ARCHITECTURE / "scheduler" / "scheduler_config.json", folder / "scheduler")


def original_layout(pipe: Any) -> Weights:
    """Return the weights of the pipeline with the names and shapes of the original CompVis checkpoint."""
    unet = _rename(pipe.unet, convert_ldm_unet_checkpoint, UNET_PREFIX, _unet_names(pipe.unet.config))
    vae = _rename(pipe.vae, convert_ldm_vae_checkpoint, VAE_PREFIX, _vae_names(pipe.vae.config))
    for name, tensor in vae.items():
        if ".attn_1." in name and tensor.ndim == 2:  # attention in the original consists of 1x1 convolutions
            vae[name] = tensor[:, :, None, None]
    text = {name.removeprefix("text_model."): tensor for name, tensor in pipe.text_encoder.state_dict().items()}
    weights = unet | vae | {f"{CLIP_PREFIX}text_model.{name}": tensor for name, tensor in text.items()}
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def _rename(module: Any, convert: Convert, prefix: str, layers: Iterator[str]) -> Weights:
    """Invert a conversion of diffusers, by sending numbered scalars through it to learn the mapping of names.

    Args:
        layers: all layers that the original may have. Those missing from the diffusers module are left out.

    Raises:
        RuntimeError: the conversion does not map the names as expected.
    """
    names = [f"{prefix}{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    tags = {name: torch.tensor(index) for index, name in enumerate(names)}
    weights = module.state_dict()
    learnt = {ours: names[int(tag)] for ours, tag in convert(tags, module.config).items() if ours in weights}
    missing = weights.keys() - learnt.keys()
    if missing or len(set(learnt.values())) != len(weights):
        raise RuntimeError(f"diffusers converts these differently from what is expected here: {sorted(missing)[:5]}")
    return {original: weights[ours] for ours, original in learnt.items()}


def _unet_names(config: Any) -> Iterator[str]:
    """Yield the layers that the original UNet may have. Its blocks are numbered continuously across resolutions."""
    count, depth = config.layers_per_block, len(config.block_out_channels)
    yield from ("time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2")
    for index in range(1, depth * (count + 1)):
        yield from _unet_block(f"input_blocks.{index}")
        yield f"input_blocks.{index}.0.op"
    yield from _unet_block("middle_block")
    yield from _unet_resnet("middle_block.2")
    for index in range(depth * (count + 1)):
        yield from _unet_block(f"output_blocks.{index}")
        has_attention = "CrossAttn" in config.up_block_types[index // (count + 1)]
        yield f"output_blocks.{index}.{2 if has_attention else 1}.conv"


def _unet_block(block: str) -> Iterator[str]:
    yield from _unet_resnet(f"{block}.0")
    yield from (f"{block}.1.{layer}" for layer in ("norm", "proj_in", "proj_out"))
    inner = f"{block}.1.transformer_blocks.0"
    yield from (f"{inner}.attn{a}.{layer}" for a in (1, 2) for layer in ("to_q", "to_k", "to_v", "to_out.0"))
    yield from (f"{inner}.{layer}" for layer in ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"))


def _unet_resnet(block: str) -> Iterator[str]:
    layers = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
    yield from (f"{block}.{layer}" for layer in layers)


def _vae_names(config: Any) -> Iterator[str]:
    """Yield the layers that the original autoencoder may have."""
    count, depth = config.layers_per_block, len(config.block_out_channels)
    yield from ("quant_conv", "post_quant_conv")
    for half, way, blocks in (("encoder", "down", count), ("decoder", "up", count + 1)):
        yield from (f"{half}.{layer}" for layer in ("conv_in", "conv_out", "norm_out"))
        yield from (f"{half}.mid.attn_1.{layer}" for layer in ("norm", "q", "k", "v", "proj_out"))
        resnets = [f"{half}.mid.block_{index}" for index in (1, 2)]
        resnets += [f"{half}.{way}.{level}.block.{index}" for level in range(depth) for index in range(blocks)]
        layers = ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")
        yield from (f"{resnet}.{layer}" for resnet in resnets for layer in layers)
        yield from (f"{half}.{way}.{level}.{way}sample.conv" for level in range(depth))


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="OUT_FOLDER", help="diffusers folder to write")
    parser.add_argument("--single-file", type=Path, metavar="FILE.safetensors", help="the same in the original layout")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pipe = build_pipeline(arguments.seed)
    save_folder(pipe, arguments.folder)
    if arguments.single_file:
        arguments.single_file.parent.mkdir(parents=True, exist_ok=True)
        save_file(original_layout(pipe), arguments.single_file, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
