"""OpenAI's image-edit endpoint and list of models. Each preset is a model."""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartParser

from img2img_cli.errors import InputError, UsageError
from img2img_cli.pictures.read import Picture
from img2img_cli.server.guard import MAX_BODY_BYTES
from img2img_cli.server.orders import (
    FORMATS,
    Order,
    RefusedError,
    Result,
    WebFormat,
    decode_base64,
    decode_picture,
    encode_base64,
    make_pictures,
    resolve_offer,
    run_unless_left,
    wrap_picture,
)
from img2img_cli.server.state import State

MultiPartParser.spool_max_size = MAX_BODY_BYTES  # keep uploaded files of any size in memory
MOST = 10  # results per request, OpenAI's limit
_FOREIGN = re.compile(r"(gpt-image|dall-e|chatgpt-image)")  # clients' default model names, which choose no preset
_INDEX = re.compile(r"\[\d*\]$")  # suffix of repeated fields: `image[]`, `image[0]`
_FIELD = re.compile(r"(\w+): ")
_CODES = {
    "extra_forbidden": "unknown_parameter",
    "literal_error": "invalid_value",
    "greater_than_equal": "integer_below_min_value",
    "less_than_equal": "integer_above_max_value",
    "string_too_long": "string_above_max_length",
}  # pydantic's error types and OpenAI's codes for them
_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}  # there are no tokens here, but clients expect the fields


class EditRequest(BaseModel):
    """The fields of OpenAI's edit request, except the pictures. Unknown fields are refused, as by OpenAI."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(default="", max_length=32_000)
    model: str | None = None
    n: int = Field(default=1, ge=1, le=MOST)
    size: str = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    output_format: WebFormat = "png"
    output_compression: int | None = Field(default=None, ge=0, le=100)
    background: Literal["auto", "opaque"] = "auto"
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] = "auto"
    input_fidelity: Literal["low", "high"] = "low"
    complexity: Literal["low", "medium", "high"] | None = None
    stream: bool = False
    partial_images: int = Field(default=0, ge=0, le=3)
    user: str = ""
    safety_identifier: str = ""

    @field_validator("size", "output_format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        text = value.lower() if isinstance(value, str) else value
        return FORMATS.get(text, text) if isinstance(text, str) else text

    def list_unused(self) -> tuple[str, ...]:
        """Return a note for each given field that has no effect on this server."""
        wishes = {
            "quality": self.quality not in ("auto", "standard"),
            "input_fidelity": self.input_fidelity != "low",
            "complexity": self.complexity is not None,
        }
        return tuple(f"{key}: has no effect here; the preset decides" for key, given in wishes.items() if given)


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A request as received: its fields, and its pictures as encoded files."""

    fields: dict[str, Any]
    images: list[bytes]
    mask: bytes | None


def make_router(state: State) -> APIRouter:
    """Return the routes under `/v1`."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_describe_model(name) for name in state.list_offered()]}

    @router.get("/models/{name}")
    def get_model(name: str) -> dict[str, Any]:
        with telling_openai():
            _check_model(state, name)
        return _describe_model(name)

    @router.post("/images/edits")
    async def edit(request: Request) -> Response:
        kind = request.headers.get("content-type", "").lower()
        sent: Sent | bytes
        with telling_openai():
            if kind.startswith("multipart/form-data"):
                sent = await _read_form(request)
            elif kind.startswith("application/json"):
                sent = await request.body()
            else:
                raise UsageError("image: is missing; send the request as multipart/form-data with the picture's file")

        def work(cancelled: threading.Event) -> Response:
            with telling_openai():
                wish, order = read_order(state, read_json(sent) if isinstance(sent, bytes) else sent)
                results = make_pictures(state, order, f"web {id(request)}", cancelled)
            return _stream(order, results) if wish.stream else JSONResponse(_describe(order, results))

        return await run_unless_left(state, request, work)

    @router.post("/images/generations")
    @router.post("/images/variations")
    def refuse() -> None:
        raise RefusedError(
            "this server makes pictures from pictures and a prompt; send them to /v1/images/edits", status=404
        )

    return router


def _describe_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "img2img"}


@contextlib.contextmanager
def telling_openai() -> Iterator[None]:
    """Turn errors in a request or its pictures into OpenAI's status 400, naming the field at fault.

    Raises:
        RefusedError: replaces UsageError, ValidationError and InputError; other RefusedErrors pass unchanged.
    """
    try:
        yield
    except RefusedError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "body"
        code = _CODES.get(first["type"], "invalid_type")
        told = f"{first['msg'][:1].lower()}{first['msg'][1:]}, not '{str(first['input'])[:40]}'"
        if code == "unknown_parameter":
            told = "unknown parameter; leave it out"
        raise RefusedError(f"{key[:80]}: {told}", status=400, param=key[:80], code=code) from None
    except (UsageError, InputError) as error:
        field = _FIELD.match(str(error))
        param = field[1] if field and field[1] in {*EditRequest.model_fields, "image", "mask", "body"} else None
        code = "invalid_value"
        if isinstance(error, InputError):
            code = "invalid_image_file"
        elif ": is missing" in str(error):
            code = "missing_required_parameter"
        raise RefusedError(str(error), status=400, param=param, code=code) from None


async def _read_form(request: Request) -> Sent:
    """Read a request from a multipart form.

    Raises:
        UsageError: a picture was sent as text, or there is more than one mask.
        RefusedError: a file was sent for another field.
        HTTPException: the form is malformed or has too many parts.
    """
    fields: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {"image": [], "mask": []}
    async with request.form(max_files=17, max_fields=100) as form:
        for key, value in form.multi_items():
            name = _INDEX.sub("", key)
            if isinstance(value, UploadFile):
                data = await value.read()
                if name not in files:
                    raise RefusedError(
                        f"{key[:80]}: no such file is taken here; leave it out",
                        status=400,
                        param=key[:80],
                        code="unknown_parameter",
                    )
                if data or value.filename:  # browsers send an empty, nameless part if no file was chosen
                    files[name].append(data)
            elif name not in files:
                fields[key] = value
            elif value:
                raise UsageError(f"{name}: was sent as text; send the picture's file")
    if len(files["mask"]) > 1:
        raise UsageError(f"mask: {len(files['mask'])} masks were sent; send one")
    return Sent(fields=fields, images=files["image"], mask=next(iter(files["mask"]), None))


def read_json(body: bytes) -> Sent:
    """Parse a JSON request, whose pictures are data URLs.

    Raises:
        UsageError: the body is not a JSON object, or a picture is not a data URL.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise UsageError("body: is not JSON; send the request as multipart/form-data or as JSON") from None
    if not isinstance(fields, dict):
        raise UsageError("body: must be a JSON object")
    images, mask = fields.pop("images", None) or [], fields.pop("mask", None)
    if not isinstance(images, list):
        raise UsageError("image: must be a list of objects with an image_url each")
    return Sent(
        fields=fields,
        images=[_read_reference(image, "image") for image in images],
        mask=_read_reference(mask, "mask") if mask else None,
    )


