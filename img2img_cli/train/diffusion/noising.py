"""Noise as a preset meets it: which moments of its schedule are trained on, and what the model is to predict there.

Both kinds of schedule mix a picture's latents `x0` with noise: `a * x0 + s * n`. Diffusion has `a**2 + s**2 = 1` and
predicts `n` or `a * n - s * x0`; flow matching has `a + s = 1` and predicts `n - x0`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler

from img2img_cli.errors import ModelError

FEW_STEPS = 8  # up to here, a preset's steps are trained on themselves; of more, anything between them
MIN_SNR_GAMMA = 5.0
Prediction = Literal["epsilon", "v_prediction", "flow"]


def weigh_loss(alphas: torch.Tensor, prediction: Prediction) -> torch.Tensor:
    """Return the Min-SNR loss weights (Hang et al. 2023); for v-prediction, with the clamped SNR raised by 1.

    That keeps a weight for the terminal step, which decides the colours and whose SNR is 0.

    Args:
        alphas: cumulated, in 0..1, `(B,)`.

    Returns:
        `(B,)`.
    """
    snr = alphas / (1 - alphas)
    clamped = snr.clamp(max=MIN_SNR_GAMMA)
    return (clamped + 1) / (snr + 1) if prediction == "v_prediction" else clamped / snr


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Moments of a schedule, one for each picture of a batch.

    Attributes:
        signal, noise: `a` and `s`, float32 `(B,)`.
        timesteps: what the model is told, in its own unit, `(B,)`.
        weights: of the loss, `(B,)`.
    """

    signal: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps of a run with a preset's settings, from the first that is run.

    Attributes:
        timesteps: float32 `(S,)`.
        sigmas: the shares of noise, for flow matching, `(S,)`; None for diffusion.
        unit: what the model is told of a timestep, divided by the timestep.
    """

    timesteps: torch.Tensor
    sigmas: torch.Tensor | None
    unit: float


def read_steps(scheduler: Any, told: float) -> Steps:
    """Return the steps of a scheduler that a run has set up.

    Args:
        told: what the model was told of the first timestep, which is not the schedule's first where `strength` is
            below 1.
    """
    timesteps = scheduler.timesteps.float().cpu()
    unit = 1e-3 if told <= 1 < float(timesteps[0]) else 1.0
    first = int((timesteps * unit - told).abs().argmin())
    flows = hasattr(scheduler, "scale_noise")
    sigmas = scheduler.sigmas[first : len(timesteps)].float().cpu() if flows else None
    return Steps(timesteps=timesteps[first:], sigmas=sigmas, unit=unit)


class Schedule:
    """The moments that a preset's steps pass through.

    Args:
        scheduler: the pipeline's.
        steps: the steps of a run.

    Attributes:
        start: `a / s` at the first step: how much of the input picture a run starts from.

    Raises:
        ModelError: the model predicts neither noise nor velocity.
    """

    def __init__(self, scheduler: Any, steps: Steps) -> None:
        self._unit = steps.unit
        if steps.sigmas is not None:
            self.prediction: Prediction = "flow"
            self._sigmas, self._timesteps = steps.sigmas, steps.timesteps
            self.start = float((1 - self._sigmas[0]) / self._sigmas[0])
        else:
            kind = scheduler.config.prediction_type
            if kind not in ("epsilon", "v_prediction"):
                raise ModelError(f"the model predicts {kind}, which cannot be trained on here; choose another base")
            self.prediction = kind
            self._alphas = DDPMScheduler.from_config(scheduler.config).alphas_cumprod
            self._timesteps = steps.timesteps.round().clamp(0, len(self._alphas) - 1)
            first = self._alphas[int(self._timesteps[0])]
            self.start = float((first / (1 - first)).sqrt())

    def draw(self, count: int, generator: torch.Generator) -> Moment:
        """Draw moments: the preset's own steps if they are few, otherwise any between the first and the end."""
        steps = len(self._timesteps)
        if steps <= FEW_STEPS:
            place = torch.randint(0, steps, (count,), generator=generator).float()
        else:
            place = torch.rand(count, generator=generator) * steps
        if self.prediction == "flow":
            noise = _interpolate(self._sigmas, place)
            timesteps = _interpolate(self._timesteps, place)
            return Moment(signal=1 - noise, noise=noise, timesteps=timesteps * self._unit, weights=torch.ones(count))
        timesteps = _interpolate(self._timesteps, place).round().long()
        alphas = self._alphas[timesteps]
        return Moment(
            signal=alphas.sqrt(),
            noise=(1 - alphas).sqrt(),
            timesteps=timesteps * int(self._unit),
            weights=weigh_loss(alphas, self.prediction),
        )

    def mix(self, latents: torch.Tensor, noise: torch.Tensor, moment: Moment) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the noisy latents and what the model is to predict of them.

        Args:
            latents, noise: float32 `(B, ...)`.
        """
        shape = (-1,) + (1,) * (latents.ndim - 1)
        signal, share = (each.to(latents.device).view(shape) for each in (moment.signal, moment.noise))
        noisy = signal * latents + share * noise
        if self.prediction == "flow":
            return noisy, noise - latents
        return noisy, noise if self.prediction == "epsilon" else signal * noise - share * latents


def _interpolate(values: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Return values between steps; after the last one they go on to 0."""
    ends = torch.cat([values, values.new_zeros(1)])
    lower = place.long()
    return ends[lower] + (place - lower) * (ends[lower + 1] - ends[lower])
