"""Resolve presets: defaults < preset file < command line, then validate the result."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from img2img_cli.errors import PresetError, UsageError
from img2img_cli.presets.files import EXTENDS, Preset, load_preset, replace_values, suggest
from img2img_cli.presets.references import BUNDLED
from img2img_cli.presets.schema import Parameters, Task, fewest_steps
from img2img_cli.presets.words import knows_any, tell_unknown_words

DEFAULT, COMMAND_LINE = "default", "command line"
MAX_SHOWN = 200  # characters of a value in a message
FAST_STEPS, FAST_GUIDANCE, FEWEST_TO_CUT = 2 / 3, 0.6, 8
LEAST_STRENGTH = 0.01  # for a lower strength, the schedule is not lengthened and validation fails


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """Validated parameters and, for each key, where its value came from."""

    name: str
    parameters: Parameters
    origin: Mapping[str, str]


def resolve_preset(
    name: str,
    overrides: Mapping[str, Any],
    *,
    shown: str | None = None,
    task: Task | None = None,
    fast: bool = False,
    needs_prompt: bool = True,
    more_lora: Sequence[str] = (),
    more_embeddings: Sequence[str] = (),
) -> Resolved:
    """Load a preset, replace some of its values and validate the result.

    The command line, the rows of a batch and web requests all resolve presets here.

    Args:
        name: a preset's name or file.
        shown: the preset's name in messages and in the result; `name` if None.
        task: the only task to accept; None for any.
        fast: whether to apply `speed_up`.
        needs_prompt: whether to refuse an edit without a prompt in either the preset or `overrides`, and a prompt that
            is not read. Clients on the web must always send one.
        more_lora, more_embeddings: as in `resolve`.

    Raises:
        PresetError: as in `load_preset` and `resolve`.
        UsageError: the preset is for another task, has no ControlNet of the requested kind, lacks a prompt, reads none
            or knows no word of it.
    """
    shown = shown or name
    preset = load_preset(name)
    if fast:
        overrides = speed_up(preset, overrides)
    resolved = resolve(preset, overrides, more_lora=more_lora, more_embeddings=more_embeddings)
    resolved = choose_controlnet(shown, resolved, overrides)
    p = resolved.parameters
    if task is not None and p.task != task:
        raise UsageError(f"preset '{shown}' is for {p.task}; run `img2img {p.task}` or choose another preset")
    if needs_prompt and overrides.get("prompt") and p.reads_no_words:
        other = f"use a preset that does, such as sd15-{p.task}"
        raise UsageError(f"preset '{shown}' reads no words; leave out the prompt, or {other}")
    if not knows_any(p.prompt, p):
        told = tell_unknown_words(p.prompt, p)
        raise UsageError(f"preset '{shown}': {told}; other words need another model, as in the preset sd15-edit")
    if needs_prompt and p.task == "edit" and not (p.prompt or p.reads_no_words or "prompt" in overrides):
        what = "say what the result should show with --prompt, or choose a preset that has one (style-...)"
        raise UsageError(f"preset '{shown}': no prompt; {what}")
    return dataclasses.replace(resolved, name=shown)


def choose_controlnet(name: str, resolved: Resolved, overrides: Mapping[str, Any]) -> Resolved:
    """Set the ControlNet for the kind of control in `overrides`, unless `overrides` name a ControlNet.

    Raises:
        UsageError: the preset lists no ControlNet of this kind.
    """
    p = resolved.parameters
    if p.control is None or "control" not in overrides or "controlnet" in overrides:
        return resolved
    if p.model == BUNDLED and p.control == "picture":
        return resolved
    if p.control not in p.controlnets:
        kinds = "picture" if p.model == BUNDLED else ", ".join(p.controlnets) or "none"
        raise UsageError(f"--control {p.control}: preset '{name}' has {kinds}; name another one with --controlnet")
    chosen = p.model_copy(update={"controlnet": p.controlnets[p.control], "controlnet_revision": None})
    return dataclasses.replace(resolved, parameters=chosen)


def speed_up(preset: Preset, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `overrides` with the changes of `--fast`, which trade quality for time; given keys are kept.

    If at least `FEWEST_TO_CUT` steps run, run two thirds of them and, unless there is an IP-Adapter, stop guidance
    after `FAST_GUIDANCE` of those. Use the small VAE if the preset names one. Presets with fewer steps, such as those
    of the bundled model, keep theirs.

    Raises:
        PresetError: as in `resolve`.
    """
    p = resolve(preset, overrides).parameters
    faster: dict[str, Any] = {}
    if p.steps_run >= FEWEST_TO_CUT:
        faster["num_inference_steps"] = max(fewest_steps(p.strength), math.ceil(p.num_inference_steps * FAST_STEPS))
        if p.guidance_scale > 1 and p.ip_adapter is None:
            faster["guidance_end"] = FAST_GUIDANCE
    if p.tiny_vae is not None:
        faster["vae"] = p.tiny_vae
    return {**faster, **overrides}


