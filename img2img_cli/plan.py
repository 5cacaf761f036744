"""From found inputs to jobs: names of results, seeds, parameters, and everything that can be refused beforehand."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import string
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from img2img_cli.errors import OutputError, PresetError, UsageError
from img2img_cli.inputs import Item, check_inside
from img2img_cli.job import EXTENSIONS, Format, Job, check_control, check_style
from img2img_cli.parameters import Parameters
from img2img_cli.preset import choose_controlnet, load_preset, resolve, speed_up

NAME_FIELDS = ("stem", "ext", "name", "preset", "task", "seed", "index")
DEFAULT_NAME = "{stem}{ext}"
_WIDTH = re.compile(r"\d{0,2}")
MIN_FREE_BYTES = 16 << 20
MAX_PAIRS = 5


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the command line says of all results."""

    folder: Path
    preset: str | None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    more_lora: Sequence[str] = ()
    more_embeddings: Sequence[str] = ()
    style: str | None = None
    name: str = DEFAULT_NAME
    format: Format = "keep"
    quality: int | None = None
    seed: int | None = None
    force: bool = False
    fast: bool = False
    metadata: bool = True


def plan_batch(items: Sequence[Item], choices: Choices) -> list[Job]:
    """One job an item, in their order.

    Raises:
        UsageError, PresetError: parameters or names that cannot be; a manifest's row is named by its line.
        OutputError: two results with one name, a result in an input's place, or no room to write.
    """
    _check_name(choices.name)
    if choices.style is not None and os.path.exists(choices.style) and not os.path.isfile(choices.style):
        raise UsageError(
            f"--style {choices.style}: is no regular file; a batch reads it more than once, so save it first"
        )
    resolved: dict[str, Parameters] = {}
    jobs = [_make_job(item, index, choices, resolved) for index, item in enumerate(items)]
    check_outputs(jobs, choices.folder)
    check_folder(choices.folder, jobs)
    return jobs


def _check_name(template: str) -> None:
    try:
        parts = string.Formatter().parse(template)
        fields = [(name, "!" if change else width) for _, name, width, change in parts if name is not None]
    except ValueError as error:
        raise UsageError(f"--name {template}: {error}; use braces in pairs, such as {DEFAULT_NAME}") from None
    for name, width in fields:
        if name not in NAME_FIELDS:
            raise UsageError(f"--name {template}: unknown field {{{name}}}; use one of {', '.join(NAME_FIELDS)}")
        if not _WIDTH.fullmatch(width or ""):
            raise UsageError(f"--name {template}: after the colon comes a width alone, such as {{index:04}}")


def _make_job(item: Item, index: int, choices: Choices, resolved: dict[str, Parameters]) -> Job:
    preset = item.preset or choices.preset
    if preset is None:
        raise UsageError(f"{item.origin or '--preset'}: no preset; name one with --preset, as in --preset colorize")
    key = json.dumps([preset, item.overrides], sort_keys=True, default=str)
    if key not in resolved:
        resolved[key] = _resolve(preset, item, choices)
    parameters = resolved[key]
    style = item.style or choices.style
    _check_beside(item, style, parameters, preset)
    seed = item.seed if item.seed is not None else choices.seed
    if seed is None:
        # By its name, so that a rerun, or a run over more files, makes the same picture again.
        seed = int.from_bytes(hashlib.sha256(item.relative.encode("utf-8", "surrogateescape")).digest()[:4])
    relative = item.output or _name_result(item, index, choices, parameters, seed)
    check_inside(relative, item.origin or item.path)
    output = choices.folder / relative
    if choices.format == "keep" and output.suffix.lower() not in EXTENSIONS:
        raise UsageError(f"{item.origin or item.path}: {relative}: unknown picture format '{output.suffix}'")
    return Job(
        input=item.path,
        output=str(output),
        preset=preset,
        parameters=parameters,
        seed=seed,
        mask=item.mask,
        style=style,
        control_image=item.control_image,
        format=choices.format,
        quality=choices.quality,
        force=choices.force,
        metadata=choices.metadata,
    )


