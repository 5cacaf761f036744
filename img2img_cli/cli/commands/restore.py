"""`img2img restore`."""

from __future__ import annotations

from img2img_cli.cli.options import MaskOption, PathsArgument, PictureOptions, with_options


@with_options(PictureOptions)
def restore(
    *,
    paths: PathsArgument,
    mask: MaskOption = None,
    shared: PictureOptions,
) -> None:
    """Take noise and JPEG artefacts out of a picture, at its own resolution."""
    from img2img_cli.cli.single_run import run_picture_command

    run_picture_command("restore", paths, {}, shared, mask=mask)
