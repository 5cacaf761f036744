"""Pictures that come and go by HTTP: decoded once, made as the command makes them, encoded once, never in a file."""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import json
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from urllib.parse import unquote

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from PIL import Image

from img2img_cli.errors import PresetError, UsageError
from img2img_cli.pictures.colour import to_srgb
from img2img_cli.pictures.read import Picture, check_size, load_image
from img2img_cli.presets.catalogue import COMMAND_LINE, Resolved, resolve_preset
from img2img_cli.presets.files import suggest
from img2img_cli.server.queue import FullError, QueuedPipeline
from img2img_cli.server.state import MOST_WORKS, State
from img2img_cli.system.source_files import check_length
from img2img_cli.system.streams import STDIO
from img2img_cli.tasks.job import Job, check_side_inputs, choose_seed, vary_job
from img2img_cli.tasks.protocol import Spec
from img2img_cli.tasks.run import Finished, Loaded, encode_result, finish_jobs
from img2img_cli.tasks.side_inputs import Guides, check_mask

WebFormat = Literal["png", "jpeg", "webp"]
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
class Result:
    """A file's bytes and what they were made with."""

    data: bytes
    job: Job
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What somebody wants made.

    Attributes:
        picture, mask: as they were sent, or as the request wants them cut and resized.
        seed: None for a fresh one; each result has the next.
        quality: 1 to 100, for JPEG and WebP.
        notes: what of the request cannot be done here, for the client to be told.
        encode: makes a file of a job's result; None to encode it as the command does.
    """

    picture: Picture
    mask: Picture | None = None
    resolved: Resolved
    seed: int | None = None
    count: int = 1
    format: WebFormat = "png"
    quality: int | None = None
    notes: tuple[str, ...] = ()
    encode: Callable[[Job, Finished], Result] | None = None


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
    check_side_inputs(parameters, f"preset '{order.resolved.name}'", mask=order.mask is not None)
    parameters.check_references()
    guides = Guides()
    if order.mask is not None:
        guides = Guides(mask=check_mask(order.mask, order.picture.size)[0])
    job = Job(
        input="image",
        output=STDIO,
        preset=order.resolved.name,
        parameters=parameters,
        seed=choose_seed() if order.seed is None else order.seed,
        mask="mask" if order.mask is not None else None,
        format=order.format,
        quality=order.quality,
    )
    jobs = vary_job(job, [STDIO] * order.count)
    spec = Spec(parameters=parameters, device=state.device, offload=state.offload)
    pipeline = QueuedPipeline(state.dispatcher, spec, owner, cancelled)
    encode = order.encode or functools.partial(encode_picture, order.picture)
    loaded = Loaded(picture=order.picture, guides=guides)
    return [encode(job, finished) for job, finished in finish_jobs(jobs, pipeline, loaded)]


def encode_picture(picture: Picture, job: Job, finished: Finished) -> Result:
    """A finished picture as a file's bytes, with the metadata of the picture that it was made from."""
    return Result(data=encode_result(finished, picture, job)[0], job=job, size=finished.size)


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


def decode_picture(data: bytes, what: str) -> Picture:
    """A picture from a file's bytes, under the limits that files on the disk have.

    Args:
        what: the field's name, for messages.

    Raises:
        InputError: not a picture, damaged, or outside the limits.
    """
    check_length(what, data)
    return load_image(what, data)


def wrap_picture(image: Image.Image, what: str) -> Picture:
    """A picture of decoded pixels (8-bit `L` or RGB), in the colour space that they carry; without other metadata.

    Raises:
        InputError: outside the limits that files have.
    """
    check_size(what, image.size)
    native, rgb, profile = to_srgb(image, image.info.get("icc_profile"))
    return Picture(name=what, rgb=rgb, native=native, icc_profile=profile, grey=image.mode == "L")
