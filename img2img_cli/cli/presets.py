"""`img2img presets`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from img2img_cli.modelref import BUNDLED

if TYPE_CHECKING:
    from img2img_cli.parameters import Parameters

presets = typer.Typer(help="List, show and check presets.")


@presets.command("list")
def list_(
    json: Annotated[bool, typer.Option("--json", help="One JSON line a preset.")] = False,
) -> None:
    """Every preset that comes along: by task, with memory, steps, licence, and whether it is here."""
    from json import dumps

    from img2img_cli.preset import list_presets, load_preset, resolve

    parameters = {name: resolve(load_preset(name), {}).parameters for name in list_presets()}
    if not json:
        _print_table(parameters)
        return
    for name, p in parameters.items():
        keys = ("task", "model", "license", "gated", "memory_gib", "num_inference_steps", "description")
        typer.echo(dumps({"name": name, **{key: getattr(p, key) for key in keys}, "cached": _is_here(p)}))


def _print_table(parameters: Mapping[str, Parameters]) -> None:
    """By task, the presets that work offline first."""
    from typing import get_args

    from img2img_cli.parameters import Task

    width = max(map(len, parameters))
    for task in get_args(Task):
        typer.echo(f"{task}")
        rows = [(name, p) for name, p in parameters.items() if p.task == task]
        for name, p in sorted(rows, key=lambda row: (row[1].model != BUNDLED, row[0])):
            here = "here" if _is_here(p) else "gated" if p.gated else ""
            steps = max(1, int(p.num_inference_steps * p.strength))
            facts = f"{here:5}  {p.memory_gib:3.0f} GiB  {steps:2} steps"
            typer.echo(f"  {name:{width}}  {facts}  {p.description}. {p.license}")
    typer.echo("\nhere: needs no network. gated: accept its licence on the hub first. GiB: device memory, 16 bits.")


def _is_here(parameters: Parameters) -> bool:
    """Whether the preset's models lie on this machine; of the hub's, whether they were ever fetched."""
    if parameters.model == BUNDLED:
        return True
    from img2img_cli.hub import is_fetched, list_repositories

    return all(map(is_fetched, list_repositories(parameters)))


@presets.command()
def show(preset: Annotated[str, typer.Argument(help="Name or file.")]) -> None:
    """Every parameter of a preset, as YAML, with a comment that says where its value came from."""
    from img2img_cli.job import printable
    from img2img_cli.preset import load_preset, resolve
    from img2img_cli.yamlio import dump_yaml

    resolved = resolve(load_preset(preset), {})
    for key, value in resolved.parameters.model_dump().items():
        typer.echo(f"{dump_yaml({key: value}, sort_keys=True).rstrip()}  # {printable(resolved.origin[key])}")


@presets.command()
def validate(file: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped preset.")]) -> None:
    """Check a preset; exit 2 with the file and line when it cannot be used."""
    from img2img_cli.job import printable
    from img2img_cli.preset import load_preset, resolve

    resolved = resolve(load_preset(file), {})
    resolved.parameters.check_references()
    typer.echo(f"{printable(file)}: a valid preset for {resolved.parameters.task}", err=True)


@presets.command()
def schema() -> None:
    """The JSON schema of a preset file, for editors."""
    from json import dumps

    from img2img_cli.preset import preset_schema

    typer.echo(dumps(preset_schema(), indent=2))
