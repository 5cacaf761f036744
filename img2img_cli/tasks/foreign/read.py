"""How a picture was made: our own record, or what another tool tells, also in the lowest bits of its pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from img2img_cli.errors import InputError
from img2img_cli.pictures.read import label, open_picture, read_bytes
from img2img_cli.pictures.texts import USER_COMMENT, collect_texts
from img2img_cli.tasks.foreign.a1111 import is_parameters, read_parameters
from img2img_cli.tasks.foreign.comfyui import read_comfyui
from img2img_cli.tasks.foreign.fields import Foreign, read_flat, read_json, read_plain, show_others
from img2img_cli.tasks.foreign.invokeai import read_invokeai
from img2img_cli.tasks.foreign.novelai import read_novelai
from img2img_cli.tasks.foreign.stealth import read_stealth
from img2img_cli.tasks.record import NO_PARAMETERS, find_record

LOSSLESS = ("PNG", "WEBP")  # formats in which tools hide parameters in pixels


def read_origin(name: str) -> dict[str, Any] | Foreign:
    """Our own record of a picture, as `record.read_record` gives it, or another tool's parameters.

    Pixels are decoded only where nothing else tells.

    Raises:
        InputError: not a picture, or one that does not tell how it was made.
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
    """Another tool's parameters among a picture's texts; None where there are none."""
    return (
        read_invokeai(texts)
        or read_novelai(texts)
        or _read_any(texts.get("parameters"), is_sure=True)
        or read_comfyui(texts)
        or _read_any(texts.get(USER_COMMENT))
        or _read_keywords(texts)
    )


def _read_any(text: str | None, *, is_sure: bool = False) -> Foreign | None:
    """Parameters in a text of any tool.

    Args:
        is_sure: it is called parameters, so that it is told in any case.
    """
    values = read_json(text)
    if isinstance(values, dict):
        found = read_novelai(_keep_texts(values)) or read_plain(values)
        if found is None and is_sure:
            found = Foreign(tool="unknown", other=show_others(values.items()))
        return found and dataclasses.replace(found, text=text)
    return read_parameters(text) if text and (is_sure or is_parameters(text)) else None


def _read_keywords(texts: Mapping[str, str]) -> Foreign | None:
    """Easy Diffusion's parameters: a keyword each."""
    is_told = texts.keys() >= {"prompt", "seed", "num_inference_steps"}
    return read_flat("Easy Diffusion", texts) if is_told else None


def _read_hidden(text: str) -> Foreign | None:
    """What the lowest bits held: text, or JSON that holds what would stand in a PNG's texts."""
    values = read_json(text)
    texts = _keep_texts(values) if isinstance(values, dict) else {}
    return read_texts(texts) or _read_any(text, is_sure=True)


def _keep_texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: value for key, value in values.items() if isinstance(value, str)}
