"""Translate other tools' names of samplers and noise schedules into diffusers' classes and settings."""

from __future__ import annotations

import re
from typing import Any

# Schedules of the web UI and the diffusers settings that match them; None for the sampler's default.
SCHEDULES: dict[str, dict[str, Any] | None] = {
    "automatic": None,
    "uniform": {},
    "normal": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "sgm uniform": {"timestep_spacing": "trailing"},
    "simple": {"timestep_spacing": "trailing"},
}
# Samplers of the web UI: diffusers' class, its settings, and the schedule that "automatic" means for it.
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
# Names in ComfyUI, InvokeAI, NovelAI and k-diffusion that differ by more than separators.
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
    """Return whether another tool's schedule has a counterpart in diffusers."""
    return _normalise(name) in SCHEDULES


def find_sampler(name: str, schedule: str | None = None) -> tuple[str, dict[str, Any]] | None:
    """Return the diffusers scheduler class and settings for another tool's sampler, or None without a counterpart.

    Args:
        name: sampler, possibly with its schedule at the end: `Euler a`, `dpmpp_2m`, `k_euler_a`, `DPM++ 2M Karras`.
        schedule: noise schedule, such as `karras`, if the tool names it separately.
    """
    if name in _SCHEDULERS:  # as img2img's own records name it
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
