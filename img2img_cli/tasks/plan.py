"""The planner: from inputs to jobs with names, seeds and parameters; it refuses what can be refused before any work."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from img2img_cli.errors import Img2ImgError, OutputError, UsageError
from img2img_cli.pictures.files.formats import EXTENSIONS, Format, Truncated
from img2img_cli.presets.catalogue import resolve, resolve_preset
from img2img_cli.presets.files import Preset, load_preset
from img2img_cli.presets.references import BUNDLED, is_network
from img2img_cli.presets.schema import Parameters, Task
from img2img_cli.system.streams import STDIO
from img2img_cli.tasks.claims import Claims, check_outputs
from img2img_cli.tasks.inputs import Item, check_inside
from img2img_cli.tasks.job import Job, check_input, check_side_inputs, choose_seed, vary_job
from img2img_cli.tasks.output_folder import NameLimits, check_folder
from img2img_cli.tasks.result_names import (
    DEFAULT_NAME,
    check_template,
    choose_suffix,
    fill_template,
    find_other_format,
    find_unknown_extension,
    name_output,
    number_name,
)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the command line says of one result or of all.

    Attributes:
        preset: a preset's name or file.
        overrides: parameters by name that replace the preset's.
        more_lora, more_embeddings: references that are added to the preset's.
        style: the path of a style picture.
        seed: None to choose one: at random for a single picture, by the input's name in a batch.
        fast: whether the preset is sped up (`resolve_preset`).
        metadata: whether results get EXIF and the record.
        suffix: what the name of a single result adds to the input's, if none is given; by task or preset if None.
    """

    preset: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    more_lora: Sequence[str] = ()
    more_embeddings: Sequence[str] = ()
    style: str | None = None
    format: Format = "keep"
    quality: int | None = None
    seed: int | None = None
    force: bool = False
    in_place: bool = False
    fast: bool = False
    metadata: bool = True
    truncated: Truncated = "refuse"
    suffix: str | None = None


@dataclass(frozen=True, kw_only=True)
class BatchChoices(Choices):
    """What the command line says of all results of a batch.

    Attributes:
        folder: the output folder.
        name: the template of results' names (`fill_template`).
    """

    folder: Path
    name: str = DEFAULT_NAME


@dataclass(frozen=True, kw_only=True)
class Refused:
    """An input of which no job can be made: it fails alone, for this reason.

    Attributes:
        output: the path of its result, if that is known.
    """

    input: str
    error: Img2ImgError
    output: str | None = None
    preset: str = ""


Planned = Job | Refused


def plan_picture(item: Item, choices: Choices, output: str | None, *, task: Task, variations: int = 1) -> list[Job]:
    """Plan the results of a single picture, one for each variation.

    Args:
        output: a file, a folder, `-` for stdout, or None for a name beside the input.
        task: the task that the preset must have; its own preset is the default.
        variations: how many results, with seeds in a row.

    Raises:
        InputError, OutputError, UsageError, PresetError, ModelError: before anything was written.
    """
    preset = choose_preset(task, choices.preset, choices.overrides)
    overrides = choices.overrides
    if choices.preset is None and overrides.get("model") == BUNDLED:  # the task's own preset has its bundled model
        overrides = {key: value for key, value in overrides.items() if key != "model"}
    parameters = resolve_parameters(preset, overrides, choices, task=task)
    seed = choose_seed() if choices.seed is None else choices.seed
    job = make_job(item, choices, output=STDIO, preset=preset, parameters=parameters, seed=seed)
    suffix = choose_suffix(parameters, choices.preset) if choices.suffix is None else choices.suffix
    jobs = plan_variations(job, output, variations=variations, suffix=suffix)
    parameters.check_references()
    return jobs


def choose_preset(task: Task, preset: str | None, overrides: Mapping[str, Any]) -> str:
    """Return the preset that was named, or the one that a task has for a model.

    The bundled presets are tuned for small models; another checkpoint starts from Stable Diffusion's.
    """
    if preset is not None:
        return preset
    model = overrides.get("model", BUNDLED)
    return task if model == BUNDLED or is_network(model) else f"sd15-{task}"


