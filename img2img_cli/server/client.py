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
    """There is no server, it ended, or it takes no request."""

    def __init__(self, reason: str = "the server ended") -> None:
        super().__init__(reason)


class ServerSilentError(ServerGoneError):
    """The server is there but says nothing: stopped, or without a turn on the processor."""

    def __init__(self, process: int | None) -> None:
        name, remedy = ("", "") if process is None else (f" (process {process})", f"; `kill -9 {process}` ends it")
        super().__init__(f"the server{name} does not answer{remedy}")


class _Connection(http.client.HTTPConnection):
    """HTTP over the server's own socket.

    Attributes:
        process: the server's, once it is connected.
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
    """The response to one request; leaving early tells the server that nobody waits any more.

    Raises:
        ServerGoneError: it cannot be reached, or breaks off.
        ServerSilentError: it says nothing.
        Img2ImgError: what the server says is wrong.
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
    """What a refusal says: an error of the request's own, or one that a server has and a command alone has not."""
    try:
        told = json.loads(response.read())
    except ValueError:
        return ServerGoneError(f"the server does not take this (status {response.status})")
    if response.status == 503 or "kind" not in told:
        return ServerGoneError(f"the server does not take this ({told['message']})")
    return restore_error(told)


def _cut(body: bytes) -> Iterator[bytes]:
    """In parts, as the time limit is for each."""
    return (body[place : place + PART_BYTES] for place in range(0, len(body), PART_BYTES))


def _follow(response: http.client.HTTPResponse, progress: Progress | None = None) -> tuple[Any, list[Image.Image]]:
    """The last message of a server that tells how far it is."""
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
    """A question in JSON to the server.

    Raises:
        ServerGoneError, Img2ImgError: as the module's other requests.
    """
    body = b"" if content is None else json.dumps(content).encode()
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
            ServerSilentError: it is there but says nothing.
            Img2ImgError: it cannot be loaded.
        """
        self._spec, self._build = spec, build
        with _answer("POST", "/img2img/pipelines", json.dumps(spec.to_json()).encode()) as response:
            super().__init__(**_follow(response)[0])
        self.notes: list[str] = []
        self._told = set[str]()
        self._owner = f"command {os.getpid()} {id(self)}"  # its lanes take one turn
        self._guard = threading.Lock()
        self._own: Pipeline | None = None

    def transform(self, pieces: Sequence[Piece], progress: Progress | None = None) -> list[Image.Image]:
        """Run a batch of pieces of one group; the results in their order."""
        reason = ""
        if self._own is None:
            try:
                return self._ask(pieces, progress)
            except ServerGoneError as error:
                reason = str(error)
        with self._guard:  # one at a time, as nobody has shared out this process's threads
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
        """As many as the server works on at once."""
        return [self] * self.lanes
