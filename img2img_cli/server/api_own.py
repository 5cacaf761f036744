"""The API for img2img's own commands: load a pipeline by its spec, and transform pieces."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any

from fastapi import APIRouter, Response
from fastapi.requests import Request as HttpRequest
from fastapi.responses import StreamingResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool

from img2img_cli.errors import UsageError
from img2img_cli.server.pool import describe_warm
from img2img_cli.server.queue import CancelledError, Request
from img2img_cli.server.state import State
from img2img_cli.tasks.pieces import Progress
from img2img_cli.tasks.protocol import (
    CONTENT_TYPE,
    HEARTBEAT_S,
    OWNER,
    Spec,
    describe_error,
    pack,
    parse_duration,
    unpack_pieces,
)

_nameless = itertools.count()


def make_router(state: State) -> APIRouter:
    """Return the routes under `/img2img`. Clients can name files, so serve them only on the user's own socket."""
    router = APIRouter(prefix="/img2img")

    @router.get("/status")
    def tell_status() -> dict[str, Any]:
        return state.describe()

    @router.post("/stop")
    def stop() -> dict[str, Any]:
        state.stop.set()
        return {}

    @router.post("/keep")
    async def keep(request: HttpRequest) -> dict[str, Any]:
        state.extend(_read(lambda data: parse_duration(str(json.loads(data)["keep"])), await request.body()))
        return {}

    @router.post("/pipelines")
    async def load(request: HttpRequest) -> Response:
        spec = _read(lambda data: Spec.from_json(json.loads(data)), await request.body())
        events = asyncio.Queue[bytes | None]()
        future = await run_in_threadpool(state.dispatcher.load, spec)
        future.add_done_callback(_waker(events))

        def finish() -> bytes:
            error = future.exception()
            return pack(describe_error(error) if error else vars(describe_warm(future.result())))

        return StreamingResponse(_follow(events, finish), media_type=CONTENT_TYPE)

    @router.post("/transform")
    async def transform(request: HttpRequest) -> Response:
        loop, events = asyncio.get_running_loop(), asyncio.Queue[bytes | None]()

        def tell(step: int, steps: int) -> None:
            loop.call_soon_threadsafe(events.put_nowait, pack({"step": step, "steps": steps}))

        owner = request.headers.get(OWNER) or f"command {next(_nameless)}"
        body = await request.body()
        # In a thread: parsing large pictures must not delay other requests.
        asked = await run_in_threadpool(_read_request, body, owner, tell)
        future = state.dispatcher.submit(asked)
        future.add_done_callback(_waker(events))

        async def answer() -> AsyncIterator[bytes]:
            try:
                async for part in _follow(events, lambda: _finish(future, asked)):
                    yield part
            finally:  # also if the client has disconnected
                state.dispatcher.cancel(asked)

        return StreamingResponse(answer(), media_type=CONTENT_TYPE)

    return router


def _read_request(body: bytes, owner: str, tell: Progress) -> Request:
    spec, pieces = _read(unpack_pieces, _reader(body))
    return Request(owner=owner, spec=spec, pieces=pieces, progress=tell)


def _waker(events: asyncio.Queue[bytes | None]) -> Callable[[Any], None]:
    """Return a callback for a future, callable from any thread, that puts the end mark into `events`."""
    loop = asyncio.get_running_loop()

    def wake(_: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may already be closed when the server ends
            loop.call_soon_threadsafe(events.put_nowait, None)

    return wake


async def _follow(events: asyncio.Queue[bytes | None], finish: Callable[[], bytes]) -> AsyncIterator[bytes]:
    """Yield events until the end mark, with a heartbeat whenever none came for `HEARTBEAT_S`; then yield `finish()`."""
    event: bytes | None = pack({"busy": True})  # at once, to confirm that the request was accepted
    while event is not None:
        yield event
        try:
            event = await asyncio.wait_for(events.get(), HEARTBEAT_S)
        except TimeoutError:
            event = pack({"busy": True})
    yield await run_in_threadpool(finish)


def _finish(future: Future[list[Image.Image]], asked: Request) -> bytes:
    error = future.exception()
    if error is None:
        return pack({"notes": asked.notes}, future.result())
    return pack(describe_error(error)) if not isinstance(error, CancelledError) else b""


def _reader(body: bytes) -> Any:
    place = 0

    def read(count: int) -> bytes:
        nonlocal place
        place += count
        return body[place - count : place]

    return read


def _read(parse: Any, data: Any) -> Any:
    try:
        return parse(data)
    except (LookupError, ValueError, TypeError, AttributeError, EOFError, RecursionError) as error:
        raise UsageError(f"not a request of this version ({type(error).__name__}: {error})") from None
