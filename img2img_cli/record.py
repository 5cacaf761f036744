"""What a result says of itself: our own JSON and A1111-style text, written and read."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from PIL import ExifTags, ImageFile

from img2img_cli import __version__
from img2img_cli.errors import InputError, PresetError
from img2img_cli.images import open_picture, read_bytes
from img2img_cli.job import MAX_SEED, STDIO, Job
from img2img_cli.parameters import Parameters
from img2img_cli.preset import resolve
from img2img_cli.preset_files import load_preset
from img2img_cli.writer import IMAGE_HISTORY

BESIDE = ("mask", "style", "control_image")  # pictures that a job is given with its input


def make_record(job: Job, **provenance: str) -> dict[str, Any]:
    """The JSON that `info` replays: every parameter, and names of files without their folders.

    Args:
        provenance: hashes of what the result was made from, by which a batch knows its results again.
    """
    parameters = job.parameters.to_record()
    record = {
        "version": __version__,
        "input": job.input if job.input == STDIO else _writable(Path(job.input).name),
        "preset": job.preset,
        "seed": job.seed,
        "parameters": parameters,
    }
    for key in BESIDE:
        if name := getattr(job, key):
            record[key] = _writable(Path(name).name)
    return record | provenance


def _writable(name: str) -> str:
    """A file's name without bytes that are no UTF-8."""
    return name.encode("utf-8", "replace").decode()


def format_parameters(job: Job, size: tuple[int, int]) -> str:
    """Prompt, negative prompt and settings in the text form that A1111 and its readers use."""
    p = job.parameters
    lines = [p.full_prompt]
    if p.negative_prompt:
        lines.append(f"Negative prompt: {p.negative_prompt}")
    settings = {
        "Steps": p.num_inference_steps,
        "Sampler": p.scheduler or "model default",
        "CFG scale": f"{p.guidance_scale:g}",
        "Seed": job.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": Path(p.model).stem if p.model.endswith(".safetensors") else Path(p.model).name,
        "Denoising strength": f"{p.strength:g}",
        "Version": f"img2img {__version__}",
    }
    lines.append(", ".join(f"{key}: {value}" for key, value in settings.items()))
    return "\n".join(lines)


def read_record(name: str) -> dict[str, Any]:
    """The record inside a picture, or `{"text": ...}` where another tool wrote only A1111-style parameters.

    Pixels are not decoded, so a picture that tells how it was made can still be damaged.

    Raises:
        InputError: not a picture, or one that does not tell how it was made.
    """
    with open_picture(name, read_bytes(name)) as (image, _):
        own, text = _read_texts(image)
    if own:
        try:
            return _check_record(json.loads(own))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(f"{name}: its img2img record is damaged, so the command cannot be told") from None
    if text:
        return {"text": text}
    raise InputError(f"{name}: carries no parameters; it was not made by this tool, or made with --no-metadata")


def _check_record(record: dict[str, Any]) -> dict[str, Any]:
    """A record as this tool writes it, whoever wrote this one.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is none.
    """
    wanted = {"task", "prompt", *({"control"} if record.get("control_image") else ())}
    if not wanted <= record["parameters"].keys():
        raise ValueError("task, prompt or control")
    json.dumps(record, ensure_ascii=False).encode()  # no halves of surrogate pairs
    checked = record | {"parameters": Parameters.model_validate(record["parameters"]).to_record()}
    if type(record["seed"]) is not int or not 0 <= record["seed"] <= MAX_SEED or not isinstance(record["preset"], str):
        raise ValueError("seed or preset")
    for key in ("input", *BESIDE):
        if key == "input" or record.get(key) is not None:
            checked[key] = _bare_name(record[key])
    return checked


def _bare_name(text: str) -> str:
    """A file's name that leads to no other folder, and that no command takes for an option."""
    name = text if text == STDIO else Path(text).name
    if not name or name == "..":
        raise ValueError("no file's name")
    return f"./{name}" if name.startswith("-") and name != STDIO else name


def _read_texts(image: ImageFile.ImageFile) -> tuple[str | None, str | None]:
    if image.format == "PNG":
        if not {"img2img", "parameters"} & image.info.keys():
            image.load()  # other tools write theirs behind the pixels
        if {"img2img", "parameters"} & image.info.keys():
            return image.info.get("img2img"), image.info.get("parameters")
    exif = image.getexif()
    comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    if isinstance(comment, bytes):
        comment = (
            comment[8:].decode("utf-16-be" if comment.startswith(b"UNICODE\0") else "utf-8", "replace").strip("\0 ")
        )
    history = exif.get(IMAGE_HISTORY)
    return history if isinstance(history, str) and history.startswith("{") else None, comment or None


def replay_command(record: dict[str, Any]) -> str:
    """The shell command that makes the picture again from its input.

    Only what differs from the preset as it is now is spelled out.
    """
    wanted = dict(record["parameters"])
    preset_name, base = _current_preset(str(record["preset"]), wanted["task"])
    words = ["img2img", wanted["task"], str(record["input"])]
    if record["input"] == STDIO:
        words.append(STDIO)
    words += ["--preset", preset_name, "--seed", str(record["seed"])]
    for key in ("mask", "style"):
        if record.get(key):
            words += [f"--{key}", str(record[key])]
    if record.get("control_image"):
        words += ["--control", f"{wanted.pop('control')}={record['control_image']}"]
    if wanted["task"] == "edit":
        words += ["--prompt", str(wanted.pop("prompt"))]
    for key, value in wanted.items():
        before = base.get(key)
        if key in ("lora", "embedding"):
            value, before = " ".join(value), " ".join(base[key])
        if before != value:
            words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def _current_preset(reference: str, task: str) -> tuple[str, dict[str, Any]]:
    for name in (reference, task):
        try:
            parameters = resolve(load_preset(name), {}).parameters
        except PresetError:
            continue
        return name, parameters.to_record()
    raise InputError(f"its preset '{reference}' is not here, so the command cannot be told")
