"""Requests of clients of OpenAI's and AUTOMATIC1111's servers are understood, or refused as those servers do."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import inspect
import io
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.responses import JSONResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from img2img_cli.errors import PresetError, UsageError
from img2img_cli.presets.samplers import SCHEDULES
from img2img_cli.server import api_openai
from img2img_cli.server.a1111 import orders, schema
from img2img_cli.server.a1111.schema import Img2ImgRequest
from img2img_cli.server.app import _run, make_app
from img2img_cli.server.guard import Guard
from img2img_cli.server.orders import Order, RefusedError, decode_base64, resolve_offer
from img2img_cli.server.pool import Pool
from img2img_cli.server.queue import Dispatcher
from img2img_cli.server.state import State

TOKEN = "a token for tests"
EDIT, IMG2IMG = "/v1/images/edits", "/sdapi/v1/img2img"
QUICK = {"prompt": "fog", "steps": 1, "denoising_strength": 1.0, "seed": 5, "sampler_name": "Euler"}
PRESET = """
extends: edit
num_inference_steps: 2
image_size: 64
scheduler: EulerDiscreteScheduler
"""


@dataclass
class Served:
    state: State
    port: int

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        """Send a request with the token; return status and content."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        client.request(method, path, body, {"Authorization": f"Bearer {TOKEN}", **named})
        response = client.getresponse()
        content = response.read()
        return response.status, json.loads(content) if content else None

    def post(self, path: str, content: object) -> tuple[int, Any]:
        return self.ask("POST", path, json.dumps(content).encode(), Content_Type="application/json")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve the web side in this process, with two presets that take no time."""
    folder = tmp_path_factory.mktemp("presets")
    for name in ("quick", "other"):
        (folder / f"{name}.yaml").write_text(PRESET)
    presets = {name: str(folder / f"{name}.yaml") for name in ("quick", "other")}
    state = State(dispatcher=Dispatcher(Pool(600)), presets=presets)
    front = Guard(make_app(state, native=False), token=TOKEN, hosts=["localhost", "127.0.0.1"], limit_s=120)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(_run(state, [(front, listener)])))
        thread.start()
        yield Served(state, listener.getsockname()[1])
        state.stop.set()
        thread.join(20)
    state.dispatcher.close()


@pytest.fixture
def openai_client(served: Served) -> Any:
    import openai

    return openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1/", api_key=TOKEN, max_retries=0)


@pytest.fixture
def webui_client(served: Served) -> Any:
    import webuiapi

    return webuiapi.WebUIApi(host="127.0.0.1", port=served.port, username="me", password=TOKEN)


def encode(image: Image.Image, format_: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_)
    return buffer.getvalue()


def decode(text: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


PICTURE = Image.effect_noise((64, 48), 60).convert("RGB")
FILE = encode(PICTURE)
DATA = base64.b64encode(FILE).decode()
WRAPPED = base64.encodebytes(FILE).decode()


def make_mask(size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Return a mask whose left half is white."""
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


# Base64, as encoders and browsers write it.


@pytest.mark.parametrize(
    "text",
    [
        DATA,
        f"{DATA}\n",
        f" {DATA}\r\n",
        WRAPPED,
        WRAPPED.replace("\n", "\r\n"),
        DATA.rstrip("="),
        base64.urlsafe_b64encode(FILE).decode(),
        f"data:image/png;base64,{DATA}",
        f"data:image/png;base64,{WRAPPED}",
        f"data:image/png;base64,{quote(DATA)}",
        f"DATA:image/PNG;charset=utf-8;BASE64,{DATA}",
        f"data:application/octet-stream;base64,{DATA}",
        f"data:;base64,{DATA}",
    ],
)
def test_base64_in_all_its_forms(text: str) -> None:
    assert decode_base64(text, "image") == FILE


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("data:image/png;base64,", "is empty"),
        ("=", "is empty"),
        ("A", "not base64"),
        ("iVBOR!", "not base64"),
        ("photo.png", "not base64"),
        ("iV=BOR", "not base64"),
        ("é", "not base64"),
        (f"data:image/png,{DATA}", "not base64"),
        ("data:image/png;base64", "is empty"),
        ("https://example.org/a.png", "addresses are not opened"),
        ("HTTP://example.org/a.png", "addresses are not opened"),
    ],
)
def test_what_is_no_base64_is_told_so(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=f"^image: {told}"):
        decode_base64(text, "image")


