"""Run the pieces of many works through one pipeline in batches of equal pieces; shrink them if memory runs out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from img2img_cli.errors import OutOfMemoryError
from img2img_cli.tasks.pieces import Piece, Pipeline, Progress, Work


@dataclass
class _Waiting:
    """A work that waits for results.

    Attributes:
        pieces: the pieces that it yielded last.
        results: their results in order; None for those not done yet.
    """

    key: Hashable
    pieces: list[Piece]
    results: list[Image.Image | None] = field(init=False)

    def __post_init__(self) -> None:
        self.results = [None] * len(self.pieces)


Outcome = tuple[Hashable, list[Image.Image] | OutOfMemoryError]


@dataclass(frozen=True)
class Picked:
    """A batch that was picked to run.

    Attributes:
        group: the group of all its pieces.
        entries: a waiting work and the index of one of its pieces, for each piece of the batch.
    """

    group: object
    entries: list[tuple[_Waiting, int]]

    @property
    def pieces(self) -> list[Piece]:
        """The pieces to run."""
        return [waiting.pieces[index] for waiting, index in self.entries]

    @property
    def keys(self) -> list[Hashable]:
        """The keys of the works that the pieces belong to, each once."""
        return list(dict.fromkeys(waiting.key for waiting, _ in self.entries))

    @property
    def shares(self) -> dict[Hashable, float]:
        """The share of the batch that belongs to each work; the shares sum to 1."""
        counts = Counter(waiting.key for waiting, _ in self.entries)
        return {key: count / len(self.entries) for key, count in counts.items()}


class Batcher:
    """A queue of pieces that groups them into batches.

    Each work has a key. `add` queues the pieces of a work, and `pick` returns the next batch. `settle` takes the
    results of a batch and returns the works whose pieces are complete, with their results in order. `run` does all this
    for one batch at a time.

    Args:
        batch_pixels: the most pixels in a batch; by default that of the pipeline.
        batch_size: the most pieces in a batch; by default limited only by `batch_pixels`.
        mixed: let pieces of several works share a batch. Kernels round differently for each batch size; without
            `mixed`, each result is bit for bit the same as when its work runs alone.

    Attributes:
        notes: messages for the user about measures against running out of memory.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        batch_pixels: int | None = None,
        batch_size: int | None = None,
        mixed: bool = True,
    ) -> None:
        self._pipeline = pipeline
        self._mixed = mixed
        self._pixels = batch_pixels or pipeline.batch_pixels
        self._limit = batch_size
        self._alone = 0
        self._waiting: dict[Hashable, _Waiting] = {}
        self._queues: dict[object, list[tuple[_Waiting, int]]] = defaultdict(list)
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting(self) -> list[Any]:
        """Return the keys of the works that wait for results."""
        return list(self._waiting)

    def add(self, key: Hashable, pieces: list[Piece]) -> None:
        """Queue the pieces that a work waits for."""
        waiting = self._waiting[key] = _Waiting(key, pieces)
        for index, piece in enumerate(pieces):
            self._queues[piece.group].append((waiting, index))

    def drop(self, key: Hashable) -> None:
        """Remove a work and its queued pieces."""
        if (waiting := self._waiting.pop(key, None)) is not None:
            for group in {piece.group for piece in waiting.pieces}:
                self._queues[group] = [entry for entry in self._queues[group] if entry[0] is not waiting]

    def keys_of_next(self) -> list[Hashable]:
        """Return the keys of the works in the next batch."""
        return Picked(*self._choose()).keys

    def is_full(self) -> bool:
        """Return whether the next batch has no room for another piece."""
        _group, entries = self._choose()
        return bool(entries) and (not self._mixed or len(entries) >= self._capacity(entries[0]))

    def _capacity(self, entry: tuple[_Waiting, int]) -> int:
        fitting = max(1, self._pixels // entry[0].pieces[entry[1]].pixels)
        if self._alone:
            return 1
        return min(fitting, self._limit) if self._limit else fitting

    def isolate(self) -> None:
        """Run the pieces of the next batch one by one, to find the piece that makes it fail."""
        self._alone = len(self._choose()[1])

    def _choose(self) -> tuple[object, list[tuple[_Waiting, int]]]:
        """Return the group with the longest queue and the first entries of that queue, as many as fit in a batch."""
        group = max(self._queues, key=lambda g: len(self._queues[g]), default=None)
        queue = self._queues.get(group, [])
        if not queue:
            return group, []
        entries = queue[: self._capacity(queue[0])]
        return group, entries if self._mixed else [entry for entry in entries if entry[0] is entries[0][0]]

    def pick(self) -> Picked | None:
        """Remove the next batch from the queues and return it; return None if no pieces are queued."""
        group, entries = self._choose()
        if not entries:
            return None
        chosen = {(id(waiting), index) for waiting, index in entries}
        self._queues[group] = [entry for entry in self._queues[group] if (id(entry[0]), entry[1]) not in chosen]
        return Picked(group, entries)

    def give_back(self, picked: Picked) -> None:
        """Put the pieces of a failed batch back at the front of their queue, except those of dropped works."""
        kept = [entry for entry in picked.entries if self._waiting.get(entry[0].key) is entry[0]]
        self._queues[picked.group] = [*kept, *self._queues[picked.group]]

    def settle(self, picked: Picked, made: Sequence[Image.Image]) -> list[Outcome]:
        """Take the results of a batch and return the works whose pieces are now complete, with their results."""
        self._alone = max(0, self._alone - 1)
        for (waiting, index), image in zip(picked.entries, made, strict=True):
            waiting.results[index] = image
        ready = {waiting.key: waiting for waiting, _ in picked.entries if all(waiting.results)}
        ready = {key: waiting for key, waiting in ready.items() if self._waiting.pop(key, None) is not None}
        return [(key, [image for image in waiting.results if image is not None]) for key, waiting in ready.items()]

    def shrink(self, picked: Picked, pipeline: Pipeline, error: OutOfMemoryError) -> list[Outcome]:
        """Put a batch back after it ran out of memory, and reduce the need for memory.

        Halve the batch size. For a single piece, enable the next measure of the pipeline that saves memory. If none is
        left, drop the work of the piece.

        Returns:
            the dropped work with `error`, if any.
        """
        self.give_back(picked)
        if len(picked.entries) > 1:
            self._limit = len(picked.entries) // 2
            self.notes.append(f"out of memory; going on with batches of {self._limit}")
            return []
        if (measure := pipeline.save_memory()) is not None:
            self.notes.append(f"out of memory; going on with {measure}")
            return []
        key = picked.entries[0][0].key
        self.drop(key)
        return [(key, error)]

    def run(self, progress: Progress | None = None) -> list[Outcome]:
        """Run the next batch and return the works that are complete or were dropped for lack of memory.

        Errors of the pipeline other than `OutOfMemoryError` are passed on.
        """
        picked = self.pick()
        if picked is None:
            return []
        try:
            made = self._pipeline.transform(picked.pieces, progress)
        except OutOfMemoryError as error:
            return self.shrink(picked, self._pipeline, error)
        return self.settle(picked, made)


def run_works(works: Sequence[Work], pipeline: Pipeline, progress: Progress | None = None) -> list[Image.Image]:
    """Run works with their pieces batched together, and return the results in the order of the works.

    Args:
        progress: called with the finished hundredths of pieces and their total.

    Raises:
        OutOfMemoryError: a single piece does not fit into memory.
    """
    batcher = Batcher(pipeline)
    results: dict[Hashable, Image.Image] = {}
    for index, work in enumerate(works):
        batcher.add(index, next(work.steps))
    done, total = 0, sum(work.total for work in works)
    while len(batcher):
        size = len(batcher.keys_of_next())
        step = None if progress is None else _scale_progress(progress, done, total, size)
        for key, outcome in batcher.run(step):
            if isinstance(outcome, OutOfMemoryError):
                raise outcome
            done += len(outcome)
            try:
                batcher.add(key, works[int(str(key))].steps.send(outcome))
            except StopIteration as stop:
                results[key] = stop.value
    return [results[index] for index in range(len(works))]


def _scale_progress(progress: Progress, done: int, total: int, size: int) -> Progress:
    """Return a function that reports the steps of one batch to `progress` as hundredths of all pieces.

    Args:
        done: the number of finished pieces.
        total: the number of all pieces.
        size: the number of pieces in the batch.
    """
    return lambda step, steps: progress(round(100 * (done + min(size, total - done) * step / steps)), 100 * total)
