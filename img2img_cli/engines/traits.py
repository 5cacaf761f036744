"""What differs between families of diffusers pipelines: one entry a family, looked up by a pipeline's class.

A class without an entry gets `Traits()`: it is given one picture at a time, which every img2img pipeline can take.
"""

from __future__ import annotations

import inspect
from collections.abc import Set
from dataclasses import dataclass
from typing import Any, Literal

Family = Literal["sd1", "sd2", "sdxl", "sdxl-refiner", "sd3", "flux1", "flux2", "qwen", "wan", "z-image"]
TEXT_WIDTHS: dict[int, Family] = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What differs between families of diffusers pipelines.

    Attributes:
        families: the families of weights that a pipeline of these classes may hold; the width of the text that its
            UNet reads tells which.
        takes_latents: whether `image` may be a batch of latents `(B, C, H/f, W/f)`, one for each prompt. Pipelines that
            do not are given one picture a call.
        is_automatic: whether diffusers' `AutoPipelineForImage2Image` finds the class. Otherwise the class that the
            model's index names is used as it is.
        multiple: what both sides of a working picture must be divisible by; None to compute it (`find_multiple`).
        enlargement: the factor by which a model made for upscaling enlarges; None for all others.
        vae_overflows: whether the family's own VAE overflows in float16, where its config has `force_upcast`.
        takes_clip_embeddings: whether prompts may be given as the embeddings that Stable Diffusion reads.
        style_layer: the layer of the first upward block with attention that holds style (InstantStyle); None for all.
        can_refine: whether it can work over latents of Stable Diffusion XL.
        architecture: the folder in `architectures/` with the configs of the family's parts; None if there is none.
    """

    families: tuple[Family, ...] = ()
    takes_latents: bool = False
    is_automatic: bool = True
    multiple: int | None = None
    enlargement: int | None = None
    vae_overflows: bool = False
    takes_clip_embeddings: bool = True
    style_layer: int | None = None
    can_refine: bool = False
    architecture: str | None = None


_SD: dict[str, Any] = {"families": ("sd1", "sd2"), "architecture": "sd15"}
_XL: dict[str, Any] = {
    "families": ("sdxl", "sdxl-refiner"),
    "architecture": "sdxl",
    "vae_overflows": True,
    "style_layer": 1,
}
_TABLE: tuple[tuple[tuple[str, ...], Traits], ...] = (
    (
        (
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionControlNetImg2ImgPipeline",
            "StableDiffusionPAGImg2ImgPipeline",
        ),
        Traits(**_SD, takes_latents=True),
    ),
    (("StableDiffusionInstructPix2PixPipeline", "StableDiffusionInpaintPipeline"), Traits(**_SD, is_automatic=False)),
    (
        # Its latents have the size of the input, and its VAE's factor is 4.
        ("StableDiffusionUpscalePipeline",),
        Traits(**_SD, is_automatic=False, multiple=8, enlargement=4),
    ),
    (
        # It reads other layers of CLIP than Stable Diffusion does.
        ("StableDiffusionLatentUpscalePipeline",),
        Traits(**_SD, is_automatic=False, enlargement=2, takes_clip_embeddings=False),
    ),
    (
        ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
        Traits(**_XL, takes_latents=True, can_refine=True),
    ),
    (
        (
            "StableDiffusionXLControlNetImg2ImgPipeline",
            "StableDiffusionXLControlNetUnionImg2ImgPipeline",
            "StableDiffusionXLPAGImg2ImgPipeline",
            "StableDiffusionXLControlNetPAGImg2ImgPipeline",
        ),
        Traits(**_XL, takes_latents=True),
    ),
    (
        ("StableDiffusionXLInstructPix2PixPipeline", "StableDiffusionXLInpaintPipeline"),
        Traits(**_XL, is_automatic=False),
    ),
    (
        ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3PAGImg2ImgPipeline"),
        Traits(families=("sd3",), takes_latents=True),
    ),
    (
        (
            "FluxPipeline",
            "FluxImg2ImgPipeline",
            "FluxControlImg2ImgPipeline",
            "FluxControlNetImg2ImgPipeline",
            "FluxKontextPipeline",
        ),
        Traits(families=("flux1",)),
    ),
    (("FluxFillPipeline",), Traits(families=("flux1",), is_automatic=False)),
    (("Flux2Pipeline", "Flux2KleinPipeline"), Traits(families=("flux2",))),
    (
        (
            "QwenImagePipeline",
            "QwenImageImg2ImgPipeline",
            "QwenImageEditPipeline",
            "QwenImageLayeredPipeline",
        ),
        Traits(families=("qwen",)),
    ),
    (("QwenImageEditPlusPipeline",), Traits(families=("qwen",), is_automatic=False, multiple=32)),
    (("ZImagePipeline", "ZImageImg2ImgPipeline"), Traits(families=("z-image",))),
)
TRAITS = {name: traits for names, traits in _TABLE for name in names}


def find_traits(pipeline: object) -> Traits:
    """Return the traits of a pipeline, or of the class that a model's index names."""
    name = pipeline if isinstance(pipeline, str) else type(pipeline).__name__
    return TRAITS.get(name, Traits())


def tell_families(pipe: Any) -> frozenset[Family]:
    """Return the families that a pipeline may be of, by its class and the width of the text that its UNet reads."""
    families = find_traits(pipe).families
    width: Any = getattr(getattr(pipe, "unet", None), "config", {}).get("cross_attention_dim")
    family = TEXT_WIDTHS.get(width)
    if family is not None and family in families:
        return frozenset({family})
    # Small models for tests and the bundled one have other widths.
    return frozenset(families) - {"sdxl-refiner"}


def find_multiple(pipe: Any) -> int:
    """Return what both sides of a working picture must be divisible by, in pixels."""
    if (multiple := find_traits(pipe).multiple) is not None:
        return multiple
    unet = getattr(pipe, "unet", None)
    # Transformers work on patches of 2 x 2 latents; UNets halve them once a level.
    levels = 2 if unet is None else 2 ** (len(unet.config.block_out_channels) - 1)
    return int(getattr(pipe, "vae_scale_factor", 1)) * levels


def list_arguments(pipe: Any) -> Set[str]:
    """Return the names of the arguments that a pipeline's call takes."""
    return inspect.signature(pipe.__call__).parameters.keys()
