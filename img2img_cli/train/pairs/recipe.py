"""`train pairs`: pairs to a preset, in a run that can be stopped at any moment and resumed to the same weights."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from img2img_cli.errors import Img2ImgError, InputError, OutOfMemoryError, UsageError
from img2img_cli.system.interrupts import Interrupted, Interrupts
from img2img_cli.train.pairs.check import Checked
from img2img_cli.train.pairs.gan import Settings
from img2img_cli.train.pairs.layouts import Pair
from img2img_cli.train.pairs.pictures import read_pair
from img2img_cli.train.pairs.run_folder import RunFolder
from img2img_cli.train.pairs.sheets import Figures
from img2img_cli.train.pairs.trainer import Losses, PairTrainer

CHECKPOINT_S, TOLD_S, SHOWN_S = 120.0, 60.0, 0.5
ALIKE, NEAR = 0.8, 0.25  # correlation above and difference below which a network predicts a difference
SHOWN_SIDE, MOST_SHOWN = 512, 8  # validation pictures are at most so large, and so many are drawn
WINS, LOSES = 1.6, 0.02  # distances of the scores of real and made pictures
Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When a run ends: after so many minutes, steps or rounds over all pairs, whichever comes first."""

    minutes: float | None = None
    steps: int | None = None
    epochs: float | None = None

    def count_steps(self, pairs: int, batch_size: int) -> int | None:
        """Return the most steps, or None if only time ends the run."""
        most = [] if self.steps is None else [self.steps]
        if self.epochs is not None:
            most.append(max(1, math.ceil(self.epochs * pairs / batch_size)))
        return min(most, default=None)