# OpenAI's fields.


def read(served: Served, fields: dict[str, Any], mask: bytes | None = None, image: bytes = FILE) -> tuple[Any, Any]:
    with api_openai.telling_openai():
        sent = api_openai.Sent(fields={"prompt": "fog", **fields}, images=[image], mask=mask)
        return api_openai.read_order(served.state, sent)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"count": 1, "format": "png", "quality": None}),
        ({"model": "", "size": "", "n": "", "output_format": "", "mask": "", "user": ""}, {"count": 1}),
        ({"model": "null", "n": "null", "output_compression": "null"}, {"count": 1, "quality": None}),
        ({"model": None, "n": None, "quality": None, "stream": None}, {"count": 1}),
        ({"n": "3"}, {"count": 3}),
        ({"n": "3.0"}, {"count": 3}),
        ({"n": 3.0}, {"count": 3}),
        ({"output_format": "PNG", "output_compression": "100"}, {"format": "png", "quality": None}),
        ({"output_format": "JPEG"}, {"format": "jpeg", "quality": None}),
        ({"output_format": "jpg", "output_compression": "50"}, {"format": "jpeg", "quality": 50}),
        ({"output_format": "WebP", "output_compression": "0"}, {"format": "webp", "quality": 1}),
        ({"model": "gpt-image-1.5", "background": "auto", "quality": "auto", "input_fidelity": "low"}, {"notes": ()}),
        ({"response_format": "b64_json", "stream": "False", "partial_images": "0", "safety_identifier": "x"}, {}),
    ],
)
def test_fields_of_an_edit(served: Served, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    fields = {key: value for key, value in fields.items() if key != "mask"}
    _, order = read(served, fields)
    assert {key: getattr(order, key) for key in expected} == expected
    assert order.resolved.name == "quick"


@pytest.mark.parametrize("text", ["true", "True", "1", True])
def test_a_stream_may_be_asked_for_in_many_words(served: Served, text: object) -> None:
    assert read(served, {"stream": text, "partial_images": "3"})[0].stream


def test_sizes_are_read_in_either_case(served: Served) -> None:
    assert read(served, {"size": "48X64"})[1].resolved.parameters.size == "48x64"
    assert read(served, {"size": "AUTO"})[1].resolved.parameters.size == "original"


def test_wishes_that_no_preset_can_meet_are_told(served: Served) -> None:
    _, order = read(served, {"quality": "high", "input_fidelity": "high"})
    assert [note.partition(":")[0] for note in order.notes] == ["quality", "input_fidelity"]


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"strength": "0.5"}, 400, "strength", "unknown_parameter"),
        ({"svg[model]": "x"}, 400, "svg[model]", "unknown_parameter"),
        ({"frame_count": "4"}, 400, "frame_count", "unknown_parameter"),
        ({"output_format": "gif"}, 400, "output_format", "invalid_value"),
        ({"output_compression": "50"}, 400, "output_compression", "invalid_value"),
        ({"output_format": "webp", "output_compression": "101"}, 400, "output_compression", "integer_above_max_value"),
        ({"response_format": "url"}, 400, "response_format", "invalid_value"),
        ({"background": "transparent"}, 400, "background", "invalid_value"),
        ({"quality": "best"}, 400, "quality", "invalid_value"),
        ({"n": "0"}, 400, "n", "integer_below_min_value"),
        ({"n": "11"}, 400, "n", "integer_above_max_value"),
        ({"n": "1.5"}, 400, "n", "invalid_type"),
        ({"n": "many"}, 400, "n", "invalid_type"),
        ({"stream": "maybe"}, 400, "stream", "invalid_type"),
        ({"prompt": ""}, 400, "prompt", "missing_required_parameter"),
        ({"prompt": "fog" * 32_001}, 400, "prompt", "string_above_max_length"),
        ({"size": "12"}, 400, "size", "invalid_value"),
        ({"model": "nope"}, 404, "model", "model_not_found"),
        ({"model": "gpt-5"}, 404, "model", "model_not_found"),
    ],
)
def test_fields_that_are_refused(served: Served, fields: dict[str, Any], status: int, param: str, code: str) -> None:
    with pytest.raises(RefusedError) as caught:
        read(served, fields)
    assert (caught.value.status, caught.value.param, caught.value.code) == (status, param, code)
    assert str(caught.value).startswith(f"{param}: ")


