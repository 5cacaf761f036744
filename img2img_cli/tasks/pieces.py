"""What a task asks of the model, piece by piece, so that pieces of many pictures can share a batch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from img2img_cli.presets.schema import Offload, Parameters

Progress = Callable[[int, int], None]

# Two pieces can share a batch when they agree in all of these; prompts and seeds are each piece's own.
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
ENLARGED_PIXELS = 4  # a x4 net's last layers work on sixteen times the pixels, though with few channels


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One pass through the model: an RGB picture of the model's own size, its control picture, its noise.

    Attributes:
        mask: `L` of the picture's size, white where to repaint; None unless the model is made for it.
        style: RGB of any size, for an IP-Adapter; a batch has one.
        enlarge: through an upscaling net or model, which makes it larger by its own factor.
        reconstruct: only encode and decode, without noise: what the autoencoder makes of the picture.
    """

    image: Image.Image
    control: Image.Image | None
    seed: int
    parameters: Parameters
    mask: Image.Image | None = None
    style: Image.Image | None = None
    enlarge: bool = False
    reconstruct: bool = False

    @property
    def group(self) -> tuple[object, ...]:
        """Equal for pieces that may share a batch."""
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
        """Width times height, of what the model works on."""
        return self.image.width * self.image.height * (ENLARGED_PIXELS if self.enlarge else 1)


Steps = Generator[list[Piece], list[Image.Image], Image.Image]


@dataclass(frozen=True, kw_only=True)
class Work:
    """One picture's way through the model: yields pieces, is sent what became of them, returns the result.

    Attributes:
        total: how many pieces it will yield in all.
    """

    total: int
    steps: Steps


class Pipeline(Protocol):
    """What works are run by: a pipeline in this process, or one that a server keeps warm.

    Attributes:
        multiple: both sides of a working picture must be divisible by this.
        takes_mask: whether the model itself repaints where a mask is white.
        has_controlnet: whether pieces need a control picture.
        enlargement: the factor of its net, or of a model made for upscaling; None when it enlarges nothing itself.
        refines: whether the model works over a picture that was enlarged before.
        batch_pixels: how many pixels a batch may have in all.
        gains_from_batches: whether pictures in one batch are done sooner than one by one.
        offload: where its parts lie while they wait.
        device_name: where it works, such as `cuda:0`.
        notes: what to tell its user, a sentence each; whoever shows them takes them out.
    """

    @property
    def multiple(self) -> int: ...
    @property
    def takes_mask(self) -> bool: ...
    @property
    def has_controlnet(self) -> bool: ...
    @property
    def enlargement(self) -> int | None: ...
    @property
    def refines(self) -> bool: ...
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
        """Run a batch of pieces of one group; the results in their order."""
        ...

    def expect(self, calls: int) -> None:
        """So many calls of the model are to come."""
        ...

    def make_lanes(self) -> Sequence[Pipeline]:
        """Pipelines that may work at the same time."""
        ...

    def share_threads(self, lanes: int) -> AbstractContextManager[Callable[[], None]]:
        """While as many lanes work at once: yields what each one's thread calls first."""
        ...

    def save_memory(self) -> str | None:
        """Switch on the next measure against running out of memory and name it; None when there is none left."""
        ...


def derive_seed(seed: int, index: int) -> int:
    """The seed of a picture's `index`-th part; the first part has the picture's own."""
    if index == 0:
        return seed
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
