"""Stage two: train text encoder, UNet and ControlNet jointly on latents of the frozen autoencoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from img2img_cli.pictures.control_maps import make_control_image
from img2img_cli.train.bundled.autoencoder import stack_pictures
from img2img_cli.train.bundled.captions import clean_caption, compose_caption, measure_colours
from img2img_cli.train.bundled.degrade import make_damaged, make_low_resolution, recolour
from img2img_cli.train.bundled.styles import STYLES
from img2img_cli.train.bundled.tokenizer import WIDTH, build_text_encoder
from img2img_cli.train.data import BalancedDraw, Photograph, cut_view
from img2img_cli.train.diffusion.noising import weigh_loss
from img2img_cli.train.loop import Batch, Stage

WIDTHS = (64, 128, 224)
TASK_SHARES = {"colorize": 0.27, "upscale": 0.07, "restore": 0.12, "edit": 0.54}
STYLED_SHARE = 0.85  # of edits; the others change the colours named in the prompt
# Share of whole views by task. Colours and light need context; detail needs crops.
WHOLE_SHARES = {"colorize": 0.85, "upscale": 0.15, "restore": 0.15, "edit": 0.6}
# Size in pixels, batch size, share of the steps. Most are small for speed; some are larger for context.
RESOLUTIONS = ((128, 16, 0.7), (192, 7, 0.15), (256, 4, 0.15))
# At the terminal step the model sees only the control picture and the prompt, and there it decides colours and style.
# Colours and styles are nearly functions of both, so a few steps from the terminal step give cleaner pictures than
# many steps from a slightly earlier one.
TERMINAL_SHARE = 0.3


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The parts of the bundled model."""

    vae: AutoencoderTiny
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    controlnet: ControlNetModel
    scheduler: DDIMScheduler

    def build_pipeline(self) -> StableDiffusionControlNetImg2ImgPipeline:
        """Build the diffusers pipeline from these parts."""
        return StableDiffusionControlNetImg2ImgPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            controlnet=self.controlnet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def build_networks(vae: AutoencoderTiny, tokenizer: CLIPTokenizer) -> Networks:
    """Build untrained networks. Only the two lowest resolutions, which see the whole picture, have attention."""
    shared = {
        "block_out_channels": WIDTHS,
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,  # diffusers reads this as the number of heads
        "use_linear_projection": True,
    }
    unet = UNet2DConditionModel(
        sample_size=32, up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), **shared
    )
    controlnet = ControlNetModel(conditioning_embedding_out_channels=(32, 64, 96), **shared)
    # Zero convolutions protect a pretrained UNet. Training from scratch is faster without them.
    for convolution in [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]:
        nn.init.xavier_uniform_(convolution.weight)
    nn.init.xavier_uniform_(controlnet.controlnet_cond_embedding.conv_out.weight)
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    return Networks(
        vae=vae,
        tokenizer=tokenizer,
        text_encoder=build_text_encoder(tokenizer),
        unet=unet.to(memory_format=torch.channels_last),
        controlnet=controlnet.to(memory_format=torch.channels_last),
        scheduler=scheduler,
    )


