"""From options to what the planner takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from img2img_cli.cli.options import SharedOptions
from img2img_cli.errors import UsageError
from img2img_cli.pictures.files.formats import Format, Truncated
from img2img_cli.presets.files import suggest
from img2img_cli.presets.schema import Offload, Parameters
from img2img_cli.presets.values import read_value

FORMATS: tuple[Format, ...] = get_args(Format)
TRUNCATED: tuple[Truncated, ...] = get_args(Truncated)
OFFLOADS: tuple[Offload, ...] = get_args(Offload)
# The options that are parameters, and the names of those.
PARAMETERS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "strength": "strength",
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "model": "model",
    "controlnet": "controlnet",
    "vae": "vae",
    "scheduler": "scheduler",
    "size": "size",
    "dtype": "dtype",
    "compile": "compile",
}
Choice = TypeVar("Choice", bound=str)


def collect_choices(shared: SharedOptions, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the arguments of `Choices` that all commands give.

    Args:
        own: parameters from the command's own options, by name; None as a value means not given.

    Raises:
        UsageError: naming the option.
    """
    given = {**(own or {}), **{name: getattr(shared, option) for option, name in PARAMETERS.items()}}
    overrides = {name: value for name, value in given.items() if value is not None}
    return {
        "preset": shared.preset,
        "overrides": overrides | dict(parse_assignment(text) for text in shared.set_),
        "more_lora": shared.lora,
        "more_embeddings": shared.embedding,
        "format": check_format(shared.format),
        "quality": shared.quality,
        "fast": shared.fast,
        "metadata": not shared.no_metadata,
        "truncated": check_truncated(shared.truncated),
    }


def leaves_preset_open(shared: SharedOptions) -> bool:
    """Return whether there is neither a prompt nor a word about preset or model, so that a command may choose them."""
    said = (shared.preset, shared.model, shared.lora, shared.embedding, shared.controlnet, shared.set_)
    return shared.prompt is None and not any(said)


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split a `--set` into key and value, the value read as the parameter's type needs.

    Raises:
        UsageError: naming the key.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals:
        raise UsageError(f"--set {text}: must be KEY=VALUE, such as --set strength=0.5")
    if key not in Parameters.model_fields:
        raise UsageError(f"--set {key}: no such parameter{suggest(key, Parameters.model_fields)}")
    try:
        return key, read_value(key, value)
    except UsageError as error:
        raise UsageError(f"--set {error}") from None


def check_format(name: str) -> Format:
    """The value of --format.

    Raises:
        UsageError: no such format.
    """
    return _check_choice("--format", {"jpg": "jpeg", "tif": "tiff"}.get(name, name), FORMATS)


def check_offload(name: str) -> Offload:
    """The value of --offload.

    Raises:
        UsageError: no such way.
    """
    return _check_choice("--offload", name, OFFLOADS)


def check_truncated(name: str) -> Truncated:
    """The value of --truncated.

    Raises:
        UsageError: no such choice.
    """
    return _check_choice("--truncated", name, TRUNCATED)


def _check_choice(option: str, name: str, known: Sequence[Choice]) -> Choice:
    for choice in known:
        if name == choice:
            return choice
    raise UsageError(f"{option} {name}: must be one of {', '.join(known)}{suggest(name, known)}")
