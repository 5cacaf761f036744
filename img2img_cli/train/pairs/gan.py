"""`--method gan`: a conditional GAN on pairs, or plain regression without its adversary. One step at a time."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from img2img_cli.engines.base import to_images
from img2img_cli.engines.device import explain_memory_errors
from img2img_cli.engines.nets.folder import save_net
from img2img_cli.engines.nets.picture_unet import PictureUNet
from img2img_cli.errors import ModelError
from img2img_cli.train.loop import autocast, average_in, set_rate
from img2img_cli.train.pairs.check import Checked
from img2img_cli.train.pairs.data import Crops, PairData
from img2img_cli.train.pairs.discriminator import PatchDiscriminator, augment, compare
from img2img_cli.train.pairs.sheets import Figures
from img2img_cli.train.pairs.trainer import FEW_PAIRS, Losses, Shown, format_head

EMA_DECAY = 0.995
WARMUP_STEPS = 100
EPSILON = 1e-3  # of Charbonnier's loss, which is smooth at 0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run is made with. A run is resumed with the settings that it began with.

    Attributes:
        adversarial: the weight of the adversary beside the mean difference; 0 for plain regression.
        aligned: whether inputs and outputs are nearly the same, so that the network predicts a difference, in a small
            net at full resolution; otherwise it paints the output anew, in a deeper one.
        longest: sides of training pictures are reduced to at most this.
    """

    seed: int = 0
    adversarial: float = 0.0
    aligned: bool = True
    size: int = 96
    batch_size: int = 8
    longest: int = 1024
    learning_rate: float = 1e-3

    def make_net(self) -> PictureUNet:
        """Return a new generator; the same for the same seed."""
        torch.manual_seed(self.seed)
        if self.aligned:
            return PictureUNet(widths=(32, 64, 128), blocks=(1, 1, 1), places=True)
        net = PictureUNet(widths=(32, 64, 128, 192, 256), blocks=(1, 1, 1, 1, 1), residual=False)
        nn.init.normal_(net.leave.weight, std=0.02)
        for bias in (parameter for parameter in net.leave.parameters() if parameter.ndim == 1):
            nn.init.constant_(bias, 0.5)
        return net


class Trainer:
    """Everything that changes while a GAN is trained. Its state is enough to go on to the same weights.

    Attributes:
        step: how many steps were made.
        averaged: the generator with averaged weights, which is what is kept.
    """

    def __init__(self, settings: Settings, data: PairData, device: torch.device) -> None:
        self.settings, self.device, self.step = settings, device, 0
        self._data = data
        # The discriminator sees moved pictures with holes, so that it cannot learn few of them by heart.
        self._few = len(data) < FEW_PAIRS
        self.net = settings.make_net().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged: PictureUNet = copy.deepcopy(self.net).eval().requires_grad_(False)
        self._optimizer = torch.optim.Adam(self.net.parameters(), settings.learning_rate, betas=(0.9, 0.99))
        self.discriminator: PatchDiscriminator | None = None
        if settings.adversarial > 0:
            self.discriminator = PatchDiscriminator().to(device)
            self._adversary = torch.optim.Adam(self.discriminator.parameters(), 2e-4, betas=(0.5, 0.99))

    def advance(self, progress: float) -> Losses:
        """Make one step.

        Args:
            progress: the share of the run that is over, in 0..1; from the middle on, the learning rate falls to 0.

        Raises:
            ModelError: the loss is not a number.
            OutOfMemoryError: the device has too little memory.
        """
        with explain_memory_errors(self.device, "use a smaller --crop or --batch-size"):
            losses = self._advance(progress)
        self.step += 1
        return losses

    @property
    def batch_size(self) -> int:
        """Crops in a step."""
        return self.settings.batch_size

    @property
    def longest(self) -> int:
        """The longer side of the pictures that it is trained on, at most."""
        return self.settings.longest

    @property
    def has_adversary(self) -> bool:
        """Whether there is a discriminator."""
        return self.discriminator is not None

    @property
    def made_of(self) -> dict[str, Any]:
        """The settings by name."""
        return asdict(self.settings)

    def _advance(self, progress: float) -> Losses:
        settings = self.settings
        set_rate(self._optimizer, settings.learning_rate, self.step, progress, warmup=WARMUP_STEPS)
        batch = self._data.draw(settings.seed, self.step, settings.batch_size).to(self.device)
        with autocast(self.device):
            made = self.net(batch.source, batch.places).float()
        loss = difference = ((made - batch.target) ** 2 + EPSILON**2).sqrt().mean()
        told = Losses(difference=float(difference.detach()))
        if self.discriminator is not None:
            told = self._teach_adversary(batch, made.detach(), told.difference)
            score = self._judge(batch, made, salt=1)
            loss = loss - settings.adversarial * score.mean()
        if not torch.isfinite(loss):
            raise ModelError(f"step {self.step}: the loss is not a number; use a smaller --learning-rate")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self._optimizer.step()
        average_in(self.averaged.parameters(), self.net.parameters(), self.step, EMA_DECAY)
        return told

    def _judge(self, batch: Crops, picture: torch.Tensor, *, salt: int) -> torch.Tensor:
        assert self.discriminator is not None
        both = torch.cat([batch.source, picture], 1)
        if self._few:
            generator = torch.Generator().manual_seed((self.settings.seed << 32) + 4 * self.step + salt)
            both = augment(both, generator)
        with autocast(self.device):
            scores: torch.Tensor = self.discriminator(both[:, :3], both[:, 3:]).float()
        return scores

    def _teach_adversary(self, batch: Crops, made: torch.Tensor, difference: float) -> Losses:
        real, false = self._judge(batch, batch.target, salt=2), self._judge(batch, made, salt=3)
        loss = compare(real, false)
        self._adversary.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._adversary.step()
        means = (float(each.detach().mean()) for each in (loss, real, false))
        return Losses(difference=difference, **dict(zip(("discriminator", "real", "made"), means, strict=True)))

    def state(self) -> dict[str, Any]:
        """Return everything that `restore` needs, in types that `torch.load(weights_only=True)` reads."""
        state = {
            "step": self.step,
            "net": self.net.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        if self.discriminator is not None:
            state |= {"discriminator": self.discriminator.state_dict(), "adversary": self._adversary.state_dict()}
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state.

        Raises:
            KeyError, RuntimeError: it is not one of these settings.
        """
        self.net.load_state_dict(state["net"])
        self.averaged.load_state_dict(state["averaged"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self.discriminator is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self._adversary.load_state_dict(state["adversary"])
        self.step = int(state["step"])

    @torch.inference_mode()
    def measure(self, shown: Shown) -> Figures:
        """Return what the averaged network makes of pairs, and how near it is to what was wanted.

        Raises:
            ModelError: its pixels are not numbers.
        """
        rows = []
        for pair, source, target in shown:
            pixels = torch.from_numpy(np.array(source)).permute(2, 0, 1)[None].to(self.device).float() / 255
            (made,) = to_images(self.averaged(pixels))
            rows.append((pair.name, source, made, target))
        return Figures(rows=rows)

    def save(self, folder: Path) -> None:
        """Write the averaged network, as `engines.nets.folder` reads it.

        Raises:
            OutputError: it cannot be written.
        """
        save_net(self.averaged, folder)

    def format_preset(self, name: str, checked: Checked) -> str:
        """Return the text of the preset of the network beside it."""
        return format_head(name, checked) + (
            "task: edit\nmodel: ./\nstrength: 1.0\nnum_inference_steps: 1\nguidance_scale: 1.0\n"
            "tile_size: 512\ntile_overlap: 64\n"
        )