def test_opaque_leaves_no_transparency(served: Served) -> None:
    clear = PICTURE.copy()
    clear.putalpha(make_mask())
    assert read(served, {"background": "opaque"}, image=encode(clear))[1].picture.alpha is None
    assert read(served, {}, image=encode(clear))[1].picture.alpha is not None


def test_a_mask_goes_with_the_pictures_own_size(served: Served) -> None:
    mask = Image.new("RGBA", (64, 48), "black")
    mask.putalpha(make_mask())
    _, order = read(served, {"size": "64x48"}, encode(mask))
    assert order.resolved.parameters.size == "original"
    assert np.array_equal(np.asarray(order.mask.rgb.convert("L")), 255 - np.asarray(make_mask()))


def test_json_is_read_as_the_form_is(served: Served) -> None:
    image = {"image_url": f"data:image/png;base64,{WRAPPED}"}
    sent = api_openai.read_json(json.dumps({"images": [image], "mask": None, "n": 2, "prompt": "fog"}).encode())
    assert sent == api_openai.Sent(fields={"n": 2, "prompt": "fog"}, images=[FILE], mask=None)
    for wrong in (
        b"{",
        b"[]",
        b'{"images": {"a": 1}}',
        b'{"images": ["x"]}',
        b'{"images": [{"file_id": "x"}]}',
        b"[" * 9999,
    ):
        with pytest.raises(UsageError):
            api_openai.read_json(wrong)


@pytest.mark.slow
def test_openai_client_gets_what_it_reads(openai_client: Any) -> None:
    options = {
        "prompt": "fog",
        "model": None,
        "n": None,
        "size": "auto",
        "user": "me",
        "extra_body": {"quality": "low"},
    }
    made = openai_client.images.edit(image=[("a.png", FILE)], output_format="jpeg", **options)
    assert (made.output_format, made.size, made.background) == ("jpeg", "64x48", "opaque")
    assert made.usage.total_tokens == 0
    assert made.created > 1_700_000_000
    assert made.notes == ["quality: has no effect here; the preset decides"]
    assert decode(made.data[0].b64_json).format == "JPEG"
    assert openai_client.models.retrieve("other").id == "other"


@pytest.mark.slow
def test_openai_client_streams(openai_client: Any) -> None:
    events = list(openai_client.images.edit(image=("a.png", FILE), prompt="fog", stream=True, partial_images=2))
    assert [event.type for event in events] == ["image_edit.completed"]
    assert decode(events[0].b64_json).size == (64, 48)
    assert events[0].usage.output_tokens == 0


