"""The way in for our own commands: pipelines by their spec, and pieces to transform."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Any

from fastapi import APIRouter, Response
from fastapi.requests import Request as HttpRequest
from fastapi.responses import StreamingResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool

from img2img_cli.errors import UsageError
from img2img_cli.server.dispatcher import CancelledError, Request
from img2img_cli.server.state import State
from img2img_cli.wire import CONTENT_TYPE, OWNER, Spec, describe_error, pack, parse_duration, unpack_pieces

_visitors = itertools.count()


def make_router(state: State) -> APIRouter:
    """The routes under `/img2img`. They take files' names from whoever asks, so they are for the user's own socket."""
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
    async def load(request: HttpRequest) -> dict[str, Any]:
        spec = _read(lambda data: Spec.from_json(json.loads(data)), await request.body())
        return vars(await run_in_threadpool(state.dispatcher.describe, spec))

    @router.post("/transform")
    async def transform(request: HttpRequest) -> Response:
        body = await request.body()
        spec, pieces = _read(unpack_pieces, _reader(body))
        loop, events = asyncio.get_running_loop(), asyncio.Queue[bytes | None]()

        def tell(step: int, steps: int) -> None:
            loop.call_soon_threadsafe(events.put_nowait, pack({"step": step, "steps": steps}))

        owner = request.headers.get(OWNER) or f"command {next(_visitors)}"
        asked = Request(owner=owner, spec=spec, pieces=pieces, progress=tell)
        future = state.dispatcher.submit(asked)
        future.add_done_callback(lambda _: _wake(loop, events))

        async def answer() -> AsyncIterator[bytes]:
            try:
                while (event := await events.get()) is not None:
                    yield event
                yield _finish(future, asked)
            finally:  # also when the client has left
                state.dispatcher.cancel(asked)

        return StreamingResponse(answer(), media_type=CONTENT_TYPE)

    return router


def _wake(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[bytes | None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed when the server ends
        loop.call_soon_threadsafe(events.put_nowait, None)


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
