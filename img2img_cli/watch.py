"""Wake up when pictures arrive, and only when they have arrived whole."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from img2img_cli.errors import InputError, UsageError
from img2img_cli.inputs import GLOB_CHARACTERS, MANIFESTS, glob_root

SETTLE_S = 0.5


def watch_inputs(inputs: Sequence[str], output: Path) -> Iterator[set[str]]:
    """Yield the paths that changed below the inputs, once their sizes have stood still for half a second.

    Changes inside the output folder are this tool's own and wake nobody. Ends at SIGINT.

    Raises:
        InputError: there is nothing to look at.
        UsageError: `watchfiles` is not installed.
    """
    try:
        from watchfiles import watch
    except ImportError:
        raise UsageError("--watch needs watchfiles; install it with: pip install 'img2img-cli[watch]'") from None
    roots = sorted({_root(name) for name in inputs})
    for root in roots:
        if not os.path.exists(root):
            raise InputError(f"{root}: no such folder to watch; create it first")
    results = os.path.realpath(output)

    def is_foreign(_: object, path: str) -> bool:
        return not Path(os.path.realpath(path)).is_relative_to(results)

    for changes in watch(*roots, watch_filter=is_foreign, raise_interrupt=True):
        changed = {path for _, path in changes}
        _wait_until_settled(changed)
        yield changed


def _root(name: str) -> str:
    if not os.path.lexists(name) and GLOB_CHARACTERS & set(name):
        return glob_root(name)
    if os.path.isdir(name) and not name.endswith(MANIFESTS):
        return name
    return os.path.dirname(name) or "."


def _wait_until_settled(paths: set[str]) -> None:
    before: dict[str, tuple[int, int]] | None = None
    while before != (now := _stamps(paths)):
        before = now
        time.sleep(SETTLE_S)


def _stamps(paths: set[str]) -> dict[str, tuple[int, int]]:
    stamps = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            continue
        stamps[path] = (status.st_size, status.st_mtime_ns)
    return stamps
