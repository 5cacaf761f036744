"""`img2img train pairs`: find the pairs, say what is there, train, and report on the terminal or as events."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from img2img_cli.errors import UsageError
from img2img_cli.pictures.write import make_folder, write_output_bytes
from img2img_cli.system.interrupts import INTERRUPTS
from img2img_cli.text import printable

DEFAULT_MINUTES = 30.0
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
    given: dict[str, Any]
    device: str
    seed: int
    json: bool


class Teller:
    """Shows events: as JSON on stdout, or as lines on stderr, of which those about steps replace each other."""

    def __init__(self, *, as_json: bool) -> None:
        self._json, self._open = as_json, False

    def __call__(self, event: dict[str, Any]) -> None:
        """Show an event."""
        if self._json:
            print(json.dumps(event), flush=True)
            return
        replaceable = event["event"] in ("step", "looking") and sys.stderr.isatty()
        end = "" if replaceable else "\n"
        start = "\r\x1b[K" if self._open else ""
        print(f"{start}{printable(format_event(event))}", end=end, file=sys.stderr, flush=True)
        self._open = replaceable

    def say(self, line: str) -> None:
        """Show a line."""
        self({"event": "told", "message": line})


class Countdown:
    """Tells every few seconds how many pairs were looked at, where that takes long."""

    def __init__(self, teller: Teller) -> None:
        self._teller, self._told = teller, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Show the count if it is time."""
        if time.monotonic() - self._told > LOOKING_S:
            self._told = time.monotonic()
            self._teller({"event": "looking", "done": done, "pairs": total})


def format_event(event: dict[str, Any]) -> str:
    """Return an event as a line for people."""
    kind = event["event"]
    if kind == "step":
        parts = [f"step {event['step']}", f"{event['minutes']:.1f} min", f"difference {event.get('difference', 0):.4f}"]
        if "discriminator" in event:
            parts.append(f"discriminator {event['discriminator']:.2f}")
        return ", ".join([*parts, f"{event['left_minutes']:.1f} min left"])
    if kind == "validated":
        return (
            f"step {event['step']}: validation {event['psnr']:.2f} dB, SSIM {event['ssim']:.3f} "
            f"(inputs as they are: {event['input_psnr']:.2f} dB, {event['input_ssim']:.3f})"
        )
    if kind == "looking":
        return f"looking at the pairs: {event['done']} of {event['pairs']}"
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
    from img2img_cli.train.pairs.check import check_pairs, draw_pairs
    from img2img_cli.train.pairs.layouts import find_pairs
    from img2img_cli.train.pairs.sheets import encode_sheet

    teller = Teller(as_json=options.json)
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

    from img2img_cli.engines.device import choose_device, prepare_device
    from img2img_cli.train.pairs.recipe import Budget, Run, choose_settings
    from img2img_cli.train.pairs.run_folder import RunFolder

    device = choose_device(options.device)
    prepare_device(device)
    settings, reason = choose_settings(checked, seed=options.seed, given=options.given)
    teller.say(reason)
    unlimited = options.minutes is None and options.steps is None and options.epochs is None
    budget = Budget(
        minutes=DEFAULT_MINUTES if unlimited else options.minutes, steps=options.steps, epochs=options.epochs
    )
    folder = RunFolder(options.out, resume=options.resume)
    run = Run(folder, checked, settings, budget, device, INTERRUPTS, teller)
    if options.resume:
        run.resume()
    run.train()


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
