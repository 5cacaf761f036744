"""`img2img train pairs`: find the pairs, say what is there, train, and report on the terminal or as events."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from img2img_cli.errors import UsageError
from img2img_cli.pictures.write import make_folder, write_output_bytes
from img2img_cli.system.interrupts import INTERRUPTS
from img2img_cli.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress

    from img2img_cli.train.pairs.check import Checked
    from img2img_cli.train.pairs.trainer import PairTrainer

DEFAULT_MINUTES = 30.0
OF_GAN = ("adversarial",)
OF_DIFFUSION = ("rank", "alpha", "accumulate", "caption_dropout")
LOOKING_S = 5.0
SHEET = "pairs.jpg"


@dataclass(frozen=True, kw_only=True)
class PairsOptions:
    """The command's options, by their names; `given` holds the settings that were named."""

    data: Path
    out: Path | None
    check: bool
    minutes: float | None
    steps: int | None
    epochs: float | None
    resume: bool
    control_path: Path | None
    swap: bool
    prompt: str | None
    base: str | None
    method: str
    given: dict[str, Any]
    device: str
    seed: int
    json: bool


class Teller:
    """Shows events: as JSON on stdout, or as lines on stderr; on a terminal, a bar shows the losses and the time left.

    Within its context, the bar is open from the first event that moves it.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._bar: Progress | None = None

    def __enter__(self) -> Teller:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, event: dict[str, Any]) -> None:
        """Show an event."""
        moves = event["event"] in ("progress", "looking", "encoding")
        if self._json:
            if event["event"] != "progress":
                print(json.dumps(event), flush=True)
        elif moves and sys.stderr.isatty():
            self._move(event)
        elif self._bar is not None:
            if event["event"] != "step":  # the bar has told it
                self._bar.console.print(printable(format_event(event)), markup=False, highlight=False, soft_wrap=True)
        elif event["event"] != "progress":
            print(printable(format_event(event)), file=sys.stderr, flush=True)

    def _move(self, event: dict[str, Any]) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task("", total=1.0)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], description=format_event(event), completed=event["share"])

    def say(self, line: str) -> None:
        """Show a line."""
        self({"event": "told", "message": line})


class Countdown:
    """Tells every few seconds how many pairs were looked at or encoded, where that takes long."""

    def __init__(self, teller: Teller, event: str = "looking") -> None:
        self._teller, self._event, self._told = teller, event, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Show the count if it is time."""
        if time.monotonic() - self._told > LOOKING_S:
            self._told = time.monotonic()
            self._teller({"event": self._event, "done": done, "pairs": total, "share": round(done / total, 3)})


def format_event(event: dict[str, Any]) -> str:
    """Return an event as a line for people."""
    kind = event["event"]
    if kind in ("step", "progress"):
        parts = [f"step {event['step']}", f"{event['minutes']:.1f} min", f"difference {event.get('difference', 0):.4f}"]
        if "discriminator" in event:
            parts.append(f"discriminator {event['discriminator']:.2f}")
        return ", ".join([*parts, f"{event['left_minutes']:.1f} min left"])
    if kind == "validated":
        return (
            f"step {event['step']}: validation {event['psnr']:.2f} dB, SSIM {event['ssim']:.3f} "
            f"(inputs as they are: {event['input_psnr']:.2f} dB, {event['input_ssim']:.3f})"
        )
    if kind in ("looking", "encoding"):
        what = "looking at the pairs" if kind == "looking" else "encoding the pairs"
        return f"{what}: {event['done']} of {event['pairs']}"
    if kind == "resumed":
        return f"resumed at step {event['step']}, after {event['minutes']:.1f} min"
    if kind == "finished":
        return f"{event['folder']}: use it with --preset {event['folder']}"
    return str(event["message"])


def run_pairs(options: PairsOptions) -> None:
    """Check the pairs, and train on them unless only the check was asked for.

    Raises:
        UsageError: there are no pairs, or the folder holds another run.
        Img2ImgError: memory runs out, or a file cannot be written.
    """
    with Teller(as_json=options.json) as teller:
        _run_pairs(options, teller)


