"""`img2img info`."""

from __future__ import annotations

from typing import Annotated

import typer


def info(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A picture that img2img made; - is stdin.")],
    json: Annotated[bool, typer.Option("--json", help="The record as JSON.")] = False,
) -> None:
    """How was this picture made? Its parameters, and the command that makes it again."""
    from json import dumps

    from img2img_cli.job import check_input, printable
    from img2img_cli.record import read_record, replay_command

    check_input(image)
    record = read_record(image)
    if "text" in record:
        typer.echo(dumps(record) if json else "\n".join(map(printable, record["text"].splitlines())))
        return
    command = replay_command(record)
    if json:
        typer.echo(dumps({**record, "command": command}))
        return
    for key in ("version", "input", "mask", "style", "control_image", "preset", "seed"):
        if key in record:
            typer.echo(f"{key}: {printable(str(record[key]))}")
    for key, value in record["parameters"].items():
        typer.echo(f"{key}: {printable(str(value))}")
    typer.echo(f"command: {command}")