def load_networks(folder: Path) -> Networks:
    """Load the networks of a diffusers folder in float32, to continue their training."""

    def load(kind: Any, name: str) -> Any:
        module = kind.from_pretrained(folder / name, use_safetensors=True).float()
        return module if name == "text_encoder" else module.to(memory_format=torch.channels_last)

    return Networks(
        vae=load(AutoencoderTiny, "vae"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=load(CLIPTextModel, "text_encoder"),
        unet=load(UNet2DConditionModel, "unet"),
        controlnet=load(ControlNetModel, "controlnet"),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
    )


def make_example(
    photograph: Photograph, size: int, rng: np.random.Generator
) -> tuple[Image.Image, Image.Image, Image.Image, str]:
    """Make a training example for a random task.

    Args:
        size: the side of the pictures in pixels.

    Returns:
        target picture, input picture, control picture and caption. In 4 % of the examples the control picture is
        black.
    """
    task = str(rng.choice(list(TASK_SHARES), p=list(TASK_SHARES.values())))
    target = view = cut_view(photograph, size, rng, whole=rng.random() < WHOLE_SHARES[task])
    style = None
    if task == "colorize":
        control = make_control_image(view, "grey")
    elif task == "upscale":
        control = make_low_resolution(view, rng)
    elif task == "restore":
        control = make_damaged(view, rng)
    else:
        target, control, style = make_edit(view, rng)
    source = control
    if rng.random() < 0.04:
        control = Image.new("RGB", view.size)
    subject = clean_caption(photograph.caption)
    return target, source, control, compose_caption(task, subject, measure_colours(target), style, rng)


def make_edit(view: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image, str | None]:
    """Make the target, control picture and style of an edit.

    Returns:
        the view in a random style, the view itself or its grey version, and the style; or, for an edit of colours, the
        view, its recoloured or grey version, and None.
    """
    if rng.random() < STYLED_SHARE:
        style = str(rng.choice(list(STYLES)))
        control = view if rng.random() < 0.85 else make_control_image(view, "grey")
        return STYLES[style](view, rng), control, style
    return view, recolour(view, rng) if rng.random() < 0.5 else make_control_image(view, "grey"), None


def draw_examples(photographs: Sequence[Photograph], tokenizer: CLIPTokenizer, seed: int) -> Iterator[Batch]:
    """Yield batches of training examples, each batch at one of `RESOLUTIONS`.

    Yields:
        `pixels` and `source` in -1..1 and `control` in 0..1, float32 `(B, 3, size, size)`, and `input_ids` `(B, 32)`.
    """
    rng, draw = np.random.default_rng(seed), BalancedDraw(photographs)
    while True:
        size, batch_size, _ = RESOLUTIONS[rng.choice(len(RESOLUTIONS), p=[share for *_, share in RESOLUTIONS])]
        examples = [make_example(draw(rng), size, rng) for _ in range(batch_size)]
        targets, sources, controls, captions = zip(*examples, strict=True)
        tokens = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
        yield {
            "pixels": stack_pictures(list(targets)),
            "source": stack_pictures(list(sources)),
            "control": stack_pictures(list(controls)).add_(1).div_(2),
            "input_ids": tokens.input_ids,
        }


def draw_residual_weights(scheduler: DDIMScheduler, timesteps: torch.Tensor) -> torch.Tensor:
    """Draw the weight with which the difference of input and target adds to the noise at each timestep.

    Image-to-image starts at some `strength` from the noised *input*, not from the noised target. Deterministic DDIM
    that ends at a perfect target meets, at any later timestep, the latents of the target noised by
    `noise + (input - target) * a0 / s0`, where `a0` and `s0` are the signal and noise of the step it started from.
    Training uses the same mixture, for a random start at or before the timestep in sampling order. A start at the
    terminal step, which has no signal, gives the usual noise alone.

    Args:
        timesteps: integers `(B,)`.

    Returns:
        the weights `a0 / s0`, `(B, 1, 1, 1)`.
    """
    last = scheduler.config.num_train_timesteps - 1
    lowest = timesteps.clamp(min=int(0.25 * last)).float()
    starts = (lowest + torch.rand_like(lowest) * (last - lowest)).round().long()
    starts[torch.rand_like(lowest) < 0.35] = last
    alphas = scheduler.alphas_cumprod.to(timesteps.device)[starts]
    weights: torch.Tensor = (alphas / (1 - alphas)).sqrt()[:, None, None, None]
    return weights


def make_stage(
    networks: Networks, device: torch.device, draw_samples: Callable[[Path, int], None] | None = None
) -> Stage:
    """Make the stage that trains text encoder, UNet and ControlNet.

    Freezes the autoencoder. On a GPU, compiles the UNet and the ControlNet.
    """
    scheduler, vae = networks.scheduler, networks.vae.requires_grad_(False)
    if device.type == "cpu":
        # Measured: on a CPU, the backward pass of fused attention is slower at these sizes than plain matrix products.
        networks.unet.set_attn_processor(AttnProcessor())
        networks.controlnet.set_attn_processor(AttnProcessor())
    else:
        networks.unet.compile()
        networks.controlnet.compile()

    def compute_loss(batch: Batch, step: int) -> torch.Tensor:
        with torch.no_grad():
            both = torch.cat([batch["pixels"], batch["source"]]).to(device, memory_format=torch.channels_last)
            latents, source = (vae.encode(both).latents.float() * vae.config.scaling_factor).chunk(2)
        count = len(latents)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (count,), device=device)
        timesteps[torch.rand(count, device=device) < TERMINAL_SHARE] = scheduler.config.num_train_timesteps - 1
        noise = torch.randn_like(latents) + draw_residual_weights(scheduler, timesteps) * (source - latents)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        prompt_embeds = networks.text_encoder(batch["input_ids"].to(device)).last_hidden_state
        down, mid = networks.controlnet(noisy, timesteps, prompt_embeds, batch["control"].to(device), return_dict=False)
        prediction = networks.unet(
            noisy,
            timesteps,
            prompt_embeds,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
        target = scheduler.get_velocity(latents, noise, timesteps)
        errors = functional.mse_loss(prediction.float(), target, reduction="none").mean(dim=(1, 2, 3))
        alphas = scheduler.alphas_cumprod.to(device)[timesteps]
        return (errors * weigh_loss(alphas, "v_prediction")).mean()

    modules = {
        "text_encoder": networks.text_encoder,
        "unet": networks.unet,
        "controlnet": networks.controlnet,
    }
    return Stage(
        name="diffusion",
        modules=modules,
        compute_loss=compute_loss,
        learning_rate=5e-4,
        draw_samples=draw_samples,
    )


def save_networks(networks: Networks, folder: Path) -> None:
    """Write a diffusers folder in half precision, with checksums. The networks are in float32 afterwards."""
    modules = (networks.vae, networks.text_encoder, networks.unet, networks.controlnet)
    for module in modules:
        module.to(torch.float16)
    networks.build_pipeline().save_pretrained(folder, safe_serialization=True)
    write_checksums(folder)
    for module in modules:
        module.to(torch.float32)


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of all weights below the folder to `SHA256SUMS`, in the format of `sha256sum -c`."""
    files = sorted(folder.rglob("*.safetensors"))
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder).as_posix()}" for file in files]
    (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n")
