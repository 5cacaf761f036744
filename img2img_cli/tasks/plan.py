"""From found inputs to jobs: names of results, seeds, parameters, and everything that can be refused beforehand."""

from __future__ import annotations

import hashlib
import json
import os
import re
import string
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from img2img_cli.errors import Img2ImgError, OutputError, UsageError
from img2img_cli.pictures.files.formats import EXTENSIONS, Format, Truncated
from img2img_cli.presets.catalogue import resolve, resolve_preset
from img2img_cli.presets.files import Preset, load_preset
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.inputs import Item, check_inside
from img2img_cli.tasks.job import Job, check_control, check_input, check_style
from img2img_cli.tasks.output_folder import NameLimits, NameProbe, check_folder

NAME_FIELDS = ("stem", "ext", "name", "preset", "task", "seed", "index")
DEFAULT_NAME = "{stem}{ext}"
_WIDTH = re.compile(r"\d{0,2}")
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
    truncated: Truncated = "refuse"


@dataclass(frozen=True, kw_only=True)
class Refused:
    """An input of which no job can be made: it fails alone, for this reason.

    Attributes:
        output: where its result would lie, if that is known.
    """

    input: str
    error: Img2ImgError
    output: str | None = None
    preset: str = ""


Planned = Job | Refused


def plan_batch(items: Sequence[Item], choices: Choices) -> list[Planned]:
    """A job for each item, in their order, or why there is none: what an input's name or row does wrong is its own
    failure, and what would be wrong without it is everybody's.

    Raises:
        UsageError, PresetError, ModelError, InputError: options that cannot be.
        OutputError: two results with one name, a result in an input's place, or no room to write.
    """
    planner = Planner(choices)
    sound = [item for item in items if item.error is None]
    if sound and choices.preset is None and not any(item.preset for item in sound):
        raise UsageError("--preset: no preset; name one with --preset, as in --preset colorize")
    planned = [planner.plan(item, index) for index, item in enumerate(items)]
    jobs = [job for job in planned if isinstance(job, Job)]
    check_outputs(jobs, choices.folder)
    check_folder(choices.folder, jobs)
    return planned


class Planner:
    """Makes jobs of items, one by one.

    Raises:
        UsageError, InputError: a name for results or a style picture that cannot be.
    """

    def __init__(self, choices: Choices) -> None:
        _check_name(choices.name)
        self._choices = choices
        self._limits = NameLimits(choices.folder)
        self._resolved: dict[str, Parameters | Img2ImgError] = {}
        self._check_own_values()
        self._probe_name()

    def plan(self, item: Item, index: int) -> Planned:
        """An item's job, or why it has none.

        Args:
            index: the item's place among all, from 0.

        Raises:
            Img2ImgError: the options are wrong, whatever the item.
        """
        if item.error is not None:
            return Refused(input=item.path, error=item.error)
        preset = item.preset or self._choices.preset or ""
        try:
            parameters = self._resolve(preset, item)
            style = item.style or self._choices.style
            _check_beside(item, style, parameters, preset)
        except Img2ImgError as error:
            if item.origin is None:
                raise
            return Refused(input=item.path, error=error, preset=preset)
        seed = item.seed if item.seed is not None else self._choices.seed
        if seed is None:
            # By its name, so that a rerun, or a run over more files, makes the same picture again.
            seed = int.from_bytes(hashlib.sha256(item.relative.encode("utf-8", "surrogateescape")).digest()[:4])
        output = None
        try:
            relative = item.output or _name_result(item, index, self._choices, parameters, seed)
            where = item.origin or item.path
            check_inside(relative, where)
            _check_free(relative, where)
            output = str(self._choices.folder / relative)
            _check_format(relative, where, self._choices)
            self._limits.check(output, where)
        except Img2ImgError as error:
            return Refused(input=item.path, output=output, error=error, preset=preset)
        return self._make_job(item, output, preset, parameters, seed, style)

    def _make_job(
        self, item: Item, output: str, preset: str, parameters: Parameters, seed: int, style: str | None
    ) -> Job:
        return Job(
            input=item.path,
            output=output,
            preset=preset,
            parameters=parameters,
            seed=seed,
            mask=item.mask,
            style=style,
            control_image=item.control_image,
            format=self._choices.format,
            quality=self._choices.quality,
            force=self._choices.force,
            metadata=self._choices.metadata,
            truncated=self._choices.truncated,
        )

    def _resolve(self, preset: str, item: Item) -> Parameters:
        """The item's parameters; found out once for all that name the same."""
        key = json.dumps([preset, item.overrides], sort_keys=True, default=str)
        if key not in self._resolved:
            try:
                self._resolved[key] = _resolve(preset, item, self._choices)
            except Img2ImgError as error:
                self._resolved[key] = error
        found = self._resolved[key]
        if isinstance(found, Img2ImgError):
            raise type(found)(f"{item.origin}: {found}" if item.origin else str(found))
        return found

    def _check_own_values(self) -> None:
        """Refuse what the options alone do wrong, before it is told of every row."""
        choices = self._choices
        if choices.preset is not None:
            load_preset(choices.preset)
        if choices.style is not None:
            check_input(choices.style)
            if not os.path.isfile(choices.style):
                what = "is no regular file; a batch reads it more than once, so save it first"
                raise UsageError(f"--style {choices.style}: {what}")
        nothing = Preset(name="", values={}, sources={})
        try:
            own = Parameters.model_validate(choices.overrides)
        except ValidationError as error:
            if any(part["loc"] for part in error.errors()):  # a key or value, rather than what goes with what
                resolve(nothing, choices.overrides)
            return
        more = {"lora": (*own.lora, *choices.more_lora), "embedding": (*own.embedding, *choices.more_embeddings)}
        own.model_copy(update=more).check_references()

    def _probe_name(self) -> None:
        """Refuse a --name that would be wrong for a picture with the plainest name."""
        item = Item(path="picture.png", relative="picture.png", preset="preset")
        relative = _name_result(item, 0, self._choices, Parameters(), 0)
        where = f"--name {self._choices.name}"
        check_inside(relative, where)
        _check_free(relative, where)
        _check_format(relative, where, self._choices)


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


