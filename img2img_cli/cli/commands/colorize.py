"""`img2img colorize`."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from img2img_cli.cli.options import (
    HintsOption,
    PathsArgument,
    PictureOptions,
    VariationsOption,
    with_options,
)

VARIETY = 0.5  # of several results, if the user says nothing


@with_options(PictureOptions)
def colorize(
    *,
    paths: PathsArgument,
    saturation: Annotated[
        Optional[float],
        typer.Option(help="Factor on the colours: 0 is grey, 1 as the model made them.", show_default=False),
    ] = None,
    hints: HintsOption = None,
    variations: VariationsOption = 1,
    variety: Annotated[
        Optional[float],
        typer.Option(
            help="How far the colours of a seed go from the likeliest, 0 to 1. [default: 0; 0.5 with --variations]",
            show_default=False,
        ),
    ] = None,
    shared: PictureOptions,
) -> None:
    """Give a black-and-white picture colour. Its own lightness stays as it is, at full resolution."""
    from img2img_cli.cli.single_run import run_picture_command

    if variety is None and variations > 1:
        variety = VARIETY
    run_picture_command(
        "colorize",
        paths,
        {"saturation": saturation, "variety": variety},
        shared,
        control_image=hints,
        variations=variations,
    )
