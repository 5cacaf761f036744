"""`img2img edit`."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from img2img_cli.cli.options import InputArgument, OutputArgument, SharedOptions, with_shared_options


@with_shared_options
def edit(
    *,
    source: InputArgument,
    output: OutputArgument = None,
    prompt: Annotated[
        Optional[str],
        typer.Option("--prompt", "-p", help="What the result should show.", show_default="the preset's"),
    ] = None,
    negative_prompt: Annotated[Optional[str], typer.Option(help="What it should not show.", show_default=False)] = None,
    strength: Annotated[
        Optional[float],
        typer.Option(help="Share of the noise schedule that is run: more changes more.", show_default=False),
    ] = None,
    steps: Annotated[Optional[int], typer.Option(help="num_inference_steps.", show_default=False)] = None,
    guidance_scale: Annotated[Optional[float], typer.Option(help="Weight of the prompt.", show_default=False)] = None,
    mask: Annotated[
        Optional[str],
        typer.Option(help="Picture of the same size; white is repainted, black kept.", show_default=False),
    ] = None,
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
    style: Annotated[
        Optional[str],
        typer.Option(help="Picture whose style to take; for presets with an IP-Adapter.", show_default=False),
    ] = None,
    variations: Annotated[
        int, typer.Option(min=1, max=64, help="Results from as many seeds, numbered -1, -2, ...")
    ] = 1,
    shared: SharedOptions,
) -> None:
    """Change a picture as a text says: style, colours, light; or only where a mask is white."""
    from img2img_cli.cli.picture import run_picture_command

    kind, _, control_image = control.partition("=") if control is not None else (None, "", "")
    own = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "strength": strength,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "mask_feather": mask_feather,
        "control": "picture" if kind == "tile" else kind,
    }
    beside = {"mask": mask, "style": style, "control_image": control_image or None}
    run_picture_command("edit", source, output, own, shared, beside, variations=variations)
