"""The assembly line of one pipeline: a pool of threads decodes and writes while other threads run the model.

A lane is a pipeline that can run a batch at the same time as the other lanes; each lane has its own thread.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from PIL import Image

from img2img_cli.batch.entries import Entry, timed
from img2img_cli.batch.session import Session, Stop
from img2img_cli.batch.stages import Encoded
from img2img_cli.errors import OutOfMemoryError, OutputError, TimeLimitError
from img2img_cli.pictures.read import peek_size, plan_fit
from img2img_cli.pictures.write import make_folder, write_output
from img2img_cli.system.source_files import check_unchanged, find_special
from img2img_cli.tasks.batching import Batcher, Outcome, Picked
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.output_folder import check_place
from img2img_cli.tasks.pieces import Piece, Pipeline

LOOKAHEAD = 256  # how many jobs are sorted by size at a time
MAX_PIXELS_IN_FLIGHT = 96_000_000
MAX_STYLES = 8


@dataclass(frozen=True, kw_only=True)
class Written:
    """A result that was written.

    Attributes:
        size: width and height in pixels.
        error: why the journal could not record the result, which still counts as done.
    """

    size: tuple[int, int]
    format: str
    error: OutputError | None = None


class _LateError(Exception):
    """Some entries of a running batch have exceeded their time limit; the batch restarts without them."""


class _Run:
    """A batch that runs in a lane.

    Attributes:
        shares: the part of the batch that belongs to each entry; the parts sum to 1.
        late: the entries found late by the last `check`.
    """

    def __init__(self, picked: Picked, lane: Pipeline) -> None:
        self.picked, self.lane, self._began = picked, lane, time.monotonic()
        self.shares = {entry: share for entry, share in picked.shares.items() if isinstance(entry, Entry)}
        self.entries = list(self.shares)
        self.late: list[Entry] = []

    @property
    def seconds(self) -> float:
        """Seconds since the batch began."""
        return time.monotonic() - self._began

    def charge(self, entry: Entry) -> float:
        """Return the seconds that an entry is charged: its share of the batch, so that it does not pay for others."""
        return self.seconds * self.shares[entry]

    def check(self, limit: float) -> None:
        """Find the entries that have spent more than `limit` seconds.

        Raises:
            _LateError: at least one entry is late.
        """
        self.late = [entry for entry in self.entries if entry.spent_s + self.charge(entry) > limit]
        if self.late:
            raise _LateError


class Line:
    """A context manager that takes entries through one pipeline. After it exits, no thread is writing.

    Args:
        ended: takes the `id` of each entry that ends.
    """

    def __init__(self, session: Session, pipeline: Pipeline, ended: set[int]) -> None:
        self._session, self._pipeline, self._ended = session, pipeline, ended
        self._idle = list(pipeline.make_lanes())
        self._lanes = len(self._idle)
        self._modelling: dict[Future[list[Image.Image]], _Run] = {}
        self._stopping = False
        self._limit = session.limits.item_timeout_s
        self._styles: dict[bytes, Image.Image] = {}
        size = session.limits.batch_size
        self._batcher = Batcher(pipeline, batch_size=size, mixed=size is not None or pipeline.gains_from_batches)
        self._pool = ThreadPoolExecutor(session.limits.workers, thread_name_prefix="img2img-batch")
        self._preparing: dict[Future[list[Piece]], Entry] = {}
        self._advancing: dict[Future[list[Piece] | Written], Entry] = {}

    def __enter__(self) -> Line:
        self._stack = ExitStack()
        share = self._stack.enter_context(self._pipeline.share_threads(self._lanes))
        self._models = ThreadPoolExecutor(self._lanes, thread_name_prefix="img2img-model", initializer=share)
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the writes in progress and report them; abandon the other entries."""
        self._stopping = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for entry in self._preparing.values():
            if entry.stages is not None:
                entry.stages.kill()
        self._models.shutdown(wait=True, cancel_futures=True)
        wait([future for future in self._advancing if not future.cancelled()])
        self._stack.close()
        self._collect(closing=True)

    def run(self, entries: Sequence[Entry]) -> None:
        """Process every entry until it is done or has failed.

        Raises:
            Stop: a limit of the session is reached.
        """
        coming = deque[Entry]()
        source = iter(entries)
        while True:
            self._session.interrupts.check()
            self._session.check_limits()
            if not coming:
                coming.extend(sort_by_size(list(islice(source, LOOKAHEAD)), self._pipeline))
            self._admit(coming)
            self._collect()
            while self._idle and (self._batcher.is_full() or not self._preparing) and self._start_model():
                pass
            if self._preparing or self._advancing or self._modelling:
                futures: list[Future[Any]] = [*self._preparing, *self._advancing, *self._modelling]
                wait(futures, timeout=0.25, return_when=FIRST_COMPLETED)
            elif not (coming or len(self._batcher)):
                return

    def _admit(self, coming: deque[Entry]) -> None:
        """Start to decode entries, within limits on the number of entries and pixels in memory."""
        ahead = [*self._preparing.values(), *self._advancing.values(), *self._batcher.waiting()]
        pixels = sum(entry.pixels for entry in ahead)
        window = 4 * self._session.limits.workers + 2 * (self._session.limits.batch_size or 8)
        while coming and (not ahead or (len(ahead) < window and pixels + coming[0].pixels <= MAX_PIXELS_IN_FLIGHT)):
            entry = coming.popleft()
            ahead.append(entry)
            pixels += entry.pixels
            self._preparing[self._pool.submit(self._prepare, entry)] = entry

    def _prepare(self, entry: Entry) -> list[Piece]:
        if entry.stages is None:
            self._session.opener.open(entry, self._check_wanted)
        assert entry.stages is not None
        with timed(entry):
            pieces = entry.stages.prepare(self._pipeline)
        self._batcher.notes += entry.notes
        return [self._share_style(piece) for piece in pieces]

    def _share_style(self, piece: Piece) -> Piece:
        """Return the piece with a shared style object, because only pieces with the same object share a batch."""
        if self._limit is None or piece.style is None:
            return piece
        if len(self._styles) > MAX_STYLES:
            self._styles.clear()
        style = self._styles.setdefault(piece.style.tobytes(), piece.style)
        return dataclasses.replace(piece, style=style)

    def _check_wanted(self) -> None:
        """Raise `Stop` if the line is stopping."""
        if self._stopping:
            raise Stop

    def _advance(self, entry: Entry, images: list[Image.Image]) -> list[Piece] | Written:
        assert entry.stages is not None
        with timed(entry):
            outcome = entry.stages.advance(images)
            if isinstance(outcome, Encoded):
                return self._write(entry, outcome)
            return [self._share_style(piece) for piece in outcome]

    def _write(self, entry: Entry, made: Encoded) -> Written:
        """Write a result, unless the entry is late. A late entry fails, and its output file is not written.

        Raises:
            Img2ImgError: the entry is late, a side input has changed, or the result cannot be written.
        """
        job, data, journal = entry.job, made.data, self._session.journal
        check_unchanged(entry.provenance.beside)
        check_place(job.output, journal.folder)  # again, because another program may have changed the folder
        if self._session.opener.is_late(entry):
            raise TimeLimitError
        journal.begin(job, entry.provenance, data)
        make_folder(os.path.dirname(job.output) or ".")
        write_output(data, job.output, replace=entry.replace, tag=journal.tag)
        try:
            journal.finish(job, entry.provenance, entry.elapsed_s())
        except OutputError as error:
            return Written(size=made.size, format=made.format, error=error)
        return Written(size=made.size, format=made.format)

    def _collect(self, *, closing: bool = False) -> None:
        """Take the results of all finished threads, even if the journal fails on one of them."""
        takings: list[Callable[[], None]] = []
        for futures in (self._preparing, self._advancing):
            for future in [future for future in futures if future.done()]:
                entry = futures.pop(future)  # type: ignore[arg-type]
                if not (future.cancelled() or (closing and futures is self._preparing)):
                    takings.append(partial(self._take, entry, future, closing))
        for modelling in [future for future in self._modelling if future.done()]:
            run = self._modelling.pop(modelling)
            if not closing:
                takings.append(partial(self._settle, run, modelling))
        with ExitStack() as stack:
            for taking in reversed(takings):
                stack.callback(taking)

    def _take(self, entry: Entry, future: Future[Any], closing: bool) -> None:
        """Take the result of a thread for an entry."""
        if (error := future.exception()) is not None:
            self._fail(entry, error)
        elif isinstance(outcome := future.result(), Written):
            self._finish(entry, outcome)
        elif not closing:
            self._batcher.add(entry, outcome)

    def _start_model(self) -> bool:
        """Start the next batch in an idle lane; return False if no batch is waiting."""
        picked = self._batcher.pick()
        if picked is None:
            return False
        run = _Run(picked, self._idle.pop())
        self._modelling[self._models.submit(run.lane.transform, picked.pieces, self._watch(run))] = run
        return True

    def _watch(self, run: _Run) -> Callable[[int, int], None]:
        """Return the function that the lane's thread calls after each step to check the limits."""

        def watch(step: int, steps: int) -> None:
            if self._stopping:
                raise Stop
            self._session.check_limits()
            if self._limit is not None:
                run.check(self._limit)

        return watch

    def _settle(self, run: _Run, modelling: Future[list[Image.Image]]) -> None:
        """Take the results of a batch, or handle its failure."""
        charges = {entry: run.charge(entry) for entry in run.entries}
        if self._lanes > len(self._idle) + len(self._modelling):
            self._idle.append(run.lane)
        outcomes: list[Outcome] = []
        late: list[Entry] = []
        try:
            outcomes = self._batcher.settle(run.picked, modelling.result())
            late = self._charge(charges)
            outcomes = [(key, outcome) for key, outcome in outcomes if key not in late]
        except _LateError:
            self._batcher.give_back(run.picked)
            late = self._charge({entry: charges[entry] for entry in run.late})
        except Stop:
            raise
        except OutOfMemoryError as error:
            outcomes = self._relieve(run, error)
        except Exception as error:  # noqa: BLE001 - one bad picture must not stop the others
            self._batcher.give_back(run.picked)
            if len(run.entries) > 1:
                self._batcher.isolate()
            else:
                self._batcher.drop(run.entries[0])
                self._fail(run.entries[0], error)
        for entry in late:
            self._batcher.drop(entry)
            self._fail(entry, TimeLimitError())
        for notes in (self._batcher.notes, self._pipeline.notes):
            while notes:
                self._session.emit({"event": "note", "text": notes.pop(0)})
        for key, outcome in outcomes:
            assert isinstance(key, Entry)
            if isinstance(outcome, Exception):
                self._fail(key, outcome)
            else:
                self._advancing[self._pool.submit(self._advance, key, outcome)] = key

    def _charge(self, seconds: dict[Entry, float]) -> list[Entry]:
        """Add seconds to the time of each entry; return the entries that are late."""
        for entry, more in seconds.items():
            entry.spent_s += more
        return [entry for entry in seconds if self._session.opener.is_late(entry)]

    def _relieve(self, run: _Run, error: OutOfMemoryError) -> list[Outcome]:
        """Reduce memory use: first run a single lane, then shrink the batch or save memory in the pipeline."""
        if self._lanes == 1:
            return self._batcher.shrink(run.picked, run.lane, error)
        self._lanes = 1
        self._idle = [] if self._modelling else [run.lane]
        self._batcher.give_back(run.picked)
        self._batcher.notes.append("out of memory; going on with one picture at a time")
        return []

    def _finish(self, entry: Entry, written: Written) -> None:
        self._close(entry)
        width, height = written.size
        self._session.end(
            entry.job,
            "done",
            width=width,
            height=height,
            format=written.format,
            seed=entry.job.seed,
            seconds=round(entry.spent_s, 3),
        )
        if written.error is not None:
            raise written.error

    def _fail(self, entry: Entry, error: BaseException) -> None:
        self._close(entry)
        if not isinstance(error, Exception):
            raise error
        self._session.fail(entry.job, error, entry.spent_s, entry.provenance)

    def _close(self, entry: Entry) -> None:
        self._ended.add(id(entry))
        entry.close()


def sort_by_size(entries: list[Entry], pipeline: Pipeline) -> list[Entry]:
    """Return the entries with those of equal working size next to each other, so that batches fill.

    The groups, and the entries in each, keep their order. Sets `pixels` of every entry.
    """
    order: dict[tuple[object, ...], int] = {}
    keys = []
    for entry in entries:
        size = (0, 0) if find_special(entry.job.input) else peek_size(entry.job.input)
        entry.pixels = size[0] * size[1]
        key = (entry.job.parameters.task, *_working_size(size, entry.job, pipeline))
        keys.append(order.setdefault(key, len(order)))
    return [entry for _, entry in sorted(zip(keys, entries, strict=True), key=lambda pair: pair[0])]


def _working_size(size: tuple[int, int], job: Job, pipeline: Pipeline) -> Iterator[int]:
    if 0 in size or job.parameters.task in ("upscale", "restore"):
        yield from size
    else:
        yield from plan_fit(size, job.parameters.image_size, pipeline.multiple).canvas
