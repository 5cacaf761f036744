"""OpenAI's images-edit endpoint and list of models: a preset is a model."""

from __future__ import annotations

import io
import re
import threading
import time
from typing import Any, Literal, cast

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile

from img2img_cli.errors import UsageError
from img2img_cli.images import load_image
from img2img_cli.server.state import State
from img2img_cli.server.web import Order, answer_unless_left, encode_base64, make_pictures, resolve_offer

MOST = 10  # results of one request, as OpenAI has it
_FOREIGN = re.compile(r"(gpt-image|dall-e|chatgpt-image)")  # names that clients send when nobody chose one
FORMATS = ("png", "jpeg", "webp")


def make_router(state: State) -> APIRouter:
    """The routes under `/v1`."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    def list_models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [
                {"id": name, "object": "model", "created": 0, "owned_by": "img2img"} for name in state.list_offered()
            ],
        }

    @router.post("/images/edits")
    async def edit(request: Request) -> JSONResponse:
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise UsageError("image: is missing; send the request as multipart/form-data with the picture's file")
        async with request.form(max_files=17, max_fields=100) as form:
            uploads = [v for key in ("image", "image[]") for v in form.getlist(key) if isinstance(v, UploadFile)]
            if len(uploads) != 1:
                raise UsageError(f"image: {len(uploads)} pictures were sent; send one")
            mask = form.get("mask")
            fields = {key: value for key, value in form.items() if isinstance(value, str)}
            image = await uploads[0].read()
            mask_data = await mask.read() if isinstance(mask, UploadFile) else None

        def work(cancelled: threading.Event) -> dict[str, Any]:
            order = _read_order(state, image, mask_data, fields)
            results = make_pictures(state, order, f"web {id(request)}", cancelled)
            data = [{"b64_json": text} for text in encode_base64(results)]
            return {"created": int(time.time()), "data": data, "output_format": order.format}

        return await answer_unless_left(state, request, work)

    return router


def _read_order(state: State, image: bytes, mask: bytes | None, fields: dict[str, str]) -> Order:
    for key, allowed in (("response_format", ("b64_json",)), ("stream", ("false",)), ("output_format", FORMATS)):
        if key in fields and fields[key].lower() not in allowed:
            raise UsageError(f"{key}: must be {' or '.join(allowed)}, not '{fields[key]}'")
    overrides: dict[str, Any] = {"prompt": fields["prompt"]} if fields.get("prompt") else {}
    size = fields.get("size", "auto")
    if size != "auto":
        overrides["size"] = size
    model = fields.get("model")
    resolved = resolve_offer(state, None if model is None or _FOREIGN.match(model) else model, overrides)
    if resolved.parameters.task == "edit" and not resolved.parameters.prompt:
        raise UsageError("prompt: is missing; say what the result should show")
    return Order(
        image=image,
        mask=None if mask is None else read_mask(mask),
        resolved=resolved,
        count=_read_number(fields, "n", 1, MOST) or 1,
        format=cast(Literal["png", "jpeg", "webp"], fields.get("output_format", "png")),
        quality=_read_number(fields, "output_compression", 1, 100) if fields.get("output_format") != "png" else None,
    )


def _read_number(fields: dict[str, str], key: str, least: int, most: int) -> int | None:
    text = fields.get(key)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 9 or not least <= int(text) <= most:
        raise UsageError(f"{key}: must be from {least} to {most}, not '{text[:40]}'")
    return int(text)


def read_mask(data: bytes) -> bytes:
    """A mask as the command takes it, white where to repaint: OpenAI's is transparent there.

    Raises:
        UsageError: it has no transparency.
        InputError: not a picture.
    """
    alpha = load_image("mask", data).alpha
    if alpha is None:
        raise UsageError("mask: has no transparency; make it transparent where the picture is to change")
    buffer = io.BytesIO()
    alpha.point(lambda value: 255 - value).save(buffer, "PNG")
    return buffer.getvalue()
