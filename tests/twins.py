"""Twins of the catalogue's models: the same classes and file layout, tiny sizes, seeded random weights.

`RECIPES[hub id](folder, variant)` makes a twin. A new family needs one function here and one preset.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxFillPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from img2img_cli.engines import feed_forward
from img2img_cli.engines.checkpoints.single_file import load_clip_tokenizer
from img2img_cli.engines.diffusion.qwen import PictureProcessor

Recipe = Callable[[Path, str | None], None]
WIDTH = 32
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def unet_options(*, xl: bool) -> dict[str, Any]:
    """Return the options that a UNet and its ControlNet share."""
    options: dict[str, Any] = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "cross_attention_dim": 2 * WIDTH if xl else WIDTH,
        "attention_head_dim": (2, 4) if xl else 4,
    }
    if xl:
        options |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
        }
    return options


def fix_up(options: dict[str, Any]) -> dict[str, Any]:
    """Add the upward path to a UNet's options."""
    return options | {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "sample_size": 16}


def make_vae(**options: Any) -> AutoencoderKL:
    """Make a VAE with a factor of 8, as the real ones have."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        **{"latent_channels": 4, **options},
    )


def make_clip(kind: Any = CLIPTextModel, **options: Any) -> Any:
    """Make a text encoder with CLIP's own vocabulary."""
    own = {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 49408,
        "projection_dim": WIDTH,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }
    return kind(CLIPTextConfig(**own | options)).eval()


def make_t5(width: int) -> dict[str, Any]:
    """Make T5's encoder and a tokenizer of single letters."""
    letters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz,."]
    config = T5Config(d_model=width, d_ff=WIDTH, d_kv=8, num_layers=1, num_heads=4, vocab_size=len(letters) + 100)
    return {"encoder": T5EncoderModel(config).eval(), "tokenizer": T5Tokenizer(vocab=letters)}


def save(pipe: Any, folder: Path, variant: str | None) -> None:
    """Save a pipeline with the file layout of the real repository."""
    pipe.save_pretrained(folder, variant=variant)


def make_sd(folder: Path, variant: str | None) -> None:
    """Make Stable Diffusion 1.5 or SD-Turbo."""
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False)
    parts = {"vae": make_vae(), "text_encoder": make_clip(), "tokenizer": load_clip_tokenizer()}
    save(
        StableDiffusionPipeline(
            unet=UNet2DConditionModel(**fix_up(unet_options(xl=False))), scheduler=scheduler, **parts, **NO_CHECKER
        ),
        folder,
        variant,
    )


def make_inpaint(folder: Path, variant: str | None) -> None:
    """Make Stable Diffusion's inpainting: five more input channels, for the mask and the masked picture."""
    unet = UNet2DConditionModel(**fix_up(unet_options(xl=False)), in_channels=9)
    parts = {"vae": make_vae(), "text_encoder": make_clip(), "tokenizer": load_clip_tokenizer()}
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False)
    save(StableDiffusionInpaintPipeline(unet=unet, scheduler=scheduler, **parts, **NO_CHECKER), folder, variant)


def make_inpaint_xl(folder: Path, variant: str | None) -> None:
    """Make Stable Diffusion XL's inpainting, with the same five channels."""
    save(StableDiffusionXLInpaintPipeline(**_sdxl_parts(9)), folder, variant)


def make_pix2pix(folder: Path, variant: str | None) -> None:
    """Make InstructPix2Pix: four more input channels, for the picture's latents."""
    unet = UNet2DConditionModel(**fix_up(unet_options(xl=False)), in_channels=8)
    parts = {"vae": make_vae(), "text_encoder": make_clip(), "tokenizer": load_clip_tokenizer()}
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear")
    save(StableDiffusionInstructPix2PixPipeline(unet=unet, scheduler=scheduler, **parts, **NO_CHECKER), folder, variant)


def _sdxl_parts(in_channels: int) -> dict[str, Any]:
    return {
        "unet": UNet2DConditionModel(**fix_up(unet_options(xl=True)), in_channels=in_channels),
        "vae": make_vae(force_upcast=True),
        "text_encoder": make_clip(),
        "text_encoder_2": make_clip(CLIPTextModelWithProjection),
        "tokenizer": load_clip_tokenizer(),
        "tokenizer_2": load_clip_tokenizer(),
        "scheduler": EulerDiscreteScheduler(beta_schedule="scaled_linear"),
    }


def make_sdxl(folder: Path, variant: str | None) -> None:
    """Make Stable Diffusion XL or SDXL-Turbo."""
    save(StableDiffusionXLPipeline(**_sdxl_parts(4)), folder, variant)


