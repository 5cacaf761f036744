"""`img2img restore`."""

from __future__ import annotations

from img2img_cli.cli.options import InputArgument, MaskOption, OutputArgument, PictureOptions, with_options


@with_options(PictureOptions)
def restore(
    *,
    source: InputArgument,
    output: OutputArgument = None,
    mask: MaskOption = None,
    shared: PictureOptions,
) -> None:
    """Mend a damaged picture at its own resolution. The bundled model takes noise out; other presets do more."""
    from img2img_cli.cli.single_run import run_picture_command

    run_picture_command("restore", source, output, {}, shared, mask=mask)
