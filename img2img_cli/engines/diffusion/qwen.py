"""What Qwen-Image-Edit needs beside its pipeline: a processor without torchvision, and no shift of the picture."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen2VLProcessor
from transformers.processing_utils import ProcessorMixin


class PictureProcessor(Qwen2VLProcessor):  # type: ignore[misc]
    """Qwen2-VL's processor for pictures alone: its part for videos needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = map(
            tokenizer.convert_tokens_to_ids, (self.image_token, self.video_token)
        )
        ProcessorMixin.__init__(self, image_processor, tokenizer)

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts that it is made of."""
        return ["image_processor", "tokenizer"]


def load_processor(reference: str, revision: str | None) -> PictureProcessor:
    """The processor of a Qwen-Image-Edit by hub id or folder."""
    place = {"subfolder": "processor", "revision": revision}
    return PictureProcessor(
        Qwen2VLImageProcessorPil.from_pretrained(reference, **place),
        AutoTokenizer.from_pretrained(reference, trust_remote_code=False, **place),
    )


@contextlib.contextmanager
def show_whole(pipe: Any, pixels: int) -> Iterator[None]:
    """Let Qwen-Image-Edit see the picture at the result's own size.

    It sees it at about a million pixels whatever the result's size, and where the two differ it shifts and zooms.
    """
    module = inspect.getmodule(type(pipe))
    usual = getattr(module, "VAE_IMAGE_SIZE", None)
    if usual is None:
        yield
        return
    try:
        setattr(module, "VAE_IMAGE_SIZE", pixels)  # noqa: B010 - a global of the library's
        yield
    finally:
        setattr(module, "VAE_IMAGE_SIZE", usual)  # noqa: B010
