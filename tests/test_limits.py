"""Limits for web clients: no access to files, limited resources, and an answer in JSON to everything."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import logging
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from img2img_cli.server import connection, guard, orders
from img2img_cli.server.app import _run, keep_log_plain, make_app
from img2img_cli.server.guard import Guard
from img2img_cli.server.pool import Pool
from img2img_cli.server.queue import Dispatcher
from img2img_cli.server.state import State

TOKEN = "a token for tests"
EDIT, IMG2IMG, ENLARGE = "/v1/images/edits", "/sdapi/v1/img2img", "/sdapi/v1/extra-single-image"
QUICK = {"prompt": "fog", "steps": 1, "denoising_strength": 1.0}
HOUR = {"prompt": "fog", "steps": 1000, "denoising_strength": 1.0}


@dataclass
class Served:
    state: State
    guard: Guard
    port: int

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        """Send a request with the token; return status and content."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        client.request(method, path, body, {"Authorization": f"Bearer {TOKEN}", **named})
        return read_answer(client.getresponse())

    def post(self, path: str, content: object) -> tuple[int, Any]:
        return self.ask("POST", path, json.dumps(content).encode(), Content_Type="application/json")

    def open(self, head: str = "", body: bytes = b"") -> socket.socket:
        """Return a connection on which the given bytes were sent."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=300)
        client.sendall(head.replace("\n", "\r\n").encode() + body)
        return client

    def start(self, content: object) -> socket.socket:
        """Send a request for pictures without reading the answer."""
        body = json.dumps(content).encode()
        return self.open(f"{HEAD}Content-Type: application/json\nContent-Length: {len(body)}\n\n", body)


HEAD = f"POST {IMG2IMG} HTTP/1.1\nHost: localhost\nAuthorization: Bearer {TOKEN}\n"


def read_answer(response: http.client.HTTPResponse) -> tuple[int, Any]:
    """Parse an answer, which must be JSON; a refusal must have a message of one line."""
    content = json.loads(response.read())
    if response.status >= 400:
        message = content["message"]
        assert message == content["error"]["message"] == content["detail"]
        assert len(message.splitlines()) == 1
        assert "Traceback" not in message
    return response.status, content


def read_raw(client: socket.socket) -> tuple[int, Any]:
    response = http.client.HTTPResponse(client)
    response.begin()
    return read_answer(response)


def wait_until(true: Callable[[], object], timeout_s: float = 300) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve the web side of a server in this process."""
    small = tmp_path_factory.mktemp("presets") / "edit.yaml"
    small.write_text("extends: edit\nimage_size: 128\n")
    state = State(dispatcher=Dispatcher(Pool(600)), presets={"edit": str(small)})
    app = make_app(state, native=False)
    app.add_api_route("/bug", lambda: int("/home/somebody/secret"))
    front = Guard(app, token=TOKEN, hosts=["localhost", "127.0.0.1"], limit_s=600)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(_run(state, [(front, listener)])))
        thread.start()
        yield Served(state, front, listener.getsockname()[1])
        state.stop.set()
        thread.join(20)
    state.dispatcher.close()
    assert not thread.is_alive()


@pytest.fixture
def server(served: Served) -> Iterator[Served]:
    """Serve, and check after the test that the server still answers."""
    yield served
    wait_until(lambda: served.state.dispatcher.count_waiting() == 0)
    wait_until(lambda: served.state.works == 0)
    assert served.ask("GET", "/v1/models")[0] == 200
    wait_until(lambda: served.guard._held == 0)


@pytest.fixture(scope="module")
def data() -> str:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 40).convert("RGB").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def form(*parts: tuple[str, str | bytes]) -> tuple[bytes, str]:
    """Return a multipart body; bytes are sent as files."""
    lines = []
    for name, content in parts:
        file = '; filename="a.png"' if isinstance(content, bytes) else ""
        head = f'--limit\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        lines.append(head + (content if isinstance(content, bytes) else content.encode()) + b"\r\n")
    return b"".join([*lines, b"--limit--\r\n"]), "multipart/form-data; boundary=limit"


# Other sites' pages, and whoever has no token.


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data", ""])
def test_a_page_of_another_site_can_do_nothing(server: Served, kind: str) -> None:
    """Browsers send these kinds of requests without a preflight, and with a stored password."""
    password = base64.b64encode(f"me:{TOKEN}".encode()).decode()
    for path in (IMG2IMG, EDIT, "/sdapi/v1/interrupt", "/sdapi/v1/options"):
        headers = {"Authorization": f"Basic {password}", "Origin": "https://evil.example"}
        headers |= {"Content_Type": kind} if kind else {}
        assert server.ask("POST", path, b"{}", **headers)[0] == 403


