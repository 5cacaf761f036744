"""`img2img doctor`."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Versions, devices, number format, memory, cache, and a self-test of the bundled model."""
    from json import dumps

    from img2img_cli.diagnosis import diagnose

    found = diagnose()
    if json:
        typer.echo(dumps(found))
        return
    width = max(map(len, found))
    for key, value in found.items():
        typer.echo(f"{key:{width}}  {value}")
