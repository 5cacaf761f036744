"""Read how a picture was made: from this tool's record, or from another tool's texts or hidden pixel data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from img2img_cli.errors import InputError
from img2img_cli.pictures.read import label, open_picture, read_bytes
from img2img_cli.pictures.texts import USER_COMMENT, collect_texts
from img2img_cli.tasks.foreign.comfyui import read_comfyui
from img2img_cli.tasks.foreign.fields import Foreign, read_flat, read_json, read_plain, show_others
from img2img_cli.tasks.foreign.invokeai import read_invokeai
from img2img_cli.tasks.foreign.novelai import read_novelai
from img2img_cli.tasks.foreign.stealth import read_stealth
from img2img_cli.tasks.foreign.webui import is_parameters, read_parameters
from img2img_cli.tasks.record import NO_PARAMETERS, find_record

LOSSLESS = ("PNG", "WEBP")  # formats in which tools hide parameters in pixels


def read_origin(name: str) -> dict[str, Any] | Foreign:
    """Read this tool's record of a picture, as `record.read_record` does, or the parameters of another tool.

    The pixels are decoded only if the texts of the picture hold nothing.

    Raises:
        InputError: the file is not a picture, holds no parameters, or its record is damaged.
    """
    data = read_bytes(name)
    with open_picture(name, data) as (image, _):
        texts = collect_texts(image)
    if found := find_record(name, texts) or read_texts(texts):
        return found
    with open_picture(name, data) as (image, _):
        hidden = read_stealth(image) if image.format in LOSSLESS else None
    if hidden and (found := _read_hidden(hidden)):
        return found
    raise InputError(f"{label(name)}: {NO_PARAMETERS}")


def read_texts(texts: Mapping[str, str]) -> Foreign | None:
    """Read another tool's parameters from the texts of a picture; return None if there are none."""
    return (
        read_invokeai(texts)
        or read_novelai(texts)
        or _read_any(texts.get("parameters"), is_sure=True)
        or read_comfyui(texts)
        or _read_any(texts.get(USER_COMMENT))
        or _read_keywords(texts)
    )


def _read_any(text: str | None, *, is_sure: bool = False) -> Foreign | None:
    """Read parameters from a text of any tool; return None if it holds none.

    Args:
        is_sure: the text is known to hold parameters, so report it even if its form is unknown.
    """
    values = read_json(text)
    if isinstance(values, dict):
        found = read_novelai(_keep_texts(values)) or read_plain(values)
        if found is None and is_sure:
            found = Foreign(tool="unknown", other=show_others(values.items()))
        return found and dataclasses.replace(found, text=text)
    return read_parameters(text) if text and (is_sure or is_parameters(text)) else None


def _read_keywords(texts: Mapping[str, str]) -> Foreign | None:
    """Read the parameters of Easy Diffusion, which stores each one under its own keyword."""
    is_told = texts.keys() >= {"prompt", "seed", "num_inference_steps"}
    return read_flat("Easy Diffusion", texts) if is_told else None


def _read_hidden(text: str) -> Foreign | None:
    """Read parameters from hidden text, which holds them directly or as a JSON object with the texts of a PNG."""
    values = read_json(text)
    texts = _keep_texts(values) if isinstance(values, dict) else {}
    return read_texts(texts) or _read_any(text, is_sure=True)


def _keep_texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: value for key, value in values.items() if isinstance(value, str)}
