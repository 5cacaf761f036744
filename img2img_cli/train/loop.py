"""A training loop with a time budget. A run can stop at any moment and resume from its checkpoint elsewhere."""

from __future__ import annotations

import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from img2img_cli.engines.device import choose_placement
from img2img_cli.errors import UsageError

Batch = Mapping[str, Any]
WARMUP_STEPS = 200
CHECKPOINT_EVERY_S = 240.0


@dataclass(kw_only=True)
class Stage:
    """A training stage: the networks, the loss and the settings.

    Attributes:
        name: the stem of the checkpoint and log files.
        modules: the networks by name. All parameters that require gradients are trained and averaged.
        compute_loss: returns a scalar loss for a batch and a step; called under bfloat16 autocast where the device
            multiplies in bfloat16.
        learning_rate: the peak learning rate.
        ema_decay: the decay of the averaged weights.
        draw_samples: called with the folder and step at each checkpoint, while the averaged weights are in place.
        parameters: the parameters to train.
    """

    name: str
    modules: Mapping[str, nn.Module]
    compute_loss: Callable[[Batch, int], torch.Tensor]
    learning_rate: float
    ema_decay: float = 0.999
    draw_samples: Callable[[Path, int], None] | None = None
    parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]


def learning_rate_at(peak: float, step: int, progress: float) -> float:
    """Return the learning rate: a linear warm-up over 200 steps times a cosine from `peak` to 2 % of it.

    Args:
        progress: the spent share of the time budget, in 0..1, which drives the cosine.
    """
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return peak * warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def set_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, progress: float, *, warmup: int) -> None:
    """Set the learning rate of a step: a linear warm-up, and from the middle of the run on a straight fall to 1 %."""
    rate = peak * (min(1.0, (step + 1) / warmup) * min(1.0, 2 * max(0.0, 1 - progress) + 0.01))
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def average_in(averages: Iterable[torch.Tensor], own: Iterable[torch.Tensor], step: int, decay: float) -> None:
    """Move averaged weights towards the weights after a step; faster at first, when they have little to remember."""
    kept = min(decay, (1 + step) / (10 + step))
    for average, weight in zip(averages, own, strict=True):
        average.lerp_(weight, 1 - kept)


def autocast(device: torch.device) -> torch.autocast:
    """Return a context that computes in bfloat16 where the device multiplies in it; elsewhere that is far slower."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu" or _cpu_mixes())


@functools.cache
def _cpu_mixes() -> bool:
    return choose_placement("cpu", "auto").dtype is torch.bfloat16


def run_stage(
    stage: Stage,
    open_batches: Callable[[], Iterator[Batch]],
    *,
    minutes: float,
    most_steps: int | None = None,
    folder: Path,
    device: torch.device,
    resume: bool,
    seed: int,
) -> None:
    """Train a stage within a time budget and leave the averaged weights in its modules.

    Writes `STAGE.pt` (weights, optimiser, EMA, seed, step, seconds spent) and appends to `STAGE.jsonl` in `folder`.
    A resumed run draws new batches, because `seed + step` seeds the data and the noise.

    Args:
        open_batches: returns an endless iterator of batches; called after seeding.
        minutes: the wall time spent in training steps, including that of the runs that are resumed.
        most_steps: the number of steps after which to stop earlier, also including those of earlier runs.
        resume: continue from `STAGE.pt` if it exists.
    """
    optimizer = torch.optim.AdamW(
        stage.parameters, lr=stage.learning_rate, weight_decay=0.01, betas=(0.9, 0.99), fused=True
    )
    ema = EMAModel(stage.parameters, decay=stage.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    step, spent = 0, 0.0
    checkpoint = folder / f"{stage.name}.pt"
    if resume and checkpoint.exists():
        step, spent, seed = _load(checkpoint, stage, optimizer, ema, device)
    torch.manual_seed(seed + step)
    batches = open_batches()
    log = folder / f"{stage.name}.jsonl"
    budget = minutes * 60
    last_save = last_log = time.monotonic()
    running, since_log = 0.0, 0
    limit = math.inf if most_steps is None else most_steps
    while spent < budget and step < limit:
        began = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(stage.learning_rate, step, spent / budget)
        with autocast(device):
            loss = stage.compute_loss(next(batches), step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(stage.parameters, 1.0)
        optimizer.step()
        ema.step(stage.parameters)
        step += 1
        running, since_log = running + float(loss.detach()), since_log + 1
        now = time.monotonic()
        spent += now - began
        if now - last_log > 20:
            row = {"step": step, "minutes": round(spent / 60, 2), "loss": round(running / since_log, 5)}
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            running, since_log, last_log = 0.0, 0, now
        if now - last_save > CHECKPOINT_EVERY_S or spent >= budget or step >= limit:
            _save(checkpoint, stage, optimizer, ema, step=step, spent=spent, seed=seed)
            if stage.draw_samples is not None:
                ema.store(stage.parameters)
                ema.copy_to(stage.parameters)
                stage.draw_samples(folder, step)
                ema.restore(stage.parameters)
            last_save = time.monotonic()
    ema.copy_to(stage.parameters)


def _save(path: Path, stage: Stage, optimizer: torch.optim.Optimizer, ema: EMAModel, **progress: float) -> None:
    state = {
        "modules": {name: module.state_dict() for name, module in stage.modules.items()},
        "optimizer": optimizer.state_dict(),
        "ema": ema.state_dict(),
        **progress,
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _load(
    path: Path, stage: Stage, optimizer: torch.optim.Optimizer, ema: EMAModel, device: torch.device
) -> tuple[int, float, int]:
    state = torch.load(path, map_location=device, weights_only=True)
    try:
        for name, module in stage.modules.items():
            module.load_state_dict(state["modules"][name])
    except (KeyError, RuntimeError):
        raise UsageError(
            f"{path}: was made with other options or by another version; begin anew in another --out"
        ) from None
    optimizer.load_state_dict(state["optimizer"])
    ema.load_state_dict(state["ema"])
    ema.to(device=device)
    return int(state["step"]), float(state["spent"]), int(state["seed"])
