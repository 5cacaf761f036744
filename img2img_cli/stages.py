"""What is done to one picture of a batch before and after the model: decode, work, finish, encode."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from img2img_cli.guides import load_guides
from img2img_cli.images import load_image
from img2img_cli.job import Job
from img2img_cli.runner import encode_result, finish_picture, start_work
from img2img_cli.source import NO_STAMP, Stamp, read_source
from img2img_cli.work import Piece, Pipeline


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A picture that is ready for the model.

    Attributes:
        pieces: what the model is to work on.
        sha256, stamp: of the very bytes that were decoded.
        notes: what to tell of how it was read, a sentence each.
    """

    pieces: list[Piece]
    sha256: str
    stamp: Stamp
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A result as a file's bytes."""

    data: bytes
    size: tuple[int, int]
    format: str


class Stages:
    """One picture's stages, in this process. `prepare` first, then `advance` until it gives the result."""

    def __init__(self, job: Job, fingerprint: str, pipeline: Pipeline) -> None:
        self._job, self._fingerprint, self._pipeline = job, fingerprint, pipeline

    def prepare(self, data: bytes | None = None) -> Prepared:
        """Decode the input, or its content as it was read before.

        Raises:
            Img2ImgError: it cannot be read, or what is given beside it cannot.
        """
        job, stamp = self._job, NO_STAMP
        if data is None:
            data, stamp = read_source(job.input)
        self._sha256 = hashlib.sha256(data).hexdigest()
        self._picture = load_image(job.input, data)
        self._guides = load_guides(job, self._picture.size)
        self._work = start_work(self._picture.rgb, job.parameters, job.seed, self._pipeline, self._guides)
        return Prepared(
            pieces=next(self._work.steps), sha256=self._sha256, stamp=stamp, notes=tuple(self._guides.notes)
        )

    def advance(self, images: Sequence[Image.Image]) -> list[Piece] | Encoded:
        """Take what the model has made of the last pieces; return more of them, or the result."""
        try:
            return self._work.steps.send(list(images))
        except StopIteration as stop:
            made: Image.Image = stop.value
        result = finish_picture(made, self._picture, self._job, self._guides.mask)
        provenance = {"fingerprint": self._fingerprint, "source_sha256": self._sha256}
        data, format_ = encode_result(result, self._picture, self._job, **provenance)
        return Encoded(data=data, size=result.size, format=format_)

    def kill(self) -> None:
        """Nothing: a thread cannot be stopped."""

    def close(self) -> None:
        """Nothing: what it holds goes with it."""
