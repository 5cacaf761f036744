"""`img2img doctor`."""

from __future__ import annotations

from typing import Annotated, Optional

import typer


def doctor(
    preset: Annotated[
        Optional[str], typer.Argument(help="Tell instead whether this preset runs here.", show_default=False)
    ] = None,
    *,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Versions, devices, number format, memory, cache, and a self-test of the bundled model; or one preset's needs."""
    from json import dumps

    from img2img_cli.cli.diagnose import diagnose, diagnose_preset
    from img2img_cli.text import printable

    found = diagnose_preset(preset) if preset else diagnose()
    if json:
        typer.echo(dumps(found))
        return
    width = max(map(len, found))
    for key, value in found.items():
        typer.echo(f"{key:{width}}  {printable(value)}")
