"""`img2img restore`."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from img2img_cli.cli.options import InputArgument, OutputArgument, SharedOptions, with_shared_options


@with_shared_options
def restore(
    *,
    source: InputArgument,
    output: OutputArgument = None,
    prompt: Annotated[
        Optional[str], typer.Option("--prompt", "-p", help="What is in the picture.", show_default=False)
    ] = None,
    strength: Annotated[
        Optional[float], typer.Option(help="How far the result may leave the input.", show_default=False)
    ] = None,
    mask: Annotated[
        Optional[str],
        typer.Option(help="Picture of the same size; white is restored, black kept.", show_default=False),
    ] = None,
    shared: SharedOptions,
) -> None:
    """Mend a damaged picture at its own resolution. The bundled model takes noise out; other presets do more."""
    from img2img_cli.cli.picture import run_picture_command

    run_picture_command("restore", source, output, {"prompt": prompt, "strength": strength}, shared, {"mask": mask})
