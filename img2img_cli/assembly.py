"""The assembly line of one pipeline: threads decode and write while the model works in its own."""

from __future__ import annotations

import dataclasses
import hashlib
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

from img2img_cli.batch import Batch, Entry, Stop
from img2img_cli.batcher import Batcher, Outcome, Picked
from img2img_cli.errors import OutOfMemoryError, OutputError, TimeLimitError
from img2img_cli.guides import load_guides
from img2img_cli.images import load_image, peek_size, plan_fit, read_bytes
from img2img_cli.job import Job
from img2img_cli.plan import check_place
from img2img_cli.runner import encode_result, finish_picture, start_work
from img2img_cli.work import Piece, Pipeline
from img2img_cli.writer import make_folder, write_output

LOOKAHEAD = 256  # jobs that are put in order of size at a time
MAX_PIXELS_IN_FLIGHT = 96_000_000


@dataclass(frozen=True, kw_only=True)
class Written:
    """A result that lies in its place.

    Attributes:
        error: why the journal could not be told; the result counts all the same.
    """

    size: tuple[int, int]
    format: str
    error: OutputError | None = None


class _Run:
    """A batch in a lane."""

    def __init__(self, picked: Picked, lane: Pipeline) -> None:
        self.picked, self.lane, self._began = picked, lane, time.monotonic()
        self.entries = [entry for entry in picked.keys if isinstance(entry, Entry)]

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began


