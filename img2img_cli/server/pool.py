"""A pool of loaded pipelines: load each on first use, and drop it when memory is needed or it is no longer used."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from img2img_cli.engines.base import BasePipeline
from img2img_cli.engines.device import choose_placement, count_threads, measure_memory_gib
from img2img_cli.engines.open import open_pipeline
from img2img_cli.errors import OutOfMemoryError
from img2img_cli.presets.references import read_file_identity, read_identity
from img2img_cli.tasks.protocol import PipelineInfo, Spec, describe_pipeline

PROMISE_S = 10.0
Build = Callable[[Spec], BasePipeline]


def build(spec: Spec) -> BasePipeline:
    """Build the pipeline of a spec on its device."""
    return open_pipeline(spec.parameters, choose_placement(spec.device, spec.parameters.dtype, spec.offload))


def key_of(spec: Spec) -> str:
    """Return a key that is equal for specs that can share a pipeline. It changes if weights change on the disk."""
    p = spec.parameters
    weights = [read_identity(reference) for reference in (p.model, p.controlnet, p.vae, p.refiner) if reference]
    files = [read_file_identity(role, text) for role, text in p.list_files()]
    return json.dumps([p.pipeline_key, spec.device, spec.offload, weights, files])


@dataclass(eq=False)
class Warm:
    """A loaded pipeline and its use. Times are those of `time.monotonic`, in seconds.

    A lane is a copy of the pipeline that one thread runs at a time; all lanes share the weights.

    Attributes:
        lanes: those that are free.
        busy: number of lanes in use.
        used: when it was last requested or used.
        promised: until when it is kept for the client that had it loaded and is about to use it.
        count: number of all lanes.
    """

    spec: Spec
    pipeline: BasePipeline
    lanes: list[BasePipeline] = field(default_factory=list)
    busy: int = 0
    used: float = field(default_factory=time.monotonic)
    promised: float = field(default_factory=lambda: time.monotonic() + PROMISE_S)

    def __post_init__(self) -> None:
        self.pipeline.serve()
        self.lanes = list(self.pipeline.make_lanes())
        self.count = len(self.lanes)


def describe_warm(warm: Warm) -> PipelineInfo:
    """Return the traits of a loaded pipeline."""
    return describe_pipeline(warm.pipeline, warm.count)


class Pool:
    """Loaded pipelines by the key of their spec. Its methods may be called from any thread.

    Args:
        keep_s: how long an unused pipeline stays loaded, in seconds.
    """

    def __init__(self, keep_s: float, build: Build = build) -> None:
        self.keep_s = keep_s
        self._build = build
        self._warm: dict[str, Warm] = {}
        self._coming: dict[str, Future[Warm]] = {}
        self._guard = threading.RLock()
        self._loading = threading.Lock()  # held only by loading threads, one at a time

    def load(self, spec: Spec, key: str | None = None) -> Future[Warm]:
        """Return a future of the pipeline, which is done at once if it is loaded.

        Otherwise a new thread loads it, one pipeline after another. The future raises what loading raised.

        Args:
            key: `key_of(spec)`, if already known.
        """
        key = key or key_of(spec)
        future = Future[Warm]()
        with self._guard:
            if (coming := self._coming.get(key)) is not None:
                return coming
            if (warm := self._warm.get(key)) is not None:
                warm.used = time.monotonic()
                future.set_result(warm)
                return future
            self._coming[key] = future
        try:
            threading.Thread(target=self._bring, args=(spec, key, future), name="img2img-load", daemon=True).start()
        except RuntimeError as error:  # no more threads can be started
            self._tell(key, future, error)
        return future

    def get(self, spec: Spec) -> Warm:
        """Return the pipeline, waiting until it is loaded.

        Raises:
            Img2ImgError: it cannot be loaded.
        """
        return self.load(spec).result()

    def _bring(self, spec: Spec, key: str, future: Future[Warm]) -> None:
        try:
            with self._loading:
                made = Warm(spec, self._load(spec))
        except Exception as error:  # noqa: BLE001 - reported to the client, must not end the server
            self._tell(key, future, error)
        else:
            self._tell(key, future, made)

    def _tell(self, key: str, future: Future[Warm], made: Warm | Exception) -> None:
        with self._guard:
            del self._coming[key]
            if isinstance(made, Warm):
                self._warm[key] = made
        if isinstance(made, Warm):
            future.set_result(made)
        else:
            future.set_exception(made)

    def _load(self, spec: Spec) -> BasePipeline:
        """Load a pipeline with a command's number of threads, after dropping others if their memory is needed."""
        placement = choose_placement(spec.device, spec.parameters.dtype)
        torch.set_num_threads(count_threads(placement.device))
        need = spec.parameters.memory_gib * (2 if placement.dtype == torch.float32 else 1)
        while measure_memory_gib(placement.device)[0] < need and self._make_room(at_most=1):
            pass
        try:
            return self._build(spec)
        except OutOfMemoryError:
            if not self._make_room():
                raise
            return self._build(spec)

    def _make_room(self, at_most: int | None = None) -> bool:
        """Drop the pipelines unused for longest, waiting for promised ones; return False if all are in use."""
        while not self.drop_idle(at_most=at_most):
            with self._guard:
                waits = any(not warm.busy and warm.promised > time.monotonic() for warm in self._warm.values())
            if not waits:
                return False
            time.sleep(0.05)
        return True

    def peek(self, key: str) -> Warm | None:
        """Return the pipeline with this `key_of` its spec, or None if it is not loaded."""
        with self._guard:
            return self._warm.get(key)

    def drop_idle(self, *, at_most: int | None = None, unused_s: float = 0.0) -> int:
        """Drop pipelines that are not in use, the longest unused first; return how many.

        Args:
            at_most: drop no more than this; None for no limit.
            unused_s: drop only those unused for this many seconds.
        """
        with self._guard:
            now = time.monotonic()
            idle = [
                key
                for key, warm in self._warm.items()
                if not warm.busy and warm.used <= now - unused_s and warm.promised <= now
            ]
            idle.sort(key=lambda key: self._warm[key].used)
            for key in idle[:at_most]:
                del self._warm[key]
            count = len(idle[:at_most])
        if count:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return count

    def take_lane(self, warm: Warm) -> BasePipeline | None:
        """Reserve a lane until `give_lane`; return None if all are busy."""
        with self._guard:
            if not warm.lanes:
                return None
            warm.busy += 1
            return warm.lanes.pop()

    def give_lane(self, warm: Warm, lane: BasePipeline) -> None:
        """Return a lane to the pool."""
        with self._guard:
            warm.busy -= 1
            warm.lanes.append(lane)
            warm.used, warm.promised = time.monotonic(), 0.0

    def count_busy(self) -> int:
        """Return the number of lanes in use plus the number of pipelines being loaded."""
        with self._guard:
            return sum(warm.busy for warm in self._warm.values()) + len(self._coming)

    def list_warm(self) -> Sequence[Warm]:
        """Return the loaded pipelines."""
        with self._guard:
            return list(self._warm.values())