def _read_reference(reference: object, what: str) -> bytes:
    url = reference.get("image_url") if isinstance(reference, dict) else None
    if not isinstance(url, str):
        raise UsageError(f"{what}: must have an image_url with the picture's file as a data URL")
    return decode_base64(url, what)


def read_order(state: State, sent: Sent) -> tuple[EditRequest, Order]:
    """Validate a request and return it with its order.

    An empty text or `null` means a field's default, because clients send these in forms.

    Raises:
        UsageError: a value cannot be used; the message names the field.
        RefusedError: the model is not on offer.
        ValidationError: a field is unknown or out of range.
        InputError: a picture cannot be read.
    """
    if not sent.images:
        raise UsageError("image: is missing; send the picture's file")
    if len(sent.images) > 1:
        raise UsageError(f"image: {len(sent.images)} pictures were sent; send one")
    fields = {
        key: value
        for key, value in sent.fields.items()
        if value not in ("", None) and (value != "null" or key == "prompt")
    }
    wish = EditRequest.model_validate(fields)
    quality = wish.output_compression
    if wish.output_format == "png" and quality not in (None, 100):
        raise UsageError("output_compression: PNG loses nothing; leave it out, or choose output_format jpeg or webp")
    model = None if wish.model is None or _FOREIGN.match(wish.model) else wish.model
    if model is not None:
        _check_model(state, model)
    overrides: dict[str, Any] = {"prompt": wish.prompt} if wish.prompt else {}
    picture = decode_picture(sent.images[0], "image")
    if wish.size != "auto" and (sent.mask is None or wish.size != f"{picture.size[0]}x{picture.size[1]}"):
        overrides["size"] = wish.size
    resolved = resolve_offer(state, model, overrides)
    if resolved.parameters.task == "edit" and not resolved.parameters.prompt:
        raise UsageError("prompt: is missing; say what the result should show")
    return wish, Order(
        picture=_drop_alpha(picture) if wish.background == "opaque" else picture,
        mask=None if sent.mask is None else read_mask(sent.mask),
        resolved=resolved,
        count=wish.n,
        format=wish.output_format,
        quality=None if quality is None or wish.output_format == "png" else max(quality, 1),
        notes=wish.list_unused(),
    )


def _check_model(state: State, name: str) -> None:
    try:
        resolve_offer(state, name, {})
    except UsageError as error:
        raise RefusedError(f"model: {error}", status=404, param="model", code="model_not_found") from None


def _drop_alpha(picture: Picture) -> Picture:
    return picture if picture.alpha is None else wrap_picture(picture.rgb, picture.name)


def read_mask(data: bytes) -> Picture:
    """Turn OpenAI's mask, transparent where to repaint, into one of the command's, white where to repaint.

    Raises:
        UsageError: the mask has no transparency.
        InputError: the file cannot be read as a picture.
    """
    alpha = decode_picture(data, "mask").alpha
    if alpha is None:
        raise UsageError("mask: has no transparency; make it transparent where the picture is to change")
    return wrap_picture(alpha.point(lambda value: 255 - value), "mask")


def _describe(order: Order, results: list[Result]) -> dict[str, Any]:
    """Return the response body. `notes`, an extension of OpenAI's format, is present only if there are any."""
    return {
        "created": int(time.time()),
        "data": [{"b64_json": text} for text in encode_base64(results)],
        **_describe_output(order, results[0]),
        **({"notes": list(order.notes)} if order.notes else {}),
    }


def _describe_output(order: Order, result: Result) -> dict[str, Any]:
    with Image.open(io.BytesIO(result.data)) as image:
        transparent = image.has_transparency_data
    return {
        "background": "transparent" if transparent else "opaque",
        "output_format": order.format,
        "size": f"{result.size[0]}x{result.size[1]}",
        "usage": _USAGE,
    }


def _stream(order: Order, results: list[Result]) -> Response:
    """Return one server-sent event per finished result, and no partial images."""
    events = []
    for text, result in zip(encode_base64(results), results, strict=True):
        content = {
            "type": "image_edit.completed",
            "b64_json": text,
            "created_at": int(time.time()),
            "quality": "auto",
            **_describe_output(order, result),
            **({"notes": list(order.notes)} if order.notes else {}),
        }
        events.append(f"event: {content['type']}\ndata: {json.dumps(content)}\n\n")
    return Response("".join(events), media_type="text/event-stream")