def resolve(
    preset: Preset, overrides: Mapping[str, Any], *, more_lora: Sequence[str] = (), more_embeddings: Sequence[str] = ()
) -> Resolved:
    """Merge defaults < preset < command line and validate the result.

    Args:
        more_lora, more_embeddings: references to append to those of the preset.

    Raises:
        PresetError: values are invalid; the message names the file and line, or the command-line key, of each.
    """
    for key in overrides:
        if key not in Parameters.model_fields:
            raise PresetError(f"--set {key}: no such parameter{suggest(key, Parameters.model_fields)}")
    merged = replace_values(preset.values, overrides)
    if "model" in overrides and "variant" not in overrides and overrides["model"] != preset.values.get("model"):
        merged.pop("variant", None)  # many models have no files of this variant
    if "strength" in overrides and "num_inference_steps" not in overrides:
        merged["num_inference_steps"] = _lengthen_schedule(merged)
    try:
        parameters = Parameters.model_validate(merged)
    except ValidationError as error:
        raise PresetError("; ".join(_describe(e, preset, overrides) for e in error.errors())) from None
    if more_lora or more_embeddings:
        more = {"lora": (*parameters.lora, *more_lora), "embedding": (*parameters.embedding, *more_embeddings)}
        try:
            parameters = Parameters.model_validate({**merged, **more})
        except ValidationError as error:
            raise PresetError("; ".join(_describe(e, preset, {**overrides, **more}) for e in error.errors())) from None
    origin = {
        key: COMMAND_LINE
        if key in overrides
        else str(preset.sources[key])
        if key in preset.values.keys() & merged.keys()
        else DEFAULT
        for key in Parameters.model_fields
    }
    return Resolved(name=preset.name, parameters=parameters, origin=origin)


def _lengthen_schedule(merged: Mapping[str, Any]) -> Any:
    """Return the number of steps, raised if necessary so that at least one runs at a low strength."""
    steps = merged.get("num_inference_steps", Parameters.model_fields["num_inference_steps"].default)
    strength = merged["strength"]
    sound = isinstance(steps, int) and isinstance(strength, int | float) and LEAST_STRENGTH <= strength <= 1
    return max(steps, fewest_steps(strength)) if sound else steps


# What the regular expressions of some keys demand, in words.
_PATTERNS = {
    "size": "should be original, model or WIDTHxHEIGHT such as 128x128",
    "prompt_template": "should have {prompt} in it",
}


def _describe(error: Any, preset: Preset, overrides: Mapping[str, Any]) -> str:
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not error["loc"]:
        return message if overrides else f"preset {preset.name}: {message}"
    key = str(error["loc"][0])
    if error["type"] == "string_pattern_mismatch":
        message = _PATTERNS.get(key, message)
    where = COMMAND_LINE if key in overrides else str(preset.sources[key])
    hint = ""
    expected = error.get("ctx", {}).get("expected")
    if expected and isinstance(error["input"], str):
        hint = suggest(error["input"], [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")])
    return f"{where}: {key}: {message}, not {_show(error['input'])}{hint}"


def _show(value: Any) -> str:
    """Return a value as JSON of at most `MAX_SHOWN` characters."""
    try:
        text = json.dumps(value, default=str)
    except (ValueError, RecursionError):  # Python refuses to convert integers of thousands of digits
        text = "what was given"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def preset_schema() -> dict[str, Any]:
    """Return the JSON schema of a preset file, which editors can use."""
    schema = Parameters.model_json_schema()
    properties = {
        EXTENDS: {"type": "string", "description": "Name or file of the preset whose values are inherited."},
        **schema["properties"],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "img2img preset",
        "properties": properties,
    }
