"""Find the command that comes closest to another tool's parameters, and list what the command leaves out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from img2img_cli.errors import PresetError
from img2img_cli.presets.catalogue import resolve
from img2img_cli.presets.files import load_preset
from img2img_cli.presets.references import is_bundled
from img2img_cli.presets.samplers import find_sampler, is_schedule
from img2img_cli.system.streams import STDIO
from img2img_cli.tasks.foreign.fields import Foreign
from img2img_cli.tasks.job import MAX_SEED
from img2img_cli.tasks.record import replay_command

LARGE = 768 * 768  # from this many pixels, a picture is more likely from Stable Diffusion XL than from 1.5
# Presets by patterns for the names of models and families; the first match counts.
_PRESETS = (
    (re.compile(r"flux", re.IGNORECASE), "flux-dev"),
    (re.compile(r"sd[-_ ]?3|stable[-_ ]diffusion[-_ ]3", re.IGNORECASE), "sd35-medium"),
    (re.compile(r"xl|pony|illustrious|noob|diffusion v[34]", re.IGNORECASE), "sdxl-edit"),
    (re.compile(r"sd[-_ ]?1|v1-5|1\.5|stable diffusion [0-9a-f]{8}$", re.IGNORECASE), "sd15-edit"),
)
_PLAIN = ("negative_prompt", "num_inference_steps", "guidance_scale")


@dataclass(frozen=True)
class Replay:
    """The counterpart of another tool's parameters.

    Attributes:
        command: a command on one line; None if the prompt is unknown.
        notes: what the command leaves out, a sentence each.
    """

    command: str | None
    notes: tuple[str, ...]


def plan_replay(found: Foreign, name: str) -> Replay:
    """Plan the command that comes closest to another tool's parameters.

    Args:
        name: the picture that holds the parameters. It becomes the input of the command, because other tools do not
            record theirs.
    """
    if not found.prompt:
        return Replay(None, (*found.notes, "no prompt was found, so there is no command"))
    notes = list(found.notes)
    preset, why = _choose_preset(found)
    notes += [why] if why else []
    overrides: dict[str, Any] = {}
    for key, value, instead in _list_wanted(found):
        try:
            resolve(load_preset(preset), overrides | value)
        except PresetError:
            notes.append(f"{key}: {_shorten(getattr(found, key))} is out of range or does not go with {preset}")
        else:
            overrides |= value
        notes += [instead] if instead else []
    seed = found.seed if found.seed is not None and 0 <= found.seed <= MAX_SEED else None
    if found.seed is not None and seed is None:
        notes.append(f"seed: {_shorten(found.seed)} is not between 0 and {MAX_SEED}")
    notes += _list_missing(found)
    parameters = resolve(load_preset(preset), overrides).parameters.to_record()
    source = f"./{name}" if name.startswith("-") and name != STDIO else name
    record = {"input": source, "preset": preset, "seed": seed, "parameters": parameters}
    return Replay(replay_command(record), tuple(notes))


def _choose_preset(found: Foreign) -> tuple[str, str | None]:
    """Return the preset for the family of the model, and a note if the family is a guess."""
    if found.tool == "img2img" and found.model and is_bundled(found.model):
        return "edit", None
    for text in filter(None, (found.family, found.model)):
        for pattern, preset in _PRESETS:
            if pattern.search(text):
                return preset, None
    preset = "sdxl-edit" if found.size and found.size[0] * found.size[1] >= LARGE else "sd15-edit"
    return preset, f"the model's family is unknown; {preset} was chosen by the picture's size"


def _list_wanted(found: Foreign) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """Yield the name of each usable field, the matching parameters of this tool, and a note or None."""
    yield "prompt", {"prompt": found.prompt}, None
    for key in _PLAIN:
        if (value := getattr(found, key)) is not None:
            yield key, {key: value}, None
    if found.strength is not None and 0 < found.strength < 1:
        yield "strength", {"strength": found.strength}, None
    sampler = find_sampler(found.sampler, found.schedule) if found.sampler else None
    if sampler is not None:
        yield "sampler", {"scheduler": sampler[0], "scheduler_config": sampler[1]}, None


def _list_missing(found: Foreign) -> Iterator[str]:
    """Yield a note for each thing that the command leaves out, such as files that are not available."""
    if found.strength is None or not 0 < found.strength < 1:
        yield "it was made from text alone, or its input is not recorded; the command takes this picture as input"
    else:
        yield "its input is not recorded; the command takes this picture as input"
    if found.sampler and find_sampler(found.sampler, found.schedule) is None:
        yield f"sampler: {_shorten(found.sampler)} has no counterpart; the command leaves the preset's scheduler"
    if found.schedule and not is_schedule(found.schedule):
        yield f"schedule: {_shorten(found.schedule)} has no counterpart; the command leaves the sampler's own"
    if found.model and not is_bundled(found.model):
        yield f"model: the preset's stands in for {_shorten(found.model)}; add --model with its file or hub id"
    for lora in found.lora:
        reference, _, scale = lora.rpartition(":")
        yield f"lora: {_shorten(reference)} is left out; add --lora FILE:{scale}"
    if found.other:
        named = (f"nodes {value}" if key == "nodes" else key for key, value in found.other.items())
        yield f"no counterpart for: {', '.join(named)}"


def _shorten(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."
