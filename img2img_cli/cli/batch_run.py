"""How `img2img batch` goes: plan, look what is done, only then load a model; events to the terminal or as JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from img2img_cli.batch.journal import hold_folder
from img2img_cli.batch.live_plan import LivePlan
from img2img_cli.batch.run import run_entries
from img2img_cli.batch.session import Limits, Session, Tally
from img2img_cli.errors import ExitCode, Img2ImgError, NothingMatchedError, OutputError, UsageError
from img2img_cli.presets.schema import Offload, Parameters
from img2img_cli.system.interrupts import INTERRUPTS
from img2img_cli.tasks.inputs import Item, find_items
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.output_folder import estimate_bytes
from img2img_cli.tasks.plan import BatchChoices, Planned, Refused, plan_batch
from img2img_cli.text import printable

if TYPE_CHECKING:
    from img2img_cli.cli.open_engine import Engine
    from img2img_cli.tasks.pieces import Pipeline

Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """What to find, and how to show what happens."""

    inputs: Sequence[str]
    include: Sequence[str]
    exclude: Sequence[str]
    include_results: bool
    watch: bool
    report: Path | None
    device: str
    offload: Offload
    dry_run: bool
    json: bool
    quiet: bool
    engine: Engine


def read_limits(*, batch_size: str = "auto", max_failures: str | None = None, **others: Any) -> Limits:
    """Check and convert the options that are more than a number.

    Raises:
        UsageError: naming the option.
    """
    if batch_size != "auto" and not (batch_size.isdecimal() and int(batch_size) > 0):
        raise UsageError(f"--batch-size {batch_size}: must be auto or a whole number from 1")
    allowed: int | float | None = None
    if max_failures is not None:
        number = max_failures.removesuffix("%")
        if not number.isdecimal() or (number != max_failures and int(number) > 100):
            raise UsageError(f"--max-failures {max_failures}: must be a count such as 10 or a share such as 5%")
        allowed = int(number) if number == max_failures else int(number) / 100
    for key in ("item_timeout_s", "timeout_s"):
        if others.get(key) is not None and not others[key] > 0:
            raise UsageError(f"--{key.removesuffix('_s').replace('_', '-')} {others[key]:g}: must be over 0 seconds")
    size = None if batch_size == "auto" else int(batch_size)
    return Limits(batch_size=size, max_failures=allowed, **others)


def run_batch_command(choices: BatchChoices, limits: Limits, options: BatchOptions) -> int:
    """Run, once or as files arrive; return the exit code."""
    options.engine.check()
    if options.watch and "-" in options.inputs:
        raise UsageError("--watch needs files or folders to look at, not names on stdin")
    notes: list[str] = []
    passes = Passes(choices, limits, options)
    if options.watch and not options.dry_run:
        return keep_up(passes, notes)
    planned = plan_batch(find(choices, options, notes), choices)
    return print_plan(planned, notes) if options.dry_run else passes.run(planned, planned, notes)


def find(choices: BatchChoices, options: BatchOptions, notes: list[str]) -> list[Item]:
    """Every input; `notes` takes what is left aside."""
    inputs, folder = options.inputs, choices.folder
    return find_items(
        inputs,
        include=options.include,
        exclude=options.exclude,
        skip_folder=folder,
        include_results=options.include_results,
        notes=notes,
    )


def keep_up(passes: Passes, notes: list[str]) -> int:
    """Run, and run again for what comes and changes, until a signal; return the exit code of the last pass."""
    from img2img_cli.batch.watch import watch_inputs

    choices, options = passes.choices, passes.options
    plan = LivePlan(lambda: find(choices, options, notes), choices)
    try:
        jobs = plan.start()
    except NothingMatchedError:
        jobs = []
    code = passes.run(jobs, jobs, notes)
    told: Img2ImgError | None = None
    looks = 0
    try:
        for changed in watch_inputs(options.inputs, choices.folder):
            looks += 1
            # What came between the plan and the first look has woken nobody.
            if not (changed or looks == 1 or plan.is_unsettled):
                continue
            plan.try_again(passes.open_ended)
            notes.clear()
            try:
                jobs = plan.update()
            except Img2ImgError as error:  # such as a manifest that is being edited
                if str(error) != str(told):
                    print(f"img2img: {printable(str(error))}", file=sys.stderr)
                told = error
                continue
            told = None
            if jobs:
                code = passes.run(jobs, plan.planned, notes)
    except KeyboardInterrupt:  # which watchfiles makes of every signal
        INTERRUPTS.check()
        raise
    return code


def print_plan(planned: Sequence[Planned], notes: Sequence[str]) -> int:
    """Print the plan as YAML: each preset's parameters once, then a line a job; return the exit code."""
    from img2img_cli.presets.strict_yaml import dump_yaml

    jobs = [job for job in planned if isinstance(job, Job)]
    parameters = {job.preset: job.parameters.model_dump() for job in jobs}
    rows = [{"input": job.input, "output": job.output, "preset": job.preset, "seed": job.seed} for job in jobs]
    print(dump_yaml({"presets": parameters, "jobs": rows}), end="")
    for note in notes:
        print(f"img2img: {printable(note)}", file=sys.stderr)
    for refused in (job for job in planned if isinstance(job, Refused)):
        print(f"img2img: {printable(tell_failure(refused.input, str(refused.error)))}", file=sys.stderr)
    print(f"{len(jobs)} pictures, about {estimate_bytes(jobs) / 1e6:.0f} MB", file=sys.stderr)
    return ExitCode.DONE if len(jobs) == len(planned) else ExitCode.SOME_FAILED


