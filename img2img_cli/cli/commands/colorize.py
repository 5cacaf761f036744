"""`img2img colorize`."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from img2img_cli.cli.options import InputArgument, OutputArgument, SharedOptions, with_shared_options


@with_shared_options
def colorize(
    *,
    source: InputArgument,
    output: OutputArgument = None,
    prompt: Annotated[
        Optional[str],
        typer.Option("--prompt", "-p", help="What is in the picture, and its colours.", show_default=False),
    ] = None,
    saturation: Annotated[
        Optional[float],
        typer.Option(help="Factor on the colours: 0 is grey, 1 as the model made them.", show_default=False),
    ] = None,
    shared: SharedOptions,
) -> None:
    """Give a black-and-white picture colour. Its own lightness stays as it is, at full resolution."""
    from img2img_cli.cli.picture import run_picture_command

    run_picture_command("colorize", source, output, {"prompt": prompt, "saturation": saturation}, shared)
