"""`img2img train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from img2img_cli.errors import UsageError
from img2img_cli.presets.references import Kind, locate_model

Shards = Annotated[Path, typer.Option(help="Folder of photos-*.tar shards (WebP and captions.jsonl).")]
WallTime = Annotated[float, typer.Option(min=0.1, help="Wall time, earlier runs included with --resume.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
RecipeSeed = Annotated[int, typer.Option(help="Seed of weights, data and noise.")]
ControlPath = Annotated[
    Path | None, typer.Option(help="Folder of inputs; DATA then holds the outputs.", show_default=False)
]

train = typer.Typer(help="Train the models that ship inside.")


@train.callback()
def _group() -> None:
    """Train the models that ship inside."""


@train.command()
def bundled(
    *,
    data: Shards,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and the finished model.")] = Path("runs/bundled"),
    minutes: WallTime = 120.0,
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
    device: Device = "auto",
    seed: RecipeSeed = 0,
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
def pairs(
    data: Annotated[Path, typer.Argument(help="Folder of pairs, or a metadata.jsonl or .csv that lists them.")],
    *,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the run and the preset.", show_default=False)
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Tell what is there; train nothing.")] = False,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Train so long; 30 if nothing else ends it.", show_default=False)
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Train so many steps.", show_default=False)] = None,
    epochs: Annotated[
        float | None, typer.Option(min=0.01, help="Train so many rounds over all pairs.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --output.")] = False,
    control_path: ControlPath = None,
    swap: Annotated[bool, typer.Option("--swap", help="Learn the other direction.")] = False,
    prompt: Annotated[str | None, typer.Option(help="Caption of pairs that have none.", show_default=False)] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="PRESET", help="Teach this preset's diffusion model; bundled: the one inside."),
    ] = None,
    method: Annotated[
        Literal["auto", "gan", "lora", "controlnet", "ip2p"],
        typer.Option(help="gan starts from nothing; the others need --base."),
    ] = "auto",
    adversarial: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Weight of the adversary; 0: faithful rather than crisp.", show_default=False),
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option(min=64, max=2048, help="Side of the crops, or of the pictures with --base.", show_default=False),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, max=256, help="Crops in a step.", show_default=False)] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-7, max=0.1, help="Peak learning rate.", show_default=False)
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(min=1, max=1024, help="--base: batches summed up in a step.", show_default=False)
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, max=512, help="Rank of a LoRA.", show_default=False)] = None,
    alpha: Annotated[
        float | None, typer.Option(min=0.01, max=1024, help="Its alpha; its rank if left out.", show_default=False)
    ] = None,
    caption_dropout: Annotated[
        float | None,
        typer.Option(min=0, max=0.5, help="--base: share of steps without caption.", show_default=False),
    ] = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0, max=(1 << 31) - 1, help="Seed of weights and crops.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Events on stdout, one JSON object a line.")] = False,
) -> None:
    """Learn from pairs of pictures, before and after; what comes out is a preset."""
    if out is None and not check:
        raise UsageError("name the folder of the run with -o FOLDER, or look at the pairs with --check")
    from img2img_cli.cli.train_run import PairsOptions, run_pairs

    given = {
        "adversarial": adversarial,
        "size": crop,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "accumulate": accumulate,
        "rank": rank,
        "alpha": alpha if alpha is not None or rank is None else float(rank),
        "caption_dropout": caption_dropout,
    }
    run_pairs(
        PairsOptions(
            data=data,
            out=out,
            check=check,
            minutes=minutes,
            steps=steps,
            epochs=epochs,
            resume=resume,
            control_path=control_path,
            swap=swap,
            prompt=prompt,
            base=base,
            method=method,
            given={key: value for key, value in given.items() if value is not None},
            device=device,
            seed=seed,
            json=json_,
        )
    )


@train.command()
def net(
    name: Annotated[Literal["restore", "upscale", "colorize", "style"], typer.Argument(help="Which network.")],
    *,
    data: Shards,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the checkpoint and the network. [default: runs/NAME]")
    ] = None,
    minutes: WallTime = 120.0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many, if not before.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="REFERENCE", help="Go on from this network: bundled-NAME or a folder."),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="SqueezeNet 1.0's weights, for colorize and style.", show_default=False),
    ] = None,
    device: Device = "auto",
    seed: RecipeSeed = 0,
) -> None:
    """Train a network that turns a picture into the result in one pass, for restore, upscale, colorize or style."""
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
        features=features,
        resume=resume,
        seed=seed,
        say=lambda text: typer.echo(text, err=True),
    )


@train.command()
def evaluate(
    preset: Annotated[str, typer.Argument(help="A preset's name, file or folder, such as what train pairs made.")],
    data: Annotated[Path, typer.Argument(help="Folder of pairs, or a table of them, as for train pairs.")],
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Measure on all pairs, not only on those kept for validation.")
    ] = False,
    control_path: ControlPath = None,
    swap: Annotated[bool, typer.Option("--swap", help="Measure the other direction.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="num_inference_steps.", show_default=False)] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the preset.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for sheet.jpg.", show_default=False)
    ] = None,
    device: Device = "auto",
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure any preset on pairs: how near its results are to the outputs, beside the inputs as they are."""
    from img2img_cli.cli.choices import parse_assignment
    from img2img_cli.cli.train_run import EvaluateOptions, run_evaluation

    given = dict(map(parse_assignment, overrides or []))
    if steps is not None:
        given["num_inference_steps"] = steps
    run_evaluation(
        EvaluateOptions(
            preset=preset,
            data=data,
            everything=everything,
            control_path=control_path,
            swap=swap,
            overrides=given,
            seed=seed,
            out=out,
            device=device,
            json=json_,
        )
    )


@train.command()
def measure(
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
    device: Device = "auto",
) -> None:
    """Measure a bundled model on photographs it has never seen, beside what needs no model."""
    if locate_model(model)[0] == "net":
        _measure_net(model, data=data, out=out, count=count, pictures=pictures, card=card, device=device)
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


def _measure_net(
    model: str, *, data: Path, out: Path, count: int, pictures: Path | None, card: bool, device: str
) -> None:
    from img2img_cli.engines.device import choose_placement
    from img2img_cli.train.nets.evaluate import evaluate_net, format_trials, read_strangers, write_trials

    found = evaluate_net(
        model,
        read_strangers(data, pictures),
        count=count,
        placement=choose_placement(device, "auto"),
        say=lambda text: typer.echo(text, err=True),
    )
    write_trials(found, out, Path(locate_model(model)[1]) / "README.md" if card else None)
    typer.echo(format_trials(found))


def _find_start(reference: str, kind: Kind = "folder") -> Path:
    found, place = locate_model(reference)
    if found != kind:
        what = "a folder that `train net` has written" if kind == "net" else "a diffusers folder that was trained here"
        raise UsageError(f"{reference}: must be the bundled one or {what}")
    return Path(place)
