"""`img2img models`."""

from __future__ import annotations

from typing import Annotated

import typer

models = typer.Typer(help="Fetch, list, check and remove models of the hub.")
NameArgument = Annotated[str, typer.Argument(metavar="PRESET|REF", help="A preset, or a hub id like owner/name.")]
GIB = 2**30


@models.command()
def pull(name: NameArgument) -> None:
    """Download all that a preset needs, so that it runs offline from then on."""
    from img2img_cli.engines.hub import list_needs
    from img2img_cli.text import printable

    needs = list_needs(name)
    if not needs:
        typer.echo(f"{printable(name)}: needs nothing of the hub", err=True)
        return
    from img2img_cli.engines.hub import pull as pull_repository

    for repository in needs:
        pull_repository(repository)
        typer.echo(f"{repository.reference}: here", err=True)


@models.command("list")
def list_(json: Annotated[bool, typer.Option("--json", help="One JSON line a model.")] = False) -> None:
    """What is in the cache: size, name, and the presets that use it."""
    from json import dumps

    from img2img_cli.engines.hub import list_cached
    from img2img_cli.text import printable

    found = list_cached()
    width = max((len(model.reference) for model in found), default=0)
    for model in found:
        row = {"reference": model.reference, "bytes": model.size, "presets": list(model.presets)}
        text = f"{model.size / GIB:8.2f} GiB  {model.reference:{width}}  {', '.join(model.presets)}".rstrip()
        typer.echo(dumps(row) if json else printable(text))


@models.command()
def rm(
    name: NameArgument,
    force: Annotated[bool, typer.Option("--force", "-f", help="Even what other presets use too.")] = False,
) -> None:
    """Remove a model from the cache; of a preset, what no other preset uses."""
    from img2img_cli.engines.hub import list_cached, list_needs, list_users, remove
    from img2img_cli.presets.files import list_presets

    users, cached = list_users(), {model.reference for model in list_cached()}
    for repository in list_needs(name):
        reference = repository.reference
        others = [user for user in users.get(reference, []) if user != name]
        if name in list_presets() and reference not in cached:
            typer.echo(f"{reference}: not in the cache", err=True)
        elif name in list_presets() and others and not force:
            typer.echo(f"{reference}: kept, {', '.join(others)} use it too; --force removes it", err=True)
        else:
            typer.echo(f"{reference}: removed, {remove(reference) / GIB:.2f} GiB freed", err=True)


@models.command()
def verify(
    name: Annotated[str, typer.Argument(metavar="[PRESET|REF]", help="Left out: everything in the cache.")] = "",
) -> None:
    """Compare cached files with the hub's checksums; exit 5 when one is damaged."""
    from img2img_cli.engines.hub import find_damage, list_cached, list_needs
    from img2img_cli.errors import ModelError
    from img2img_cli.text import printable

    references = [r.reference for r in list_needs(name)] if name else [model.reference for model in list_cached()]
    damaged = []
    for reference in references:
        names = find_damage(reference)
        typer.echo(f"{reference}: {'damaged: ' + printable(', '.join(names)) if names else 'sound'}", err=True)
        damaged += [reference] if names else []
    if damaged:
        again = "; ".join(f"`img2img models rm {r}` and `img2img models pull {r}`" for r in damaged)
        raise ModelError(f"{len(damaged)} of {len(references)} damaged; get them again with {again}")