def choose_settings(checked: Checked, *, seed: int, given: dict[str, Any]) -> tuple[Settings, str]:
    """Return settings that suit the pairs, with what was given in their place, and a sentence that says why."""
    aligned = checked.likeness > ALIKE and checked.difference < NEAR
    if aligned:
        settings = Settings(seed=seed, longest=min(1024, max(64, checked.largest)))
        reason = "inputs and outputs are alike: a small network that predicts the difference, without an adversary"
    else:
        settings = Settings(
            seed=seed, aligned=False, adversarial=0.01, size=256, longest=288, batch_size=4, learning_rate=5e-4
        )
        reason = "inputs and outputs differ: a network that paints anew, against an adversary"
    settings = replace(settings, **given)
    if settings.longest < settings.size:
        settings = replace(settings, size=max(64, settings.longest // 32 * 32))
    return settings, f"method gan: {reason}"


class Run:
    """One run of training.

    Args:
        folder: takes checkpoints, figures and what comes out.
        tell: called with an event for every line that a user sees; see `docs/train.md`.
    """

    def __init__(
        self,
        folder: RunFolder,
        checked: Checked,
        trainer: PairTrainer,
        budget: Budget,
        interrupts: Interrupts,
        tell: Tell,
    ) -> None:
        self._folder, self._checked, self._trainer, self._budget = folder, checked, trainer, budget
        self._interrupts, self._tell = interrupts, tell
        self._most = budget.count_steps(len(checked.training), trainer.batch_size)
        self._shown = [(pair, *self._read_shown(pair)) for pair in checked.validation or checked.training[:1]]
        self._spent = 0.0
        self._warned = False

    def _read_shown(self, pair: Pair) -> tuple[Image.Image, Image.Image]:
        return read_pair(pair, min(SHOWN_SIDE, self._trainer.longest))

    def resume(self) -> None:
        """Go on from the newest checkpoint.

        Raises:
            UsageError: there is none, or it was made with other settings.
        """
        state = self._folder.load_checkpoint()
        own = self._trainer.made_of
        if state["settings"] != own:
            changed = sorted(key for key in own | state["settings"] if own.get(key) != state["settings"].get(key))
            raise UsageError(f"{self._folder.path}: was begun with another {', '.join(changed)}; leave that option out")
        self._trainer.restore(state)
        self._spent = float(state["spent"])
        self._tell({"event": "resumed", "step": self._trainer.step, "minutes": round(self._spent / 60, 2)})

    def train(self) -> Figures:
        """Train until the budget is spent or a signal comes, and leave a usable result either way.

        Raises:
            Interrupted: a signal came; everything is written.
            InputError, OutOfMemoryError: a picture can no longer be read, or memory ran out; everything is written.
            OutputError, ModelError: the disk is full, or the loss is not a number; the last checkpoint is there.
        """
        with self._interrupts.hold():
            try:
                return self._train()
            except (
                Interrupted,
                InputError,
                OutOfMemoryError,
            ):  # a picture that has gone, or no more room, ends a run too
                self._save()
                with contextlib.suppress(Img2ImgError):
                    self._finish()
                raise

    def _train(self) -> Figures:
        trainer = self._trainer
        last_save = last_told = last_shown = time.monotonic()
        sums: list[Losses] = []
        while not self._is_over():
            began = time.monotonic()
            sums.append(trainer.advance(self._progress))
            now = time.monotonic()
            self._spent += now - began
            self._interrupts.check()
            if now - last_shown > SHOWN_S:
                last_shown = now
                self._tell({"event": "progress", **self._describe(sums[-1:]), "share": round(self._progress, 4)})
            if now - last_told > TOLD_S or self._is_over():
                self._tell_losses(sums)
                sums, last_told = [], now
            if now - last_save > CHECKPOINT_S:
                self._save()
                self._validate()
                last_save = time.monotonic()
        self._save()
        return self._finish()

    @property
    def _progress(self) -> float:
        """The share of the budget that is spent: of the steps where they are limited, so that a run can be repeated."""
        if self._most is not None:
            return self._trainer.step / self._most
        return self._spent / (60 * (self._budget.minutes or math.inf))

    def _is_over(self) -> bool:
        if self._most is not None and self._trainer.step >= self._most:
            return True
        return self._budget.minutes is not None and self._spent >= 60 * self._budget.minutes

    def _tell_losses(self, sums: list[Losses]) -> None:
        row = {"event": "step", **self._describe(sums)}
        self._folder.note(row)
        self._tell(row)
        if not self._warned and self._trainer.has_adversary and self._progress > 0.2 and sums:
            self._warn(row)

    def _describe(self, sums: Sequence[Losses]) -> dict[str, Any]:
        """Return where the run is, with the means of losses."""
        means = {key: float(np.mean([getattr(each, key) for each in sums])) for key in asdict(sums[0])} if sums else {}
        if not self._trainer.has_adversary:
            means = {key: value for key, value in means.items() if key == "difference"}
        row: dict[str, Any] = {"step": self._trainer.step, "minutes": round(self._spent / 60, 2)}
        row |= {key: round(value, 5) for key, value in means.items()}
        return row | {"left_minutes": round(self._estimate_minutes(), 1)}

    def _warn(self, means: dict[str, Any]) -> None:
        apart = means["real"] - means["made"]
        advice = None
        if apart > WINS:
            advice = "the discriminator tells every picture: halve --adversarial, or give more pairs"
        elif apart < LOSES:
            advice = "the discriminator tells nothing apart: double --adversarial, or leave it at 0"
        if advice is not None:
            self._warned = True
            self._tell({"event": "warning", "message": advice})

    def _estimate_minutes(self) -> float:
        left = math.inf if self._budget.minutes is None else self._budget.minutes - self._spent / 60
        if self._most is not None and self._trainer.step:
            left = min(left, (self._most - self._trainer.step) * self._spent / self._trainer.step / 60)
        return max(0.0, left)

    def _save(self) -> None:
        self._folder.save_checkpoint(
            {**self._trainer.state(), "settings": self._trainer.made_of, "spent": self._spent}, self._trainer.step
        )

    def _validate(self) -> Figures:
        figures = self._trainer.measure(self._shown)
        row = {
            "event": "validated",
            "step": self._trainer.step,
            "minutes": round(self._spent / 60, 2),
            **figures.means,
        }
        self._folder.note(row)
        self._folder.keep_sample(self._trainer.step, figures.draw(MOST_SHOWN))
        if self._folder.is_best(figures.means["psnr"]):
            self._folder.keep_best(self._trainer.step)
        self._tell(row)
        return figures

    def _finish(self) -> Figures:
        figures = self._validate()
        self._folder.write_result(self._trainer, self._checked, figures, self._spent)
        self._tell({"event": "finished", "step": self._trainer.step, "folder": str(self._folder.path)})
        return figures
