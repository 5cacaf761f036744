"""The part of AUTOMATIC1111's web UI API that makes pictures from pictures: a preset is a checkpoint."""

from __future__ import annotations

import html
import io
import json
import math
import threading
import time
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from img2img_cli.errors import UsageError
from img2img_cli.images import load_image
from img2img_cli.masks import read_mask
from img2img_cli.modelref import BUNDLED
from img2img_cli.parameters import MAX_PIXELS, fewest_steps
from img2img_cli.preset import suggest
from img2img_cli.server.state import State
from img2img_cli.server.web import (
    Order,
    Result,
    decode_base64,
    encode_base64,
    make_pictures,
    resolve_offer,
    run_unless_left,
)

MOST = 64  # results of one request
_KARRAS = {"use_karras_sigmas": True}
# Names of the web UI's samplers: diffusers' class and its settings.
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", _KARRAS),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ 2S a": ("DPMSolverSinglestepScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "DDIM": ("DDIMScheduler", {}),
    "PLMS": ("PNDMScheduler", {}),
    "LCM": ("LCMScheduler", {}),
}
_AUTOMATIC = ("", "automatic", "Automatic")


class Img2ImgRequest(BaseModel):
    """What of the web UI's request has a counterpart here; all else is ignored, as the web UI does."""

    model_config = ConfigDict(extra="ignore")

    init_images: list[str] = Field(min_length=1, max_length=16)
    mask: str | None = None
    mask_blur: float = Field(default=4, ge=0, le=200)
    inpainting_mask_invert: int = 0
    resize_mode: int = Field(default=0, ge=0, le=3)
    width: int | None = Field(default=None, ge=8, le=16384)
    height: int | None = Field(default=None, ge=8, le=16384)
    prompt: str = ""
    negative_prompt: str = ""
    denoising_strength: float = Field(default=0.75, ge=0, le=1)
    steps: int | None = Field(default=None, ge=1, le=1000)
    cfg_scale: float | None = None
    image_cfg_scale: float | None = None
    seed: int = -1
    batch_size: int = Field(default=1, ge=1)
    n_iter: int = Field(default=1, ge=1)
    sampler_name: str | None = None
    scheduler: str | None = None
    override_settings: dict[str, Any] = {}
    send_images: bool = True


class ExtraRequest(BaseModel):
    """The web UI's request to enlarge."""

    model_config = ConfigDict(extra="ignore")

    image: str
    resize_mode: int = Field(default=0, ge=0, le=1)
    upscaling_resize: float = Field(default=2, ge=1, le=8)
    upscaling_resize_w: int = Field(default=512, ge=1, le=16384)
    upscaling_resize_h: int = Field(default=512, ge=1, le=16384)
    upscaling_crop: bool = True
    upscaler_1: str = "None"