def test_json_must_be_called_json(server: Served, data: str) -> None:
    body = json.dumps({"init_images": [data], **QUICK}).encode()
    assert server.ask("POST", IMG2IMG, body, Content_Type="text/plain")[0] == 422


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": "rebound.example"}, 421),
        ({"Host": "127.0.0.1.nip.example"}, 421),
        ({"Host": "192.0.2.1"}, 421),
        ({"Host": "["}, 421),
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Basic /////w=="}, 401),
        ({"Authorization": "Bearer \xe9" * 3}, 401),
    ],
)
def test_what_the_guard_refuses(server: Served, headers: dict[str, str], status: int) -> None:
    assert server.ask("POST", "/sdapi/v1/interrupt", **headers)[0] == status


@pytest.mark.parametrize(("host", "status"), [("192.0.2.1:80", 404), ("[2001:db8::1]", 404), ("a.example", 421)])
def test_a_server_on_every_address_goes_by_each_of_them(host: str, status: int) -> None:
    """A page's own name can never be an IP address."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})

    async def note(message: dict[str, Any]) -> None:
        sent.append(message)

    front = Guard(app, token=TOKEN, any_address=True)
    headers = [(b"host", host.encode()), (b"authorization", f"Bearer {TOKEN}".encode())]
    asyncio.run(front({"type": "http", "headers": headers}, None, note))
    assert sent[0]["status"] == status


def test_tokens_are_compared_in_constant_time(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = secrets.compare_digest
    monkeypatch.setattr(secrets, "compare_digest", lambda a, b: compared.append((a, b)) or compare(a, b))
    assert server.ask("GET", "/v1/models", Authorization="Bearer wrong")[0] == 401
    assert compared == [(b"wrong", TOKEN.encode())]


def test_there_are_no_websockets(server: Served) -> None:
    upgrade = "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: eA==\n"
    for authorization, status in (("", 401), (f"Authorization: Bearer {TOKEN}\n", 404)):
        with server.open(f"GET /ws HTTP/1.1\nHost: localhost\n{authorization}{upgrade}\n") as client:
            assert read_raw(client)[0] == status


# Files: none is read that was not sent, none is written that stays.


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, bool]]:
    """Record every file that this process opens, and whether for writing."""
    seen: list[tuple[str, bool]] = []
    monkeypatch.setattr(sys.modules[__name__], "_opened", seen)
    monkeypatch.chdir(tmp_path)
    return seen


_opened: list[tuple[str, bool]] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str):
        _opened.append((arguments[0], bool(arguments[2] & 3)))


sys.addaudithook(_audit)


@pytest.fixture
def secret(tmp_path: Path, data: str) -> Path:
    """Return a good picture, weights and a preset that no client has sent."""
    (tmp_path / "secret.png").write_bytes(base64.b64decode(data))
    (tmp_path / "secret.yaml").write_text("extends: edit\nprompt: fog\n")
    (tmp_path / "secret-upscale.yaml").write_text("extends: upscale\n")
    (tmp_path / "secret.safetensors").write_bytes(b"\0" * 64)
    return tmp_path / "secret.png"


def test_no_name_of_a_file_opens_it(server: Served, secret: Path, opened: list[tuple[str, bool]], data: str) -> None:
    names = [str(secret), secret.name, f"file://{secret}", f"../{secret.parent.name}/secret.png"]
    for name in names:
        assert server.post(IMG2IMG, {"init_images": [name], **QUICK})[0] == 422
        assert server.post(IMG2IMG, {"init_images": [data], "mask": name, **QUICK})[0] == 422
        assert server.post(ENLARGE, {"image": name})[0] == 422
        body, kind = form(("image", name), ("prompt", "fog"))
        assert server.ask("POST", EDIT, body, Content_Type=kind)[0] == 400
    for name in (*names, str(secret.with_suffix(".yaml")), "./secret.yaml", str(secret.with_suffix(".safetensors"))):
        setting = {"sd_model_checkpoint": name}
        assert server.post(IMG2IMG, {"init_images": [data], "override_settings": setting, **QUICK})[0] == 422
        assert server.post("/sdapi/v1/options", setting)[0] == 422
        assert server.post(ENLARGE, {"image": data, "upscaler_1": name})[0] == 422
        body, kind = form(("image", base64.b64decode(data)), ("prompt", "fog"), ("model", name))
        assert server.ask("POST", EDIT, body, Content_Type=kind)[0] == 404
    assert not [name for name, _ in opened if "secret" in name]


def test_no_address_is_asked_for_a_picture(server: Served, data: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.2)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/a.png"
        assert server.post(IMG2IMG, {"init_images": [url], **QUICK})[0] == 422
        assert server.post(ENLARGE, {"image": url})[0] == 422
        body = json.dumps({"model": "edit", "prompt": "fog", "images": [{"image_url": url}]}).encode()
        assert server.ask("POST", EDIT, body, Content_Type="application/json")[0] == 400
        body, kind = form(("image", url), ("image[]", url), ("image_url", url), ("prompt", "fog"))
        assert server.ask("POST", EDIT, body, Content_Type=kind)[0] == 400
        with pytest.raises(TimeoutError):
            trap.accept()


@pytest.mark.slow
def test_prompts_load_nothing_and_nothing_is_saved(
    server: Served, secret: Path, opened: list[tuple[str, bool]], data: str
) -> None:
    weights = secret.with_suffix("")
    wishes = {"save_images": True, "do_not_save_samples": False, "outpath_samples": str(secret.parent / "out")}
    wishes |= {"lora": str(weights), "vae": str(weights), "sd_vae": str(weights), "model": "x"}
    prompt = (
        f"fog <lora:{weights}:1> <lora:../{weights.name}:1> <hypernet:{weights}:1> embedding:{weights} __{weights}__"
    )
    asked = {**QUICK, "init_images": [data], "prompt": prompt, "override_settings": wishes, **wishes}
    status, made = server.post(IMG2IMG, asked)
    assert status == 200
    assert len(made["images"]) == 1
    assert server.post(IMG2IMG, {**asked, "script_name": str(secret)})[0] == 422
    assert server.post("/sdapi/v1/options", {"outdir_img2img_samples": "/", "samples_format": "../x"})[0] == 200
    assert server.ask("GET", "/sdapi/v1/options")[1] == {"sd_model_checkpoint": "edit", "samples_format": "png"}
    assert not [name for name, _ in opened if "secret" in name]
    assert not list_written(opened)
    assert sorted(path.name for path in secret.parent.iterdir()) == [
        "secret-upscale.yaml", "secret.png", "secret.safetensors", "secret.yaml",
    ]  # fmt: skip


def list_written(opened: list[tuple[str, bool]]) -> list[str]:
    return [name for name, writes in opened if writes and name != "/dev/null"]


@pytest.mark.slow
def test_pictures_that_are_sent_touch_no_disk(server: Served, opened: list[tuple[str, bool]], data: str) -> None:
    """Test large files in a form, masks, results, and parts that are cut out of pictures."""
    large, masked = io.BytesIO(), io.BytesIO()
    image = Image.effect_noise((1300, 1000), 90)
    image.save(large, "PNG")
    image.putalpha(image.point(lambda value: 255 if value > 128 else 0))
    image.save(masked, "PNG")
    assert min(len(large.getvalue()), len(masked.getvalue())) > 1 << 20
    for more in ([("size", "64x64")], [("mask", masked.getvalue()), ("output_format", "jpeg")]):
        body, kind = form(("image", large.getvalue()), ("prompt", "fog"), *more)
        assert server.ask("POST", EDIT, body, Content_Type=kind)[0] == 200
    mask = base64.b64encode(masked.getvalue()).decode()
    for asked in ({"mask": mask}, {"mask": mask, "inpaint_full_res": False}, {"width": 80, "height": 64}):
        assert server.post(IMG2IMG, {**QUICK, "init_images": [data] * 2, **asked})[0] == 200
    crop = {"resize_mode": 1, "upscaling_resize_w": 96, "upscaling_resize_h": 64}
    assert server.post(ENLARGE, {"image": data, **crop})[0] == 200
    assert not list_written(opened)


def test_lists_tell_no_folders(server: Served) -> None:
    for path in ("sd-models", "upscalers", "options", "samplers", "progress"):
        text = json.dumps(server.ask("GET", f"/sdapi/v1/{path}")[1])
        assert "/" not in text
        assert TOKEN not in text


# Requests that are too much.


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"init_images": []},
        {"init_images": "many"},
        {"steps": 10**9},
        {"steps": -1},
        {"n_iter": 65},
        {"batch_size": 10**30},
        {"width": 16384, "height": 16384},
        {"width": 10**12},
        {"cfg_scale": float("nan")},
        {"cfg_scale": float("inf")},
        {"cfg_scale": 1e300},
        {"denoising_strength": float("nan")},
        {"mask_blur": float("nan")},
        {"mask_blur": 1e9},
        {"sampler_name": "x" * 100_000},
        {"override_settings": {"sd_model_checkpoint": {"a": [1]}}},
        {"override_settings": {"sd_model_checkpoint": "\ud800"}},
        {"prompt": "\ud800"},
        {"prompt": 7},
        {"seed": "7"},
    ],
)
def test_values_out_of_range_are_told_as_such(server: Served, data: str, change: dict[str, Any]) -> None:
    many = {"init_images": [data] * 17} if change.get("init_images") == "many" else {}
    asked = {**QUICK, "init_images": [data], **change, **many}
    assert server.post(IMG2IMG, asked)[0] == (200 if change == {"seed": "7"} else 422)


@pytest.mark.slow
@pytest.mark.parametrize("levels", [100, 900, 5_000, 200_000])
def test_deep_json_is_no_way_in(server: Served, data: str, levels: int) -> None:
    deep = b"[" * levels + b"]" * levels
    for key in (b"override_settings", b"prompt", b"unknown"):
        body = b'{"init_images": ["%s"], "steps": 1, "denoising_strength": 1, "%s": %s}' % (data.encode(), key, deep)
        status, _ = server.ask("POST", IMG2IMG, body, Content_Type="application/json")
        assert status in ((200,) if key == b"unknown" and levels == 100 else (200, 400, 422))


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([("image", b"x")] * 18, 400),
        ([("image", b"x")] * 2, 400),
        ([("image", b"x"), *[("field", "x")] * 101], 400),
        ([("image", b"x"), ("prompt", "x" * (2 << 20))], 400),
        ([("image", b"x"), ("prompt", "x"), ("n", "9" * 5000)], 400),
        ([("image", b"x"), ("prompt", "x"), ("size", "99999x99999")], 400),
        ([("image", b"x"), ("prompt", "x"), ("size", "9" * 5000 + "x1")], 400),
        ([("image", b"GIF89a" + b"\xff" * 40), ("prompt", "x")], 400),
    ],
)
def test_forms_have_limits(server: Served, parts: list[tuple[str, str | bytes]], status: int) -> None:
    body, kind = form(*parts)
    assert server.ask("POST", EDIT, body, Content_Type=kind)[0] == status


def test_a_form_of_another_kind_is_not_even_read(server: Served) -> None:
    body = b"a=&" * 1_000_000
    assert server.ask("POST", EDIT, body, Content_Type="application/x-www-form-urlencoded")[0] == 400
    assert server.ask("POST", EDIT, b"x" * 100, Content_Type="multipart/form-data")[0] == 400


@pytest.mark.parametrize("length", ["9" * 5000, "9" * 19, "-1", "1e3", "\u0661"])
def test_lying_lengths_are_refused(server: Served, length: str) -> None:
    with server.open(f"{HEAD}Content-Length: {length}\n\n") as client:
        assert read_raw(client)[0] in (400, 413)


def test_a_head_that_is_too_long_is_refused(server: Served) -> None:
    with server.open(f"{HEAD}X: {'x' * 100_000}") as client:
        assert read_raw(client)[0] == 400


def test_broken_chunks_end_the_connection(server: Served) -> None:
    with server.open(f"{HEAD}Content-Type: application/json\nTransfer-Encoding: chunked\n\n", b"zz\r\n") as client:
        assert read_raw(client)[0] == 400
        assert client.recv(100) == b""


# Clients that are too slow, or too many.


@pytest.mark.parametrize("head", ["", "POST", HEAD])
def test_a_head_must_come_in_time(server: Served, monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.3)
    with server.open(head) as client:
        assert read_raw(client)[0] == 408
        assert client.recv(100) == b""


@pytest.mark.slow
def test_bytes_now_and_then_do_not_keep_a_connection(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test a second request's head, and the unread body of a refused request."""
    monkeypatch.setattr(connection, "HEAD_S", 0.5)
    refused = f"POST {IMG2IMG} HTTP/1.1\nHost: localhost\nContent-Length: 1000000\n\n"
    long = f"{HEAD}Content-Type: application/json\nContent-Length: 2\n\n"
    for request, rest in ((long, b"{}"), (refused, b"")):
        with server.open(request) as client:
            time.sleep(1 if rest else 0)  # a request that takes longer than its head may
            client.sendall(rest)
            assert read_raw(client)[0] in (422, 401)
            began = time.monotonic()
            with pytest.raises((ConnectionError, EOFError)):
                while time.monotonic() - began < 10:
                    client.sendall(b"P")
                    time.sleep(0.05)
            assert time.monotonic() - began < 3


