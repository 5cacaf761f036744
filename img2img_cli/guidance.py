"""What happens between two steps: progress is told, and guidance stops where it matters no more.

Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion
Models" (NeurIPS 2024): in the last steps, where noise is low, guidance changes little but costs as much as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from img2img_cli.errors import UsageError
from img2img_cli.parameters import Parameters
from img2img_cli.work import Progress

# What pipelines hold twice while they guide, the unguided half first.
GUIDED_TENSORS = ("prompt_embeds", "add_text_embeds", "add_time_ids", "control_image")
Callback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


def make_callback(pipe: Any, parameters: Parameters, progress: Progress | None) -> Callback | None:
    """What a diffusers pipeline is to call at the end of each step, if anything.

    Raises:
        UsageError: guidance is to stop, and this pipeline's cannot.
    """
    ends = parameters.guidance_end < 1 and parameters.guidance_scale > 1
    if ends:
        _check_can_end(pipe, parameters)
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
        return values

    return callback


def _check_can_end(pipe: Any, parameters: Parameters) -> None:
    known = getattr(pipe, "_callback_tensor_inputs", ())
    guided = hasattr(type(pipe), "do_classifier_free_guidance") and "prompt_embeds" in known
    control = getattr(pipe, "controlnet", None) is None or "control_image" in known
    if not guided or not control or parameters.ip_adapter is not None:
        raise UsageError(f"guidance_end: the guidance of a {type(pipe).__name__} cannot stop early; leave it out")
