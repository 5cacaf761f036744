"""Make pictures for HTTP requests in memory: decode the input, run the same jobs as the command, encode the result."""

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
from img2img_cli.tasks.side_inputs import SideInputs, check_mask

WebFormat = Literal["png", "jpeg", "webp"]
FORMATS: dict[str, WebFormat] = {"png": "png", "jpeg": "jpeg", "jpg": "jpeg", "webp": "webp"}  # by clients' names
_URL_SAFE = str.maketrans("-_", "+/")
Made = TypeVar("Made")


class RefusedError(UsageError):
    """A request that is refused with a specific status and code.

    Attributes:
        status: HTTP status.
        param: the field at fault.
        code: OpenAI's error code.
    """

    def __init__(self, message: str, *, status: int, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


@dataclass(frozen=True, kw_only=True)
class Result:
    """An encoded result.

    Attributes:
        data: the file's bytes.
        size: width and height in pixels.
    """

    data: bytes
    job: Job
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Order:
    """One picture to transform, with its parameters.

    Attributes:
        picture, mask: as sent, or already cropped and resized as the request asks.
        seed: seed of the first result, increased by 1 for each further one; None for a random one.
        count: number of results.
        quality: 1 to 100, for JPEG and WebP; None for the default.
        notes: sentences for the client about parts of the request that have no effect here.
        encode: turns a job's result into a file; None to encode it as the command does.
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
    """Return an offered preset's parameters with some replaced. The default is the server's first preset, or `edit`.

    Raises:
        UsageError: the preset is not on offer, or values are out of range.
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
    """Run an order through the queue and return its results. Blocks, so call it in a thread.

    Args:
        owner: the client, for its turn in the queue.
        cancelled: set it to cancel the order.

    Raises:
        Img2ImgError: as the command, but with `image` and `mask` as the names of the pictures.
        CancelledError: `cancelled` was set.
        FullError: too many requests are waiting.
    """
    parameters = order.resolved.parameters
    check_side_inputs(parameters, f"preset '{order.resolved.name}'", mask=order.mask is not None)
    parameters.check_references()
    side_inputs = SideInputs()
    if order.mask is not None:
        side_inputs = SideInputs(mask=check_mask(order.mask, order.picture.size)[0])
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
    loaded = Loaded(picture=order.picture, side_inputs=side_inputs)
    return [encode(job, finished) for job, finished in finish_jobs(jobs, pipeline, loaded)]


def encode_picture(picture: Picture, job: Job, finished: Finished) -> Result:
    """Encode a finished picture with the metadata of its input picture."""
    return Result(data=encode_result(finished, picture, job)[0], job=job, size=finished.size)


class _Request(Request):
    async def json(self) -> Any:
        """Return the parsed body. Parses in a thread, so that large pictures do not delay other clients."""
        return await run_in_threadpool(json.loads, await self.body())


class LargeRoute(APIRoute):
    """A route that parses its JSON body in a thread, because it may hold large pictures."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, but with a request that parses JSON in a thread."""
        handle = super().get_route_handler()

        async def read_in_thread(request: Request) -> Response:
            return await handle(_Request(request.scope, request.receive))

        return read_in_thread


async def answer_unless_left(
    state: State, request: Request, work: Callable[[threading.Event], Mapping[str, Any]]
) -> JSONResponse:
    """Do the same as `run_unless_left`, and also encode the result as JSON in the thread."""
    return await run_unless_left(state, request, lambda cancelled: JSONResponse(work(cancelled)))


async def run_unless_left(state: State, request: Request, work: Callable[[threading.Event], Made]) -> Made:
    """Run `work` in a thread and return its result.

    Args:
        work: is given an event that is set if the client disconnects or its time limit passes.

    Raises:
        FullError: `MOST_WORKS` requests are already running or waiting.
    """
    if state.works >= MOST_WORKS:
        raise FullError
    cancelled = threading.Event()
    # A thread outside the shared pool: work that waits for a model must not block requests for its progress.
    task = asyncio.ensure_future(run_sync(work, cancelled, limiter=CapacityLimiter(1)))
    state.works += 1

    def note_end(ended: asyncio.Task[Made]) -> None:
        state.works -= 1
        if not ended.cancelled():
            ended.exception()  # otherwise asyncio warns if nobody is left to retrieve it

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
    """Decode base64 or a base64 data URL.

    Accepts variants that encoders write: line breaks, missing `=` at the end, and the URL-safe alphabet.

    Args:
        what: the field's name, for messages.

    Raises:
        UsageError: the text is empty, a web address or not base64.
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
    """Return each result's file in base64."""
    return [base64.b64encode(result.data).decode() for result in results]


def decode_picture(data: bytes, what: str) -> Picture:
    """Decode a picture from a file's bytes, under the same limits as files on the disk.

    Args:
        what: the field's name, for messages.

    Raises:
        InputError: the file is not a picture, is damaged or exceeds the limits.
    """
    check_length(what, data)
    return load_image(what, data)


def wrap_picture(image: Image.Image, what: str) -> Picture:
    """Return a picture of an 8-bit `L` or RGB image, with its ICC profile but no other metadata.

    Raises:
        InputError: the image exceeds the limits for pictures.
    """
    check_size(what, image.size)
    native, rgb, profile = to_srgb(image, image.info.get("icc_profile"))
    return Picture(name=what, rgb=rgb, native=native, icc_profile=profile, grey=image.mode == "L")
