"""Turn the web UI's requests into orders: preset, size and mask."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from PIL import Image, ImageOps

from img2img_cli.engines.hub import read_index
from img2img_cli.errors import UsageError
from img2img_cli.pictures import masks
from img2img_cli.pictures.colour import from_srgb
from img2img_cli.pictures.keep import restore_alpha
from img2img_cli.pictures.masks import feather_mask, paste_masked
from img2img_cli.pictures.read import Picture
from img2img_cli.presets.references import is_bundled
from img2img_cli.presets.schema import MAX_PIXELS, Parameters, fewest_steps
from img2img_cli.server.a1111.schema import ExtraRequest, Img2ImgRequest, choose_format, choose_sampler
from img2img_cli.server.orders import (
    Order,
    Result,
    decode_base64,
    decode_picture,
    encode_picture,
    resolve_offer,
    wrap_picture,
)
from img2img_cli.server.state import State
from img2img_cli.tasks.job import MAX_SEED, Job, choose_seed
from img2img_cli.tasks.run import Finished

MOST = 64  # results per request
SIDE = 512  # the web UI's default for the other side if a request gives only one
Box = tuple[int, int, int, int]
Make = Callable[..., Order]  # makes an order of the request for a picture and its mask


def read_orders(state: State, body: Img2ImgRequest, settings: dict[str, Any]) -> list[Order]:
    """Return one order for a single picture, or one per result for several pictures.

    Args:
        settings: the web UI's settings, updated with those of the request.

    Raises:
        UsageError: a value cannot be used; the message names the key.
        InputError: a picture cannot be read.
    """
    body.check()
    size = _read_size(body)
    count = body.batch_size * body.n_iter
    if len(body.init_images) * count > MOST:
        raise UsageError(f"batch_size, n_iter: more than {MOST} results in one request; send several")
    checkpoint = str(settings["sd_model_checkpoint"])
    overrides, notes = _read_overrides(body), body.list_unused()
    sampler = choose_sampler(body.sampler, body.scheduler)
    resolved = resolve_offer(state, checkpoint, overrides)
    if sampler and has_flow(resolved.parameters):
        notes += ("sampler_name: this model works with its own sampler",)  # clients always send one
    elif sampler:
        overrides |= sampler
        resolved = resolve_offer(state, checkpoint, overrides)
    if size is not None and not is_bundled(resolved.parameters.model):
        # As in the web UI, models work at the size of the result, except the bundled ones, which have a fixed size.
        side = min(max(math.isqrt(size[0] * size[1]), 64), 2048)
        resolved = resolve_offer(state, checkpoint, overrides | {"image_size": side})
    format_, quality = choose_format(settings)
    seed = choose_seed() if body.seed < 0 else body.seed % (MAX_SEED + 1)
    mask = None
    if body.mask:
        mask, told = read_mask(decode_base64(body.mask, "mask"), invert=bool(body.inpainting_mask_invert))
        notes += told
    make = functools.partial(
        Order, resolved=resolved, seed=seed, count=count, format=format_, quality=quality, notes=notes
    )
    pictures = [decode_picture(decode_base64(text, "init_images"), "init_images") for text in body.init_images]
    orders = [_read_picture(body, picture, mask, size, make) for picture in pictures]
    if len(orders) == 1:
        return orders
    # Several pictures are a batch in the web UI: each picture of each round gets the next seed.
    rounds = [order for _ in range(body.n_iter) for order in orders]
    return [replace(order, seed=(seed + index) % (MAX_SEED + 1), count=1) for index, order in enumerate(rounds)]


def _read_size(body: Img2ImgRequest) -> tuple[int, int] | None:
    if body.width is None and body.height is None:
        return None
    size = (body.width or SIDE, body.height or SIDE)
    if size[0] * size[1] > MAX_PIXELS:
        raise UsageError(f"width, height: more than {MAX_PIXELS // 1_000_000} million pixels; make it smaller")
    return size


def _read_overrides(body: Img2ImgRequest) -> dict[str, Any]:
    strength = max(body.denoising_strength, 0.01)
    optional = {
        "prompt": body.plain_prompt or None,
        "num_inference_steps": body.steps and max(body.steps, fewest_steps(strength)),
        "guidance_scale": body.cfg_scale,
        "image_guidance_scale": body.image_cfg_scale,
    }
    return {
        "negative_prompt": body.plain_negative_prompt,
        "strength": strength,
        "mask_feather": body.mask_blur_x if body.mask_blur is None else body.mask_blur,
        **{key: value for key, value in optional.items() if value is not None},
    }


def has_flow(parameters: Parameters) -> bool:
    """Return whether a preset's model was trained for flow matching, which no sampler of the web UI supports."""
    scheduler = read_index(parameters.model, parameters.revision).get("scheduler")
    return isinstance(scheduler, list) and "FlowMatch" in str(scheduler[-1:])


def _read_picture(
    body: Img2ImgRequest, picture: Picture, mask: Image.Image | None, size: tuple[int, int] | None, make: Make
) -> Order:
    if mask is not None and body.inpaint_full_res and mask.getbbox() is not None:
        return _read_masked_part(body, picture, mask, size, make)
    fitted = fit(picture, size, body.resize_mode)
    if mask is None:
        return make(picture=fitted)
    whole = fit_image(mask, fitted.size, body.resize_mode)
    return make(picture=fitted, mask=wrap_picture(whole, "mask"))


