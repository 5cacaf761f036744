"""`img2img presets`."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Annotated

import typer

from img2img_cli.presets.references import is_bundled

TASKS = ("upscale", "edit", "colorize", "restore")
presets = typer.Typer(help="List, show and check presets.")


@presets.command("list")
def list_(
    json: Annotated[bool, typer.Option("--json", help="One JSON line a preset.")] = False,
) -> None:
    """Every preset that comes along: by task, with memory, steps, licence, and whether it is here."""
    from json import dumps

    from img2img_cli.presets.files import list_cards

    cards = list_cards()
    if not json:
        _print_table(cards)
        return
    keys = ("task", "model", "license", "gated", "memory_gib", "num_inference_steps", "description")
    for name, card in cards.items():
        typer.echo(dumps({"name": name, **{key: getattr(card, key) for key in keys}, "cached": _is_here(card)}))


def _print_table(cards: Mapping[str, SimpleNamespace]) -> None:
    """By task, the presets that work offline first; `upscale`, whose gain holds on every kind of picture, on top."""
    width = max(map(len, cards))
    for task in TASKS:
        typer.echo(f"{task}")
        rows = [(name, card) for name, card in cards.items() if card.task == task]
        for name, card in sorted(rows, key=lambda row: (not is_bundled(row[1].model), row[0])):
            here = "here" if _is_here(card) else "gated" if card.gated else ""
            steps = max(1, int(card.num_inference_steps * card.strength))
            facts = f"{here:5}  {card.memory_gib:3.0f} GiB  {steps:2} steps"
            typer.echo(f"  {name:{width}}  {facts}  {card.description}. {card.license}")
    typer.echo("\nhere: needs no network. gated: accept its licence on the hub first. GiB: device memory, 16 bits.")


def _is_here(card: SimpleNamespace) -> bool:
    """Whether the preset's models lie on this machine; of the hub's, whether they were ever fetched."""
    if is_bundled(card.model):
        return True
    from img2img_cli.presets.repositories import is_fetched, list_repositories

    return all(map(is_fetched, list_repositories(card)))


@presets.command()
def show(preset: Annotated[str, typer.Argument(help="Name or file.")]) -> None:
    """Every parameter of a preset, as YAML, with a comment that says where its value came from."""
    from img2img_cli.presets.catalogue import resolve
    from img2img_cli.presets.files import load_preset
    from img2img_cli.presets.strict_yaml import dump_yaml
    from img2img_cli.text import printable

    resolved = resolve(load_preset(preset), {})
    for key, value in resolved.parameters.model_dump().items():
        typer.echo(f"{dump_yaml({key: value}, sort_keys=True).rstrip()}  # {printable(resolved.origin[key])}")


@presets.command()
def validate(file: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped preset.")]) -> None:
    """Check a preset; exit 2 with the file and line when it cannot be used."""
    from img2img_cli.presets.catalogue import resolve
    from img2img_cli.presets.files import load_preset
    from img2img_cli.text import printable

    resolved = resolve(load_preset(file), {})
    resolved.parameters.check_references()
    typer.echo(f"{printable(file)}: a valid preset for {resolved.parameters.task}", err=True)


@presets.command()
def schema() -> None:
    """The JSON schema of a preset file, for editors."""
    from json import dumps

    from img2img_cli.presets.catalogue import preset_schema

    typer.echo(dumps(preset_schema(), indent=2))
