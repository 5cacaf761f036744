"""Pieces, the units of work that tasks give to a model. Pieces of many pictures can share a batch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from img2img_cli.presets.schema import Offload, Parameters

Progress = Callable[[int, int], None]

# Two pieces can share a batch if they agree in all of these parameters. Prompts and seeds may differ.
BATCH_KEYS = (
    "strength",
    "num_inference_steps",
    "guidance_scale",
    "guidance_end",
    "cache_interval",
    "true_cfg_scale",
    "image_guidance_scale",
    "noise_level",
    "refiner_strength",
    "controlnet_conditioning_scale",
    "control_guidance_start",
    "control_guidance_end",
)
ENLARGED_PIXELS = 4  # the last layers of a x4 net work on 16 times the pixels, but with few channels


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The input of one pass through the model.

    Attributes:
        image: RGB, with both sides divisible by `Pipeline.multiple`.
        control: RGB of the size of `image`, for a ControlNet; None without one.
        seed: the seed of the noise.
        mask: `L` of the size of `image`, white where the model repaints; None for models that take no mask.
        style: RGB of any size, whose style to take. All pieces of a batch share one style object.
        hints: RGBA of the size of `image`, for colorize: colours that are given where it is opaque.
        enlarge: the factor, one of `Pipeline.enlargements`, by which the upscaling net or model enlarges the piece;
            0 for a piece that keeps its size.
        reconstruct: only encode and decode the picture with the autoencoder, without noise.
        place: left, top, right and bottom of the piece within the whole picture, as shares of its width and height.
    """

    image: Image.Image
    control: Image.Image | None
    seed: int
    parameters: Parameters
    mask: Image.Image | None = None
    style: Image.Image | None = None
    hints: Image.Image | None = None
    enlarge: int = 0
    reconstruct: bool = False
    place: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)

    @property
    def group(self) -> tuple[object, ...]:
        """A key that is equal for pieces that may share a batch."""
        if self.reconstruct:
            return self.image.size, "reconstruct"
        return (
            self.image.size,
            self.enlarge,
            self.control is None,
            id(self.style),
            *(getattr(self.parameters, key) for key in BATCH_KEYS),
        )

    @property
    def pixels(self) -> int:
        """Width times height of the picture; 4 times as much for a piece to enlarge, which needs more memory."""
        return self.image.width * self.image.height * (ENLARGED_PIXELS if self.enlarge else 1)


Steps = Generator[list[Piece], list[Image.Image], Image.Image]


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work on one picture.

    Attributes:
        total: how many pieces `steps` yields in all.
        steps: a generator that yields lists of pieces, is sent their results in order, and returns the final picture.
    """

    total: int
    steps: Steps


class Pipeline(Protocol):
    """A pipeline that runs pieces, in this process or in a warm server.

    Attributes:
        multiple: both sides of a working picture must be divisible by this.
        takes_mask: whether the model itself repaints where a mask is white.
        has_controlnet: whether pieces need a control picture.
        enlargements: the factors of the upscaling net or model, in ascending order; empty if the pipeline has none.
        refines: whether the model refines pictures that were enlarged before.
        direct: whether the model is a network whose output is the result, without noise and steps.
        whole: whether it must see a picture as a whole, not in tiles.
        batch_pixels: the most pixels in a batch, summed over `Piece.pixels`.
        gains_from_batches: whether a batch takes less time than its pictures one by one.
        offload: where idle parts of the pipeline are kept.
        device_name: the device that the model runs on, such as `cuda:0`.
        notes: messages for the user. The code that shows them removes them from the list.
    """

    @property
    def multiple(self) -> int: ...
    @property
    def takes_mask(self) -> bool: ...
    @property
    def has_controlnet(self) -> bool: ...
    @property
    def enlargements(self) -> Sequence[int]: ...
    @property
    def refines(self) -> bool: ...
    @property
    def whole(self) -> bool: ...
    @property
    def direct(self) -> bool: ...
    @property
    def batch_pixels(self) -> int: ...
    @property
    def gains_from_batches(self) -> bool: ...
    @property
    def offload(self) -> Offload: ...
    @property
    def device_name(self) -> str: ...
    @property
    def notes(self) -> list[str]: ...

    def transform(self, pieces: Sequence[Piece], progress: Progress | None = None) -> list[Image.Image]:
        """Run a batch of pieces of one group and return the RGB results in order.

        Args:
            progress: called after each step with the number of finished steps and of all steps.

        Raises:
            OutOfMemoryError: the batch does not fit into memory.
        """
        ...

    def expect(self, calls: int) -> None:
        """Announce how many calls of the model will follow."""
        ...

    def make_lanes(self) -> Sequence[Pipeline]:
        """Return the lanes: pipelines that can run at the same time."""
        ...

    def share_threads(self, lanes: int) -> AbstractContextManager[Callable[[], None]]:
        """Divide the CPU threads among lanes within a context, which yields a function for each lane thread to call."""
        ...

    def save_memory(self) -> str | None:
        """Enable the next measure that saves memory and return its name; return None if there are no more."""
        ...


def derive_seed(seed: int, index: int) -> int:
    """Return the seed for a part of a picture. Part 0 uses the seed of the picture itself.

    Returns:
        an int in 0..2**32 - 1 for every other part.
    """
    if index == 0:
        return seed
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