def _read_masked_part(
    body: Img2ImgRequest, picture: Picture, mask: Image.Image, size: tuple[int, int] | None, make: Make
) -> Order:
    """Return an order for the surroundings of the mask at the requested size, to be pasted into the whole picture.

    The web UI calls this "only masked".
    """
    mask = fit_image(mask, picture.size, 0)
    box = find_part(mask, body.inpaint_full_res_padding, size or picture.size)
    working = size or (box[2] - box[0], box[3] - box[1])
    image, hard_mask = (fit_image(whole.crop(box), working, 0) for whole in (picture.rgb, mask))
    order = make(picture=wrap_picture(image, "image"), mask=wrap_picture(hard_mask, "mask"))
    parameters = order.resolved.parameters
    soft = feather_mask(mask, parameters.mask_feather)
    hard = parameters.model_copy(update={"mask_feather": 0.0})  # feathered when it is pasted

    def paste(job: Job, finished: Finished) -> Result:
        part = finished.image.convert("RGB").resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS)
        whole = picture.native.copy()
        part = paste_masked(from_srgb(part, picture.icc_profile), whole.crop(box), soft.crop(box))
        whole.paste(part, box)
        pasted = Finished(image=restore_alpha(whole, picture.alpha), format=order.format)
        return encode_picture(picture, job.model_copy(update={"parameters": parameters}), pasted)

    return replace(order, resolved=replace(order.resolved, parameters=hard), encode=paste)


def find_part(mask: Image.Image, padding: int, shape: tuple[int, int]) -> Box:
    """Return the bounding box of the nonzero pixels of a mask, padded and enlarged to an aspect ratio.

    Args:
        mask: `L` with at least one nonzero pixel.
        padding: pixels to add on each side.
        shape: width and height whose ratio the box gets, as far as the picture's borders permit.
    """
    box = mask.getbbox()
    assert box is not None
    left, top = max(box[0] - padding, 0), max(box[1] - padding, 0)
    right, bottom = min(box[2] + padding, mask.width), min(box[3] + padding, mask.height)
    width, height = right - left, bottom - top
    width = min(mask.width, max(width, round(height * shape[0] / shape[1])))
    height = min(mask.height, max(height, round(width * shape[1] / shape[0])))
    left = min(max(left - (width - (right - left)) // 2, 0), mask.width - width)
    top = min(max(top - (height - (bottom - top)) // 2, 0), mask.height - height)
    return left, top, left + width, top + height


def fit(picture: Picture, size: tuple[int, int] | None, resize_mode: int) -> Picture:
    """Return a picture resized as by `fit_image`, or the same one if `size` is None or its own."""
    if size is None or picture.size == size:
        return picture
    return wrap_picture(fit_image(picture.rgb, size, resize_mode), "image")


def fit_image(image: Image.Image, size: tuple[int, int], resize_mode: int) -> Image.Image:
    """Resize a picture or mask. The web UI's modes are 0 and 3: stretch, 1: crop, 2: fill up with a blurred copy.

    Masks (`L`) are resized bilinearly, without the overshoot that would leave traces of white in black areas.
    """
    resample = Image.Resampling.BILINEAR if image.mode == "L" else Image.Resampling.LANCZOS
    if image.size == size:
        return image
    if resize_mode == 1:
        return ImageOps.fit(image, size, resample)
    if resize_mode == 2:
        fitted = ImageOps.fit(image, (max(1, size[0] // 16), max(1, size[1] // 16))).resize(size)
        inner = ImageOps.contain(image, size, resample)
        fitted.paste(inner, ((size[0] - inner.width) // 2, (size[1] - inner.height) // 2))
        return fitted
    return image.resize(size, resample)


def read_mask(data: bytes, *, invert: bool) -> tuple[Image.Image, tuple[str, ...]]:
    """Return a mask as `L`, white where to repaint, and notes on how it was interpreted.

    As in the web UI, a mask with transparency is its alpha, in black and white.

    Raises:
        InputError: the file cannot be read as a picture, or the mask is ambiguous.
    """
    picture = decode_picture(data, "mask")
    note = None
    if picture.alpha is not None and picture.alpha.getextrema() != (255, 255):
        mask = picture.alpha.point(lambda value: 255 if value > 128 else 0)
    else:
        mask, note = masks.read_mask(picture)
    return ImageOps.invert(mask) if invert else mask, (f"mask: {note}",) if note else ()


def list_upscalers(state: State) -> list[str]:
    """Return the names of the offered presets for upscaling."""
    return [name for name in state.list_offered() if name == "upscale" or name.endswith("-upscale")]


def read_enlargement(state: State, body: ExtraRequest, text: str, settings: dict[str, Any]) -> Order:
    """Return the order of `/extra-single-image`, or of one picture of `/extra-batch-images`.

    Args:
        text: the picture in base64.
        settings: the web UI's settings.

    Raises:
        UsageError: there is no such upscaler, or the server does not support a requested feature.
        InputError: the picture cannot be read.
    """
    body.check()
    names = list_upscalers(state)
    name = "upscale" if body.upscaler_1 in ("None", "") else body.upscaler_1
    if name not in names:
        raise UsageError(f"upscaler_1: no such upscaler: '{name}'; there are {', '.join(names)}")
    picture = decode_picture(decode_base64(text, "image"), "image")
    overrides: dict[str, Any] = {"scale": body.upscaling_resize}
    if body.resize_mode == 1:
        wanted = (body.upscaling_resize_w, body.upscaling_resize_h)
        if body.upscaling_crop:
            shape = ImageOps.contain(Image.new("1", wanted), picture.size).size
            picture = wrap_picture(ImageOps.fit(picture.rgb, shape), "image")
        overrides = {"size": f"{wanted[0]}x{wanted[1]}"}
    format_, quality = choose_format(settings)
    return Order(picture=picture, resolved=resolve_offer(state, name, overrides), format=format_, quality=quality)