def make_refiner(folder: Path, variant: str | None) -> None:
    """Make Stable Diffusion XL's refiner: one text encoder, and an aesthetic score instead of a second size."""
    options = unet_options(xl=True) | {
        "cross_attention_dim": WIDTH,
        "projection_class_embeddings_input_dim": 5 * 8 + WIDTH,
    }
    parts = _sdxl_parts(4) | {"unet": UNet2DConditionModel(**fix_up(options)), "text_encoder": None, "tokenizer": None}
    save(StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True), folder, variant)


def make_pix2pix_xl(folder: Path, variant: str | None) -> None:
    """Make InstructPix2Pix for SDXL."""
    save(StableDiffusionXLInstructPix2PixPipeline(**_sdxl_parts(8)), folder, variant)


def make_sd3(folder: Path, variant: str | None) -> None:
    """Make Stable Diffusion 3.5: two CLIPs, T5, a transformer, and a VAE of sixteen channels with a shift."""
    t5 = make_t5(2 * WIDTH)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=32,
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=make_vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=make_clip(CLIPTextModelWithProjection),
        text_encoder_2=make_clip(CLIPTextModelWithProjection),
        text_encoder_3=t5["encoder"],
        tokenizer=load_clip_tokenizer(),
        tokenizer_2=load_clip_tokenizer(),
        tokenizer_3=t5["tokenizer"],
    )
    save(pipe, folder, variant)


def _flux_parts(*, guidance: bool, in_channels: int = 16) -> dict[str, Any]:
    t5 = make_t5(WIDTH)
    return {
        "transformer": FluxTransformer2DModel(
            patch_size=1,
            in_channels=in_channels,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance,
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guidance),
        "vae": make_vae(scaling_factor=0.3611, shift_factor=0.1159),
        "text_encoder": make_clip(),
        "text_encoder_2": t5["encoder"],
        "tokenizer": load_clip_tokenizer(),
        "tokenizer_2": t5["tokenizer"],
    }


def make_flux_dev(folder: Path, variant: str | None) -> None:
    """Make FLUX.1 dev."""
    save(FluxPipeline(**_flux_parts(guidance=True)), folder, variant)


def make_flux_schnell(folder: Path, variant: str | None) -> None:
    """Make FLUX.1 schnell, without guidance embedding."""
    save(FluxPipeline(**_flux_parts(guidance=False)), folder, variant)


def make_fill(folder: Path, variant: str | None) -> None:
    """Make FLUX.1 Fill, whose input also has the latents of the masked picture and an 8 x 8 patch of mask for each."""
    save(FluxFillPipeline(**_flux_parts(guidance=True, in_channels=16 + 16 + 4 * 64)), folder, variant)


def make_kontext(folder: Path, variant: str | None) -> None:
    """Make FLUX.1 Kontext."""
    save(FluxKontextPipeline(**_flux_parts(guidance=True)), folder, variant)


def make_flux2(folder: Path, variant: str | None) -> None:
    """Make FLUX.2 klein: a language model whose layers 9, 18 and 27 encode the prompt, and a VAE in patches."""
    letters = [*"abcdefghijklmnopqrstuvwxyz,.", "\u0120"]
    tokenizer = Qwen2TokenizerFast(
        vocab={token: index for index, token in enumerate(["<|endoftext|>", *letters])}, merges=[]
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    language_model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(letters) + 1,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=28,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(block_out_channels=(8, 8, 8, 16), norm_num_groups=4, latent_channels=4)
    pipe = Flux2KleinPipeline(
        transformer=transformer,
        vae=vae,
        text_encoder=language_model.eval(),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        is_distilled=True,
    )
    save(pipe, folder, variant)


def make_qwen(folder: Path, variant: str | None) -> None:
    """Make Qwen-Image-Edit: a vision language model, a transformer and a video VAE."""
    special = [f"<|{name}|>" for name in ("endoftext", "im_start", "im_end", "vision_start", "vision_end")]
    special += ["<|image_pad|>", "<|video_pad|>"]
    letters = [*string.ascii_letters, *string.digits, *string.punctuation, "\u0120", "\u010a"]
    ids = {token: index for index, token in enumerate([*letters, *special])}
    tokenizer = Qwen2TokenizerFast(vocab=ids, merges=[], extra_special_tokens=special)
    text = {
        "vocab_size": len(ids),
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    }
    eyes = {
        "depth": 1,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=eyes,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    transformer = QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    pipe = QwenImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=AutoencoderKLQwenImage(base_dim=8, z_dim=16, num_res_blocks=1),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=tokenizer,
        processor=PictureProcessor(Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56), tokenizer),
        transformer=transformer,
    )
    save(pipe, folder, variant)
    index = json.loads((folder / "model_index.json").read_text())
    index["processor"] = ["transformers", "Qwen2VLProcessor"]  # as the real index has it
    (folder / "model_index.json").write_text(json.dumps(index))


