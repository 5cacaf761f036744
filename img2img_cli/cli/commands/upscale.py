"""`img2img upscale`."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from img2img_cli.cli.options import PathsArgument, PictureOptions, with_options


@with_options(PictureOptions)
def upscale(
    *,
    paths: PathsArgument,
    scale: Annotated[Optional[float], typer.Option(help="Any factor from 1 to 8.", show_default="2")] = None,
    upscaler: Annotated[
        Optional[str],
        typer.Option(
            metavar="REF",
            help="Net such as Real-ESRGAN that enlarges first: a .safetensors file, hub id or owner/name/FILE.",
            show_default=False,
        ),
    ] = None,
    shared: PictureOptions,
) -> None:
    """Make a picture larger, with detail. Scaled down again, the result gives the input back."""
    from img2img_cli.cli.single_run import run_picture_command

    run_picture_command("upscale", paths, {"scale": scale, "upscaler": upscaler}, shared)
