"""`img2img colorize`."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from img2img_cli.cli.options import InputArgument, OutputArgument, PictureOptions, with_options


@with_options(PictureOptions)
def colorize(
    *,
    source: InputArgument,
    output: OutputArgument = None,
    saturation: Annotated[
        Optional[float],
        typer.Option(help="Factor on the colours: 0 is grey, 1 as the model made them.", show_default=False),
    ] = None,
    shared: PictureOptions,
) -> None:
    """Give a black-and-white picture colour. Its own lightness stays as it is, at full resolution."""
    from img2img_cli.cli.single_run import run_picture_command

    run_picture_command("colorize", source, output, {"saturation": saturation}, shared)