class Line:
    """Brings entries to their ends through one pipeline; a context that leaves no thread working."""

    def __init__(self, batch: Batch, pipeline: Pipeline, ended: set[int]) -> None:
        self._batch, self._pipeline, self._ended = batch, pipeline, ended
        self._idle = list(pipeline.make_lanes())
        self._lanes = len(self._idle)
        self._modelling: dict[Future[list[Image.Image]], _Run] = {}
        self._stopping = False
        size = batch.limits.batch_size
        self._batcher = Batcher(pipeline, batch_size=size, mixed=size is not None or pipeline.gains_from_batches)
        self._pool = ThreadPoolExecutor(batch.limits.workers, thread_name_prefix="img2img-batch")
        self._preparing: dict[Future[list[Piece]], Entry] = {}
        self._advancing: dict[Future[list[Piece] | Written], Entry] = {}

    def __enter__(self) -> Line:
        self._stack = ExitStack()
        share = self._stack.enter_context(self._pipeline.share_threads(self._lanes))
        self._models = ThreadPoolExecutor(self._lanes, thread_name_prefix="img2img-model", initializer=share)
        return self

    def __exit__(self, *_: object) -> None:
        """Let what is being written come to its end and tell of it; abandon the rest."""
        self._stopping = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._models.shutdown(wait=True, cancel_futures=True)
        self._stack.close()
        wait([future for future in self._advancing if not future.cancelled()])
        self._collect(closing=True)

    def run(self, entries: Sequence[Entry]) -> None:
        """Bring every entry to its end."""
        coming = deque[Entry]()
        source = iter(entries)
        while True:
            self._batch.interrupts.check()
            self._batch.check_limits()
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
            self._expire()

    def _admit(self, coming: deque[Entry]) -> None:
        """Start decoding, as far ahead as memory allows."""
        ahead = [*self._preparing.values(), *self._advancing.values(), *self._batcher.waiting()]
        pixels = sum(entry.pixels for entry in ahead)
        window = 4 * self._batch.limits.workers + 2 * (self._batch.limits.batch_size or 8)
        while coming and (not ahead or (len(ahead) < window and pixels + coming[0].pixels <= MAX_PIXELS_IN_FLIGHT)):
            entry = coming.popleft()
            ahead.append(entry)
            pixels += entry.pixels
            self._preparing[self._pool.submit(self._prepare, entry)] = entry

    def _prepare(self, entry: Entry) -> list[Piece]:
        with _timed(entry):
            job = entry.job
            data = read_bytes(job.input)
            # What is recorded is what was decoded, even when the file changed a moment ago.
            sha256 = hashlib.sha256(data).hexdigest()
            entry.provenance = dataclasses.replace(entry.provenance, source_sha256=sha256)
            entry.picture = load_image(job.input, data)
            entry.guides = guides = load_guides(job, entry.picture.size)
            self._batcher.notes += guides.notes
            entry.work = start_work(entry.picture.rgb, job.parameters, job.seed, self._pipeline, guides)
            return next(entry.work.steps)

    def _advance(self, entry: Entry, images: list[Image.Image]) -> list[Piece] | Written:
        with _timed(entry):
            assert entry.work is not None
            try:
                return entry.work.steps.send(images)
            except StopIteration as stop:
                return self._write(entry, stop.value)

    def _write(self, entry: Entry, made: Image.Image) -> Written:
        job, picture, guides, journal = entry.job, entry.picture, entry.guides, self._batch.journal
        assert picture is not None
        assert guides is not None
        result = finish_picture(made, picture, job, guides.mask)
        data, format_ = encode_result(result, picture, job, **dataclasses.asdict(entry.provenance))
        check_place(job.output, journal.folder)  # once more: others may write to the folder meanwhile
        journal.begin(job, entry.provenance, data)
        make_folder(os.path.dirname(job.output) or ".")
        write_output(data, job.output, replace=entry.replace, tag=journal.tag)
        try:
            journal.finish(job, entry.provenance, entry.elapsed_s())
        except OutputError as error:
            return Written(size=result.size, format=format_, error=error)
        return Written(size=result.size, format=format_)

    def _collect(self, *, closing: bool = False) -> None:
        """Take what the threads have finished, all of it even when the journal fails at one."""
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
        """Take what a thread has made of an entry."""
        if (error := future.exception()) is not None:
            self._fail(entry, error)
        elif isinstance(outcome := future.result(), Written):
            self._finish(entry, outcome)
        elif not closing:
            self._batcher.add(entry, outcome)

    def _start_model(self) -> bool:
        """Give the next batch to a lane; False when there is none."""
        picked = self._batcher.pick()
        if picked is None:
            return False
        run = _Run(picked, self._idle.pop())
        self._modelling[self._models.submit(run.lane.transform, picked.pieces, self._watch(run))] = run
        return True

    def _watch(self, run: _Run) -> Callable[[int, int], None]:
        """What is checked after each step, in the lane's own thread."""

        def watch(step: int, steps: int) -> None:
            if self._stopping:
                raise Stop
            self._batch.check_limits()
            limit = self._batch.limits.item_timeout_s
            if limit is not None and any(entry.spent_s + run.seconds > limit for entry in run.entries):
                raise TimeLimitError("item")

        return watch

    def _settle(self, run: _Run, modelling: Future[list[Image.Image]]) -> None:
        """Take what a lane has made, or see to what it could not."""
        for entry in run.entries:
            entry.spent_s += run.seconds
        if self._lanes > len(self._idle) + len(self._modelling):
            self._idle.append(run.lane)
        outcomes: list[Outcome] = []
        try:
            outcomes = self._batcher.settle(run.picked, modelling.result())
        except TimeLimitError:
            self._batcher.give_back(run.picked)  # and dropped where it took too long
        except Stop:
            raise
        except OutOfMemoryError as error:
            outcomes = self._relieve(run, error)
        except Exception as error:  # noqa: BLE001 - one bad picture must not end the others
            self._batcher.give_back(run.picked)
            if len(run.entries) > 1:
                self._batcher.isolate()
            else:
                self._batcher.drop(run.entries[0])
                self._fail(run.entries[0], error)
        for notes in (self._batcher.notes, self._pipeline.notes):
            while notes:
                self._batch.emit({"event": "note", "text": notes.pop(0)})
        for key, outcome in outcomes:
            assert isinstance(key, Entry)
            if isinstance(outcome, Exception):
                self._fail(key, outcome)
            else:
                self._advancing[self._pool.submit(self._advance, key, outcome)] = key

    def _relieve(self, run: _Run, error: OutOfMemoryError) -> list[Outcome]:
        """Out of memory: first one picture at a time, then whatever else there is."""
        if self._lanes == 1:
            return self._batcher.shrink(run.picked, run.lane, error)
        self._lanes = 1
        self._idle = [] if self._modelling else [run.lane]
        self._batcher.give_back(run.picked)
        self._batcher.notes.append("out of memory; going on with one picture at a time")
        return []

    def _expire(self) -> None:
        """Give up what takes longer than --item-timeout, also a decoder that hangs."""
        limit = self._batch.limits.item_timeout_s
        if limit is None:
            return
        for futures in (self._preparing, self._advancing):
            for future in [f for f, entry in futures.items() if entry.elapsed_s() > limit and not f.done()]:
                entry = futures.pop(future)  # type: ignore[arg-type]
                self._batch.abandoned = True
                self._replace_pool()
                self._fail(entry, _too_slow(entry, limit))
        for entry in self._batcher.waiting():
            if entry.elapsed_s() > limit:
                self._batcher.drop(entry)
                self._fail(entry, _too_slow(entry, limit))

    def _replace_pool(self) -> None:
        """A thread cannot be stopped; the others' work goes on in a new pool of full size."""
        self._pool.shutdown(wait=False)
        self._pool = ThreadPoolExecutor(self._batch.limits.workers, thread_name_prefix="img2img-batch")

    def _finish(self, entry: Entry, written: Written) -> None:
        self._close(entry)
        width, height = written.size
        self._batch.end(
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
        self._batch.fail(entry.job, error, entry.spent_s)

    def _close(self, entry: Entry) -> None:
        self._ended.add(id(entry))
        entry.picture = entry.guides = entry.work = None


class _timed:  # noqa: N801 - reads as a statement
    """Counts a stage's time to its entry."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    def __enter__(self) -> None:
        self._entry.stage_began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._entry.spent_s, self._entry.stage_began = self._entry.elapsed_s(), None


def _too_slow(entry: Entry, limit: float) -> TimeLimitError:
    return TimeLimitError(f"{entry.job.input}: took longer than {limit:g} s; raise --item-timeout or leave it out")


def sort_by_size(entries: list[Entry], pipeline: Pipeline) -> list[Entry]:
    """Bring those together whose pieces have one size, so that batches fill; otherwise keep the order."""
    order: dict[tuple[object, ...], int] = {}
    keys = []
    for entry in entries:
        size = peek_size(entry.job.input)
        entry.pixels = size[0] * size[1]
        key = (entry.job.parameters.task, *_working_size(size, entry.job, pipeline))
        keys.append(order.setdefault(key, len(order)))
    return [entry for _, entry in sorted(zip(keys, entries, strict=True), key=lambda pair: pair[0])]


def _working_size(size: tuple[int, int], job: Job, pipeline: Pipeline) -> Iterator[int]:
    if 0 in size or job.parameters.task in ("upscale", "restore"):
        yield from size
    else:
        yield from plan_fit(size, job.parameters.image_size, pipeline.multiple).canvas
