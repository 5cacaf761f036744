"""Convert parameters from and to text, for `--set`, CSV cells and the command that `info` prints."""

from __future__ import annotations

import functools
import json
from typing import Any, Literal, get_args, get_origin

from img2img_cli.errors import UsageError
from img2img_cli.presets.schema import Parameters
from img2img_cli.presets.strict_yaml import MAX_CHARACTERS, YamlError, parse_scalar, parse_yaml
from img2img_cli.text import printable

NOTHING = ("null", "none")  # texts that mean None
_BRACKETS = {"mapping": "{", "list": "["}


def read_value(key: str, text: str) -> Any:
    """Return the value of a parameter from its text. Types and ranges are not checked.

    - Text is taken unchanged, or from a JSON string in double quotes, which can hold line breaks.
    - Mappings and lists are JSON, or YAML in flow style. A list can also be references separated by spaces.
    - `null` and `none` are None if the parameter can be None.
    - Anything else is a number, true or false.

    Raises:
        UsageError: the text is not a mapping, but the parameter is.
    """
    kind, can_be_none = _describe(key)
    if kind in _BRACKETS and text.lstrip().startswith(_BRACKETS[kind]):
        return _read_collection(key, kind, text)
    if can_be_none and text in NOTHING:
        return None
    if kind == "text":
        return _read_text(text)
    if kind == "mapping":
        raise UsageError(f"{key}: must be a mapping, such as {key}='{{\"use_karras_sigmas\": true}}'")
    return text if kind == "list" else parse_scalar(text)


def write_value(key: str, value: Any) -> str:
    """Return one line of printable text that `read_value` reads as this value, with lists for tuples."""
    kind, can_be_none = _describe(key)
    if kind == "text" and isinstance(value, str):
        is_plain = printable(value) == value and not (can_be_none and value in NOTHING)
        return value if is_plain and not _is_quoted(value) else _write_json(value)
    return _write_json(value)


@functools.cache
def _describe(key: str) -> tuple[Literal["text", "list", "mapping", "scalar"], bool]:
    """Return the kind of value of a parameter, and whether it can be None."""
    annotation = Parameters.model_fields[key].annotation
    can_be_none = type(None) in get_args(annotation)
    for origin, kind in ((dict, "mapping"), (tuple, "list")):
        if get_origin(annotation) is origin:
            return kind, can_be_none  # type: ignore[return-value]
    return ("text" if _takes_text(annotation) else "scalar"), can_be_none


def _takes_text(annotation: Any) -> bool:
    return annotation is str or isinstance(annotation, str) or any(map(_takes_text, get_args(annotation)))


def _read_text(text: str) -> str:
    if not _is_quoted(text):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text  # text that merely begins and ends with quotes
    return value if isinstance(value, str) else text


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] == '"'


def _read_collection(key: str, kind: str, text: str) -> Any:
    """Parse JSON or else YAML. For a list, return any other text unchanged: a file name may start with `[`."""
    try:
        if len(text) > MAX_CHARACTERS:
            raise YamlError(f"longer than {MAX_CHARACTERS} characters")
        try:
            return json.loads(text, object_pairs_hook=_refuse_twins)
        except json.JSONDecodeError:
            found, _ = parse_yaml(f"{key}: {text}")
            if found.keys() != {key}:
                raise YamlError(f"is not one {kind}") from None
            return found[key]
    except (YamlError, ValueError, RecursionError) as error:
        if kind == "list":
            return text
        reason = str(error) if isinstance(error, YamlError) else "nested too deeply, or too large a number"
        raise UsageError(f"{key}: {reason}; write JSON, such as {key}='{{\"use_karras_sigmas\": true}}'") from None


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise YamlError(f"'{key}' is given twice")
        found[key] = value
    return found


def _write_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if printable(text) == text else json.dumps(value)
