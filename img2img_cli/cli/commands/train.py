"""`img2img train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from img2img_cli.errors import UsageError
from img2img_cli.presets.references import Kind, locate_model

train = typer.Typer(help="Train the models that ship inside.")


@train.callback()
def _group() -> None:
    """Train the models that ship inside."""


@train.command()
def bundled(
    *,
    data: Annotated[Path, typer.Option(help="Folder of photos-*.tar shards (WebP and captions.jsonl).")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and the finished model.")] = Path("runs/bundled"),
    minutes: Annotated[float, typer.Option(min=0.1, help="Wall time, earlier runs included with --resume.")] = 120.0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop each stage after so many steps, if not before.", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoints in --out; repeat --from if it was given.")
    ] = False,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="bundled|FOLDER", help="Go on from this model; its latents stay."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of weights, data and noise.")] = 0,
) -> None:
    """Train tokenizer, autoencoder (a third of the time), text encoder, UNet and ControlNet."""
    folder = _find_start(start) if start is not None else None
    from img2img_cli.engines.device import choose_device
    from img2img_cli.train.bundled.recipe import train_bundled

    train_bundled(
        data=data,
        out=out,
        minutes=minutes,
        most_steps=steps,
        device=choose_device(device),
        start=folder,
        resume=resume,
        seed=seed,
        say=lambda text: typer.echo(text, err=True),
    )


@train.command()
def net(
    name: Annotated[Literal["restore", "upscale"], typer.Argument(help="Which network.")],
    *,
    data: Annotated[Path, typer.Option(help="Folder of photos-*.tar shards (WebP and captions.jsonl).")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the checkpoint and the network. [default: runs/NAME]")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="Wall time, earlier runs included with --resume.")] = 120.0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many, if not before.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="REFERENCE", help="Go on from this network: bundled-NAME or a folder."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of weights, data and noise.")] = 0,
) -> None:
    """Train a network that turns a picture into the result in one pass, as restore and upscale use it."""
    folder = _find_start(start, "net") if start is not None else None
    from img2img_cli.engines.device import choose_device
    from img2img_cli.train.nets.recipe import train_net

    train_net(
        name,
        data=data,
        out=out or Path("runs", name),
        minutes=minutes,
        most_steps=steps,
        device=choose_device(device),
        start=folder,
        resume=resume,
        seed=seed,
        say=lambda text: typer.echo(text, err=True),
    )


@train.command()
def evaluate(
    *,
    data: Annotated[Path, typer.Option(help="Folder of photos-*.tar shards; the last is for evaluation.")],
    model: Annotated[
        str, typer.Option(help="bundled, bundled-restore, bundled-upscale, or a folder that was trained here.")
    ] = "bundled",
    out: Annotated[Path, typer.Option(help="Folder for evaluation.json, .md and .jpg.")] = Path("runs/evaluation"),
    count: Annotated[int, typer.Option(min=1, help="Photographs of the last shard, spread evenly.")] = 24,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of more pictures to measure a network on.", show_default=False)
    ] = None,
    card: Annotated[bool, typer.Option("--card", help="Write tables and sheet into the model's card too.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Measure a model on photographs it has never seen, beside what is got without any model."""
    if locate_model(model)[0] == "net":
        _evaluate_net(model, data=data, out=out, count=count, pictures=pictures, device=device)
        return
    folder = _find_start(model)
    from img2img_cli.engines.device import choose_placement
    from img2img_cli.train.bundled.evaluate import evaluate_model, format_tables, write_evaluation

    evaluation = evaluate_model(
        str(folder),
        data=data,
        count=count,
        placement=choose_placement(device, "auto"),
        say=lambda text: typer.echo(text, err=True),
    )
    write_evaluation(evaluation, out, folder / "README.md" if card else None)
    typer.echo(format_tables(evaluation))


def _evaluate_net(model: str, *, data: Path, out: Path, count: int, pictures: Path | None, device: str) -> None:
    from img2img_cli.engines.device import choose_placement
    from img2img_cli.train.nets.evaluate import evaluate_net, format_trials, read_strangers, write_trials

    found = evaluate_net(
        model,
        read_strangers(data, pictures),
        count=count,
        placement=choose_placement(device, "auto"),
        say=lambda text: typer.echo(text, err=True),
    )
    write_trials(found, out)
    typer.echo(format_trials(found))


def _find_start(reference: str, kind: Kind = "folder") -> Path:
    found, place = locate_model(reference)
    if found != kind:
        what = "a folder that `train net` has written" if kind == "net" else "a diffusers folder that was trained here"
        raise UsageError(f"{reference}: must be the bundled one or {what}")
    return Path(place)
