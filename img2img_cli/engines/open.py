"""Preset to pipeline: choose the engine, and import only what that engine needs."""

from __future__ import annotations

from pathlib import Path

from img2img_cli.engines.base import BasePipeline
from img2img_cli.engines.device import Placement, explain_memory_errors, prepare_device
from img2img_cli.errors import ModelError
from img2img_cli.presets.references import NO_MODEL, locate_model
from img2img_cli.presets.schema import Parameters

ADDITIONS = ("lora", "embedding", "vae", "controlnet", "ip_adapter", "refiner", "scheduler")  # to a diffusion model


def open_pipeline(parameters: Parameters, placement: Placement) -> BasePipeline:
    """Load the preset's model: a network of our own, an upscaling net alone or a diffusers model; or a look, without.

    Raises:
        ModelError: missing, refused, damaged, out of reach, or given what only a diffusion model takes.
        OutOfMemoryError: the device is too small for it.
    """
    prepare_device(placement.device)
    kind, place = locate_model(parameters.model)
    if kind == "net" and parameters.upscaler is None:
        refuse_additions(parameters)
        from img2img_cli.engines.picture_net import load_picture_net

        with explain_memory_errors(placement.device):
            return load_picture_net(Path(place), placement)
    if parameters.look is not None:
        refuse_additions(parameters)
        from img2img_cli.engines.looks.pipeline import LookPipeline

        return LookPipeline(placement)
    if kind in ("net", NO_MODEL):
        from img2img_cli.engines.feed_forward import load_net_alone

        with explain_memory_errors(placement.device):
            return load_net_alone(parameters, placement)
    from img2img_cli.engines.diffusion.build import build_pipeline

    return build_pipeline(parameters, placement)


def refuse_additions(parameters: Parameters) -> None:
    """Refuse parts of diffusion models, which would change nothing.

    Raises:
        ModelError: the preset or command line names one.
    """
    for key in ADDITIONS:
        if getattr(parameters, key):
            raise ModelError(
                f"{key}: {parameters.look or parameters.model} works in one pass and takes none; leave it out, or "
                "choose a preset with a diffusion model, such as sd15-edit"
            )
