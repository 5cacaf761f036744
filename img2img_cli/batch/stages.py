"""The stages of one picture of a batch around the model: decode, prepare, advance, encode."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from img2img_cli.errors import Img2ImgError
from img2img_cli.pictures.read import load_image
from img2img_cli.system.source_files import NO_STAMP, Stamp, read_source
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.pieces import Piece, Pipeline
from img2img_cli.tasks.run import encode_result, finish_picture, start_work
from img2img_cli.tasks.side_inputs import load_side_inputs


@dataclass(frozen=True, kw_only=True)
class Read:
    """The outcome of reading a picture.

    Attributes:
        sha256, stamp: the hash and stamp of the bytes that were decoded.
        notes: messages for the user about how the picture was read.
        error: why the picture cannot be decoded; None if it was decoded.
    """

    sha256: str
    stamp: Stamp
    notes: tuple[str, ...] = ()
    error: Img2ImgError | None = None


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """An encoded result.

    Attributes:
        data: the bytes of the file.
        size: width and height in pixels.
        format: the format of the file.
    """

    data: bytes
    size: tuple[int, int]
    format: str


class Stages:
    """The stages of one picture, run in this process: `load`, `prepare`, then `advance` until it returns the result."""

    def __init__(self, job: Job, fingerprint: str) -> None:
        self._job, self._fingerprint = job, fingerprint

    def load(self, data: bytes | None = None) -> Read:
        """Read and decode the input and its side inputs.

        Args:
            data: the bytes of the input, if they were already read.

        Returns:
            the hash of the bytes and, if they or a side input cannot be decoded, the error.

        Raises:
            Img2ImgError: the input cannot be read.
        """
        job, stamp = self._job, NO_STAMP
        if data is None:
            data, stamp = read_source(job.input)
        self._sha256 = hashlib.sha256(data).hexdigest()
        try:
            self._picture = load_image(job.input, data, truncated=job.truncated)
            self._side_inputs = load_side_inputs(job, self._picture)
        except Img2ImgError as error:
            return Read(sha256=self._sha256, stamp=stamp, error=error)
        notes = tuple(self._side_inputs.notes)
        if self._picture.damaged:
            notes += (f"{job.input}: cut short or damaged; what could be decoded is used",)
        return Read(sha256=self._sha256, stamp=stamp, notes=notes)

    def prepare(self, pipeline: Pipeline) -> list[Piece]:
        """Start the work and return the first pieces for the model."""
        job = self._job
        self._work = start_work(self._picture.rgb, job.parameters, job.seed, pipeline, self._side_inputs)
        return next(self._work.steps)

    def advance(self, images: Sequence[Image.Image]) -> list[Piece] | Encoded:
        """Take the model's results for the last pieces; return further pieces, or the encoded result."""
        try:
            return self._work.steps.send(list(images))
        except StopIteration as stop:
            made: Image.Image = stop.value
        result = finish_picture(made, self._picture, self._job, self._side_inputs.mask)
        provenance = {"fingerprint": self._fingerprint, "source_sha256": self._sha256}
        data, format_ = encode_result(result, self._picture, self._job, **provenance)
        return Encoded(data=data, size=result.size, format=format_)

    def kill(self) -> None:
        """Do nothing, because a thread cannot be stopped."""

    def close(self) -> None:
        """Do nothing, because there is nothing to release."""
