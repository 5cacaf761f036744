"""Watch the inputs of a batch for changes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from img2img_cli.errors import InputError, UsageError
from img2img_cli.tasks.inputs import GLOB_CHARACTERS, MANIFESTS, glob_root


def watch_inputs(inputs: Sequence[str], output: Path) -> Iterator[set[str]]:
    """Yield the paths that changed below the inputs, and an empty set after every five seconds without a change.

    Changes inside the output folder come from this tool and are ignored. The iterator ends at SIGINT.

    Raises:
        InputError: an input folder does not exist, or the system cannot watch so many folders.
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

    changes = watch(*roots, watch_filter=is_foreign, yield_on_timeout=True, ignore_permission_denied=True)
    while True:
        try:
            changed = next(changes)
        except OSError as error:
            names = ", ".join(roots)
            advice = "others"
            if error.errno == errno.ENOSPC:
                advice = "fewer folders, or raise fs.inotify.max_user_watches"
            raise InputError(f"{names}: cannot be watched ({error.strerror or error}); name {advice}") from None
        yield {path for _, path in changed}


def _root(name: str) -> str:
    if not os.path.lexists(name) and GLOB_CHARACTERS & set(name):
        return glob_root(name)
    if os.path.isdir(name) and not name.endswith(MANIFESTS):
        return name
    return os.path.dirname(name) or "."