def _run_pairs(options: PairsOptions, teller: Teller) -> None:
    from img2img_cli.train.pairs.check import check_pairs, draw_pairs
    from img2img_cli.train.pairs.layouts import find_pairs
    from img2img_cli.train.pairs.sheets import encode_sheet

    found = find_pairs(options.data, control=options.control_path, prompt=options.prompt, swap=options.swap)
    checked = check_pairs(found, Countdown(teller))
    for line in checked.lines:
        teller.say(line)
    if options.check:
        if options.out is not None and checked.training:
            make_folder(str(options.out))
            write_output_bytes(encode_sheet(draw_pairs(checked.training)), str(options.out / SHEET))
            teller.say(f"{options.out / SHEET}: a sheet of them")
        return
    assert options.out is not None
    if not checked.training:
        raise UsageError(f"{options.data}: not one pair can be trained on")

    from img2img_cli.train.pairs.recipe import Budget, Run
    from img2img_cli.train.pairs.run_folder import RunFolder

    unlimited = options.minutes is None and options.steps is None and options.epochs is None
    budget = Budget(
        minutes=DEFAULT_MINUTES if unlimited else options.minutes, steps=options.steps, epochs=options.epochs
    )
    open_trainer = _choose_trainer(options, checked, teller)
    folder = RunFolder(options.out, resume=options.resume)
    run = Run(folder, checked, open_trainer(options.out), budget, INTERRUPTS, teller)
    if options.resume:
        run.resume()
    run.train()


def _choose_trainer(options: PairsOptions, checked: Checked, teller: Teller) -> Callable[[Path], PairTrainer]:
    """Say which method is used and why; return what makes its trainer for the run's folder.

    Raises:
        UsageError: an option is for another method.
    """
    from img2img_cli.engines.device import choose_device, choose_placement, prepare_device

    device = choose_device(options.device)
    prepare_device(device)
    if options.base is None:
        from img2img_cli.train.pairs.data import PairData
        from img2img_cli.train.pairs.gan import Trainer
        from img2img_cli.train.pairs.recipe import choose_settings

        _refuse(options, OF_DIFFUSION, "give a model to teach with --base, such as --base bundled")
        if options.method not in ("auto", "gan"):
            raise UsageError(f"--method {options.method}: teaches a model; name it with --base, such as sd15-edit")
        settings, reason = choose_settings(checked, seed=options.seed, given=options.given)
        teller.say(reason)
        data = PairData(checked.training, longest=settings.longest, size=settings.size)
        return lambda _: Trainer(settings, data, device)
    from img2img_cli.train.diffusion.settings import choose_run
    from img2img_cli.train.diffusion.trainer import DiffusionTrainer

    if options.method == "gan":
        raise UsageError("--method gan: starts from nothing; leave --base out")
    _refuse(options, OF_GAN, "it belongs to --method gan, without --base")
    own, parameters, reason = choose_run(options.base, options.method, seed=options.seed, given=options.given)
    teller.say(reason)
    placement = choose_placement(options.device, "float32" if device.type == "cpu" else "auto")
    countdown = Countdown(teller, "encoding")
    return lambda folder: DiffusionTrainer(own, parameters, checked.training, placement, folder, countdown)


def _refuse(options: PairsOptions, names: Collection[str], advice: str) -> None:
    for key in options.given:
        if key in names:
            raise UsageError(f"--{key.replace('_', '-')}: {advice}")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The options of `train evaluate`, by their names."""

    preset: str
    data: Path
    everything: bool
    control_path: Path | None
    swap: bool
    overrides: dict[str, Any]
    seed: int
    out: Path | None
    device: str
    json: bool


def run_evaluation(options: EvaluateOptions) -> None:
    """Measure a preset on pairs and print a table or a JSON object.

    Raises:
        UsageError: there are no pairs.
        Img2ImgError: the preset cannot be used, or a picture cannot be read.
    """
    from img2img_cli.engines.device import choose_placement
    from img2img_cli.engines.open import open_pipeline
    from img2img_cli.presets.catalogue import resolve_preset
    from img2img_cli.train.pairs.check import check_pairs
    from img2img_cli.train.pairs.layouts import find_pairs
    from img2img_cli.train.pairs.measure import format_table, measure_preset
    from img2img_cli.train.pairs.sheets import encode_sheet

    teller = Teller(as_json=False)
    parameters = resolve_preset(options.preset, options.overrides).parameters
    parameters.check_references()
    checked = check_pairs(find_pairs(options.data, control=options.control_path, swap=options.swap))
    for line in checked.lines:
        teller.say(line)
    pairs = [*checked.training, *checked.validation] if options.everything else checked.validation
    if not pairs:
        raise UsageError(f"{options.data}: no pairs are kept for validation; measure on all with --all")
    pipeline = open_pipeline(parameters, choose_placement(options.device, parameters.dtype))
    figures = measure_preset(parameters, pipeline, pairs, seed=options.seed)
    if options.out is not None:
        make_folder(str(options.out))
        write_output_bytes(encode_sheet(figures.draw(8)), str(options.out / "sheet.jpg"))
    if options.json:
        print(json.dumps({"preset": options.preset, "pairs": len(pairs), **figures.means}))
    else:
        print(format_table(options.preset, figures))