def make_router(state: State) -> APIRouter:
    """The routes under `/sdapi/v1`."""
    router = APIRouter(prefix="/sdapi/v1")
    options = {"sd_model_checkpoint": next(iter(state.presets), "edit"), "samples_format": "png"}

    @router.post("/img2img")
    async def img2img(body: Img2ImgRequest, request: Request) -> dict[str, Any]:
        checkpoint = str(body.override_settings.get("sd_model_checkpoint") or options["sd_model_checkpoint"])

        def work(cancelled: threading.Event) -> dict[str, Any]:
            orders = read_orders(state, body, checkpoint)
            results = [r for o in orders for r in make_pictures(state, o, f"web {id(request)}", cancelled)]
            parameters = body.model_dump(exclude={"init_images", "mask"}) | {"init_images": None, "mask": None}
            images = encode_base64(results) if body.send_images else []
            return {"images": images, "parameters": parameters, "info": _describe(body, results, orders[0])}

        return await run_unless_left(state, request, work)

    @router.post("/extra-single-image")
    async def enlarge(body: ExtraRequest, request: Request) -> dict[str, Any]:
        def work(cancelled: threading.Event) -> dict[str, Any]:
            order = read_enlargement(state, body)
            results = make_pictures(state, order, f"web {id(request)}", cancelled)
            told = f"<p>{results[0].size[0]} x {results[0].size[1]}, {html.escape(order.resolved.name)}</p>"
            return {"html_info": told, "image": encode_base64(results)[0]}

        return await run_unless_left(state, request, work)

    @router.get("/options")
    def get_options() -> dict[str, Any]:
        return options

    @router.post("/options")
    def set_options(wanted: dict[str, Any]) -> None:
        if "sd_model_checkpoint" in wanted:
            options["sd_model_checkpoint"] = resolve_offer(state, str(wanted["sd_model_checkpoint"]), {}).name

    @router.get("/sd-models")
    def list_models() -> list[dict[str, Any]]:
        return [
            {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
            for name in state.list_offered()
        ]

    @router.get("/samplers")
    def list_samplers() -> list[dict[str, Any]]:
        return [{"name": name, "aliases": [], "options": {}} for name in SAMPLERS]

    @router.get("/upscalers")
    def list_upscalers() -> list[dict[str, Any]]:
        return [
            {"name": name, "model_name": name, "model_path": None, "model_url": None, "scale": 4}
            for name in ("None", *_list_upscalers(state))
        ]

    @router.get("/scripts")
    def list_scripts() -> dict[str, list[str]]:
        return {"txt2img": [], "img2img": []}

    @router.get("/progress")
    def tell_progress() -> dict[str, Any]:
        return describe_progress(state)

    @router.post("/interrupt")
    def interrupt() -> dict[str, Any]:
        for asked in state.dispatcher.list_running():
            if asked.owner.startswith("web "):
                asked.cancelled.set()
        return {}

    return router


def _list_upscalers(state: State) -> list[str]:
    return [name for name in state.list_offered() if name == "upscale" or name.endswith("-upscale")]


def read_orders(state: State, body: Img2ImgRequest, checkpoint: str) -> list[Order]:
    """An order for each picture that was sent.

    Raises:
        UsageError: naming the key.
    """
    if (body.width or 0) * (body.height or 0) > MAX_PIXELS:
        raise UsageError(f"width, height: more than {MAX_PIXELS // 1_000_000} million pixels; make it smaller")
    if len(body.init_images) * body.batch_size * body.n_iter > MOST:
        raise UsageError(f"batch_size, n_iter: more than {MOST} results in one request; send several")
    overrides: dict[str, Any] = {"negative_prompt": body.negative_prompt}
    overrides |= {"strength": max(body.denoising_strength, 0.01), "mask_feather": body.mask_blur}
    optional = {
        "prompt": body.prompt or None,
        "num_inference_steps": body.steps and max(body.steps, fewest_steps(max(body.denoising_strength, 0.01))),
        "guidance_scale": body.cfg_scale,
        "image_guidance_scale": body.image_cfg_scale,
    }
    overrides |= {key: value for key, value in optional.items() if value is not None}
    sampler = body.sampler_name
    if sampler and sampler not in _AUTOMATIC:
        if sampler not in SAMPLERS:
            raise UsageError(f"sampler_name: no such sampler: '{sampler}'{suggest(sampler, SAMPLERS)}")
        overrides["scheduler"], settings = SAMPLERS[sampler]
        overrides["scheduler_config"] = settings | (_KARRAS if (body.scheduler or "").lower() == "karras" else {})
    resolved = resolve_offer(state, checkpoint, overrides)
    if body.width and body.height and resolved.parameters.model != BUNDLED:
        # The web UI's models work at the result's own size; the bundled one only at its own.
        side = min(max(math.isqrt(body.width * body.height), 64), 2048)
        resolved = resolve_offer(state, checkpoint, overrides | {"image_size": side})
    mask = None if body.mask is None else decode_base64(body.mask, "mask")
    size = (body.width, body.height) if body.width and body.height else None
    return [
        Order(
            image=_fit(decode_base64(text, "init_images"), "init_images", size, body.resize_mode),
            mask=None if mask is None else _fit_mask(mask, size, body),
            resolved=resolved,
            seed=None if body.seed < 0 else body.seed % 2**32,
            count=body.batch_size * body.n_iter,
        )
        for text in body.init_images
    ]


def _fit(data: bytes, what: str, size: tuple[int, int] | None, resize_mode: int) -> bytes:
    """A picture at the wanted size: stretched (0), cropped (1) or filled up with its blurred border (2)."""
    picture = load_image(what, data)
    if size is None or picture.size == size:
        return data
    image = picture.rgb
    if resize_mode == 1:
        fitted = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    elif resize_mode == 2:
        fitted = ImageOps.fit(image, (max(1, size[0] // 16), max(1, size[1] // 16))).resize(size)
        inner = ImageOps.contain(image, size, Image.Resampling.LANCZOS)
        fitted.paste(inner, ((size[0] - inner.width) // 2, (size[1] - inner.height) // 2))
    else:
        fitted = image.resize(size, Image.Resampling.LANCZOS)
    return _as_png(fitted)


def _fit_mask(data: bytes, size: tuple[int, int] | None, body: Img2ImgRequest) -> bytes:
    mask, _ = read_mask(load_image("mask", data))
    mask = ImageOps.invert(mask) if body.inpainting_mask_invert else mask
    return _fit(_as_png(mask), "mask", size, body.resize_mode)


def _as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def read_enlargement(state: State, body: ExtraRequest) -> Order:
    """What `/extra-single-image` asks for.

    Raises:
        UsageError: no such upscaler, or a size that is none.
    """
    names = _list_upscalers(state)
    name = "upscale" if body.upscaler_1 in ("None", "") else body.upscaler_1
    if name not in names:
        raise UsageError(f"upscaler_1: no such upscaler: '{name}'; there are {', '.join(names)}")
    data = decode_base64(body.image, "image")
    overrides: dict[str, Any] = {"scale": body.upscaling_resize}
    if body.resize_mode == 1:
        wanted = (body.upscaling_resize_w, body.upscaling_resize_h)
        picture = load_image("image", data)
        if body.upscaling_crop:
            shape = ImageOps.contain(Image.new("1", wanted), picture.size).size
            data = _as_png(ImageOps.fit(picture.rgb, shape))
        overrides = {"size": f"{wanted[0]}x{wanted[1]}"}
    return Order(image=data, resolved=resolve_offer(state, name, overrides))


def _describe(body: Img2ImgRequest, results: list[Result], order: Order) -> str:
    """The web UI's `info`: what was made with, as JSON in a text."""
    parameters = order.resolved.parameters
    width, height = results[0].size
    return json.dumps(
        {
            "prompt": body.prompt,
            "all_prompts": [body.prompt] * len(results),
            "negative_prompt": body.negative_prompt,
            "seed": results[0].seed,
            "all_seeds": [result.seed for result in results],
            "width": width,
            "height": height,
            "sampler_name": body.sampler_name or parameters.scheduler,
            "cfg_scale": parameters.guidance_scale,
            "steps": parameters.num_inference_steps,
            "batch_size": body.batch_size,
            "sd_model_name": order.resolved.name,
            "denoising_strength": parameters.strength,
            "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        }
    )


def describe_progress(state: State) -> dict[str, Any]:
    """How far the oldest running request is, as the web UI tells it."""
    running = state.dispatcher.list_running()
    step, steps = running[0].step if running else (0, 0)
    share = step / steps if steps else 0.0
    return {
        "progress": share,
        "eta_relative": 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "job": running[0].owner if running else "",
            "job_count": state.dispatcher.count_waiting(),
            "job_no": 0,
            "job_timestamp": "0",
            "sampling_step": step,
            "sampling_steps": steps,
        },
        "current_image": None,
        "textinfo": None,
    }
