"""`img2img batch`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Optional

import typer

from img2img_cli.cli.options import STYLE, SharedOptions, StyleOption, with_options
from img2img_cli.errors import UsageError

_FIND, _OUTPUT, _RUN = "Inputs", "Output", "Run"


@with_options(SharedOptions)
def batch(
    *,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Pictures, folders, quoted globs, a .csv or .jsonl manifest, or - for names on stdin.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Optional[Path],
        typer.Option("--output", "-o", help="Folder for the results; folders are mirrored.", show_default=False),
    ] = None,
    include: Annotated[
        list[str],
        typer.Option(metavar="GLOB", help="Only names or paths like this; repeatable.", rich_help_panel=_FIND),
    ] = [],  # noqa: B006 - typer copies it
    exclude: Annotated[
        list[str], typer.Option(metavar="GLOB", help="No names or paths like this; repeatable.", rich_help_panel=_FIND)
    ] = [],  # noqa: B006
    include_results: Annotated[
        bool,
        typer.Option("--include-results", help="Take results of earlier runs in folders too.", rich_help_panel=_FIND),
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on with what arrives, until interrupted.", rich_help_panel=_FIND)
    ] = False,
    style: StyleOption = None,
    name: Annotated[
        str,
        typer.Option(
            help="Name of a result: {stem} {ext} {name} {preset} {task} {seed} {index}.", rich_help_panel=_OUTPUT
        ),
    ] = "{stem}{ext}",
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Do all again, and replace strangers' files.", rich_help_panel=_OUTPUT)
    ] = False,
    report: Annotated[
        Optional[Path],
        typer.Option(
            metavar="FILE.html", help="Write a page with every pair.", rich_help_panel=_OUTPUT, show_default=False
        ),
    ] = None,
    seed: Annotated[
        Optional[int],
        typer.Option(min=0, max=2**32 - 1, help="One for all.", rich_help_panel=_RUN, show_default="by name"),
    ] = None,
    batch_size: Annotated[
        str, typer.Option(help="auto (one picture at a time on a CPU), or how many.", rich_help_panel=_RUN)
    ] = "auto",
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Threads that decode and write.", rich_help_panel=_RUN)
    ] = 2,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast/--keep-going", help="Stop at the first failure.", rich_help_panel=_RUN)
    ] = False,
    max_failures: Annotated[
        Optional[str],
        typer.Option(metavar="N|P%", help="Stop when more fail.", rich_help_panel=_RUN, show_default=False),
    ] = None,
    item_timeout: Annotated[
        Optional[float], typer.Option(help="Seconds for one picture.", rich_help_panel=_RUN, show_default=False)
    ] = None,
    timeout: Annotated[
        Optional[float], typer.Option(help="Seconds for the run.", rich_help_panel=_RUN, show_default=False)
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Only what failed before.", rich_help_panel=_RUN)
    ] = False,
    shared: SharedOptions,
) -> int:
    """Many pictures, unattended: folders, lists or a manifest, with resume and a report."""
    from img2img_cli.cli.batch_run import BatchOptions, read_limits, run_batch_command
    from img2img_cli.cli.choices import check_offload, collect_choices, leaves_preset_open
    from img2img_cli.cli.open_engine import Engine
    from img2img_cli.tasks.plan import BatchChoices

    if output is None:
        *names, last = inputs
        told = " ".join([*(names or [last]), "-o", last if names else "FOLDER"][-6:])
        raise UsageError(f"--output: name a folder for the results with -o, as in img2img batch {told}")
    if style is not None and leaves_preset_open(shared):
        shared = dataclasses.replace(shared, preset=STYLE)
    choices = BatchChoices(**collect_choices(shared), folder=output, name=name, style=style, seed=seed, force=force)
    limits = read_limits(
        batch_size=batch_size,
        workers=workers,
        max_failures="0" if fail_fast else max_failures,
        item_timeout_s=item_timeout,
        timeout_s=timeout,
        retry_failed=retry_failed,
    )
    options = BatchOptions(
        inputs=inputs,
        include=include,
        exclude=exclude,
        include_results=include_results,
        watch=watch,
        report=report,
        device=shared.device,
        offload=check_offload(shared.offload),
        dry_run=shared.dry_run,
        json=shared.json,
        quiet=shared.quiet,
        engine=Engine(server=not shared.no_server, keep_warm=shared.keep_warm, quiet=shared.quiet),
    )
    return run_batch_command(choices, limits, options)
