"""A pipeline that a warm server holds, used like one of this process, without torch."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from img2img_cli.meeting import connect
from img2img_cli.wire import CONTENT_TYPE, OWNER, Elsewhere, Spec, pack_pieces, restore_error, unpack
from img2img_cli.work import Piece, Pipeline, Progress

Build = Callable[[Spec], Pipeline]


class ServerGoneError(Exception):
    """The server ended, or never was."""


class _Connection(http.client.HTTPConnection):
    """HTTP over the server's own socket."""

    def connect(self) -> None:
        found = connect("api")
        if found is None:
            raise ServerGoneError
        self.sock = found


@contextlib.contextmanager
def _answer(
    method: str, path: str, body: bytes | None = None, kind: str = "application/json", owner: str = ""
) -> Iterator[Any]:
    """The response to one request; leaving early tells the server that nobody waits any more.

    Raises:
        ServerGoneError: it cannot be reached, or breaks off.
        Img2ImgError: what the server says is wrong.
    """
    connection = _Connection("localhost")
    try:
        connection.request(method, path, body, {"Content-Type": kind, OWNER: owner})
        response = connection.getresponse()
        if response.status != 200:
            told = json.loads(response.read())
            if response.status == 503 or "kind" not in told:
                raise ServerGoneError
            raise restore_error(told)
        yield response
    except (OSError, http.client.HTTPException, EOFError) as error:
        raise ServerGoneError from error
    finally:
        connection.close()


def ask_server(method: str, path: str, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A question in JSON to the server.

    Raises:
        ServerGoneError, Img2ImgError: as the module's other requests.
    """
    body = None if content is None else json.dumps(content).encode()
    with _answer(method, path, body) as response:
        answer: dict[str, Any] = json.loads(response.read())
        return answer


class RemotePipeline(Elsewhere):
    """A pipeline in the server, with the same results; when the server goes, one in this process takes over.

    Attributes:
        notes: what to tell its user, a sentence each; whoever shows them takes them out.
    """

    def __init__(self, spec: Spec, build: Build) -> None:
        """Have the server load it, unless it is warm.

        Raises:
            ServerGoneError: there is none after all.
            Img2ImgError: it cannot be loaded.
        """
        self._spec, self._build = spec, build
        super().__init__(**ask_server("POST", "/img2img/pipelines", spec.to_json()))
        self.notes: list[str] = []
        self._told = set[str]()
        self._owner = f"command {os.getpid()} {id(self)}"  # its lanes take one turn
        self._guard = threading.Lock()
        self._own: Pipeline | None = None

    def transform(self, pieces: Sequence[Piece], progress: Progress | None = None) -> list[Image.Image]:
        """Run a batch of pieces of one group; the results in their order."""
        if self._own is None:
            try:
                return self._ask(pieces, progress)
            except ServerGoneError:
                pass
        with self._guard:  # one at a time, as nobody has shared out this process's threads
            if self._own is None:
                self.notes.append("the server ended; going on without it")
                self._own = self._build(self._spec)
            made = self._own.transform(pieces, progress)
            self._pass_on(self._own.notes)
            return made

    def _ask(self, pieces: Sequence[Piece], progress: Progress | None) -> list[Image.Image]:
        body = pack_pieces(self._spec, pieces)
        with _answer("POST", "/img2img/transform", body, CONTENT_TYPE, self._owner) as response:
            while True:
                told, images = unpack(response.read)
                if "step" in told:
                    if progress is not None:
                        progress(told["step"], told["steps"])
                elif "kind" in told:
                    raise restore_error(told)
                else:
                    self._pass_on(told["notes"])
                    return images

    def _pass_on(self, notes: list[str]) -> None:
        self.notes += [note for note in notes if note not in self._told]
        self._told.update(notes)

    def make_lanes(self) -> Sequence[Pipeline]:
        """As many as the server works on at once."""
        return [self] * self.lanes
