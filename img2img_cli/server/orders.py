"""Pictures that come and go by HTTP, made as the command makes them: from files in a folder that nobody else sees."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import tempfile
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import unquote

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from PIL import Image

from img2img_cli.errors import InputError, PresetError, UsageError
from img2img_cli.presets.catalogue import COMMAND_LINE, Resolved, resolve_preset
from img2img_cli.presets.files import suggest
from img2img_cli.server.queue import FullError, QueuedPipeline
from img2img_cli.server.state import MOST_WORKS, State
from img2img_cli.tasks.job import MAX_SEED, Job, check_control, check_style, choose_seed
from img2img_cli.tasks.protocol import Spec
from img2img_cli.tasks.run import run_jobs

WebFormat = Literal["png", "jpeg", "webp"]
EXTENSION = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
FORMATS: dict[str, WebFormat] = {"png": "png", "jpeg": "jpeg", "jpg": "jpeg", "webp": "webp"}  # as clients name them
_URL_SAFE = str.maketrans("-_", "+/")
Made = TypeVar("Made")


class RefusedError(UsageError):
    """A request that is refused with a status and a code of its own.

    Attributes:
        param: the field that is at fault.
        code: OpenAI's word for the fault.
    """

    def __init__(self, message: str, *, status: int, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


@dataclass(frozen=True, kw_only=True)
class Order:
    """What somebody wants made.

    Attributes:
        image, mask: bytes of a picture's file.
        seed: None for a fresh one; each result has the next.
        quality: 1 to 100, for JPEG and WebP.
        notes: what of the request cannot be done here, for the client to be told.
    """

    image: bytes
    mask: bytes | None = None
    resolved: Resolved
    seed: int | None = None
    count: int = 1
    format: WebFormat = "png"
    quality: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """A file's bytes and what they were made with."""

    data: bytes
    job: Job
    size: tuple[int, int]


def resolve_offer(state: State, name: str | None, overrides: Mapping[str, Any]) -> Resolved:
    """An offered preset's parameters with some replaced; the first offer when none is named.

    Raises:
        UsageError: no such offer, or values out of range.
    """
    offered = state.list_offered()
    name = name or next(iter(state.presets), "edit")
    if name not in offered:
        hint = suggest(name, offered) or f"; there are {', '.join(offered)}"
        raise UsageError(f"no preset '{name}' is ready here{hint}; `img2img models pull` fetches others")
    try:
        return resolve_preset(offered[name], overrides, shown=name, needs_prompt=False)
    except PresetError as error:
        raise UsageError(str(error).replace(f"{COMMAND_LINE}: ", "")) from None


def make_pictures(state: State, order: Order, owner: str, cancelled: threading.Event) -> list[Result]:
    """Run an order through the queue; call it in a thread.

    Raises:
        Img2ImgError: as the command does, with pictures named by what they are.
    """
    parameters = order.resolved.parameters
    check_style(parameters, None, f"preset '{order.resolved.name}'")
    check_control(parameters, None, f"preset '{order.resolved.name}'")
    if order.mask is not None and (parameters.size != "original" or parameters.task == "upscale"):
        raise UsageError("a mask keeps the picture's own pixels, so the result cannot have another size")
    parameters.check_references()
    seed = choose_seed() if order.seed is None else order.seed
    with tempfile.TemporaryDirectory(prefix="img2img-") as name:
        folder = Path(name)
        (folder / "image").write_bytes(order.image)
        if order.mask is not None:
            (folder / "mask").write_bytes(order.mask)
        jobs = [
            Job(
                input=str(folder / "image"),
                output=str(folder / f"{index}{EXTENSION[order.format]}"),
                preset=order.resolved.name,
                parameters=parameters,
                seed=(seed + index) % (MAX_SEED + 1),
                mask=str(folder / "mask") if order.mask is not None else None,
                format=order.format,
                quality=order.quality,
            )
            for index in range(order.count)
        ]
        spec = Spec(parameters=parameters, device=state.device, offload=state.offload)
        pipeline = QueuedPipeline(state.dispatcher, spec, owner, cancelled)
        try:
            made = list(run_jobs(jobs, pipeline))
        except InputError as error:  # whoever sent the picture knows no folder
            raise InputError(str(error).replace(f"{folder}/", "")) from None
        return [Result(data=Path(result.job.output).read_bytes(), job=result.job, size=result.size) for result in made]


class _Request(Request):
    async def json(self) -> Any:
        """The body's content, read in a thread: pictures are large, and other clients are not to wait for them."""
        return await run_in_threadpool(json.loads, await self.body())


class LargeRoute(APIRoute):
    """A route whose JSON may be large."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own, which is given our request."""
        handle = super().get_route_handler()

        async def read_in_thread(request: Request) -> Response:
            return await handle(_Request(request.scope, request.receive))

        return read_in_thread


async def answer_unless_left(
    state: State, request: Request, work: Callable[[threading.Event], Mapping[str, Any]]
) -> JSONResponse:
    """As `run_unless_left`; the JSON is written in the thread too."""
    return await run_unless_left(state, request, lambda cancelled: JSONResponse(work(cancelled)))


async def run_unless_left(state: State, request: Request, work: Callable[[threading.Event], Made]) -> Made:
    """Run work in a thread; when the client leaves or its time is over, the event that it is given is set.

    Raises:
        FullError: too many wait already.
    """
    if state.works >= MOST_WORKS:
        raise FullError
    cancelled = threading.Event()
    # Threads of its own: what waits for a model must not keep others from asking how far it is.
    task = asyncio.ensure_future(run_sync(work, cancelled, limiter=CapacityLimiter(1)))
    state.works += 1

    def note_end(ended: asyncio.Task[Made]) -> None:
        state.works -= 1
        if not ended.cancelled():
            ended.exception()  # nobody else may be left to take it

    task.add_done_callback(note_end)
    try:
        while not (await asyncio.wait([task], timeout=0.25))[0]:
            if await request.is_disconnected():
                cancelled.set()
    except asyncio.CancelledError:
        cancelled.set()
        raise
    return task.result()


def decode_base64(text: str, what: str) -> bytes:
    """The bytes of base64 or of a data URL.

    Line breaks, a missing `=` at the end and the URL-safe alphabet are read, as encoders write them.

    Args:
        what: the field's name, for messages.

    Raises:
        UsageError: it is empty, an address or something else.
    """
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        text = unquote(text) if head.lower().endswith(";base64") else "?"
    elif text[:8].lower().startswith(("http://", "https://")):
        raise UsageError(f"{what}: addresses are not opened; send the picture's file as base64 or as a data URL")
    packed = "".join(text.split()).rstrip("=").translate(_URL_SAFE)
    if not packed:
        raise UsageError(f"{what}: is empty; send the picture's file as base64 or as a data URL")
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise UsageError(f"{what}: not base64; send the picture's file as base64 or as a data URL") from None


def encode_base64(results: Sequence[Result]) -> list[str]:
    """Each result's file in base64."""
    return [base64.b64encode(result.data).decode() for result in results]


def as_png(image: Image.Image) -> bytes:
    """A picture as PNG, quickly."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
