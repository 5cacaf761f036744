"""Pipelines kept warm: loaded when first asked for, dropped when memory is needed or nobody asks any more."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from img2img_cli.building import build_pipeline
from img2img_cli.device import choose_placement, measure_memory_gib
from img2img_cli.errors import OutOfMemoryError
from img2img_cli.modelref import read_file_identity, read_identity
from img2img_cli.pipeline import ImagePipeline
from img2img_cli.wire import Spec

Build = Callable[[Spec], ImagePipeline]


def build(spec: Spec) -> ImagePipeline:
    """The pipeline of a spec, on its device."""
    return build_pipeline(spec.parameters, choose_placement(spec.device, spec.parameters.dtype, spec.offload))


def key_of(spec: Spec) -> str:
    """Equal for specs that one pipeline serves. Weights that were replaced on the disk are others."""
    p = spec.parameters
    weights = [read_identity(reference) for reference in (p.model, p.controlnet, p.vae, p.refiner) if reference]
    files = [read_file_identity(role, text) for role, text in p.list_files()]
    return json.dumps([p.pipeline_key, spec.device, spec.offload, weights, files])


@dataclass(eq=False)
class Warm:
    """A loaded pipeline, its lanes that nobody works in, and when it was last asked for."""

    spec: Spec
    pipeline: ImagePipeline
    lanes: list[ImagePipeline] = field(default_factory=list)
    busy: int = 0
    used: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.pipeline.tells_cuts = False  # once each is not for all who ask
        self.pipeline.plan.is_open = True
        self.lanes = list(self.pipeline.make_lanes())
        self.count = len(self.lanes)


class Pool:
    """Warm pipelines by what they are built from. Its methods may be called from any thread.

    Args:
        keep_s: how long a pipeline that nobody asks for stays.
    """

    def __init__(self, keep_s: float, build: Build = build) -> None:
        self.keep_s = keep_s
        self._build = build
        self._warm: dict[str, Warm] = {}
        self._guard = threading.RLock()
        self._loading = threading.Lock()

    def get(self, spec: Spec) -> Warm:
        """The pipeline, loaded if need be: one at a time, when there is memory for it.

        Raises:
            Img2ImgError: it cannot be loaded.
        """
        key = key_of(spec)
        with self._loading:
            with self._guard:
                if (warm := self._warm.get(key)) is not None:
                    warm.used = time.monotonic()
                    return warm
            self._make_room(spec)
            try:
                pipeline = self._build(spec)
            except OutOfMemoryError:
                if not self.drop_idle():
                    raise
                pipeline = self._build(spec)
            with self._guard:
                warm = self._warm[key] = Warm(spec, pipeline)
            return warm

    def peek(self, key: str) -> Warm | None:
        """The pipeline if it is warm, by `key_of` its spec."""
        with self._guard:
            return self._warm.get(key)

    def _make_room(self, spec: Spec) -> None:
        """Drop what was not used for longest until the new one fits, as far as its preset tells."""
        placement = choose_placement(spec.device, spec.parameters.dtype)
        need = spec.parameters.memory_gib * (2 if placement.dtype == torch.float32 else 1)
        while measure_memory_gib(placement.device)[0] < need and self.drop_idle(at_most=1):
            pass

    def drop_idle(self, *, at_most: int | None = None, unused_s: float = 0.0) -> int:
        """Drop pipelines that nobody works with, the longest unused first; return how many."""
        with self._guard:
            latest = time.monotonic() - unused_s
            idle = [key for key, warm in self._warm.items() if not warm.busy and warm.used <= latest]
            idle.sort(key=lambda key: self._warm[key].used)
            for key in idle[:at_most]:
                del self._warm[key]
            count = len(idle[:at_most])
        if count:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return count

    def take_lane(self, warm: Warm) -> ImagePipeline | None:
        """A lane to work in, until `give_lane`; None when all are busy."""
        with self._guard:
            if not warm.lanes:
                return None
            warm.busy += 1
            return warm.lanes.pop()

    def give_lane(self, warm: Warm, lane: ImagePipeline) -> None:
        """The lane is free again."""
        with self._guard:
            warm.busy -= 1
            warm.lanes.append(lane)
            warm.used = time.monotonic()

    def count_busy(self) -> int:
        """How many lanes are at work."""
        with self._guard:
            return sum(warm.busy for warm in self._warm.values())

    def list_warm(self) -> Sequence[Warm]:
        """What is loaded."""
        with self._guard:
            return list(self._warm.values())
