"""Use a pipeline in the warm server like one in this process, without torch."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from img2img_cli.server.sockets import connect, read_peer
from img2img_cli.tasks.pieces import Piece, Pipeline, Progress
from img2img_cli.tasks.protocol import (
    CONTENT_TYPE,
    OWNER,
    SILENCE_S,
    Elsewhere,
    Spec,
    pack_pieces,
    restore_error,
    unpack,
)

PART_BYTES = 1 << 20
Build = Callable[[Spec], Pipeline]


class ServerGoneError(Exception):
    """There is no server, it has ended, or it does not accept the request."""

    def __init__(self, reason: str = "the server ended") -> None:
        super().__init__(reason)


class ServerSilentError(ServerGoneError):
    """The server is running but does not answer, because it is stopped or gets no processor time."""

    def __init__(self, process: int | None) -> None:
        name, remedy = ("", "") if process is None else (f" (process {process})", f"; `kill -9 {process}` ends it")
        super().__init__(f"the server{name} does not answer{remedy}")


class _Connection(http.client.HTTPConnection):
    """HTTP over the server's own socket.

    Attributes:
        process: the server's process id once connected; None if the system does not report it.
    """

    process: int | None = None

    def connect(self) -> None:
        found = connect(SILENCE_S)
        if found is None:
            raise ServerGoneError
        self.sock = found
        peer = read_peer(found)
        self.process = None if peer is None else peer[0]


@contextlib.contextmanager
def _answer(
    method: str, path: str, body: bytes = b"", kind: str = "application/json", owner: str = ""
) -> Iterator[http.client.HTTPResponse]:
    """Send a request and yield the response. Leaving the block closes the connection, which cancels the request.

    Raises:
        ServerGoneError: the server cannot be reached, refuses the request or closes the connection.
        ServerSilentError: the server sends nothing for `SILENCE_S`.
        Img2ImgError: the error that the server reports.
    """
    connection = _Connection("localhost")
    try:
        headers = {"Content-Type": kind, OWNER: owner, "Content-Length": str(len(body))}
        connection.request(method, path, _cut(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise _explain(response)
        yield response
    except TimeoutError as error:
        raise ServerSilentError(connection.process) from error
    except (OSError, http.client.HTTPException, EOFError) as error:
        raise ServerGoneError from error
    finally:
        connection.close()


def _explain(response: http.client.HTTPResponse) -> Exception:
    """Return the error in a response: `ServerGoneError` if a command could go on without the server."""
    try:
        told = json.loads(response.read())
    except ValueError:
        return ServerGoneError(f"the server does not accept this (status {response.status})")
    if response.status == 503 or "kind" not in told:
        return ServerGoneError(f"the server does not accept this ({told['message']})")
    return restore_error(told)


def _cut(body: bytes) -> Iterator[bytes]:
    """Split a body into parts, because the timeout applies to each part that is sent."""
    return (body[place : place + PART_BYTES] for place in range(0, len(body), PART_BYTES))


def _follow(response: http.client.HTTPResponse, progress: Progress | None = None) -> tuple[Any, list[Image.Image]]:
    """Pass on the server's progress messages; return its last message and the images in it."""
    while True:
        told, images = unpack(response.read)
        if "step" in told:
            if progress is not None:
                progress(told["step"], told["steps"])
        elif "kind" in told:
            raise restore_error(told)
        elif "busy" not in told:
            return told, images


def ask_server(method: str, path: str, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Send a JSON request to the server and return its answer.

    Raises:
        ServerGoneError: the server cannot be reached, does not answer, or refuses the request.
        Img2ImgError: the error that the server reports.
    """
    body = b"" if content is None else json.dumps(content).encode()
    with _answer(method, path, body) as response:
        answer: dict[str, Any] = json.loads(response.read())
        return answer


class RemotePipeline(Elsewhere):
    """A pipeline in the server, with the same results as one in this process, which replaces it if the server ends.

    Attributes:
        notes: sentences to show to the user; the caller removes those that it has shown.
    """

    def __init__(self, spec: Spec, build: Build) -> None:
        """Make the server load the pipeline, unless it is loaded already.

        Args:
            build: builds the pipeline in this process if the server ends.

        Raises:
            ServerGoneError: there is no server, or it refuses the request.
            ServerSilentError: the server does not answer.
            Img2ImgError: the pipeline cannot be loaded.
        """
        self._spec, self._build = spec, build
        with _answer("POST", "/img2img/pipelines", json.dumps(spec.to_json()).encode()) as response:
            super().__init__(**_follow(response)[0])
        self.notes: list[str] = []
        self._told = set[str]()
        self._owner = f"command {os.getpid()} {id(self)}"  # all lanes of this command share one turn in the queue
        self._guard = threading.Lock()
        self._own: Pipeline | None = None

    def transform(self, pieces: Sequence[Piece], progress: Progress | None = None) -> list[Image.Image]:
        """Run a batch of pieces of one group; return the results in the order of the pieces."""
        reason = ""
        if self._own is None:
            try:
                return self._ask(pieces, progress)
            except ServerGoneError as error:
                reason = str(error)
        with self._guard:  # one at a time: the threads of this process are not divided between lanes
            if self._own is None:
                self.notes.append(f"{reason}; going on without it")
                self._own = self._build(self._spec)
            made = self._own.transform(pieces, progress)
            self._pass_on(self._own.notes)
            return made

    def _ask(self, pieces: Sequence[Piece], progress: Progress | None) -> list[Image.Image]:
        body = pack_pieces(self._spec, pieces)
        with _answer("POST", "/img2img/transform", body, CONTENT_TYPE, self._owner) as response:
            told, images = _follow(response, progress)
            self._pass_on(told["notes"])
            return images

    def _pass_on(self, notes: list[str]) -> None:
        self.notes += [note for note in notes if note not in self._told]
        self._told.update(notes)

    def make_lanes(self) -> Sequence[Pipeline]:
        """Return this pipeline once for each batch that the server works on at once."""
        return [self] * self.lanes