def tell_failure(name: str, reason: str) -> str:
    """A failure as one line; most reasons begin with the file's name already."""
    return reason if reason.startswith(name) else f"{name}: {reason}"


class Pipelines:
    """Loaded pipelines by what they are loaded from; the last one stays for the next run of a watch."""

    def __init__(self, options: BatchOptions) -> None:
        self._options = options
        self._key: str | None = None
        self._pipeline: Pipeline | None = None

    def load(self, job: Job) -> Pipeline:
        """The job's pipeline; one is held at a time."""
        # Before torch starts its threads: spinning at their barriers they would starve those that read and write
        # files (measured: a seventh more pictures a second on two cores).
        os.environ.setdefault("GOMP_SPINCOUNT", "0")
        from img2img_cli.cli.open_engine import tell_offload
        from img2img_cli.tasks.protocol import Spec

        parameters: Parameters = job.parameters
        key = parameters.pipeline_key
        if self._pipeline is None or key != self._key:
            self._pipeline = None
            spec = Spec(parameters=parameters, device=self._options.device, offload=self._options.offload)
            self._pipeline = self._options.engine.open(spec)
            if not (self._options.quiet or self._options.json):
                tell_offload(self._pipeline)
            self._key = key
        return self._pipeline


@dataclass
class Recorder:
    """Shows events as they come, and keeps how each input ended.

    Attributes:
        ends: how each input ended, by its own name and its result's: one event, or more of rows that share these.
    """

    options: BatchOptions
    total: int = 0
    ends: dict[tuple[str, str | None], list[Event]] = field(default_factory=dict)
    advance: Callable[[Event], None] | None = None
    _before: dict[tuple[str, str | None], list[Event]] = field(default_factory=dict)

    def begin(self, total: int) -> None:
        """Make ready for a pass over so many inputs."""
        self.total, self._before, self.ends = total, self.ends, dict(self.ends)

    def __call__(self, event: Event) -> None:
        """Take one event. A failure that is the same as in the pass before is told in JSON alone."""
        is_known = False
        if event["event"] not in ("note", "plan"):
            name = (event["input"], event["output"])
            before = self._before.get(name, [])
            is_known = event["event"] == "failed" and any(event["reason"] == old.get("reason") for old in before)
            self.ends[name] = [event] if self.ends.get(name) is before else [*self.ends.get(name, []), event]
        if self.options.json:
            self._tell(event)
        if self.advance is not None:
            self.advance(event)
        elif not (self.options.json or is_known):
            self._print(event)

    def _tell(self, event: Event) -> None:
        """Write a line of JSON. A reader that has left ends the run at its next step: what is made is counted."""
        try:
            print(json.dumps(event, ensure_ascii=True), flush=True)
        except OutputError as error:
            INTERRUPTS.stop(error)

    def _print(self, event: Event) -> None:
        kind = event["event"]
        if self.options.quiet and kind != "failed":
            return
        if kind == "done":
            size = f"{event['width']} x {event['height']}"
            text = f"{event['output']}: {size}, seed {event['seed']}, {event['seconds']:.1f} s"
        elif kind == "failed":
            text = tell_failure(str(event["input"]), str(event["reason"]))
        elif kind == "note":
            text = event["text"]
        else:
            return
        print(f"img2img: {printable(text)}" if kind != "done" else printable(text), file=sys.stderr)

    def summarise(self, tally: Tally, seconds: float) -> None:
        """Write the last event, or the last line."""
        counts = {
            "inputs": tally.inputs,
            "done": tally.done,
            "up_to_date": tally.up_to_date,
            "failed": tally.failed,
            "skipped": tally.skipped + tally.open,
        }
        if self.options.json:
            self._tell({"event": "summary", **counts, "seconds": round(seconds, 3)})
        elif not self.options.quiet:
            parts = [
                f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count and name != "inputs"
            ]
            noun = "picture" if tally.inputs == 1 else "pictures"
            told = f"{tally.inputs} {noun}: {', '.join(parts) or 'nothing to do'}, {seconds:.1f} s"
            print(told, file=sys.stderr)


