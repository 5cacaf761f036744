"""State that the server's APIs share: the queue, the presets on offer, and when to shut down."""

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
from img2img_cli.system.interrupts import INTERRUPTS

TICK_S = 0.25
MOST_WORKS = 64  # web requests that may run or wait at once


@functools.cache
def _list_needs(name: str) -> list[Repository]:
    """Return the hub repositories that a shipped preset needs."""
    return list_repositories(resolve(load_preset(name), {}).parameters)


@dataclass(kw_only=True)
class State:
    """State of one server.

    Attributes:
        presets: name or file of each preset given at the start, by its name for clients; the first is the default.
        ends_idle: whether to shut down once no request has come for as long as pipelines are kept.
        works: number of web requests that are running or waiting.
        stop: set it to shut the server down.
        began: when the server started, in seconds of `time.monotonic`.
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
        """Return the presets that need no download, name to name or file; those given at the start come first."""
        offered = dict(self.presets)
        for name in list_presets():
            if name not in offered and all(map(is_fetched, _list_needs(name))):
                offered[name] = name
        return offered

    def extend(self, keep_s: float) -> None:
        """Keep models loaded for at least `keep_s` seconds of disuse, starting now."""
        pool = self.dispatcher.pool
        pool.keep_s = max(pool.keep_s, keep_s)
        self.dispatcher.idle_since = time.monotonic()

    def watch(self) -> None:
        """Drop unused pipelines until `stop` is set. Set it on a signal and, if `ends_idle`, once idle."""
        dispatcher = self.dispatcher
        while not self.stop.wait(TICK_S):
            keep_s = dispatcher.pool.keep_s
            dispatcher.pool.drop_idle(unused_s=keep_s)
            idle = not dispatcher.count_waiting() and not dispatcher.pool.count_busy()
            if self.ends_idle and idle and time.monotonic() - dispatcher.idle_since > keep_s:
                self.stop.set()
            if INTERRUPTS.is_pending:
                self.stop.set()

    def describe(self) -> dict[str, Any]:
        """Return the values that `serve --status` shows. Durations are in seconds."""
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