def make_lightning(folder: Path, variant: str | None) -> None:
    """Make the LoRA with which Qwen-Image-Edit needs only four steps."""
    weights = {}
    for name in ("to_q", "to_v"):
        weights[f"transformer_blocks.0.attn.{name}.lora_down.weight"] = torch.randn(2, WIDTH)
        weights[f"transformer_blocks.0.attn.{name}.lora_up.weight"] = torch.randn(WIDTH, 2)
        weights[f"transformer_blocks.0.attn.{name}.alpha"] = torch.tensor(2.0)
    folder.mkdir(parents=True)
    save_file(weights, folder / "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors")


def make_x4_upscaler(folder: Path, variant: str | None) -> None:
    """Make Stable Diffusion's x4 upscaler, whose UNet takes latents and the input together, and a VAE of factor 4."""
    unet = UNet2DConditionModel(**fix_up(unet_options(xl=False)), in_channels=7, num_class_embeds=1000)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
    )
    pipe = StableDiffusionUpscalePipeline(
        vae=vae,
        text_encoder=make_clip(),
        tokenizer=load_clip_tokenizer(),
        unet=unet,
        low_res_scheduler=DDPMScheduler(beta_schedule="scaled_linear"),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
    )
    save(pipe, folder, variant)


def make_x2_upscaler(folder: Path, variant: str | None) -> None:
    """Make Stable Diffusion's latent upscaler: a UNet of k-diffusion's blocks with one extra channel."""
    unet = UNet2DConditionModel(
        act_fn="gelu",
        attention_head_dim=8,
        norm_num_groups=None,
        block_out_channels=(32, 32, 64, 64),
        time_cond_proj_dim=128 + WIDTH,
        conv_in_kernel=1,
        conv_out_kernel=1,
        cross_attention_dim=WIDTH,
        down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
        mid_block_type=None,
        in_channels=8,
        out_channels=5,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
    )
    pipe = StableDiffusionLatentUpscalePipeline(
        vae=make_vae(),
        text_encoder=make_clip(),
        tokenizer=load_clip_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(prediction_type="sample"),
    )
    save(pipe, folder, variant)


def make_esrgan(folder: Path, variant: str | None) -> None:
    """Make an untrained Real-ESRGAN of one block."""
    feed_forward.import_spandrel("twin")
    from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet

    folder.mkdir(parents=True)
    net = RRDBNet(num_filters=8, num_blocks=1, scale=4)
    save_file(net.state_dict(), folder / "RealESRGAN_x4plus.safetensors")


def make_hyper(folder: Path, variant: str | None) -> None:
    """Make Hyper-SD's LoRAs for Stable Diffusion 1.5 and XL, in one repository."""
    for xl, name in ((False, "Hyper-SD15-8steps-CFG-lora"), (True, "Hyper-SDXL-8steps-CFG-lora")):
        (make_lora_xl if xl else make_lora)(folder, variant)
        (folder / "pytorch_lora_weights.safetensors").rename(folder / f"{name}.safetensors")


def _save_controlnet(xl: bool, folder: Path, variant: str | None) -> None:
    net = ControlNetModel(**unet_options(xl=xl), conditioning_embedding_out_channels=(16, 32, 32, 32))
    # New ones begin with zeros and change nothing; a trained one does.
    for module in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(module.weight, std=0.3)
    net.save_pretrained(folder, variant=variant)


def make_controlnet(folder: Path, variant: str | None) -> None:
    """Make a ControlNet of Stable Diffusion 1.5."""
    _save_controlnet(False, folder, variant)


def make_controlnet_xl(folder: Path, variant: str | None) -> None:
    """Make a ControlNet of Stable Diffusion XL."""
    _save_controlnet(True, folder, variant)


def make_fixed_vae(folder: Path, variant: str | None) -> None:
    """Make SDXL's VAE that works in float16."""
    make_vae(force_upcast=False).save_pretrained(folder, variant=variant)


def _make_lora(pipeline_class: Any, *, xl: bool, folder: Path) -> None:
    unet = UNet2DConditionModel(**fix_up(unet_options(xl=xl)))
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipeline_class.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))


def make_lora(folder: Path, variant: str | None) -> None:
    """Make a LoRA for Stable Diffusion 1.5."""
    _make_lora(StableDiffusionImg2ImgPipeline, xl=False, folder=folder)


def make_lora_xl(folder: Path, variant: str | None) -> None:
    """Make a LoRA for Stable Diffusion XL."""
    _make_lora(StableDiffusionXLImg2ImgPipeline, xl=True, folder=folder)