def test_openai_client_gets_its_own_errors(openai_client: Any, served: Served) -> None:
    import openai

    image, edit = ("a.png", FILE), openai_client.images.edit
    for ask, kind, param, code in (
        (lambda: edit(image=image, prompt="fog", model="nope"), openai.NotFoundError, "model", "model_not_found"),
        (lambda: openai_client.models.retrieve("nope"), openai.NotFoundError, "model", "model_not_found"),
        (lambda: edit(image=[image] * 2, prompt="fog"), openai.BadRequestError, "image", "invalid_value"),
        (lambda: edit(image=[image], prompt="fog", n=11), openai.BadRequestError, "n", "integer_above_max_value"),
        (
            lambda: edit(image=image, prompt="fog", markup=image),
            openai.BadRequestError,
            "markup",
            "unknown_parameter",
        ),
        (lambda: edit(image=("a.png", b"x"), prompt="fog"), openai.BadRequestError, "image", "invalid_image_file"),
        (lambda: edit(image=("a.png", b""), prompt="fog"), openai.BadRequestError, "image", "invalid_image_file"),
        (lambda: edit(image=image, mask=image, prompt="fog"), openai.BadRequestError, "mask", "invalid_value"),
        (lambda: openai_client.images.generate(prompt="fog"), openai.NotFoundError, None, None),
        (
            lambda: openai_client.with_options(api_key="x").models.list(),
            openai.AuthenticationError,
            None,
            "invalid_api_key",
        ),
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            ask()
        told = caught.value
        assert (type(told), told.param, told.code) == (kind, param, code)
        assert told.type == "invalid_request_error"
        assert told.body["message"]


def test_forms_that_no_library_would_send(served: Served) -> None:
    def send(*parts: tuple[str, str, str]) -> tuple[int, Any]:
        lines = "".join(
            f'--limit\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{content}\r\n'
            for name, more, content in parts
        )
        body = f"{lines}--limit--\r\n".encode()
        status, told = served.ask("POST", EDIT, body, Content_Type="multipart/form-data; boundary=limit")
        return status, told["error"]["param"]

    assert send(("prompt", "", "fog")) == (400, "image")
    assert send(("image", "", DATA)) == (400, "image")
    assert send(("image", '; filename=""', ""), ("prompt", "", "fog")) == (400, "image")
    text = ("image[0]", '; filename="a.png"', "no picture")
    assert send(text, ("mask", "", "all of it")) == (400, "mask")
    assert send(text, ("mask", "", ""), ("prompt", "", "fog")) == (400, "image")


# The web UI's fields.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(st.sampled_from(sorted(Img2ImgRequest.model_fields)), JSON, max_size=3))
def test_any_json_is_a_request_or_is_told_why_not(fields: dict[str, Any]) -> None:
    """Accepted values can also be sent back."""
    try:
        asked = Img2ImgRequest.model_validate({"init_images": [DATA], **fields})
        asked.check()
        schema.choose_sampler(asked.sampler, asked.scheduler)
    except (ValidationError, UsageError):
        return
    JSONResponse(asked.model_dump(exclude={"prompt", "negative_prompt"}))  # whose text is checked with the preset
    json.dumps(asked.list_unused())


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(st.sampled_from([*api_openai.EditRequest.model_fields, "x"]), JSON, max_size=3))
def test_any_json_is_an_edit_or_is_told_why_not(served: Served, fields: dict[str, Any]) -> None:
    with contextlib.suppress(RefusedError):
        read(served, fields)


def request(**fields: Any) -> Img2ImgRequest:
    return Img2ImgRequest.model_validate({"init_images": [DATA], **fields})


