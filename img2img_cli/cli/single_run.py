"""From the arguments of a command for one picture to its results on the disk or on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from img2img_cli.cli.choices import check_offload, collect_choices
from img2img_cli.cli.options import PictureOptions, SharedOptions
from img2img_cli.errors import UsageError
from img2img_cli.presets.schema import Task
from img2img_cli.system.interrupts import INTERRUPTS
from img2img_cli.system.streams import STDIO
from img2img_cli.tasks.inputs import Item
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.plan import Choices, plan_picture
from img2img_cli.text import printable

if TYPE_CHECKING:
    from img2img_cli.tasks.run import Result


def run_picture_command(
    task: Task,
    source: str,
    output: str | None,
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
        own: the command's own options by parameter name; None means not given.
        mask, style, control_image: the paths of side inputs.
    """
    offload = check_offload(shared.offload)
    choices = Choices(
        **collect_choices(shared, own), style=style, seed=shared.seed, force=shared.force, in_place=shared.in_place
    )
    if shared.json and (output == STDIO or (output is None and source == STDIO)):
        raise UsageError("--json and a picture cannot both go to stdout; name an OUTPUT file")
    item = Item(path=source, relative=Path(source).name, mask=mask, control_image=control_image)
    jobs = plan_picture(item, choices, output, task=task, variations=variations)
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
