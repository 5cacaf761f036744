"""Read the parameters of InvokeAI, in the three forms that its versions have written."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from typing import Any

from img2img_cli.tasks.foreign.fields import Foreign, read_flat, read_json, to_text

MAX_WORDS = 1 << 16  # the most characters in a command line of the oldest form
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
# Options of `dream.py`, the predecessor of InvokeAI.
_DREAM = {
    **{"-s": "steps", "-S": "seed", "-W": "width", "-H": "height", "-C": "cfg_scale", "-A": "sampler"},
    "-f": "strength",
}


def read_invokeai(texts: Mapping[str, str]) -> Foreign | None:
    """Read the parameters of version 3 and later, of version 2, or of the older command line.

    Returns:
        None if the texts hold none of these.
    """
    new = read_json(texts.get("invokeai_metadata"))
    if isinstance(new, dict):
        model = new.get("model")
        base = model.get("base") or model.get("base_model") if isinstance(model, dict) else None
        return read_flat("InvokeAI", new, family=to_text(base))
    old = read_json(texts.get("sd-metadata"))
    if isinstance(old, dict) and isinstance(old.get("image"), dict):
        outer = {key: value for key, value in old.items() if key not in ("image", "model")}
        values = {**outer, **old["image"]}
        return _split_negative(read_flat("InvokeAI", values, prompt=_join_prompts(values.get("prompt"))))
    dream = texts.get("Dream")
    return _split_negative(_read_dream(dream)) if dream and len(dream) <= MAX_WORDS else None


def _join_prompts(value: object) -> str | None:
    """Join several weighted prompts into one, without their weights; return a prompt that is a plain text as it is."""
    if isinstance(value, list):
        parts = [to_text(entry.get("prompt")) for entry in value if isinstance(entry, dict)]
        return ", ".join(part for part in parts if part)
    return to_text(value)


def _read_dream(text: str) -> Foreign:
    try:
        words = shlex.split(text)
    except ValueError:  # quotes that do not close
        words = text.split()
    first = next((index for index, word in enumerate(words) if word[:2] in _DREAM), len(words))
    values: dict[str, Any] = {"prompt": " ".join(words[:first])}
    rest = iter(words[first:])
    for word in rest:
        if word[:2] in _DREAM:
            values[_DREAM[word[:2]]] = word[2:] or next(rest, "")
        elif word.startswith("-"):
            values[word] = "yes"
    return read_flat("InvokeAI", values)


def _split_negative(found: Foreign) -> Foreign:
    """Move the words in brackets from the prompt to the negative prompt, unless there already is one."""
    if not found.prompt or found.negative_prompt:
        return found
    negative = ", ".join(part.strip() for part in _BRACKETS.findall(found.prompt))
    prompt = " ".join(_BRACKETS.sub(" ", found.prompt).split()) if negative else found.prompt
    return dataclasses.replace(found, prompt=prompt, negative_prompt=negative or None)
