"""Read the parameters of NovelAI: JSON in the text `Comment`, with the model in other texts."""

from __future__ import annotations

from collections.abc import Mapping

from img2img_cli.tasks.foreign.fields import Foreign, read_flat, read_json, to_name, to_text

MAX_CHARACTERS = 32  # the most characters in a picture whose separate prompts are read


def read_novelai(texts: Mapping[str, str]) -> Foreign | None:
    """Read the parameters in `Comment`; return None if NovelAI did not write it."""
    values = read_json(texts.get("Comment"))
    if not isinstance(values, dict) or not ("NovelAI" in texts.get("Software", "") or "uc" in values):
        return None
    source = to_text(texts.get("Source"))
    prompt, *characters = _list_captions(values.get("v4_prompt"))
    negative, *unwanted = _list_captions(values.get("v4_negative_prompt"))
    prompt = prompt or to_text(values.get("prompt")) or to_text(texts.get("Description")) or ""
    negative = negative or to_text(values.get("uc")) or to_text(values.get("negative_prompt")) or ""
    notes = ["NovelAI's models are not published; another model makes another picture"]
    if characters:
        notes.append("characters' prompts are appended to the prompt; their places are lost")
    told = ("prompt", "uc", "v4_prompt", "v4_negative_prompt")
    rest = {key: value for key, value in values.items() if key not in told}
    return read_flat(
        "NovelAI",
        rest,
        prompt=", ".join((prompt, *characters)),
        negative_prompt=", ".join(filter(None, (negative, *unwanted))) or None,
        model=to_name(source),
        family=source,
        notes=tuple(notes),
    )


def _list_captions(value: object) -> list[str]:
    """Return the version 4 prompt of the whole picture, followed by that of each character."""
    caption = value.get("caption") if isinstance(value, dict) else None
    if not isinstance(caption, dict):
        return [""]
    characters = caption.get("char_captions")
    entries = characters[:MAX_CHARACTERS] if isinstance(characters, list) else []
    texts = [to_text(entry.get("char_caption")) for entry in entries if isinstance(entry, dict)]
    return [to_text(caption.get("base_caption")) or "", *filter(None, texts)]
