"""What a diffusers pipeline's class tells of sizes and arguments."""

from __future__ import annotations

import inspect
from collections.abc import Set
from typing import Any

import diffusers

# What sides must be divisible by where the VAE's factor does not tell: the x4 upscaler's latents have the input's
# size; Qwen rounds to 32.
_MULTIPLES = {"StableDiffusionUpscalePipeline": 8, "QwenImageEditPlusPipeline": 32}


def find_multiple(pipe: Any) -> int:
    """What both sides of a working picture must be divisible by."""
    if type(pipe).__name__ in _MULTIPLES:
        return _MULTIPLES[type(pipe).__name__]
    unet = getattr(pipe, "unet", None)
    # Transformers work on patches of 2 x 2 latents; UNets halve them once a level.
    levels = 2 if unet is None else 2 ** (len(unet.config.block_out_channels) - 1)
    return int(getattr(pipe, "vae_scale_factor", 1)) * levels


def find_enlargement(pipe: Any) -> int | None:
    """By how much a model made for upscaling enlarges: its VAE decodes latents of the input's own size, or of twice."""
    if isinstance(pipe, diffusers.StableDiffusionUpscalePipeline):
        return int(pipe.vae_scale_factor)
    return 2 if isinstance(pipe, diffusers.StableDiffusionLatentUpscalePipeline) else None


def list_arguments(pipe: Any) -> Set[str]:
    """The names of what the pipeline's call takes; none without a pipeline."""
    return inspect.signature(pipe.__call__).parameters.keys() if pipe is not None else set()