def plan_variations(template: Job, output: str | None, *, variations: int = 1, suffix: str | None = None) -> list[Job]:
    """Give each variation its seed and output, and refuse what cannot be read or written.

    Args:
        template: the job; its own output does not matter.
        output, variations: as for `plan_picture`.
        suffix: as for `name_output`.

    Raises:
        InputError, OutputError, UsageError: before anything was written.
    """
    check_input(template.input)
    sides = {
        "mask": template.mask,
        "style": template.style,
        "hints" if template.parameters.task == "colorize" else "control": template.control_image,
    }
    for option, path in sides.items():
        if path == STDIO:
            raise UsageError(f"--{option} cannot be read from stdin; give a file")
        if path is not None:
            check_input(path)
    _check_side_inputs(template, f"preset '{template.preset}'")
    base = name_output(template, output, suffix)
    if base == STDIO and variations > 1:
        raise UsageError("several variations cannot go to stdout; name an OUTPUT file or folder")
    outputs = [number_name(base, index) for index in range(variations)] if variations > 1 else [base]
    if template.in_place and outputs != [template.input]:
        raise UsageError("--in-place makes one result in the input's own place; leave out OUTPUT and --variations")
    jobs = vary_job(template, outputs)
    for job in jobs:
        try:
            _check_output(job)
        except OSError as error:
            raise OutputError(f"{job.output}: cannot be written ({error.strerror}); name another OUTPUT") from None
    return jobs


def _check_output(job: Job) -> None:
    """Refuse a single result that cannot be written or would replace what it must not."""
    path, target = job.output, Path(job.output)
    if path == STDIO:
        return
    if (unknown := find_unknown_extension(path, job.format)) is not None:
        known = ", ".join(sorted(EXTENSIONS))
        raise OutputError(f"{path}: unknown picture format '{unknown}'; use one of {known} or --format")
    if (other := find_other_format(path, job.format)) is not None:
        raise OutputError(f"{path}: '{other}' does not go with --format {job.format}; leave out one of the two")
    if not target.parent.is_dir():
        raise OutputError(f"{path}: the folder {target.parent} does not exist; create it first")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{path}: the folder {target.parent} cannot be written to; check its permissions")
    if Claims(target.parent, [job]).find_replaced(job) is not None:
        raise OutputError(f"{path}: is the input itself; name another OUTPUT, or use --in-place to replace it")
    if target.is_dir():
        raise OutputError(f"{path}: is a folder; name a file")
    if os.path.lexists(target) and not (job.force or job.in_place):
        raise OutputError(f"{path}: exists already; use --force to replace it, or name another OUTPUT")


def resolve_parameters(
    preset: str, overrides: Mapping[str, Any], choices: Choices, *, task: Task | None = None
) -> Parameters:
    """Resolve a preset with overrides and what the command line adds to them.

    Raises:
        PresetError, UsageError: as `resolve_preset`.
    """
    return resolve_preset(
        preset,
        overrides,
        task=task,
        fast=choices.fast,
        more_lora=choices.more_lora,
        more_embeddings=choices.more_embeddings,
    ).parameters


def make_job(item: Item, choices: Choices, *, output: str, preset: str, parameters: Parameters, seed: int) -> Job:
    """Make the job of an item."""
    return Job(
        input=item.path,
        output=output,
        preset=preset,
        parameters=parameters,
        seed=seed,
        mask=item.mask,
        style=item.style or choices.style,
        control_image=item.control_image,
        format=choices.format,
        quality=choices.quality,
        force=choices.force,
        in_place=choices.in_place,
        metadata=choices.metadata,
        truncated=choices.truncated,
    )


