"""The words that a small model was taught, from the `words.txt` in its folder, and what a prompt has of them."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path

from img2img_cli.presets.references import BUNDLED, bundled_dir
from img2img_cli.presets.schema import Parameters
from img2img_cli.text import printable

WORDS = "words.txt"  # a line a kind: its name, a colon, and its words and phrases between commas
MAX_BYTES = 1 << 16
# They say nothing that a model would have to know.
_FILLERS = """a an and art as at be by change colour coloured colours color colored colors effect for from give image in
into is it its like look make more of on or paint painted photo photograph picture please scene style the this to turn
under very with"""
FILLERS = frozenset(_FILLERS.split())


def read_words(model: str) -> Mapping[str, tuple[str, ...]] | None:
    """Return what a model was taught, words and phrases by their kind; None for a model without such a list.

    Args:
        model: as a preset names it.
    """
    folder = bundled_dir() if model == BUNDLED else Path(model)
    try:
        return _read(folder / WORDS)
    except (OSError, ValueError):  # no such file, no text, or a name that cannot be a path
        return None


@functools.lru_cache(maxsize=8)
def _read(path: Path) -> Mapping[str, tuple[str, ...]]:
    with path.open(encoding="utf-8") as file:
        lines = file.read(MAX_BYTES).splitlines()
    kinds = (line.partition(":") for line in lines if ":" in line)
    return {kind.strip(): tuple(word.strip() for word in words.split(",")) for kind, _, words in kinds}


def split_prompt(prompt: str, known: Mapping[str, tuple[str, ...]]) -> tuple[list[str], list[str]]:
    """Return the words of a prompt that a model was taught, and those that it was not, without fillers."""
    taught = {word for phrases in known.values() for phrase in phrases for word in phrase.split()} - {"and"}
    words = [word for word in re.findall(r"[^\W\d_]+", prompt.lower()) if word in taught or word not in FILLERS]
    return [word for word in words if word in taught], [word for word in words if word not in taught]


def tell_unknown_words(prompt: str, parameters: Parameters) -> str | None:
    """Return a sentence about the words of a prompt that a model was not taught, and those that it was, or None."""
    known = _list_known(parameters)
    if known is None or not prompt.strip():
        return None
    found, unknown = split_prompt(prompt, known)
    if found and not unknown:
        return None
    quoted = ", ".join(f"'{printable(word)[:40]}'" for word in dict.fromkeys(unknown[:6])) or "any word of the prompt"
    more = ", ..." if len(unknown) > 6 else ""
    taught = "; ".join(f"{kind} {', '.join(words)}" for kind, words in known.items())
    return f"the model does not know {quoted}{more}; it knows {taught}"


def knows_any(prompt: str, parameters: Parameters) -> bool:
    """Return whether a prompt is empty, has a word that a model was taught, or the model has no list of its words."""
    known = _list_known(parameters)
    if known is None:
        return True
    return not prompt.strip() or bool(split_prompt(prompt, known)[0])


def keep_known_words(prompt: str, parameters: Parameters) -> str:
    """Return a prompt without the words that the model was not taught, which would spoil the effect of the others.

    The bundled model has only ever seen captions such as "night" and "red and blue": of "make it blue" it makes tiles.
    """
    known = _list_known(parameters)
    if known is None:
        return prompt
    taught = {word for phrases in known.values() for phrase in phrases for word in phrase.split()}
    kept = re.sub(r"[^\W\d_]+", lambda found: found[0] if found[0].lower() in taught else "", prompt)
    kept = re.sub(r"\(\s*:[\d.\s]*\)|\s+(?=[,.;])", "", " ".join(kept.split()))
    return re.sub(r"^(?:\s|and\b|[,.;!?])+|(?:\s|\band|[,.;!?])+$", "", kept)


def _list_known(parameters: Parameters) -> Mapping[str, tuple[str, ...]] | None:
    """Return what a preset's model was taught; None where a LoRA, embedding or ControlNet may have taught it more."""
    p = parameters
    taught_more = p.lora or p.embedding or p.controlnet
    return None if p.task != "edit" or taught_more else read_words(p.model)