def _ip_adapter_weights(unet: UNet2DConditionModel, width: int, tokens: int = 4) -> dict[str, torch.Tensor]:
    """Return keys and values of a picture's tokens for each cross-attention, numbered like the original's layers."""
    cross = unet.config.cross_attention_dim
    weights = {
        "image_proj.proj.weight": torch.randn(tokens * cross, width) / width**0.5,
        "image_proj.proj.bias": torch.zeros(tokens * cross),
        "image_proj.norm.weight": torch.ones(cross),
        "image_proj.norm.bias": torch.zeros(cross),
    }
    names = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    for index, name in enumerate(names):
        inner = unet.get_submodule(name).to_k.out_features
        for kind in ("k", "v"):
            weights[f"ip_adapter.{2 * index + 1}.to_{kind}_ip.weight"] = torch.randn(inner, cross)
    return weights


def make_ip_adapter(folder: Path, variant: str | None) -> None:
    """Make IP-Adapters for Stable Diffusion 1.5 and XL and the image encoder that they share."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=WIDTH,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "models" / "image_encoder")
    for xl, file in ((False, "models/ip-adapter_sd15"), (True, "sdxl_models/ip-adapter_sdxl_vit-h")):
        unet = UNet2DConditionModel(**fix_up(unet_options(xl=xl)))
        path = folder / f"{file}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(_ip_adapter_weights(unet, WIDTH), path)


RECIPES: dict[str, Recipe] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": make_sd,
    "stabilityai/sd-turbo": make_sd,
    "stabilityai/stable-diffusion-xl-base-1.0": make_sdxl,
    "stabilityai/stable-diffusion-xl-refiner-1.0": make_refiner,
    "stabilityai/sdxl-turbo": make_sdxl,
    "madebyollin/sdxl-vae-fp16-fix": make_fixed_vae,
    "latent-consistency/lcm-lora-sdv1-5": make_lora,
    "latent-consistency/lcm-lora-sdxl": make_lora_xl,
    "stabilityai/stable-diffusion-3.5-medium": make_sd3,
    "stabilityai/stable-diffusion-3.5-large": make_sd3,
    "black-forest-labs/FLUX.1-dev": make_flux_dev,
    "black-forest-labs/FLUX.1-schnell": make_flux_schnell,
    "black-forest-labs/FLUX.1-Kontext-dev": make_kontext,
    "black-forest-labs/FLUX.2-klein-4B": make_flux2,
    "black-forest-labs/FLUX.1-Fill-dev": make_fill,
    "stable-diffusion-v1-5/stable-diffusion-inpainting": make_inpaint,
    "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": make_inpaint_xl,
    "timbrooks/instruct-pix2pix": make_pix2pix,
    "diffusers/sdxl-instructpix2pix-768": make_pix2pix_xl,
    "h94/IP-Adapter": make_ip_adapter,
    "ByteDance/Hyper-SD": make_hyper,
    "Qwen/Qwen-Image-Edit-2509": make_qwen,
    "Qwen/Qwen-Image-Edit-2511": make_qwen,
    "lightx2v/Qwen-Image-Edit-2511-Lightning": make_lightning,
    "stabilityai/stable-diffusion-x4-upscaler": make_x4_upscaler,
    "stabilityai/sd-x2-latent-upscaler": make_x2_upscaler,
    "Comfy-Org/Real-ESRGAN_repackaged": make_esrgan,
    "latentcat/control_v1p_sd15_brightness": make_controlnet,
    "lllyasviel/control_v11f1e_sd15_tile": make_controlnet,
    "lllyasviel/control_v11p_sd15_canny": make_controlnet,
    "lllyasviel/control_v11p_sd15_softedge": make_controlnet,
    "lllyasviel/control_v11p_sd15_lineart": make_controlnet,
    "lllyasviel/control_v11f1p_sd15_depth": make_controlnet,
    "lllyasviel/control_v11p_sd15_openpose": make_controlnet,
    "diffusers/controlnet-canny-sdxl-1.0": make_controlnet_xl,
    "diffusers/controlnet-depth-sdxl-1.0": make_controlnet_xl,
    "r3gm/controlnet-recolor-sdxl-fp16": make_controlnet_xl,
    "xinsir/controlnet-openpose-sdxl-1.0": make_controlnet_xl,
    "xinsir/controlnet-tile-sdxl-1.0": make_controlnet_xl,
}


def make_twin(reference: str, folder: Path, variant: str | None = None) -> None:
    """Write the twin of a hub id into a folder, the same on every machine."""
    torch.manual_seed(0)
    RECIPES[reference](folder, variant)
