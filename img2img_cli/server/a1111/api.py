"""The img2img and upscaling endpoints of AUTOMATIC1111's web UI API. Each preset is a checkpoint."""

from __future__ import annotations

import html
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from img2img_cli import __version__
from img2img_cli.presets.samplers import SAMPLERS, SCHEDULES
from img2img_cli.server.a1111.orders import list_upscalers, read_enlargement, read_orders
from img2img_cli.server.a1111.schema import ExtraBatchRequest, ExtraRequest, Img2ImgRequest
from img2img_cli.server.orders import (
    FORMATS,
    LargeRoute,
    Order,
    RefusedError,
    Result,
    answer_unless_left,
    encode_base64,
    make_pictures,
    resolve_offer,
)
from img2img_cli.server.state import State
from img2img_cli.tasks.record import format_parameters

# Answers to lists that clients request at startup, of features that this server does not have.
_EMPTY: dict[str, Any] = {
    "sd-vae": [],
    "loras": [],
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "latent-upscale-modes": [],
    "prompt-styles": [],
    "extensions": [],
    "script-info": [],
    "scripts": {"txt2img": [], "img2img": []},
    "embeddings": {"loaded": {}, "skipped": {}},
    "cmd-flags": {},
}
_REFRESH = ("refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings")


def make_router(state: State) -> APIRouter:
    """Return the routes under `/sdapi/v1`."""
    router = APIRouter(prefix="/sdapi/v1", route_class=LargeRoute)
    options: dict[str, Any] = {"sd_model_checkpoint": next(iter(state.presets), "edit"), "samples_format": "png"}

    @router.post("/img2img")
    async def img2img(body: Img2ImgRequest, request: Request) -> JSONResponse:
        override = {key: value for key, value in body.override_settings.items() if value not in (None, "")}

        def work(cancelled: threading.Event) -> dict[str, Any]:
            orders = read_orders(state, body, options | override)
            results = [r for o in orders for r in make_pictures(state, o, f"web {id(request)}", cancelled)]
            if not body.override_settings_restore_afterwards:
                _set_options(state, options, override)
            left_out = set() if body.include_init_images else {"init_images", "mask"}
            parameters = dict.fromkeys(left_out) | body.model_dump(exclude=left_out)
            images = encode_base64(results) if body.send_images else []
            return {"images": images, "parameters": parameters, "info": _describe(body, results, orders[0])}

        return await answer_unless_left(state, request, work)

    @router.post("/extra-single-image")
    async def enlarge(body: ExtraRequest, request: Request) -> JSONResponse:
        def work(cancelled: threading.Event) -> dict[str, Any]:
            order = read_enlargement(state, body, body.image, options)
            results = make_pictures(state, order, f"web {id(request)}", cancelled)
            return {"html_info": _describe_enlarged(order, results), "image": encode_base64(results)[0]}

        return await answer_unless_left(state, request, work)

    @router.post("/extra-batch-images")
    async def enlarge_several(body: ExtraBatchRequest, request: Request) -> JSONResponse:
        def work(cancelled: threading.Event) -> dict[str, Any]:
            orders = [read_enlargement(state, body, file.data, options) for file in body.imageList]
            results = [r for o in orders for r in make_pictures(state, o, f"web {id(request)}", cancelled)]
            return {"html_info": _describe_enlarged(orders[0], results), "images": encode_base64(results)}

        return await answer_unless_left(state, request, work)

    @router.post("/txt2img")
    def refuse() -> None:
        raise RefusedError("this server makes pictures from pictures and a prompt; send them to img2img", status=404)

    @router.get("/options")
    def get_options() -> dict[str, Any]:
        return options

    @router.post("/options")
    def set_options(wanted: dict[str, Any]) -> None:
        _set_options(state, options, wanted)

    @router.get("/sd-models")
    def list_models() -> list[dict[str, Any]]:
        return [
            {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
            for name in state.list_offered()
        ]

    @router.get("/samplers")
    def list_samplers() -> list[dict[str, Any]]:
        return [{"name": name, "aliases": [], "options": {}} for name in SAMPLERS]

    @router.get("/schedulers")
    def list_schedulers() -> list[dict[str, Any]]:
        return [
            {
                "name": name.replace(" ", "_"),
                "label": name.title().replace("Sgm", "SGM"),
                "aliases": None,
                "default_rho": -1,
                "need_inner_model": False,
            }
            for name in SCHEDULES
        ]

    @router.get("/upscalers")
    def list_all_upscalers() -> list[dict[str, Any]]:
        return [
            {"name": name, "model_name": name, "model_path": None, "model_url": None, "scale": 4}
            for name in ("None", *list_upscalers(state))
        ]

    @router.get("/progress")
    def tell_progress() -> dict[str, Any]:
        return describe_progress(state)

    @router.post("/interrupt")
    def interrupt() -> dict[str, Any]:
        for asked in state.dispatcher.list_running():
            if asked.owner.startswith("web "):
                asked.cancelled.set()
        return {}

    for name, content in _EMPTY.items():
        router.add_api_route(f"/{name}", _answer(content), methods=["GET"])
    for name in _REFRESH:  # nothing to do: presets are looked up on each request
        router.add_api_route(f"/{name}", _answer(None), methods=["POST"])
    return router


def _answer(content: Any) -> Callable[[], Any]:
    """Return a route that always answers with `content`."""
    return lambda: content


def _set_options(state: State, options: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Store the settings of the web UI that have a counterpart here, and ignore the others.

    Raises:
        UsageError: the preset is not on offer.
    """
    if wanted.get("sd_model_checkpoint") not in (None, ""):
        options["sd_model_checkpoint"] = resolve_offer(state, str(wanted["sd_model_checkpoint"]), {}).name
    format_ = str(wanted.get("samples_format")).lower()
    if format_ in FORMATS:
        options["samples_format"] = format_


def _describe_enlarged(order: Order, results: list[Result]) -> str:
    sizes = (f"{result.size[0]} x {result.size[1]}, {html.escape(order.resolved.name)}" for result in results)
    return "".join(f"<p>{size}</p>" for size in sizes)


def _describe(body: Img2ImgRequest, results: list[Result], order: Order) -> str:
    """Return the web UI's `info`, a JSON text of the parameters. Our additional `notes` say what had no effect."""
    parameters = order.resolved.parameters
    width, height = results[0].size
    seeds = [result.job.seed for result in results]
    return json.dumps(
        {
            "prompt": body.prompt,
            "all_prompts": [body.prompt] * len(results),
            "negative_prompt": body.negative_prompt,
            "all_negative_prompts": [body.negative_prompt] * len(results),
            "seed": seeds[0],
            "all_seeds": seeds,
            "subseed": body.subseed,
            "all_subseeds": [body.subseed] * len(results),
            "subseed_strength": 0,
            "width": width,
            "height": height,
            "sampler_name": (body.sampler if parameters.scheduler else None) or parameters.scheduler or "model default",
            "cfg_scale": parameters.guidance_scale,
            "steps": parameters.num_inference_steps,
            "batch_size": body.batch_size,
            "restore_faces": False,
            "face_restoration_model": None,
            "sd_model_name": order.resolved.name,
            "sd_model_hash": None,
            "sd_vae_name": None,
            "sd_vae_hash": None,
            "seed_resize_from_w": body.seed_resize_from_w,
            "seed_resize_from_h": body.seed_resize_from_h,
            "denoising_strength": parameters.strength,
            "extra_generation_params": {},
            "index_of_first_image": 0,
            "infotexts": [format_parameters(result.job, result.size) for result in results],
            "styles": body.styles,
            "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
            "clip_skip": 1,
            "is_using_inpainting_conditioning": False,
            "version": f"img2img {__version__}",
            "notes": list(order.notes),
        }
    )


def describe_progress(state: State) -> dict[str, Any]:
    """Return the progress of the oldest running request in the web UI's format."""
    running = state.dispatcher.list_running()
    step, steps = running[0].step if running else (0, 0)
    share = step / steps if steps else 0.0
    return {
        "progress": share,
        "eta_relative": 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
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
