"""`img2img presets`."""

from __future__ import annotations

from typing import Annotated

import typer

presets = typer.Typer(help="List, show and check presets.")


@presets.command("list")
def list_(
    json: Annotated[bool, typer.Option("--json", help="One JSON line a preset.")] = False,
) -> None:
    """Name, task and description of every preset that comes along."""
    from json import dumps

    from img2img_cli.preset import list_presets, load_preset, resolve

    rows = [(name, resolve(load_preset(name), {}).parameters) for name in list_presets()]
    width = max(len(name) for name, _ in rows)
    for name, p in rows:
        row = {"name": name, "task": p.task, "model": p.model, "license": p.license, "description": p.description}
        typer.echo(dumps(row) if json else f"{name:{width}}  {p.task:8}  {p.description}")


@presets.command()
def show(preset: Annotated[str, typer.Argument(help="Name or file.")]) -> None:
    """Every parameter of a preset, as YAML, with a comment that says where its value came from."""
    import yaml

    from img2img_cli.preset import load_preset, resolve

    resolved = resolve(load_preset(preset), {})
    for key, value in resolved.parameters.model_dump().items():
        line = yaml.safe_dump({key: value}, allow_unicode=True, width=10**6).rstrip()
        typer.echo(f"{line}  # {resolved.origin[key]}")


@presets.command()
def validate(file: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped preset.")]) -> None:
    """Check a preset; exit 2 with the file and line when it cannot be used."""
    from img2img_cli.modelref import check_references
    from img2img_cli.preset import load_preset, resolve

    resolved = resolve(load_preset(file), {})
    p = resolved.parameters
    check_references(p.model, p.controlnet, p.vae, p.lora)
    typer.echo(f"{file}: a valid preset for {p.task}", err=True)


@presets.command()
def schema() -> None:
    """The JSON schema of a preset file, for editors."""
    from json import dumps

    from img2img_cli.preset import preset_schema

    typer.echo(dumps(preset_schema(), indent=2))
