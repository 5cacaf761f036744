"""Write and read the record in a result: this tool's JSON, and text in the style of A1111."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from img2img_cli import __version__
from img2img_cli.errors import InputError, PresetError, UsageError
from img2img_cli.pictures.read import label, open_picture, read_bytes
from img2img_cli.pictures.texts import collect_texts
from img2img_cli.presets.catalogue import choose_controlnet, resolve
from img2img_cli.presets.files import Preset, load_preset
from img2img_cli.presets.schema import Parameters
from img2img_cli.presets.values import write_value
from img2img_cli.system.streams import STDIO
from img2img_cli.tasks.job import MAX_SEED, Job
from img2img_cli.text import printable

NO_PARAMETERS = "carries no parameters that can be read; no known tool made it, or it was made with --no-metadata"
BESIDE = ("mask", "style", "control_image")  # the side inputs of a job


def make_record(job: Job, **provenance: str) -> dict[str, Any]:
    """Make the record that `info` replays: all parameters, the seed, the preset and file names without folders.

    Args:
        provenance: further values, such as the hashes by which a batch recognises its results.

    Returns:
        a dict for JSON.
    """
    parameters = job.parameters.to_record()
    record = {
        "version": __version__,
        "input": job.input if job.input == STDIO else _name_file(job.input),
        "preset": _writable(job.preset),
        "seed": job.seed,
        "parameters": parameters,
    }
    for key in BESIDE:
        if name := getattr(job, key):
            record[key] = _name_file(name)
    return record | provenance


def _name_file(path: str) -> str:
    """Return the name of a file without its folder, with bytes that are not UTF-8 replaced."""
    name = _writable(Path(path).name)
    return f"./{name}" if name == STDIO else name


def _writable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def format_parameters(job: Job, size: tuple[int, int]) -> str:
    """Format prompt, negative prompt and settings as text in the form of A1111.

    Args:
        size: width and height of the result in pixels.
    """
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
    """Read the record in a picture that this tool made.

    The pixels are not decoded, so a picture with a valid record can still be damaged.

    Raises:
        InputError: the file is not a picture, or has no valid record.
    """
    with open_picture(name, read_bytes(name)) as (image, _):
        record = find_record(name, collect_texts(image))
    if record is None:
        raise InputError(f"{label(name)}: {NO_PARAMETERS}")
    return record


def find_record(name: str, texts: Mapping[str, str]) -> dict[str, Any] | None:
    """Return this tool's record from the texts of a picture, or None if there is none.

    Args:
        name: the picture, for the message.

    Raises:
        InputError: the record is damaged.
    """
    if not texts.get("img2img"):
        return None
    try:
        return _check_record(json.loads(texts["img2img"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{label(name)}: its img2img record is damaged, so the command cannot be told") from None


def _check_record(record: dict[str, Any]) -> dict[str, Any]:
    """Validate a record, which anyone may have written, and return it in the form that this tool writes.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the record is invalid.
    """
    parameters = record["parameters"]
    controlled = record.get("control_image") and parameters["task"] != "colorize"
    if not {"task", "prompt", *({"control"} if controlled else ())} <= parameters.keys():
        raise ValueError("task, prompt or control")
    json.dumps(record, ensure_ascii=False).encode()  # fails on lone surrogates
    checked = record | {"parameters": Parameters.model_validate(record["parameters"]).to_record()}
    if type(record["seed"]) is not int or not 0 <= record["seed"] <= MAX_SEED or not isinstance(record["preset"], str):
        raise ValueError("seed or preset")
    for key in ("input", *BESIDE):
        if key == "input" or record.get(key) is not None:
            checked[key] = _bare_name(record[key])
    return checked


def _bare_name(text: str) -> str:
    """Return a file name without its folder, prefixed with `./` if a command would take it for an option.

    Raises:
        ValueError: the text holds no file name.
    """
    name = text if text == STDIO else Path(text).name
    if not name or name == "..":
        raise ValueError("no file's name")
    return f"./{name}" if name.startswith("-") and text != STDIO else name


def replay_command(record: dict[str, Any]) -> str:
    """Return the shell command that makes the picture again from its input, on one line.

    Raises:
        InputError: neither the preset nor that of the task can be loaded.
    """
    return " ".join(map(quote_word, replay_words(record)))


def quote_word(word: str) -> str:
    """Quote a word for a shell.

    A word with characters that could control a terminal is written as `$'...'`, which shells understand but `shlex`
    does not.
    """
    if printable(word) == word:
        return shlex.quote(word)
    content = "".join(
        f"\\x{byte:02x}" if byte < 32 or byte > 126 or byte in b"'\\" else chr(byte) for byte in os.fsencode(word)
    )
    return f"$'{content}'"


def replay_words(record: dict[str, Any]) -> list[str]:
    """Return the words of the command that makes the picture again.

    The command sets only the parameters that differ from the current preset.

    Raises:
        InputError: neither the preset nor that of the task can be loaded.
    """
    wanted = dict(record["parameters"])
    name, preset = _current_preset(str(record["preset"]), wanted["task"])
    words = ["img2img", wanted["task"], str(record["input"])]
    if record["input"] == STDIO:
        words.append(STDIO)
    words += ["--preset", name]
    if record["seed"] is not None:
        words += ["--seed", str(record["seed"])]
    for key in ("mask", "style"):
        if record.get(key):
            words += [f"--{key}", str(record[key])]
    options = {}
    if record.get("control_image") and wanted["task"] == "colorize":
        words += ["--hints", str(record["control_image"])]
    elif record.get("control_image"):
        options["control"] = ["--control", f"{wanted['control']}={record['control_image']}"]
    if wanted["task"] == "edit" and printable(wanted["prompt"]) == wanted["prompt"]:
        options["prompt"] = ["--prompt", wanted["prompt"]]
    base = resolve(preset, {}).parameters.to_record()
    reads_words = not Parameters.model_validate(record["parameters"]).reads_no_words
    if not reads_words:  # a prompt changes nothing then, and on the command line it is refused
        wanted["prompt"] = base["prompt"]
    added = {key: _list_added(base[key], wanted[key]) for key in ("lora", "embedding")}
    always = {"control"} & options.keys() | ({"prompt"} if wanted["task"] == "edit" and reads_words else set())
    said = {key: value for key, value in wanted.items() if key in always or (value != base[key] and not added.get(key))}
    overrides = _complete(preset, said, wanted, added)
    for key in wanted:
        if key not in overrides:
            words += [word for reference in added.get(key, ()) for word in (f"--{key}", reference)]
        else:
            words += options.get(key) or ["--set", f"{key}={write_value(key, wanted[key])}"]
    return words


def _list_added(own: list[str], references: list[str]) -> list[str]:
    """Return the LoRAs or embeddings that follow those of the preset; none if one holds unprintable characters."""
    added = references[len(own) :] if references[: len(own)] == own else []
    return added if all(printable(reference) == reference for reference in added) else []


def _complete(
    preset: Preset, overrides: dict[str, Any], wanted: dict[str, Any], added: dict[str, list[str]]
) -> dict[str, Any]:
    """Extend overrides until the preset gives the wanted parameters.

    This takes several rounds, because one override can change other parameters: a model changes its revision.

    Args:
        wanted: all parameters of the record.
        added: LoRAs and embeddings, which the command adds with their own options.
    """
    for _ in wanted:
        try:
            resolved = resolve(preset, overrides, more_lora=added["lora"], more_embeddings=added["embedding"])
            given = choose_controlnet(preset.name, resolved, overrides).parameters.to_record()
        except PresetError:
            return wanted
        except UsageError:  # the preset has no ControlNet for this control
            overrides = {**overrides, "controlnet": wanted["controlnet"]}
            continue
        missing = {key: value for key, value in wanted.items() if given[key] != value}
        if not missing:
            return overrides
        overrides = {**overrides, **missing}
    return wanted


def _current_preset(reference: str, task: str) -> tuple[str, Preset]:
    for name in (reference, task):
        try:
            preset = load_preset(name)
            resolve(preset, {})
        except PresetError:
            continue
        return name, preset
    raise InputError(f"its preset '{reference}' is not here, so the command cannot be told")