def _resolve(preset: str, item: Item, choices: Choices) -> Parameters:
    try:
        overrides, loaded = {**choices.overrides, **item.overrides}, load_preset(preset)
        if choices.fast:
            overrides = speed_up(loaded, overrides)
        resolved = resolve(loaded, overrides, more_lora=choices.more_lora, more_embeddings=choices.more_embeddings)
        parameters = choose_controlnet(preset, resolved, overrides).parameters
    except PresetError as error:
        raise PresetError(f"{item.origin}: {error}" if item.origin else str(error)) from None
    if parameters.task == "edit" and not parameters.prompt:
        raise UsageError(f"{item.origin or 'preset ' + preset}: no prompt; give --prompt or a preset that has one")
    return parameters


def _check_beside(item: Item, style: str | None, parameters: Parameters, preset: str) -> None:
    """Refuse the pictures beside an input that do not go with its parameters; rows may share those and differ here."""
    if item.mask and (parameters.size != "original" or parameters.task == "upscale"):
        raise UsageError(f"{item.origin}: a mask keeps the picture's own pixels, so it needs size original")
    where = item.origin or f"preset '{preset}'"
    check_style(parameters, style, where)
    check_control(parameters, item.control_image, where)


def _name_result(item: Item, index: int, choices: Choices, parameters: Parameters, seed: int) -> str:
    stem, extension = os.path.splitext(os.path.basename(item.relative))
    if choices.format != "keep":
        extension = {"jpeg": ".jpg", "tiff": ".tif"}.get(choices.format, f".{choices.format}")
    elif extension.lower() not in EXTENSIONS:
        extension = ".png"
    preset = Path(item.preset or choices.preset or "").stem
    values = {"stem": stem, "ext": extension, "name": os.path.basename(item.relative), "preset": preset}
    name = choices.name.format(**values, task=parameters.task, seed=seed, index=index + 1)
    return os.path.join(os.path.dirname(item.relative), name)


def check_outputs(jobs: Sequence[Job], folder: Path) -> None:
    """Refuse results that would get one name, also where case or Unicode forms are not told apart, and results that
    would replace an input, also by way of links.

    Raises:
        OutputError: naming the pairs.
    """
    by_name: dict[str, Job] = {}
    pairs = []
    inputs = {identity: job.input for job in jobs if (identity := _identify(job.input)) is not None}
    for job in jobs:
        key = unicodedata.normalize("NFC", os.path.relpath(job.output, folder)).casefold()
        if key in by_name:
            pairs.append(f"{by_name[key].input} and {job.input} -> {job.output}")
        by_name.setdefault(key, job)
        identity = _identify(job.output)
        if identity is not None and identity in inputs:
            pairs.append(f"{job.input} -> {job.output}, which is the input {inputs[identity]}")
    if pairs:
        more = f" and {len(pairs) - MAX_PAIRS} more" if len(pairs) > MAX_PAIRS else ""
        raise OutputError(
            f"results would get in each other's way: {'; '.join(pairs[:MAX_PAIRS])}{more}; "
            "use --name, such as '{name}{ext}' or '{stem}-{index}{ext}', or another output folder"
        )


def _identify(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def check_folder(folder: Path, jobs: Sequence[Job]) -> None:
    """Refuse an output folder that cannot be written to, leads elsewhere by a link, or lies on a full disk.

    Raises:
        OutputError: naming the folder.
    """
    root = os.path.realpath(folder)
    for path in {os.path.dirname(job.output) for job in jobs}:
        check_place(path, folder)
    for path in (job.output for job in jobs if os.path.islink(job.output)):
        check_place(path, folder)
    existing = next(path for path in (Path(root), *Path(root).parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise OutputError(f"{existing}: is not a folder; name another output folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{existing}: cannot be written to; check its permissions")
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        raise OutputError(f"{existing}: only {free >> 20} MiB are free on its disk; make room first")


def check_place(path: str, folder: Path) -> None:
    """Refuse a result or its folder that links lead out of the output folder.

    Raises:
        OutputError: naming it.
    """
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise OutputError(f"{path}: a link leads out of {folder}; results would land elsewhere, remove the link")


def estimate_bytes(jobs: Sequence[Job]) -> int:
    """About how many bytes the results will have: as their inputs, times the scale squared."""
    total = 0.0
    for job in jobs:
        size = os.path.getsize(job.input) if os.path.isfile(job.input) else 0
        total += size * (job.parameters.scale**2 if job.parameters.task == "upscale" else 1)
    return int(total)
