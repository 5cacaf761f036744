"""What all engines share: their device, how much goes into a batch, threads, notes, and the order of saving memory."""

from __future__ import annotations

import contextlib
import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from PIL import Image

from img2img_cli.engines.device import Placement, explain_memory_errors, measure_free_bytes, share_threads
from img2img_cli.errors import ModelError
from img2img_cli.presets.schema import Offload, Parameters
from img2img_cli.tasks.pieces import Piece, Progress

PIXELS_PER_BATCH = 2 * 512 * 512
FILL = 0.9  # of the free memory, because a measured batch is not always the largest of its kind
BYTES_PER_PIXEL = 6_000  # of a guided Stable Diffusion pass in 16 bits, with room to spare


class BasePipeline(ABC):
    """A model that runs pieces in this process (`tasks.pieces.Pipeline`). Subclasses say what it does to them.

    Attributes:
        placement: device and dtype.
        offload: where idle parts of the model are kept.
        multiple: both sides of a working picture must be divisible by this.
        takes_mask: whether the model itself repaints where a mask is white.
        has_controlnet: whether pieces need a control picture.
        enlargements: the factors of the upscaling net or model, in ascending order; empty if there is none.
        refines: whether the model refines pictures that were enlarged before.
        direct: whether the model is a network whose output is the result, without noise and steps.
        whole: whether it must see a picture as a whole, not in tiles.
        tells_cuts: whether prompts that are cut off come into `notes`, once each; otherwise ask `find_cuts`.
        load_notes: messages about the weights.
    """

    multiple: int = 1
    takes_mask: bool = False
    has_controlnet: bool = False
    enlargements: tuple[int, ...] = ()
    refines: bool = False
    direct: bool = False
    whole: bool = False

    def __init__(self, placement: Placement, offload: Offload = "none") -> None:
        self.placement, self.offload = placement, offload
        self.tells_cuts = True
        self.load_notes: list[str] = []
        self._notes: list[str] = []
        self._bytes_per_pixel: float = BYTES_PER_PIXEL

    @abstractmethod
    def _run(self, pieces: Sequence[Piece], progress: Progress | None) -> list[Image.Image]:
        """Run a batch of pieces of one group."""

    def transform(self, pieces: Sequence[Piece], progress: Progress | None = None) -> list[Image.Image]:
        """Run a batch of pieces of one group and return the RGB results in order.

        Args:
            pieces: their sides are multiples of `multiple`.
            progress: called after each step with the number of finished steps and of all steps.

        Raises:
            OutOfMemoryError: the batch does not fit into memory.
            ModelError: the result is not finite.
        """
        device = self.placement.device
        with explain_memory_errors(device):
            if device.type != "cuda":
                return self._run(pieces, progress)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            made = self._run(pieces, progress)
            # What a batch has taken is a better guess for the next one than any rule.
            taken = torch.cuda.max_memory_allocated(device) - before
            if taken > 0:  # image processing takes nothing there
                self._bytes_per_pixel = taken / sum(piece.pixels for piece in pieces)
            return made

    @property
    def batch_pixels(self) -> int:
        """The most pixels in a batch: by free memory on a GPU, by cache on a CPU."""
        if self.placement.device.type != "cuda":
            return PIXELS_PER_BATCH
        return max(PIXELS_PER_BATCH, int(measure_free_bytes(self.placement.device) * FILL / self._bytes_per_pixel))

    @property
    def gains_from_batches(self) -> bool:
        """Whether a batch takes less time than its pictures one by one; on a CPU, lanes gain instead."""
        return self.placement.device.type != "cpu"

    @property
    def device_name(self) -> str:
        """The device that it runs on, such as `cuda:0`."""
        return str(self.placement.device)

    @property
    def notes(self) -> list[str]:
        """Messages for the user. The code that shows them removes them from the list."""
        return self._notes

    def find_cuts(self, each: Sequence[Parameters]) -> list[str]:
        """Return messages about prompts that are not read in full, about the weights, and what the model cannot do."""
        return list(self.load_notes)

    def expect(self, calls: int) -> None:
        """Announce how many calls of the model will follow; a model that compiles nothing has no use for it."""
        del calls

    def serve(self) -> None:
        """Prepare for several clients: expect calls without end, and leave notes about prompts to `find_cuts`."""
        self.tells_cuts = False

    def share_threads(self, lanes: int) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """Divide the CPU threads among lanes within a context, which yields a function for each lane thread to call."""
        return share_threads(lanes)

    def make_lanes(self) -> Sequence[BasePipeline]:
        """Return the lanes: pipelines that share these weights and can run at the same time."""
        return [self]

    def save_memory(self) -> str | None:
        """Enable the next measure that saves memory and return its name; return None if there are no more."""
        self._release()
        return None

    def _release(self) -> None:
        gc.collect()
        if self.placement.device.type == "cuda":
            torch.cuda.empty_cache()


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """Convert `(B, 3, H, W)` in 0..1 to 8-bit RGB pictures.

    Raises:
        ModelError: a pixel is not finite.
    """
    if not torch.isfinite(pixels).all():
        raise ModelError("the model produced pixels that are not numbers; try --dtype float32")
    array = pixels.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return [Image.fromarray(image) for image in array.permute(0, 2, 3, 1).cpu().numpy()]
