"""What the server's ways in share: the queue, the presets on offer, and when it ends."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from img2img_cli import __version__
from img2img_cli.presets.catalogue import resolve
from img2img_cli.presets.files import list_presets, load_preset
from img2img_cli.presets.repositories import Repository, is_fetched, list_repositories
from img2img_cli.presets.schema import Offload
from img2img_cli.server.queue import Dispatcher

TICK_S = 0.25
MOST_WORKS = 64  # that web clients may wait for at once


@functools.cache
def _list_needs(name: str) -> list[Repository]:
    """What a preset of the catalogue needs from the hub."""
    return list_repositories(resolve(load_preset(name), {}).parameters)


@dataclass(kw_only=True)
class State:
    """One server.

    Attributes:
        presets: those that were named, by the name they are asked for; the first is what is used unasked.
        works: how many requests of web clients are being worked on or wait for their turn.
        ends_idle: whether it ends when nobody asked for anything as long as pipelines are kept.
    """

    dispatcher: Dispatcher
    presets: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"
    offload: Offload = "auto"
    ends_idle: bool = False
    works: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=time.monotonic)

    def list_offered(self) -> dict[str, str]:
        """Presets that need nothing from the hub, by name; those that were named when the server began come first."""
        offered = dict(self.presets)
        for name in list_presets():
            if name not in offered and all(map(is_fetched, _list_needs(name))):
                offered[name] = name
        return offered

    def extend(self, keep_s: float) -> None:
        """Keep models at least so long."""
        pool = self.dispatcher.pool
        pool.keep_s = max(pool.keep_s, keep_s)
        self.dispatcher.idle_since = time.monotonic()

    def watch(self) -> None:
        """Drop what nobody uses any more, and see whether it is time to end; returns when it is."""
        dispatcher = self.dispatcher
        while not self.stop.wait(TICK_S):
            keep_s = dispatcher.pool.keep_s
            dispatcher.pool.drop_idle(unused_s=keep_s)
            idle = not dispatcher.count_waiting() and not dispatcher.pool.count_busy()
            if self.ends_idle and idle and time.monotonic() - dispatcher.idle_since > keep_s:
                self.stop.set()

    def describe(self) -> dict[str, Any]:
        """What `serve --status` shows."""
        now = time.monotonic()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "seconds": round(now - self.began, 1),
            "keep_seconds": self.dispatcher.pool.keep_s,
            "waiting": self.dispatcher.count_waiting(),
            "model_seconds": round(self.dispatcher.model_s, 4),
            "warm": [
                {
                    "model": warm.spec.parameters.model,
                    "device": warm.pipeline.device_name,
                    "dtype": str(warm.pipeline.placement.dtype).removeprefix("torch."),
                    "unused_seconds": 0.0 if warm.busy else round(now - warm.used, 1),
                }
                for warm in self.dispatcher.pool.list_warm()
            ],
        }