def test_nulls_stand_for_defaults() -> None:
    plain = request()
    nulls = dict.fromkeys(Img2ImgRequest.model_fields.keys() - {"init_images"})
    assert request(**nulls) == plain
    plain.check()
    assert plain.list_unused() == ()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"steps": "20", "cfg_scale": "7.5", "width": 512.0}, {"steps": 20, "cfg_scale": 7.5, "width": 512}),
        ({"restore_faces": "false", "send_images": "true"}, {"restore_faces": False, "send_images": True}),
        ({"inpainting_mask_invert": True, "mask": ""}, {"inpainting_mask_invert": 1, "mask": ""}),
        ({"unknown": {"a": 1}, "sd_model": "x", "force_task_id": None, "comments": {}}, {}),
    ],
)
def test_types_are_read_as_the_web_ui_reads_them(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    asked = request(**fields)
    assert {key: getattr(asked, key) for key in expected} == expected


NEUTRAL: list[dict[str, Any]] = [
    {"script_name": ""},
    {"script_name": "None", "script_args": [1]},
    {"styles": []},
    {"styles": ["", "None"]},
    {"tiling": False, "restore_faces": False, "subseed": 7, "subseed_strength": 0},
    {"seed_resize_from_h": -1, "seed_resize_from_w": 0},
    {"refiner_checkpoint": "None", "refiner_switch_at": 0.8},
    {"eta": 1.0, "s_churn": 0, "s_tmax": 0, "s_tmin": 0, "s_noise": 1, "initial_noise_multiplier": 1},
    {"alwayson_scripts": {}},
    {"alwayson_scripts": {"ControlNet": {"args": []}, "ADetailer": {"args": [False]}, "x": {}}},
    {"alwayson_scripts": {"controlnet": {"args": [{"enabled": False, "image": DATA}]}}},
    {"override_settings": {"sd_vae": "Automatic", "sd_model_checkpoint": "edit"}},
    {"mask": DATA, "inpainting_fill": 1, "mask_blur_x": 4, "mask_blur_y": 4},
    {"inpainting_fill": 3, "mask_blur_x": 1, "infotext": "", "latent_mask": ""},
]  # fmt: skip


@pytest.mark.parametrize("fields", NEUTRAL)
def test_values_that_change_nothing_are_taken(fields: dict[str, Any]) -> None:
    asked = request(**fields)
    asked.check()
    assert asked.list_unused() == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"script_name": "SD upscale"},
        {"styles": ["Cinematic"]},
        {"tiling": True},
        {"restore_faces": True},
        {"subseed_strength": 0.3},
        {"seed_resize_from_w": 512, "seed_resize_from_h": 512},
        {"refiner_checkpoint": "sdxl-refiner"},
        {"s_churn": 5},
        {"s_min_uncond": 1.5},
        {"initial_noise_multiplier": 1.1},
        {"latent_mask": DATA},
        {"infotext": "fog\nSteps: 3"},
        {"inpainting_fill": 2, "mask": DATA},
        {"mask_blur_x": 2, "mask_blur_y": 8, "mask": DATA},
        {"alwayson_scripts": {"ControlNet": {"args": [{"image": DATA, "module": "canny"}]}}},
        {"alwayson_scripts": {"ADetailer": {"args": [True, {"ad_model": "face"}]}}},
        {"alwayson_scripts": {"reactor": {"args": [DATA, True]}}},
    ],
)
def test_wishes_for_another_picture_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        request(**fields).check()
    assert str(caught.value).startswith(next(iter(fields)))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a <lora:add_detail:0.8> hill"},
        {"negative_prompt": "<lyco:x:1>"},
        {"mask": DATA},
        {"eta": 0.5, "sampler_name": "Euler a"},
        {"eta": 1, "sampler_index": "DDIM"},
        {"s_noise": 1.02},
        {"save_images": True},
        {"override_settings": {"CLIP_stop_at_last_layers": 2}},
        {"override_settings": {"sd_vae": "vae-ft-mse"}},
    ],
)
def test_what_is_left_aside_is_told(fields: dict[str, Any]) -> None:
    asked = request(**fields)
    asked.check()
    assert len(asked.list_unused()) == 1
    assert "<" not in asked.plain_prompt + asked.plain_negative_prompt