def _check_format(relative: str, where: str, choices: Choices) -> None:
    extension = os.path.splitext(relative)[1]
    if choices.format == "keep" and extension.lower() not in EXTENSIONS:
        raise UsageError(f"{where}: {relative}: unknown picture format '{extension}'; use --name or --format")


def _check_free(relative: str, where: str) -> None:
    """Refuse the names of what a batch keeps beside its results."""
    if os.path.basename(relative).lower().startswith(".img2img"):
        raise UsageError(f"{where}: {relative}: names that begin with .img2img are the batch's own; choose another")


def _resolve(preset: str, item: Item, choices: Choices) -> Parameters:
    if not preset:
        raise UsageError("no preset; name one with --preset, as in --preset colorize")
    parameters = resolve_preset(
        preset,
        {**choices.overrides, **item.overrides},
        fast=choices.fast,
        more_lora=choices.more_lora,
        more_embeddings=choices.more_embeddings,
    ).parameters
    parameters.check_references()
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
    """Refuse results that would get one name, also where the folder does not tell case or Unicode forms apart, and
    results that would replace an input, also by way of links.

    Raises:
        OutputError: naming the pairs.
    """
    claims = Claims(folder, jobs)
    if pairs := [pair for job in jobs if (pair := claims.add(job))]:
        more = f" and {len(pairs) - MAX_PAIRS} more" if len(pairs) > MAX_PAIRS else ""
        raise collide("; ".join(pairs[:MAX_PAIRS]) + more)


def collide(pairs: str) -> OutputError:
    """The error that results have one name or an input's place."""
    return OutputError(
        f"results would get in each other's way: {pairs}; "
        "use --name, such as '{name}{ext}' or '{stem}-{index}{ext}', or another output folder"
    )


class Claims:
    """Which results have which names below the output folder."""

    def __init__(self, folder: Path, jobs: Iterable[Job] = ()) -> None:
        self._folder = folder
        self._probe = NameProbe(folder)
        self._jobs: dict[str, dict[str, Job]] = {}
        self._inputs: dict[tuple[int, int], str] = {}
        for job in jobs:
            self.add_input(job)

    def add_input(self, job: Job) -> None:
        """Let no result take the place of a job's input."""
        if (identity := _identify(job.input)) is not None:
            self._inputs[identity] = job.input

    def add(self, job: Job) -> str | None:
        """Give a job its result's name; what is in its way, as text, if it cannot have it."""
        name, form = self._name(job)
        holders = self._jobs.setdefault(form, {})
        for held, holder in holders.items():
            if held == name or not self._probe.tell_apart(held, name):
                return f"{holder.input} and {job.input} -> {job.output}"
        if (identity := _identify(job.output)) is not None and identity in self._inputs:
            source = self._inputs[identity]
            if _identify(source) == identity:  # rather than a number that has been given to another file since
                return f"{job.input} -> {job.output}, which is the input {source}"
        holders[name] = job
        return None

    def drop(self, job: Job) -> None:
        """Take a job's name back, if it is its own."""
        name, form = self._name(job)
        if self._jobs.get(form, {}).get(name) is job:
            del self._jobs[form][name]

    def _name(self, job: Job) -> tuple[str, str]:
        """A result's name, and the form that it shares with others on file systems that tell less apart."""
        name = os.path.relpath(job.output, self._folder)
        return name, unicodedata.normalize("NFC", name).casefold()


def _identify(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
