"""Read parameters in the text form of AUTOMATIC1111's web UI, which many tools write."""

from __future__ import annotations

import re

from img2img_cli.tasks.foreign.fields import (
    MAX_LORAS,
    Foreign,
    show_others,
    to_float,
    to_int,
    to_name,
    to_size,
    to_text,
)

MAX_LINE = 1 << 16  # the most characters read from the line of settings
_STEPS = re.compile(r"^[ \t]*Steps: \d", re.MULTILINE)
_SETTING = re.compile(r'([A-Za-z][\w /+-]{0,60}+):[ \t]*+("(?:\\.|[^"\\])*+"|[^,]*+)(?:,|$)')
_LORA = re.compile(r" ?<(?:lora|lyco):([^:<>]{1,200})(?::(-?[\d.]{1,10}))?(?::[^<>]{0,100})?>")
_NEGATIVE = "Negative prompt:"
_MAPPED = frozenset({"Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model", "Denoising strength"})


def is_parameters(text: str) -> bool:
    """Return whether a text holds parameters, rather than a comment of a person or a screenshot tool."""
    return _STEPS.search(text) is not None


def read_parameters(text: str) -> Foreign:
    """Read prompt, negative prompt and settings. The settings are in the last line that begins with `Steps:`."""
    text = to_text(text) or ""
    lines = text.strip().splitlines()
    last = max((index for index, line in enumerate(lines) if _STEPS.match(line)), default=len(lines))
    line = lines[last][:MAX_LINE] if last < len(lines) else ""
    settings = {key: value.strip().strip('"') for key, value in _SETTING.findall(line)}
    before = lines[:last]
    border = next((index for index, line in enumerate(before) if line.startswith(_NEGATIVE)), len(before))
    prompt = "\n".join(before[:border])
    negative = "\n".join(before[border:]).removeprefix(_NEGATIVE).strip()
    loras = _LORA.findall(prompt)[:MAX_LORAS]
    width, _, height = settings.get("Size", "").partition("x")
    distilled = to_float(settings.get("Distilled CFG Scale"))
    return Foreign(
        tool=_tell_tool(settings.get("Version", "")),
        text=text,
        prompt=_LORA.sub("", prompt).strip(" ,") if loras else prompt,
        negative_prompt=negative or None,
        seed=to_int(settings.get("Seed")),
        num_inference_steps=to_int(settings.get("Steps")),
        guidance_scale=to_float(settings.get("CFG scale")) if distilled is None else distilled,
        # With a second pass over an enlarged picture, this value belongs to that pass.
        strength=None if "Hires upscale" in settings else to_float(settings.get("Denoising strength")),
        sampler=settings.get("Sampler") or None,
        schedule=settings.get("Schedule type") or None,
        model=to_name(settings.get("Model")),
        size=to_size(width, height),
        lora=tuple(f"{name}:{scale or 1}" for name, scale in loras),
        other=show_others((key, value) for key, value in settings.items() if key not in _MAPPED),
    )


def _tell_tool(version: str) -> str:
    """Return the name of the tool from the setting `Version`, which is only a number for the web UI itself."""
    name = version.split(" ")[0]
    return name if name in ("img2img", "ComfyUI") else "AUTOMATIC1111"