def plan_batch(items: Sequence[Item], choices: BatchChoices) -> list[Planned]:
    """Plan a job for each item, in their order, or say why there is none.

    What is wrong with an input's name or row is that input's failure alone; what is wrong without it is everybody's.

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
    """Plans the items of a batch, one by one.

    Raises:
        UsageError, InputError: a name for results or a style picture that cannot be.
    """

    def __init__(self, choices: BatchChoices) -> None:
        check_template(choices.name)
        self._choices = choices
        self._limits = NameLimits(choices.folder)
        self._resolved: dict[str, Parameters | Img2ImgError] = {}
        self._check_own_values()
        self._probe_name()

    def plan(self, item: Item, index: int) -> Planned:
        """Plan an item's job, or say why it has none.

        Args:
            index: the item's place among all, from 0.

        Raises:
            Img2ImgError: the options are wrong, whatever the item.
        """
        if item.error is not None:
            return Refused(input=item.path, error=item.error)
        choices = self._choices
        preset = item.preset or choices.preset or ""
        seed = item.seed if item.seed is not None else choices.seed
        if seed is None:
            # By its name, so that a rerun, or a run over more files, makes the same picture again.
            seed = int.from_bytes(hashlib.sha256(item.relative.encode("utf-8", "surrogateescape")).digest()[:4])
        try:
            parameters = self._resolve(preset, item)
            job = make_job(item, choices, output=STDIO, preset=preset, parameters=parameters, seed=seed)
            _check_side_inputs(job, item.origin or f"preset '{preset}'")
        except Img2ImgError as error:
            if item.origin is None:
                raise
            return Refused(input=item.path, error=error, preset=preset)
        output = None
        try:
            relative = item.output or self._name_result(item, parameters, seed, index)
            where = item.origin or item.path
            self._check_name(relative, where)
            output = str(choices.folder / relative)
            self._check_extension(relative, where)
            self._limits.check(output, where)
        except Img2ImgError as error:
            return Refused(input=item.path, output=output, error=error, preset=preset)
        return job.model_copy(update={"output": output})

    def _resolve(self, preset: str, item: Item) -> Parameters:
        """Return the item's parameters, resolved once for all items that name the same."""
        key = json.dumps([preset, item.overrides], sort_keys=True, default=str)
        if key not in self._resolved:
            try:
                if not preset:
                    raise UsageError("no preset; name one with --preset, as in --preset colorize")
                overrides = {**self._choices.overrides, **item.overrides}
                parameters = resolve_parameters(preset, overrides, self._choices)
                parameters.check_references()
                self._resolved[key] = parameters
            except Img2ImgError as error:
                self._resolved[key] = error
        found = self._resolved[key]
        if isinstance(found, Img2ImgError):
            raise type(found)(f"{item.origin}: {found}" if item.origin else str(found))
        return found

    def _check_own_values(self) -> None:
        """Refuse what the options alone do wrong, before every row is refused for it."""
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
        relative = self._name_result(item, Parameters(), 0, 0)
        where = f"--name {self._choices.name}"
        self._check_name(relative, where)
        self._check_extension(relative, where)

    def _name_result(self, item: Item, parameters: Parameters, seed: int, index: int) -> str:
        choices, preset = self._choices, item.preset or self._choices.preset or ""
        return fill_template(
            choices.name, item.relative, choices.format, preset=preset, parameters=parameters, seed=seed, index=index
        )

    @staticmethod
    def _check_name(relative: str, where: str) -> None:
        """Refuse a name outside the output folder, or one of those that a batch keeps beside its results."""
        check_inside(relative, where)
        if os.path.basename(relative).lower().startswith(".img2img"):
            raise UsageError(f"{where}: {relative}: names that begin with .img2img are the batch's own; choose another")

    def _check_extension(self, relative: str, where: str) -> None:
        if (unknown := find_unknown_extension(relative, self._choices.format)) is not None:
            raise UsageError(f"{where}: {relative}: unknown picture format '{unknown}'; use --name or --format")
        if (other := find_other_format(relative, self._choices.format)) is not None:
            what = f"'{other}' does not go with --format {self._choices.format}"
            raise UsageError(f"{where}: {relative}: {what}; leave out one of the two")


def _check_side_inputs(job: Job, where: str) -> None:
    check_side_inputs(
        job.parameters,
        where,
        mask=job.mask is not None,
        style=job.style is not None,
        control_image=job.control_image is not None,
    )
