"""A small network that classifies the style of a picture, to evaluate the results of `edit`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from img2img_cli.train.bundled.autoencoder import stack_pictures
from img2img_cli.train.bundled.styles import STYLES
from img2img_cli.train.data import BalancedDraw, Photograph, cut_view

CLASSES = ("photograph", *STYLES)
# Side in pixels and batch size, used in turn. Strokes look different at each scale, and results have several sizes.
VIEWS = ((128, 28), (384, 6))


def build_classifier() -> nn.Sequential:
    """Build an untrained classifier: pictures `(B, 3, H, W)` in -1..1, sides of 64 or more, to logits `(B, classes)`.

    The classes are `CLASSES`.
    """
    layers: list[nn.Module] = []
    for width_in, width_out in ((3, 32), (32, 48), (48, 64), (64, 96)):
        layers += [nn.Conv2d(width_in, width_out, 3, stride=2, padding=1), nn.BatchNorm2d(width_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, len(CLASSES)))


def draw_styled(
    draw: BalancedDraw, rng: np.random.Generator, count: int, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw whole views and detail crops, each in a random style or none.

    Returns:
        float32 pixels `(count, 3, size, size)` in -1..1, and class indices `(count,)`.
    """
    labels = rng.integers(len(CLASSES), size=count)
    pictures = []
    for label in labels:
        view = cut_view(draw(rng), size, rng, whole=rng.random() < 0.5)
        pictures.append(STYLES[CLASSES[label]](view, rng) if label else view)
    return stack_pictures(pictures), torch.from_numpy(labels)


def train_classifier(photographs: Sequence[Photograph], *, steps: int = 700, seed: int = 0) -> nn.Sequential:
    """Train a classifier on photographs in the styles of `STYLES`. This takes two or three minutes on two cores."""
    torch.manual_seed(seed)
    rng, draw = np.random.default_rng(seed), BalancedDraw(photographs)
    model = build_classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        size, batch_size = VIEWS[step % len(VIEWS)]
        pixels, labels = draw_styled(draw, rng, batch_size, size)
        loss = functional.cross_entropy(model(pixels), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def classify(model: nn.Module, picture: Image.Image) -> str:
    """Return the most likely of `CLASSES` for an RGB picture."""
    return CLASSES[int(model(stack_pictures([picture])).argmax())]
