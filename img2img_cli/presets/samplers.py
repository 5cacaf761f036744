"""Samplers and noise schedules by the names that other tools give them, as diffusers' classes and settings."""

from __future__ import annotations

import re
from typing import Any

# Schedules of the web UI, and the settings of diffusers' schedulers that make them; None for a sampler's own.
SCHEDULES: dict[str, dict[str, Any] | None] = {
    "automatic": None,
    "uniform": {},
    "normal": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "sgm uniform": {"timestep_spacing": "trailing"},
    "simple": {"timestep_spacing": "trailing"},
}
# Samplers of the web UI: diffusers' class, its settings, and the schedule that "automatic" stands for.
SAMPLERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}, "karras"),
    "DPM++ SDE": ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "karras"),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "exponential"),
    "DPM++ 2S a": ("DPMSolverSinglestepScheduler", {}, "karras"),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}, "automatic"),
    "Euler": ("EulerDiscreteScheduler", {}, "automatic"),
    "LMS": ("LMSDiscreteScheduler", {}, "automatic"),
    "Heun": ("HeunDiscreteScheduler", {}, "automatic"),
    "DPM2": ("KDPM2DiscreteScheduler", {}, "karras"),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}, "karras"),
    "UniPC": ("UniPCMultistepScheduler", {}, "automatic"),
    "DDIM": ("DDIMScheduler", {}, "automatic"),
    "PLMS": ("PNDMScheduler", {}, "automatic"),
    "LCM": ("LCMScheduler", {}, "automatic"),
}
NO_SIGMAS = frozenset({"EulerAncestralDiscreteScheduler", "DDIMScheduler", "PNDMScheduler", "LCMScheduler"})
NO_SPACING = frozenset({"DPMSolverSinglestepScheduler"})
# What ComfyUI, InvokeAI, NovelAI and k-diffusion call them, where signs between the words are not all that differs.
_OTHER_NAMES = {
    "euler ancestral": "Euler a",
    "dpm 2": "DPM2",
    "dpm 2 a": "DPM2 a",
    "dpm 2 ancestral": "DPM2 a",
    "kdpm 2": "DPM2",
    "kdpm 2 a": "DPM2 a",
    "dpmpp 2m sde gpu": "DPM++ 2M SDE",
    "dpmpp sde gpu": "DPM++ SDE",
    "dpmpp 2s": "DPM++ 2S a",
    "dpmpp 2s ancestral": "DPM++ 2S a",
    "uni pc": "UniPC",
    "ddim v3": "DDIM",
    "pndm": "PLMS",
}
_BY_NAME = {" ".join(name.lower().replace("++", "pp").split()): name for name in SAMPLERS} | _OTHER_NAMES
_SCHEDULERS = frozenset(kind for kind, _, _ in SAMPLERS.values())


def _normalise(name: str) -> str:
    return re.sub(r"[\s_]+", " ", name.lower()).strip()


def is_schedule(name: str) -> bool:
    """Whether a schedule of another tool has a counterpart."""
    return _normalise(name) in SCHEDULES


def find_sampler(name: str, schedule: str | None = None) -> tuple[str, dict[str, Any]] | None:
    """diffusers' scheduler and its settings for another tool's sampler; None for one that has no counterpart.

    Args:
        name: of any tool, also with its schedule at the end: `Euler a`, `dpmpp_2m`, `k_euler_a`, `DPM++ 2M Karras`.
        schedule: of its noise levels, such as `karras`, where a tool tells it apart.
    """
    if name in _SCHEDULERS:  # our own records
        return name, {}
    words = _normalise(name).replace("++", "pp").split()
    words = words[1:] if words[:1] == ["k"] else words
    told = _normalise(schedule or "automatic")
    if words[-1:] in (["karras"], ["k"], ["exponential"]):
        told = words.pop()
        told = "karras" if told == "k" else told
    known = _BY_NAME.get(" ".join(words))
    if known is None:
        return None
    scheduler, settings, own = SAMPLERS[known]
    change = SCHEDULES.get(own if told == "automatic" else told) or {}
    if scheduler in NO_SIGMAS:
        change = {key: value for key, value in change.items() if not key.endswith("_sigmas")}
    if scheduler in NO_SPACING:
        change = {key: value for key, value in change.items() if key != "timestep_spacing"}
    return scheduler, settings | change