class Passes:
    """Runs over a folder: one, or with `--watch` many, which share the model and what is known of each input.

    Attributes:
        open_ended: what the last pass skipped, or could not make for a reason that may pass.
    """

    def __init__(self, choices: BatchChoices, limits: Limits, options: BatchOptions) -> None:
        self.choices, self.limits, self.options = choices, limits, options
        self.open_ended: list[Planned] = []
        self._pipelines, self._recorder = Pipelines(options), Recorder(options)
        self._is_first = True

    def run(self, jobs: Sequence[Planned], planned: Sequence[Planned], notes: Sequence[str]) -> int:
        """One pass over jobs, with its summary and report; return the exit code.

        Args:
            planned: all that the report is of: these and those of earlier passes.
        """
        began, options, recorder = time.monotonic(), self.options, self._recorder
        tally = Tally(inputs=len(jobs))
        recorder.begin(len(jobs))
        with hold_folder(self.choices.folder, check=self._is_first) as journal, INTERRUPTS.hold():
            self._is_first = False
            session = Session(
                journal=journal,
                limits=self.limits,
                emit=recorder,
                tally=tally,
                load=self._pipelines.load,
                interrupts=INTERRUPTS,
            )
            recorder({"event": "plan", "inputs": len(jobs)})
            for note in notes:
                recorder({"event": "note", "text": note})
            try:
                with show_bar(recorder, options):
                    entries = session.sort_out(jobs)
                    if entries:
                        run_entries(session, entries)
            finally:
                recorder.summarise(tally, time.monotonic() - began)
            if options.report is not None:
                from img2img_cli.batch.report import write_report

                with INTERRUPTS.allow():
                    write_report(options.report, recorder.ends, planned, time.monotonic() - began)
        self.open_ended = session.open_ended
        code = ExitCode.TIMEOUT if session.timed_out else ExitCode.SOME_FAILED if tally.failed else ExitCode.DONE
        return int(code)


@contextmanager
def show_bar(recorder: Recorder, options: BatchOptions) -> Iterator[None]:
    """Count, rate and time left on a terminal; failures are printed above the bar."""
    if options.quiet or options.json or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]}"),
    )
    began, counts = time.monotonic(), {"made": 0, "failed": 0}
    with Progress(*columns, console=console, transient=True) as bar:
        row = bar.add_task("", total=recorder.total, rate="", failed="")

        def advance(event: Event) -> None:
            if event["event"] in ("failed", "note"):
                recorder._print(event)
            if event["event"] in ("plan", "note"):
                return
            counts["made"] += event["event"] == "done"
            counts["failed"] += event["event"] == "failed"
            rate = counts["made"] / max(time.monotonic() - began, 1e-3)
            failed = f"{counts['failed']} failed" if counts["failed"] else ""
            bar.update(row, advance=1, rate=f"{rate * 60:.0f}/min", failed=failed)

        recorder.advance = advance
        try:
            yield
        finally:
            recorder.advance = None
