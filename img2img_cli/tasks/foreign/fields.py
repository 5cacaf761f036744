"""The fields that the parameters of other tools share, and functions that read them safely from untrusted values."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_TEXT = 1 << 22  # the most characters read from one text
MAX_OTHER, MAX_SHOWN = 64, 200  # the most values without a counterpart that are reported, and characters of each
MAX_SIDE = 65_500
MAX_NUMBER = 40  # the most characters in a number
MAX_LORAS = 32

# The names of the keys in tools that write flat JSON.
ALIASES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "positive_prompt"),
    "negative_prompt": ("negative_prompt", "negativeprompt", "uc"),
    "seed": ("seed", "noise_seed"),
    "num_inference_steps": ("steps", "num_inference_steps"),
    "guidance_scale": ("cfg_scale", "cfgscale", "guidance_scale", "scale", "cfg"),
    "strength": ("strength", "denoising_strength", "initimagecreativity", "denoise"),
    "sampler": ("sampler", "sampler_name", "scheduler"),
    "schedule": ("noise_schedule", "schedule"),
    "model": ("model", "base_model", "model_weights", "use_stable_diffusion_model"),
    "width": ("width", "W"),
    "height": ("height", "H"),
    "size": ("resolution", "size"),
}
_LORA_KEYS = ("loras", "loraweights")
_SIDE = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """The parameters with which another tool made a picture, as far as known, under the names that diffusers uses.

    Attributes:
        tool: the name of the tool, or `unknown`.
        text: the original text of the parameters, if they are stored as readable text.
        sampler, schedule: names as the tool spells them.
        model: the name or file of the model, without its folder.
        family: a further hint of the model's family, such as `sdxl`.
        size: width and height in pixels at which the tool worked.
        lora: `NAME:SCALE` for each LoRA.
        other: values without a counterpart in this tool.
        notes: further messages for the user, a sentence each.
    """

    tool: str
    text: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    strength: float | None = None
    sampler: str | None = None
    schedule: str | None = None
    model: str | None = None
    family: str | None = None
    size: tuple[int, int] | None = None
    lora: tuple[str, ...] = ()
    other: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the known fields as a dict for JSON, with `size` split into `width` and `height`."""
        told: dict[str, Any] = {key: value for key, value in vars(self).items() if value not in (None, (), {})}
        if self.size is not None:
            told["width"], told["height"] = told.pop("size")
        for key in ("lora", "notes"):
            if key in told:
                told[key] = list(told[key])
        return told


def read_json(text: object) -> Any:
    """Parse a text as JSON; return None if it is not JSON, too long, or nested too deeply."""
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def to_text(value: object) -> str | None:
    """Return a text without NUL and lone surrogates, so that it can be written or used in a command; None for non-text.

    The text is cut at `MAX_TEXT` characters.
    """
    if not isinstance(value, str):
        return None
    return value[:MAX_TEXT].replace("\0", "").encode("utf-8", "replace").decode()


def to_int(value: object) -> int | None:
    """Return a whole number, also from text or a float; None for anything else."""
    if isinstance(value, str) and len(value) <= MAX_NUMBER and value.isdecimal():
        return int(value)
    number = to_float(value)
    if number is None or number != int(number):
        return None
    return value if isinstance(value, int) else int(number)


def to_float(value: object) -> float | None:
    """Return a finite number, also from text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value[: MAX_NUMBER + 1] if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def to_size(width: object, height: object) -> tuple[int, int] | None:
    """Return a width and height in pixels, both in 1..65500; None for anything else."""
    across, down = to_int(width) or 0, to_int(height) or 0
    return (across, down) if min(across, down) > 0 and max(across, down) <= MAX_SIDE else None


def to_name(value: object) -> str | None:
    """Return the name of a model without its folder, from text or from a mapping with `name` or `model_name`."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("name", "model_name") if isinstance(value.get(key), str)), None)
    text = to_text(value)
    return text.replace("\\", "/").rsplit("/", 1)[-1] or None if text else None


def show_others(pairs: Iterable[tuple[object, object]]) -> dict[str, str]:
    """Return up to `MAX_OTHER` of the pairs that have a value, as texts cut at `MAX_SHOWN` characters."""
    shown: dict[str, str] = {}
    for key, value in pairs:
        if len(shown) >= MAX_OTHER:
            break
        if value is None or value in ("", [], {}):
            continue
        if isinstance(value, str | int | float):
            text = str(value) if not isinstance(value, int) or value.bit_length() < 1024 else "a number"
        else:
            text = f"{type(value).__name__} of {len(value)}" if isinstance(value, list | dict) else "something"
        cut = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
        shown[str(to_text(str(key)[:MAX_SHOWN]))] = str(to_text(cut))
    return shown


def read_flat(tool: str, values: Mapping[str, Any], **known: Any) -> Foreign:
    """Read the fields from flat JSON, by the names in `ALIASES`.

    Args:
        tool: the name of the tool.
        known: fields that replace those found in `values`.
    """
    taken = {name: next((key for key in keys if key in values), None) for name, keys in ALIASES.items()}
    if taken["sampler"] != "scheduler" and taken["schedule"] is None and "scheduler" in values:
        taken["schedule"] = "scheduler"  # this key names the sampler only if no other key does
    found = {name: values[key] for name, key in taken.items() if key is not None}
    size = to_text(found.get("size")) or ""
    across, down, *_ = *_SIDE.findall(size[:MAX_NUMBER]), None, None
    fields = {
        **{key: to_text(found.get(key)) for key in ("prompt", "negative_prompt", "sampler", "schedule")},
        **{key: to_int(found.get(key)) for key in ("seed", "num_inference_steps")},
        **{key: to_float(found.get(key)) for key in ("guidance_scale", "strength")},
        "model": to_name(found.get("model")),
        "size": to_size(found.get("width", across), found.get("height", down)),
        "lora": tuple(_list_loras(values)),
        "other": show_others((key, values[key]) for key in values if key not in (*taken.values(), *_LORA_KEYS)),
    }
    return Foreign(tool=tool, **{**fields, **known})


def _list_loras(values: Mapping[str, Any]) -> list[str]:
    """Return `NAME:SCALE` for each LoRA.

    `loras` may hold dicts with a name, lists of name and scale, or names whose scales are in `loraweights`.
    """
    entries, scales = values.get("loras"), values.get("loraweights")
    found = []
    for index, entry in enumerate(entries[:MAX_LORAS] if isinstance(entries, list) else ()):
        name, scale = entry, scales[index] if isinstance(scales, list) and index < len(scales) else None
        if isinstance(entry, dict):
            name, scale = entry.get("model") or entry.get("lora"), entry.get("weight")
        elif isinstance(entry, list) and len(entry) > 1:
            name, scale = entry[:2]
        factor = to_float(scale)
        found += [f"{told}:{1 if factor is None else factor:g}"] if (told := to_name(name)) else []
    return found


def read_plain(values: Mapping[str, Any]) -> Foreign | None:
    """Read flat JSON with a prompt and settings, as SwarmUI, Fooocus and others write it; None for other JSON."""
    inner = values.get("sui_image_params")
    if isinstance(inner, dict):
        return read_flat("SwarmUI", inner)
    found = read_flat("Fooocus" if "metadata_scheme" in values else "unknown", values)
    return found if found.prompt is not None and found.num_inference_steps is not None else None
