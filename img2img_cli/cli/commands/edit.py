"""`img2img edit`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Optional

import typer

from img2img_cli.cli.options import (
    STYLE,
    MaskOption,
    PathsArgument,
    PictureOptions,
    StyleOption,
    VariationsOption,
    with_options,
)
from img2img_cli.errors import UsageError

ERASE = "erase"  # the preset for a mask without a prompt


@with_options(PictureOptions)
def edit(
    *,
    paths: PathsArgument,
    mask: MaskOption = None,
    mask_feather: Annotated[
        Optional[float], typer.Option(help="Pixels over which the mask fades in.", show_default=False)
    ] = None,
    control: Annotated[
        Optional[str],
        typer.Option(
            metavar="KIND[=PICTURE]",
            help="Hold to the canny or softedge, the grey, or tile of the picture, or of PICTURE; "
            "depth, lineart and openpose need their map.",
            show_default=False,
        ),
    ] = None,
    style: StyleOption = None,
    erase: Annotated[
        bool, typer.Option("--erase", help="Take away what the mask marks, as without a prompt. Needs no model.")
    ] = False,
    variations: VariationsOption = 1,
    shared: PictureOptions,
) -> None:
    """Change a picture as a text says: style, colours, light; or only where a mask is white."""
    from img2img_cli.cli.choices import leaves_preset_open
    from img2img_cli.cli.single_run import run_picture_command

    if erase and shared.preset not in (None, ERASE):
        raise UsageError("--erase is a preset of its own; leave out one of --erase and --preset")
    if erase:
        shared = dataclasses.replace(shared, preset=ERASE)
    elif leaves_preset_open(shared) and (mask is not None or style is not None):
        shared = dataclasses.replace(shared, preset=ERASE if style is None else STYLE)
    kind, _, control_image = control.partition("=") if control is not None else (None, "", "")
    own = {"mask_feather": mask_feather, "control": "picture" if kind == "tile" else kind}
    run_picture_command(
        "edit",
        paths,
        own,
        shared,
        mask=mask,
        style=style,
        control_image=control_image or None,
        variations=variations,
    )
