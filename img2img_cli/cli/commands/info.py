"""`img2img info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from img2img_cli.tasks.foreign.fields import Foreign


def info(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A picture that a model made; - is stdin.")],
    json: Annotated[bool, typer.Option("--json", help="The record as JSON.")] = False,
) -> None:
    """How was this picture made? Its parameters, and the command that makes it again.

    Reads what img2img, AUTOMATIC1111, ComfyUI, InvokeAI, NovelAI, SwarmUI and Fooocus write.
    """
    from json import dumps

    from img2img_cli.tasks.foreign.fields import Foreign
    from img2img_cli.tasks.foreign.read import read_origin
    from img2img_cli.tasks.job import check_input

    check_input(image)
    found = read_origin(image)
    told, lines = _tell_foreign(found, image) if isinstance(found, Foreign) else _tell_record(found)
    typer.echo(dumps(told) if json else "\n".join(lines))


def _tell_record(record: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Our own record as JSON and as lines."""
    from img2img_cli.tasks.record import replay_command
    from img2img_cli.text import printable

    command = replay_command(record)
    keys = [key for key in ("version", "input", "mask", "style", "control_image", "preset", "seed") if key in record]
    pairs = [(key, record[key]) for key in keys] + list(record["parameters"].items())
    lines = [f"{key}: {printable(str(value))}" for key, value in pairs]
    return {**record, "command": command}, [*lines, f"command: {command}"]


def _tell_foreign(found: Foreign, image: str) -> tuple[dict[str, Any], list[str]]:
    """Another tool's parameters as JSON and as lines: its own text, where it has written one for people."""
    from img2img_cli.tasks.foreign.replay import plan_replay
    from img2img_cli.text import printable

    replay = plan_replay(found, image)
    fields = found.to_json() | {"notes": list(replay.notes)}
    other = {f"{key} (no counterpart)": value for key, value in found.other.items()}
    plain = {key: value for key, value in fields.items() if key not in ("text", "other", "notes")} | other
    shown = {key: ", ".join(value) if isinstance(value, list) else str(value) for key, value in plain.items()}
    lines = [f"{key}: {printable(' '.join(value.splitlines()))}" for key, value in shown.items()]
    if found.text is not None and "\n" in found.text:
        lines = [printable(line) for line in found.text.splitlines()]
    lines += [f"note: {printable(note)}" for note in replay.notes]
    lines += [f"command: {replay.command}"] if replay.command else []
    return {**fields, "command": replay.command}, lines