def test_a_body_must_come_in_time(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_S", 0.3)
    for head in ("Content-Type: application/json\n", "Content-Type: application/json\nTransfer-Encoding: chunked\n"):
        length = "" if "chunked" in head else "Content-Length: 1000\n"
        with server.open(f"{HEAD}{head}{length}\n", b'5\r\n{"a":\r\n' if not length else b'{"a":') as client:
            assert read_raw(client)[0] == 408
            assert client.recv(100) == b""


@pytest.mark.slow
def test_a_request_must_end_in_time(server: Served, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    monkeypatch.setattr(server.guard, "_limit_s", 1.0)
    began = time.monotonic()
    status, told = server.post(IMG2IMG, {**HOUR, "init_images": [data]})
    assert status == 504
    assert "--request-timeout" in told["message"]
    wait_until(lambda: server.state.dispatcher.count_waiting() == 0)
    assert time.monotonic() - began < 120, "it went on to the end"


def test_connections_have_a_number(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 3)
    monkeypatch.setattr(connection, "CROWDED_S", 0.3)
    idle = [server.open() for _ in range(3)]
    time.sleep(0.1)
    assert server.ask("GET", "/v1/models")[0] == 503
    with server.open() as silent:
        assert read_raw(silent)[0] == 408
    for client in idle:
        client.close()
    wait_until(lambda: server.ask("GET", "/v1/models")[0] == 200)


@pytest.mark.slow
def test_works_have_a_number_and_questions_go_on(server: Served, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    monkeypatch.setattr(orders, "MOST_WORKS", 4)
    asked = {**HOUR, "init_images": [data]}
    first = [server.start(asked) for _ in range(2)]
    wait_until(lambda: server.state.dispatcher.count_waiting() == 2)
    later = [server.start(asked) for _ in range(2)]
    wait_until(lambda: server.state.dispatcher.count_waiting() == 4)
    assert server.post(IMG2IMG, asked)[0] == 503
    assert server.ask("GET", "/sdapi/v1/progress")[1]["state"]["job_count"] == 4
    for client in later:  # whoever leaves gives his place in the queue to others at once
        client.close()
    wait_until(lambda: server.state.dispatcher.count_waiting() == 2)
    wait_until(lambda: server.state.works == 2)
    for client in first:
        client.close()


def test_bodies_together_have_a_size(server: Served, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    monkeypatch.setattr(guard, "MAX_HELD_BYTES", 1 << 20)
    head = f"{HEAD}Content-Type: application/json\nContent-Length: {900_000}\n\n"
    with server.open(head, b" " * 800_000):
        wait_until(lambda: server.guard._held == 800_000)
        content = {**QUICK, "init_images": [data], "unknown": "x" * 500_000}
        assert server.post(IMG2IMG, content)[0] == 503
    wait_until(lambda: server.guard._held == 0)


# What goes wrong.


def test_a_bug_is_told_in_the_log_alone(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    status, told = server.ask("GET", "/bug")
    assert status == 500
    assert "somebody" not in json.dumps(told)
    wait_until(lambda: "somebody" in caplog.text)


def test_unknown_ways_are_answered_in_json(server: Served) -> None:
    assert server.ask("GET", "/etc/passwd")[0] == 404
    assert server.ask("GET", "/../../etc/passwd")[0] == 404
    assert server.ask("DELETE", "/v1/models")[0] == 405


def test_logs_steer_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = list(root.handlers)
    try:
        keep_log_plain()
        try:
            raise ValueError("\x1b]0;owned\x07 \u202e \x9b31m")
        except ValueError:
            logging.getLogger("uvicorn.error").exception("asked for \x1b[31m\rin red")
    finally:
        root.handlers = before
    text = capfd.readouterr().err
    assert "Traceback" in text
    assert not set(text) & set("\x1b\x07\x9b\r\u202e")
