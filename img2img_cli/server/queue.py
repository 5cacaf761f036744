"""The queue of requests to models: clients take turns, each client's requests run in order, in batches if faster."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

import torch
from PIL import Image

from img2img_cli.engines.base import BasePipeline
from img2img_cli.engines.device import count_threads
from img2img_cli.engines.diffusion.latents import CPU_LANES
from img2img_cli.errors import Img2ImgError, OutOfMemoryError
from img2img_cli.server.pool import Pool, Warm, describe_warm, key_of
from img2img_cli.tasks.pieces import Piece, Progress
from img2img_cli.tasks.protocol import Elsewhere, PipelineInfo, Spec

log = logging.getLogger("img2img")


class CancelledError(Exception):
    """The client no longer waits for the result."""


class FullError(Exception):
    """The queue is full."""


@dataclass(eq=False, kw_only=True)
class Request:
    """Pieces of one group to transform.

    Attributes:
        owner: the client; each owner's requests take turns with those of others.
        future: the results, in the order of the pieces.
        notes: sentences to show to the client, filled in when the results are done.
        step: the current step and the number of steps.
    """

    owner: str
    spec: Spec
    pieces: Sequence[Piece]
    progress: Progress | None = None
    future: Future[list[Image.Image]] = field(default_factory=Future)
    cancelled: threading.Event = field(default_factory=threading.Event)
    notes: list[str] = field(default_factory=list)
    step: tuple[int, int] = (0, 1)
    loads: bool = False  # its pipeline is being loaded

    def __post_init__(self) -> None:
        self.key = key_of(self.spec)

    def advance(self, step: int, steps: int) -> None:
        """Store the current step and report it to `progress`."""
        self.step = step, steps
        if self.progress is not None:
            self.progress(step, steps)


class Dispatcher:
    """Runs requests in its own threads, as many at once as make the device faster.

    Owners take turns, and each owner's requests run in order. On a GPU, requests of several owners that fit together
    run as one batch. On a CPU, each request runs separately, so its result is bit for bit the same as when it runs
    alone.

    Args:
        most: how many requests may wait.

    Attributes:
        idle_since: when a pipeline was last loaded or a request last ended, in seconds of `time.monotonic`.
        model_s: seconds of model work, summed over all lanes.
    """

    def __init__(self, pool: Pool, *, most: int = 1024) -> None:
        self.pool = pool
        self._most = most
        self._queues: dict[str, deque[Request]] = {}  # in the order of the owners' turns
        self._running: list[Request] = []
        self._changed = threading.Condition()
        self._closed = False
        self.idle_since = time.monotonic()
        self.model_s = 0.0
        self._threads = [
            threading.Thread(target=self._work, name=f"img2img-model-{index}", daemon=True)
            for index in range(CPU_LANES)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request) -> Future[list[Image.Image]]:
        """Queue a request and return its future.

        Raises:
            FullError: too many requests are waiting.
        """
        with self._changed:
            if sum(map(len, self._queues.values())) >= self._most:
                raise FullError
            self._queues.setdefault(request.owner, deque()).append(request)
            self._changed.notify_all()
        return request.future

    def cancel(self, request: Request) -> None:
        """Remove a request from the queue, or stop it after its current step."""
        with self._changed:
            request.cancelled.set()
            queue = self._queues.get(request.owner)
            if queue is not None and request in queue:
                queue.remove(request)
                self._forget_empty(request.owner)
                request.future.set_exception(CancelledError())

    def count_waiting(self) -> int:
        """Return the number of requests that are waiting or running."""
        with self._changed:
            return sum(map(len, self._queues.values())) + len(self._running)

    def list_running(self) -> list[Request]:
        """Return the requests that are running, oldest first."""
        with self._changed:
            return list(self._running)

    def load(self, spec: Spec) -> Future[Warm]:
        """Return a future of a spec's pipeline, as `Pool.load`."""
        future = self.pool.load(spec)
        future.add_done_callback(lambda _: self._note_use())
        return future

    def describe(self, spec: Spec, cancelled: threading.Event | None = None) -> PipelineInfo:
        """Return the traits of a spec's pipeline, waiting until it is loaded.

        Raises:
            Img2ImgError: the pipeline cannot be loaded.
            CancelledError: `cancelled` was set while waiting.
        """
        future = self.load(spec)
        while not wait([future], timeout=0.25).done:
            if cancelled is not None and cancelled.is_set():
                raise CancelledError
        return describe_warm(future.result())

    def close(self) -> None:
        """Stop the threads after their current steps."""
        with self._changed:
            self._closed = True
            for request in self._running:
                request.cancelled.set()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=10)

    def _work(self) -> None:
        while True:
            with self._changed:
                while (chosen := self._choose()) is None and not self._closed:
                    self._changed.wait()
                if chosen is None:
                    return
                requests, warm, lane = chosen
                # Share the processors only with requests that compute: not with those that are done but whose thread
                # has not removed them yet, nor with those that wait for a model to be loaded.
                others = any(not request.future.done() for request in self._running)
                others = others or any(not queue[0].loads for queue in self._queues.values())
                self._running += requests
            threads = count_threads(lane.placement.device)
            torch.set_num_threads(max(1, threads // 2) if others and warm.count > 1 else threads)
            try:
                self._serve(requests, warm, lane)
            finally:
                with self._changed:
                    self._running = [request for request in self._running if request not in requests]
                    self.idle_since = time.monotonic()
                    self._changed.notify_all()

    def _choose(self) -> tuple[list[Request], Warm, BasePipeline] | None:
        """Return the next owner's first request, others that fit into its batch, and a pipeline and lane for them.

        Skip requests whose pipeline is not loaded yet, so that they do not delay those behind them.
        """
        for owner in list(self._queues):
            head = self._queues[owner][0]
            warm = self.pool.peek(head.key)
            if warm is None:
                self._have_loaded(head)
                warm = self.pool.peek(head.key)  # it may be loaded by now, without another notification
            if warm is None:
                continue
            lane = self.pool.take_lane(warm)
            if lane is None:
                continue
            requests = [head]
            if lane.gains_from_batches:
                requests += self._find_company(head, lane.batch_pixels)
            for request in requests:
                queue = self._queues.pop(request.owner)
                queue.popleft()
                if queue:
                    self._queues[request.owner] = queue  # at the end: this owner has had its turn
            return requests, warm, lane
        return None

    def _have_loaded(self, head: Request) -> None:
        """Start loading a request's pipeline, once. If loading fails, the request fails with its error."""
        if head.loads:
            return
        head.loads = True

        def note(future: Future[Warm]) -> None:
            error = future.exception()
            with self._changed:
                head.loads = False
                queue = self._queues.get(head.owner)
                failed = error is not None and queue is not None and head in queue
                if failed and queue is not None:
                    queue.remove(head)
                    self._forget_empty(head.owner)
                self._changed.notify_all()
            if failed and isinstance(error, Exception):
                _settle([head], error)

        self.pool.load(head.spec, head.key).add_done_callback(note)

    def _note_use(self) -> None:
        self.idle_since = time.monotonic()

    def _find_company(self, head: Request, pixels: int) -> list[Request]:
        """Return first requests of other owners that can share a batch of `pixels` pixels with this one."""
        found, room = [], pixels - sum(piece.pixels for piece in head.pieces)
        for owner, queue in self._queues.items():
            size = sum(piece.pixels for piece in queue[0].pieces)
            fits = queue[0].key == head.key and queue[0].pieces[0].group == head.pieces[0].group and size <= room
            if owner != head.owner and fits:
                found.append(queue[0])
                room -= size
        return found

    def _forget_empty(self, owner: str) -> None:
        if not self._queues[owner]:
            del self._queues[owner]

    def _serve(self, requests: list[Request], warm: Warm, lane: BasePipeline) -> None:
        try:
            made = self._run(requests, lane)
        except Exception as error:  # noqa: BLE001 - as above
            if len(requests) > 1 and not isinstance(error, CancelledError):
                self._serve_apart(requests, lane)
            else:
                _settle(requests, error)
        else:
            for request in requests:
                request.future.set_result(made[: len(request.pieces)])
                made = made[len(request.pieces) :]
        finally:
            self.pool.give_lane(warm, lane)

    def _serve_apart(self, requests: list[Request], lane: BasePipeline) -> None:
        """Run each request separately after their batch has failed, so that only the faulty one fails."""
        for request in requests:
            try:
                request.future.set_result(self._run([request], lane))
            except Exception as error:  # noqa: BLE001 - as above
                _settle([request], error)

    def _run(self, requests: list[Request], lane: BasePipeline) -> list[Image.Image]:
        """Run a batch, with less memory after each `OutOfMemoryError` while that is possible."""

        def watch(step: int, steps: int) -> None:
            if all(request.cancelled.is_set() for request in requests):
                raise CancelledError
            for request in requests:
                request.advance(step, steps)

        pieces = [piece for request in requests for piece in request.pieces]
        while True:
            began = time.monotonic()
            try:
                made = lane.transform(pieces, watch)
                with self._changed:
                    self.model_s += time.monotonic() - began
            except OutOfMemoryError:
                if not self.pool.drop_idle():
                    if len(requests) > 1:
                        raise  # try each request separately first
                    measure = lane.save_memory()
                    if measure is None:
                        raise
                    log.warning("out of memory; going on with %s", measure)
                continue
            for request in requests:
                request.notes += lane.find_cuts([piece.parameters for piece in request.pieces])
            return made


def _settle(requests: Sequence[Request], error: Exception) -> None:
    if not isinstance(error, Img2ImgError | CancelledError):
        log.error("a bug", exc_info=error)
    for request in requests:
        request.future.set_exception(error)


class QueuedPipeline(Elsewhere):
    """A pipeline behind the queue, which a thread of the server can use like a local one.

    Attributes:
        notes: sentences to show to the user; the caller removes those that it has shown.
    """

    def __init__(self, dispatcher: Dispatcher, spec: Spec, owner: str, cancelled: threading.Event) -> None:
        """Load the pipeline, unless it is loaded already.

        Raises:
            Img2ImgError: the pipeline cannot be loaded.
            CancelledError: `cancelled` was set while waiting.
        """
        super().__init__(**vars(dispatcher.describe(spec, cancelled)))
        self._dispatcher, self._spec, self._owner, self._cancelled = dispatcher, spec, owner, cancelled
        self.notes: list[str] = []

    def transform(self, pieces: Sequence[Piece], progress: Progress | None = None) -> list[Image.Image]:
        """Queue pieces of one group and return their results, in order.

        Raises:
            CancelledError: `cancelled` was set.
            FullError: too many requests are waiting.
            Img2ImgError: the pieces cannot be transformed.
        """
        if self._cancelled.is_set():
            raise CancelledError
        request = Request(
            owner=self._owner, spec=self._spec, pieces=pieces, progress=progress, cancelled=self._cancelled
        )
        future = self._dispatcher.submit(request)
        while not wait([future], timeout=0.25).done:
            if self._cancelled.is_set():  # free its place in the queue
                self._dispatcher.cancel(request)
        made = future.result()
        self.notes += request.notes
        return made

    def make_lanes(self) -> Sequence[QueuedPipeline]:
        """Return only this pipeline: a request gets one lane, and other requests use the rest."""
        return [self]
