"""Serve the server's own socket in the test's process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from img2img_cli.server import sockets
from img2img_cli.server.app import _run, make_app
from img2img_cli.server.guard import Guard
from img2img_cli.server.state import State


@contextlib.contextmanager
def serve_own(state: State) -> Iterator[str]:
    """Serve the server's own socket and yield its path."""
    path = sockets.socket_path("api")
    with sockets.listen(path) as listener:
        apps = [(Guard(make_app(state, native=True)), listener)]
        thread = threading.Thread(target=lambda: asyncio.run(_run(state, apps)))
        thread.start()
        try:
            yield path
        finally:
            state.stop.set()
            thread.join(120)
    assert not thread.is_alive()