@pytest.mark.parametrize(
    ("name", "schedule", "kind", "expected"),
    [
        ("", "", None, None),
        ("Automatic", "automatic", None, None),
        ("Euler", "", "EulerDiscreteScheduler", {}),
        ("euler A", "Automatic", "EulerAncestralDiscreteScheduler", {}),
        ("Euler", "Karras", "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("", "exponential", "EulerDiscreteScheduler", {"use_exponential_sigmas": True}),
        ("DPM++ 2M", "Automatic", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("DPM++ 2M Karras", "", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("DPM++ 2M", "Uniform", "DPMSolverMultistepScheduler", {"use_karras_sigmas": False}),
        ("DPM++ 2M SDE Karras", "", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("LMS Karras", "automatic", "LMSDiscreteScheduler", {"use_karras_sigmas": True}),
        ("Euler a", "sgm_uniform", "EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("Euler", "SGM Uniform", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("Euler SGMUniform", "", UsageError, None),
        ("Euler a", "Karras", UsageError, None),
        ("DPM++ 2S a", "simple", UsageError, None),
        ("Euler", "align_your_steps", UsageError, None),
        ("DPM adaptive", "", UsageError, None),
    ],
)
def test_samplers_and_schedules(name: str, schedule: str, kind: Any, expected: dict[str, Any] | None) -> None:
    if kind is UsageError:
        with pytest.raises(UsageError, match=r"^(sampler_name|scheduler): "):
            schema.choose_sampler(name, schedule)
        return
    chosen = schema.choose_sampler(name, schedule)
    assert chosen.get("scheduler") == kind
    assert (expected or {}).items() <= chosen.get("scheduler_config", {}).items()


def test_diffusers_has_every_sampler_with_every_schedule() -> None:
    import diffusers

    for name in schema.SAMPLERS:
        refused = 0
        for schedule in SCHEDULES:
            try:
                chosen = schema.choose_sampler(name, schedule)
            except UsageError:
                refused += 1
                continue
            kind = getattr(diffusers, chosen["scheduler"])
            assert chosen["scheduler_config"].keys() <= inspect.signature(kind.__init__).parameters.keys()
        assert refused <= 2


def test_a_flow_model_keeps_its_own_sampler(served: Served, tmp_path: Path) -> None:
    """The client sends Euler a with every request, but that class does not work with FLUX."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from img2img_cli.engines.diffusion.load import _make_scheduler

    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "FluxPipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}'
    )
    (tmp_path / "flow.yaml").write_text(f"extends: edit\nmodel: {tmp_path}\n")
    state = State(dispatcher=served.state.dispatcher, presets={"flow": str(tmp_path / "flow.yaml")})
    asked = request(**{**QUICK, "sampler_name": "Euler a"})
    (one,) = orders.read_orders(state, asked, {"sd_model_checkpoint": "flow"})
    assert one.resolved.parameters.scheduler is None
    assert [note.partition(":")[0] for note in one.notes] == ["sampler_name"]
    (one,) = read_orders(served, sampler_name="Euler a")
    assert one.resolved.parameters.scheduler == "EulerAncestralDiscreteScheduler"
    wrong = one.resolved.parameters
    with pytest.raises(PresetError, match=r"^scheduler: "):
        _make_scheduler(FlowMatchEulerDiscreteScheduler(), wrong)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, ("png", None)),
        ({"samples_format": "JPG", "jpeg_quality": 80}, ("jpeg", 80)),
        ({"samples_format": "webp"}, ("webp", None)),
        ({"samples_format": "png", "jpeg_quality": 80}, ("png", None)),
        ({"samples_format": "../x"}, None),
        ({"samples_format": "jpg", "jpeg_quality": 0}, None),
        ({"samples_format": "jpg", "jpeg_quality": "x"}, None),
    ],
)
def test_formats_of_results(chosen: dict[str, Any], expected: tuple[str, int | None] | None) -> None:
    if expected is None:
        with pytest.raises(UsageError):
            schema.choose_format(chosen)
    else:
        assert schema.choose_format(chosen) == expected


def read_orders(served: Served, **fields: Any) -> list[Order]:
    return orders.read_orders(served.state, request(**{**QUICK, **fields}), {"sd_model_checkpoint": "quick"})


def test_one_side_alone_is_512_by_the_other(served: Served) -> None:
    assert read_orders(served, width=64)[0].picture.size == (64, 512)
    assert read_orders(served)[0].picture.size == (64, 48)


def test_several_pictures_are_one_batch_with_a_seed_each(served: Served) -> None:
    other = base64.b64encode(encode(PICTURE.rotate(180))).decode()
    orders = read_orders(served, init_images=[DATA, other], batch_size=2, n_iter=2)
    assert [(order.seed, order.count) for order in orders] == [(5, 1), (6, 1), (7, 1), (8, 1)]
    assert [order.picture.rgb.tobytes() == PICTURE.tobytes() for order in orders] == [True, False, True, False]
    (order,) = read_orders(served, batch_size=2, n_iter=2)
    assert (order.seed, order.count) == (5, 4)


@pytest.mark.parametrize("kind", ["grey", "alpha", "inverted", "other size"])
def test_masks_in_the_forms_that_clients_send(served: Served, kind: str) -> None:
    mask = make_mask((32, 24) if kind == "other size" else (64, 48))
    if kind == "alpha":
        painted = Image.new("RGBA", mask.size, "black")
        painted.putalpha(mask)
        mask = painted
    elif kind == "inverted":
        mask = mask.point(lambda value: 255 - value)
    asked = {"mask": base64.b64encode(encode(mask)).decode(), "inpaint_full_res": False}
    (one,) = read_orders(served, **asked, inpainting_mask_invert=int(kind == "inverted"))
    read_mask = np.asarray(one.mask.rgb.convert("L"))
    assert read_mask.shape == (48, 64)
    assert read_mask[:, :30].min() == 255
    assert read_mask[:, 34:].max() == 0


@pytest.mark.parametrize(
    ("white", "padding", "shape", "box"),
    [
        ((10, 10, 20, 20), 0, (1, 1), (10, 10, 20, 20)),
        ((10, 10, 20, 20), 4, (1, 1), (6, 6, 24, 24)),
        ((10, 10, 20, 20), 0, (2, 1), (5, 10, 25, 20)),
        ((10, 10, 20, 20), 0, (1, 2), (10, 5, 20, 25)),
        ((0, 0, 10, 10), 0, (2, 1), (0, 0, 20, 10)),
        ((90, 50, 100, 60), 0, (2, 1), (80, 50, 100, 60)),
        ((0, 0, 100, 60), 32, (1, 1), (0, 0, 100, 60)),
    ],
)
def test_the_part_around_a_mask(
    white: tuple[int, ...], padding: int, shape: tuple[int, int], box: tuple[int, ...]
) -> None:
    mask = Image.new("L", (100, 60))
    mask.paste(255, white)
    assert orders.find_part(mask, padding, shape) == box


def test_webui_client_repaints_the_masked_part_alone(webui_client: Any) -> None:
    """With the client's defaults, as in the web UI, the picture keeps its size and all pixels outside the mask."""
    whole = Image.effect_noise((160, 120), 60).convert("RGB")
    mask = Image.new("L", whole.size)
    mask.paste(255, (40, 30, 80, 60))
    sampling = {"steps": 1, "denoising_strength": 1.0, "seed": 5, "prompt": "fog", "sampler_name": "Euler"}
    made = webui_client.img2img(images=[whole], mask_image=mask, width=64, height=64, **sampling)
    before, after = np.asarray(whole, int), np.asarray(made.image, int)
    assert after.shape == before.shape
    changed = np.abs(after - before).max(2) > 0
    assert changed[34:56, 44:76].mean() > 0.8
    changed[30:60, 40:80] = False
    assert not changed.any()
    assert made.image.info["parameters"] == made.info["infotexts"][0]
    assert any("inpainting_fill" in note for note in made.info["notes"])


@pytest.mark.slow
def test_webui_client_asks_for_all_that_it_knows(webui_client: Any) -> None:
    made = webui_client.img2img(
        images=[PICTURE, PICTURE], batch_size=2, **QUICK, width=64, height=48,
        override_settings={"samples_format": "JPG", "sd_model_checkpoint": "other"}, include_init_images=True,
    )  # fmt: skip
    assert [image.format for image in made.images] == ["JPEG", "JPEG"]
    assert made.info["all_seeds"] == [5, 6]
    assert made.info["all_prompts"] == ["fog"] * 2
    assert "Seed: 6" in made.info["infotexts"][1]
    assert len(made.parameters["init_images"]) == 2
    batch = webui_client.extra_batch_images([PICTURE, PICTURE], upscaling_resize=1)
    assert [image.size for image in batch.images] == [(64, 48)] * 2
    assert webui_client.util_get_scheduler_names()[0] == "automatic"
    assert webui_client.get_sd_vae() == webui_client.get_loras() == webui_client.get_face_restorers() == []
    assert webui_client.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert webui_client.refresh_checkpoints() is None
    with pytest.raises(RuntimeError) as caught:
        webui_client.txt2img(prompt="fog")
    assert caught.value.args[0] == 404
    for wrong in ({"tiling": True}, {"script_name": "loopback"}, {"alwayson_scripts": {"x": {"args": [True]}}}):
        with pytest.raises(RuntimeError) as caught:
            webui_client.img2img(images=[PICTURE], **wrong)
        assert caught.value.args[0] == 422
        assert json.loads(caught.value.args[1])["detail"].startswith(next(iter(wrong)))
    with pytest.raises(RuntimeError) as caught:
        webui_client.extra_single_image(PICTURE, gfpgan_visibility=1)
    assert caught.value.args[0] == 422


def test_base64_with_line_breaks_makes_a_picture(served: Served) -> None:
    status, made = served.post(IMG2IMG, {"init_images": [WRAPPED], **QUICK, "mask": "", "styles": None})
    assert status == 200
    assert decode(made["images"][0]).size == (64, 48)
    assert made["parameters"]["init_images"] is None
    assert json.loads(made["info"])["notes"] == []


def test_what_comes_back_is_always_json(served: Served) -> None:
    image = {"image_url": f"data:image/png;base64,{DATA}"}
    status, told = served.post(EDIT, {"images": [image], "prompt": "fog", "\ud800": 1})
    assert (status, told["error"]["param"]) == (400, "body")
    for wrong in ({"script_args": ["\ud800"]}, {"override_settings": {"a": float("nan")}}, {"s_tmax": float("inf")}):
        assert served.post(IMG2IMG, {"init_images": [DATA], **QUICK, **wrong})[0] == 422


def test_settings_of_a_request_may_stay(served: Served) -> None:
    asked = {"init_images": [DATA], **QUICK, "override_settings": {"sd_model_checkpoint": "other"}}
    for restore, left in ((True, "quick"), (None, "quick"), (False, "other")):
        assert served.post(IMG2IMG, {**asked, "override_settings_restore_afterwards": restore})[0] == 200
        assert served.ask("GET", "/sdapi/v1/options")[1]["sd_model_checkpoint"] == left
    assert served.post("/sdapi/v1/options", {"sd_model_checkpoint": "quick", "samples_format": None})[0] == 200
    assert served.ask("GET", "/sdapi/v1/options")[1] == {"sd_model_checkpoint": "quick", "samples_format": "png"}


def test_a_mask_cannot_be_enlarged(served: Served) -> None:
    asked = {"init_images": [DATA], **QUICK, "mask": base64.b64encode(encode(make_mask())).decode()}
    asked |= {"override_settings": {"sd_model_checkpoint": "upscale"}}
    assert served.post(IMG2IMG, asked)[0] == 422


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/", 307),
        ("POST", "/sdapi/v1/interrupt/", 307),
        ("HEAD", "/v1/models", 405),
        ("OPTIONS", "/sdapi/v1/img2img", 405),
        ("POST", "/sdapi/v1/interrogate", 404),
        ("GET", "/sdapi/v1/progress?skip_current_image=true", 200),
        ("GET", "/v1/models/nope", 404),
        ("POST", "/v1/images/variations", 404),
    ],
)
def test_ways_of_asking(served: Served, method: str, path: str, status: int) -> None:
    assert served.ask(method, path)[0] == status


def test_a_request_gets_the_controlnet_of_the_control_that_it_asks_for(tmp_path: Path) -> None:
    preset = tmp_path / "scribble.yaml"
    preset.write_text("extends: edit\nmodel: owner/name\ncontrolnets:\n  depth: owner/depth\n", encoding="utf-8")
    state = State(dispatcher=Dispatcher(Pool(600)), presets={"scribble": str(preset)})
    assert resolve_offer(state, "scribble", {"control": "depth"}).parameters.controlnet == "owner/depth"
    with pytest.raises(UsageError, match="--control canny: preset 'scribble' has depth"):
        resolve_offer(state, "scribble", {"control": "canny"})
