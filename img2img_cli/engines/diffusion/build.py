"""Preset to pipeline: its parts loaded, checked, laid out for the device and placed there."""

from __future__ import annotations

from typing import Any

import torch

from img2img_cli.engines.base import BYTES_PER_PIXEL
from img2img_cli.engines.cpu_kernels import mend_convolutions, remember_texts, replace_kernels
from img2img_cli.engines.device import Placement, explain_memory_errors
from img2img_cli.engines.diffusion.compiling import can_compile, compile_parts
from img2img_cli.engines.diffusion.latents import LatentsPipeline
from img2img_cli.engines.diffusion.load import Told, load_controlnet, load_pipeline
from img2img_cli.engines.diffusion.offload import apply_offload, choose_offload, measure_parts
from img2img_cli.engines.diffusion.pipeline import DiffusionPipeline
from img2img_cli.engines.diffusion.whole_picture import WholePicturePipeline
from img2img_cli.engines.feed_forward import load_net
from img2img_cli.engines.hub import check_downloads
from img2img_cli.engines.traits import find_traits
from img2img_cli.errors import ModelError
from img2img_cli.presets.schema import Offload, Parameters
from img2img_cli.system.silence import silence_stdout

COMPILED_MULTIPLE = 128  # of sides: fewer shapes, and so more that pay
READERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")  # which see nothing but text


def build_pipeline(parameters: Parameters, placement: Placement) -> DiffusionPipeline:
    """Load the preset's diffusers model onto the device, which `prepare_device` has been called for.

    Raises:
        ModelError: missing, refused, damaged or out of reach.
        OutOfMemoryError: the device is too small for it.
    """
    # transformers prints notices of missing optional packages straight to stderr or stdout while loading.
    with explain_memory_errors(placement.device), silence_stdout():
        told = Told()
        with check_downloads(parameters):
            net = load_net(parameters.upscaler, placement) if parameters.upscaler else None
            controlnet = load_controlnet(parameters, placement.dtype) if parameters.controlnet else None
            pipe = load_pipeline(parameters, placement.dtype, controlnet, told)
        traits = find_traits(pipe)
        if traits.vae_overflows and placement.dtype == torch.float16 and pipe.vae.config.force_upcast:
            pipe.vae.to(torch.float32)  # the key alone says nothing: it is true by default
        for name in ("unet", "vae", "controlnet"):
            module: Any = getattr(pipe, name, None)
            # A video model's VAE has kernels of rank 5, which have no such format.
            if module is not None and all(p.ndim < 5 for p in module.parameters()):
                module.to(memory_format=torch.channels_last)
                replace_kernels(module, placement.device)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                mend_convolutions(part, placement.device)
        offload = _settle_offload(pipe, placement, parameters.image_size**2 * BYTES_PER_PIXEL)
        apply_offload(pipe, offload, placement.device)
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            encoder: Any = getattr(pipe, name, None)
            if type(encoder).__name__ in READERS:
                remember_texts(encoder)
    pipe.set_progress_bar_config(disable=True)
    engine = LatentsPipeline if traits.takes_latents else WholePicturePipeline
    pipeline = engine(pipe, placement, offload, net)
    pipeline.load_notes, pipeline.prompts.words = told.notes, told.words
    pipeline.notes.extend(told.notes)
    if parameters.compile == "auto":
        _compile(pipeline)
    if parameters.refiner and isinstance(pipeline, LatentsPipeline):
        pipeline.refiner = _build_refiner(parameters, placement)
    return pipeline


def _compile(pipeline: DiffusionPipeline) -> None:
    reason = can_compile(pipeline.placement.device)
    if reason is None and pipeline.offload != "none":
        reason = "the model's parts move to the device in turn"
    if reason is not None:
        pipeline.notes.append(f"compile: {reason}; going on without")
        return
    compile_parts(pipeline.pipe, pipeline.placement.device, pipeline.plan)
    pipeline.multiple = max(pipeline.multiple, COMPILED_MULTIPLE)


def _build_refiner(parameters: Parameters, placement: Placement) -> LatentsPipeline:
    own = {"lora": (), "embedding": (), "refiner": None, "controlnet": None, "ip_adapter": None, "revision": None}
    refiner = build_pipeline(parameters.model_copy(update={"model": parameters.refiner, **own}), placement)
    if not (isinstance(refiner, LatentsPipeline) and refiner.traits.can_refine):
        name = type(getattr(refiner, "pipe", refiner)).__name__
        raise ModelError(f"refiner {parameters.refiner}: a {name}; give Stable Diffusion XL's")
    return refiner


def _settle_offload(pipe: Any, placement: Placement, work: int) -> Offload:
    """What was asked for, or what fits. A CPU has nowhere to move parts to, and Apple's GPUs share its memory."""
    if placement.device.type in ("cpu", "mps"):
        return "none"
    if placement.offload != "auto":
        return placement.offload
    free, _ = torch.cuda.mem_get_info(placement.device)
    return choose_offload(measure_parts(pipe), work, free)
