"""`img2img upscale`."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from img2img_cli.cli.options import InputArgument, OutputArgument, SharedOptions, with_shared_options


@with_shared_options
def upscale(
    *,
    source: InputArgument,
    output: OutputArgument = None,
    scale: Annotated[Optional[float], typer.Option(help="Any factor from 1 to 8.", show_default="2")] = None,
    prompt: Annotated[
        Optional[str], typer.Option("--prompt", "-p", help="What is in the picture.", show_default=False)
    ] = None,
    upscaler: Annotated[
        Optional[str],
        typer.Option(
            metavar="REF",
            help="Net such as Real-ESRGAN that enlarges first: a .safetensors file, hub id or owner/name/FILE.",
            show_default=False,
        ),
    ] = None,
    shared: SharedOptions,
) -> None:
    """Make a picture larger, with detail. Scaled down again, the result gives the input back."""
    from img2img_cli.cli.picture import run_picture_command

    run_picture_command("upscale", source, output, {"scale": scale, "prompt": prompt, "upscaler": upscaler}, shared)
