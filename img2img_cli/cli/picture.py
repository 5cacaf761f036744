"""From the arguments of `edit`, `colorize` and `upscale` to results on the disk or on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from img2img_cli.cli.choices import check_format, check_offload, check_truncated
from img2img_cli.cli.options import SharedOptions
from img2img_cli.errors import UsageError
from img2img_cli.presets.catalogue import Resolved, resolve_preset
from img2img_cli.presets.files import suggest
from img2img_cli.presets.references import BUNDLED
from img2img_cli.presets.schema import Parameters, Task
from img2img_cli.presets.values import read_value
from img2img_cli.system.interrupts import INTERRUPTS
from img2img_cli.system.streams import STDIO
from img2img_cli.tasks.job import Job, check_collisions, choose_seed, plan_jobs
from img2img_cli.text import printable

if TYPE_CHECKING:
    from img2img_cli.tasks.run import Result


def run_picture_command(
    task: Task,
    source: str,
    output: str | None,
    own: Mapping[str, Any],
    shared: SharedOptions,
    beside: Mapping[str, str | None] = MappingProxyType({}),
    *,
    variations: int = 1,
) -> None:
    """Resolve, plan, check, and only then load torch and run.

    Args:
        own: the command's own options by parameter name; None means not given.
        beside: the mask, style and control_image that are given with the picture.
    """
    resolved = resolve_parameters(task, own, shared)
    offload = check_offload(shared.offload)
    jobs = make_jobs(resolved, source, output, shared, beside, variations=variations)
    p = resolved.parameters
    p.check_references()
    if shared.dry_run:
        print_jobs(jobs)
        return
    from img2img_cli.cli.engine import Engine, tell_offload
    from img2img_cli.tasks.protocol import Spec
    from img2img_cli.tasks.run import load_pictures, run_jobs

    engine = Engine(server=not shared.no_server, keep_warm=shared.keep_warm, quiet=shared.quiet)
    engine.check()
    loaded = load_pictures(jobs[0])
    for note in loaded.guides.notes if not shared.quiet else ():
        print(f"img2img: {printable(note)}", file=sys.stderr)
    pipeline = engine.open(Spec(parameters=p, device=shared.device, offload=offload))
    if not shared.quiet:
        tell_offload(pipeline)
    with show_progress(task, enabled=not shared.quiet and sys.stderr.isatty()) as progress:
        results = list(run_jobs(jobs, pipeline, progress, loaded))
    for note in pipeline.notes if not shared.quiet else ():
        print(f"img2img: {printable(note)}", file=sys.stderr)
    for result in results:
        report(result, shared)


def resolve_parameters(task: Task, own: Mapping[str, Any], shared: SharedOptions) -> Resolved:
    """Defaults < preset < command line, checked to be a preset of this task."""
    overrides = {key: value for key, value in own.items() if value is not None}
    overrides |= {
        key: value
        for key, value in (
            ("model", shared.model),
            ("vae", shared.vae),
            ("controlnet", shared.controlnet),
            ("scheduler", shared.scheduler),
            ("size", shared.size),
            ("dtype", shared.dtype),
            ("compile", shared.compile),
        )
        if value is not None
    }
    overrides |= dict(parse_assignment(text) for text in shared.set_)
    model = overrides.get("model", BUNDLED)
    # The bundled presets are tuned for a small model; a real checkpoint starts from Stable Diffusion's.
    name = shared.preset or (task if model == BUNDLED else f"sd15-{task}")
    return resolve_preset(
        name, overrides, task=task, fast=shared.fast, more_lora=shared.lora, more_embeddings=shared.embedding
    )


def parse_assignment(text: str) -> tuple[str, Any]:
    """`key=value`, the value read as the parameter's type needs."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals:
        raise UsageError(f"--set {text}: must be KEY=VALUE, such as --set strength=0.5")
    if key not in Parameters.model_fields:
        raise UsageError(f"--set {key}: no such parameter{suggest(key, Parameters.model_fields)}")
    try:
        return key, read_value(key, value)
    except UsageError as error:
        raise UsageError(f"--set {error}") from None


def make_jobs(
    resolved: Resolved,
    source: str,
    output: str | None,
    shared: SharedOptions,
    beside: Mapping[str, str | None],
    *,
    variations: int,
) -> list[Job]:
    """The planned and checked jobs of one command.

    Args:
        beside: the mask, style and control_image that are given with the picture.
    """
    format_ = check_format(shared.format)
    if shared.json and (output == STDIO or (output is None and source == STDIO)):
        raise UsageError("--json and a picture cannot both go to stdout; name an OUTPUT file")
    template = Job(
        input=source,
        output=STDIO,
        preset=resolved.name,
        parameters=resolved.parameters,
        seed=choose_seed() if shared.seed is None else shared.seed,
        **beside,
        format=format_,
        quality=shared.quality,
        force=shared.force,
        in_place=shared.in_place,
        metadata=not shared.no_metadata,
        truncated=check_truncated(shared.truncated),
    )
    jobs = plan_jobs(template, output, variations=variations)
    check_collisions(jobs)
    return jobs


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
