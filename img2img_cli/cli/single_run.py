"""From the arguments of a task's command to its results on the disk or on stdout."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import Exit

from img2img_cli.cli.choices import check_offload, collect_choices
from img2img_cli.cli.options import PictureOptions, SharedOptions
from img2img_cli.cli.paths import Paths, split_paths
from img2img_cli.errors import OutputError, UsageError
from img2img_cli.presets.schema import Task
from img2img_cli.system.interrupts import INTERRUPTS
from img2img_cli.system.streams import STDIO
from img2img_cli.tasks.inputs import Item
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.plan import BatchChoices, Choices, choose_preset, plan_picture, resolve_parameters
from img2img_cli.tasks.result_names import check_suffix, choose_suffix
from img2img_cli.tasks.up_to_date import is_up_to_date
from img2img_cli.text import printable

if TYPE_CHECKING:
    from img2img_cli.tasks.run import Result


def run_picture_command(
    task: Task,
    paths: Sequence[str],
    own: Mapping[str, Any],
    shared: PictureOptions,
    *,
    mask: str | None = None,
    style: str | None = None,
    control_image: str | None = None,
    variations: int = 1,
) -> None:
    """Resolve, plan, check, and only then load torch and run.

    Args:
        paths: the inputs and perhaps an output, as they were typed.
        own: the command's own options by parameter name; None means not given.
        mask, style, control_image: the paths of side inputs.
    """
    found = split_paths(task, paths, shared.output)
    common = {**collect_choices(shared, own), "style": style, "seed": shared.seed, "force": shared.force}
    if shared.suffix is not None:
        check_suffix(shared.suffix)
    if found.many:
        for option, is_given in {
            "--mask": mask, "--hints" if task == "colorize" else "--control KIND=PICTURE": control_image,
            "--variations": variations > 1, "--in-place": shared.in_place, "--skip-existing": shared.skip_existing,
        }.items():  # fmt: skip
            if is_given:
                raise UsageError(f"{option} is for one picture; give one, or leave it out")
        run_several(task, found, common, shared)
        return
    offload = check_offload(shared.offload)
    (source,), output = found.inputs, found.output
    keeps = shared.skip_existing or shared.update
    choices = Choices(**{**common, "force": shared.force or keeps}, in_place=shared.in_place, suffix=shared.suffix)
    if shared.json and (output == STDIO or (output is None and source == STDIO)):
        raise UsageError("--json and a picture cannot both go to stdout; name an OUTPUT file")
    item = Item(path=source, relative=Path(source).name, mask=mask, control_image=control_image)
    try:
        jobs = plan_picture(item, choices, output, task=task, variations=variations)
    except OutputError as error:
        if shared.output is None and output is not None and output != STDIO and Path(output).is_file():
            raise OutputError(f"{error}; results of both pictures go into a folder with -o FOLDER") from None
        raise
    if keeps:
        jobs = leave_out_done(jobs, shared)
        if not jobs:
            return
    if shared.dry_run:
        print_jobs(jobs)
        return
    from img2img_cli.cli.open_engine import Engine, tell_offload
    from img2img_cli.tasks.protocol import Spec
    from img2img_cli.tasks.run import load_pictures, run_jobs

    engine = Engine(server=not shared.no_server, keep_warm=shared.keep_warm, quiet=shared.quiet)
    engine.check()
    loaded = load_pictures(jobs[0])
    for note in loaded.side_inputs.notes if not shared.quiet else ():
        print(f"img2img: {printable(note)}", file=sys.stderr)
    pipeline = engine.open(Spec(parameters=jobs[0].parameters, device=shared.device, offload=offload))
    if not shared.quiet:
        tell_offload(pipeline)
    with show_progress(task, enabled=not shared.quiet and sys.stderr.isatty()) as progress:
        results = list(run_jobs(jobs, pipeline, progress, loaded))
    for note in pipeline.notes if not shared.quiet else ():
        print(f"img2img: {printable(note)}", file=sys.stderr)
    for result in results:
        report(result, shared)


def run_several(task: Task, paths: Paths, common: Mapping[str, Any], shared: PictureOptions) -> None:
    """Run a batch over several pictures, with the names that one would have in the folder of the results.

    Args:
        common: the arguments of `Choices`.
    """
    from img2img_cli.cli.batch_run import BatchOptions, read_limits, run_batch_command
    from img2img_cli.cli.open_engine import Engine

    preset = choose_preset(task, shared.preset, common["overrides"])
    choices = BatchChoices(**{**common, "preset": preset}, folder=Path(str(paths.output)))
    parameters = resolve_parameters(preset, choices.overrides, choices, task=task)
    added = choose_suffix(parameters, shared.preset) if shared.suffix is None else shared.suffix
    name = "{stem}" + added.replace("{", "{{").replace("}", "}}") + "{ext}"
    options = BatchOptions(
        inputs=paths.inputs,
        include=(),
        exclude=(),
        include_results=False,
        watch=False,
        report=None,
        device=shared.device,
        offload=check_offload(shared.offload),
        dry_run=shared.dry_run,
        json=shared.json,
        quiet=shared.quiet,
        engine=Engine(server=not shared.no_server, keep_warm=shared.keep_warm, quiet=shared.quiet),
    )
    code = run_batch_command(dataclasses.replace(choices, name=name), read_limits(), options)
    if code:
        raise Exit(code)


def leave_out_done(jobs: Sequence[Job], shared: PictureOptions) -> list[Job]:
    """Return the jobs that are still to be done, with `--skip-existing` or `--update`, and tell the others."""
    left = []
    for job in jobs:
        exists = job.output != STDIO and Path(job.output).exists()
        if exists and (shared.skip_existing or is_up_to_date(job, seeded=shared.seed is not None)):
            if not shared.quiet:
                print(f"img2img: {printable(job.output)}: {'exists' if shared.skip_existing else 'is up to date'}; "
                      "left as it is", file=sys.stderr)  # fmt: skip
        else:
            left.append(job if shared.update else job.model_copy(update={"force": shared.force}))
    return left


def print_jobs(jobs: Sequence[Job]) -> None:
    """The resolved jobs as YAML documents on stdout."""
    from img2img_cli.presets.strict_yaml import dump_yaml

    print(dump_yaml(*(job.model_dump() for job in jobs)), end="")


@contextmanager
def show_progress(task: str, *, enabled: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, or nothing; each step also ends the command if a signal was lost.

    Python drops what a signal raises in a destructor or in a library's callback.
    """
    if not enabled:
        yield lambda done, total: INTERRUPTS.check()
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task(task, total=None)

        def advance(done: int, total: int) -> None:
            INTERRUPTS.check()
            bar.update(row, completed=done, total=total)

        yield advance


def report(result: Result, shared: SharedOptions) -> None:
    """Say what was made: JSON on stdout, or a line on stderr."""
    job = result.job
    if shared.json:
        row = {
            "input": job.input,
            "output": job.output,
            "width": result.size[0],
            "height": result.size[1],
            "format": result.format,
            "seed": job.seed,
            "preset": job.preset,
            "seconds": round(result.seconds, 3),
            **({"damaged": True} if result.damaged else {}),
            "parameters": job.parameters.to_record(),
        }
        print(json.dumps(row))
    elif not shared.quiet:
        name = "stdout" if job.output == STDIO else job.output
        width, height = result.size
        frames = f", first of {result.frames} frames" if result.frames > 1 else ""
        bits = ", upper 8 of its 16 bits" if result.narrowed else ""
        damaged = ", of an input that is cut short or damaged" if result.damaged else ""
        print(
            f"{printable(name)}: {width} x {height}, seed {job.seed}, {result.seconds:.1f} s{frames}{bits}{damaged}",
            file=sys.stderr,
        )
