"""What happens between two steps: progress is told, and guidance stops where it matters no more.

Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion
Models" (NeurIPS 2024): in the last steps, where noise is low, guidance changes little but costs as much as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from img2img_cli.engines.diffusion.feature_cache import find_cache
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.pieces import Progress

# What pipelines with a UNet hold twice while they guide, the unguided half first, and what each holds once.
GUIDED_TENSORS = (
    "prompt_embeds",
    "add_text_embeds",
    "add_time_ids",
    "attention_mask",
    "control_image",
    "depth_mask",
    "mask",
    "masked_image_latents",
)
SINGLE_TENSORS = (
    "latents",
    "negative_prompt_embeds",
    "negative_pooled_prompt_embeds",
    "negative_attention_mask",
    "negative_add_time_ids",
    "add_neg_time_ids",
)
Callback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


def make_callback(pipe: Any, parameters: Parameters, progress: Progress | None) -> Callback | None:
    """What a diffusers pipeline is to call at the end of each step, if anything."""
    ends = _wants_end(parameters) and _can_end(pipe, parameters)
    if progress is None and not ends:
        return None

    def callback(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if progress is not None:
            progress(step + 1, pipe.num_timesteps)
        done = (step + 1) / pipe.num_timesteps
        if ends and done >= parameters.guidance_end and pipe.do_classifier_free_guidance:
            pipe._guidance_scale = 0.0
            for name in GUIDED_TENSORS:
                if values.get(name) is not None:
                    values[name] = values[name].chunk(2)[-1]
            if (cache := find_cache()) is not None:
                cache.keep_guided_half()
        return values

    return callback


def _wants_end(parameters: Parameters) -> bool:
    """Whether guidance is on and is to stop before the last step."""
    return parameters.guidance_end < 1 and parameters.guidance_scale > 1


def _can_end(pipe: Any, parameters: Parameters) -> bool:
    """Whether a pipeline's guidance can stop: all that it holds twice is known, and can be given back by half.

    Transformers run the unguided half by itself, or hold more than they tell of; an IP-Adapter's embeddings cannot be
    given back; InstructPix2Pix holds everything three times.
    """
    known = getattr(pipe, "_callback_tensor_inputs", ())
    guided = hasattr(type(pipe), "do_classifier_free_guidance") and getattr(pipe, "unet", None) is not None
    control = getattr(pipe, "controlnet", None) is None or "control_image" in known
    return (
        guided
        and control
        and parameters.ip_adapter is None
        and "prompt_embeds" in known
        and not {*known} - {*GUIDED_TENSORS, *SINGLE_TENSORS}
    )


def find_limits(pipe: Any, parameters: Parameters) -> list[str]:
    """A sentence where guidance is to end early, and this pipeline's cannot."""
    if not _wants_end(parameters) or _can_end(pipe, parameters):
        return []
    return [f"guidance_end: the guidance of a {type(pipe).__name__} cannot stop early; it goes on to the end"]
