"""Commands give the same results through the warm server as alone, no matter what other clients request."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import io
import json
import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import GREY
from PIL import Image
from serving import serve_own
from warm import Warm

from img2img_cli.errors import ExitCode, UsageError
from img2img_cli.server import client, sockets
from img2img_cli.server.client import ServerGoneError, ask_server
from img2img_cli.tasks import protocol
from img2img_cli.tasks.pieces import Piece

TOKEN = "a token for tests"
QUICK = ["--set", "num_inference_steps=2", "--set", "num_samples=1", "--set", "image_size=64"]
LONG = ["--preset", GREY, "--set", "num_inference_steps=400", "--set", "image_size=128"]


@dataclasses.dataclass
class Running:
    """A running server and its paths."""

    process: subprocess.Popen[bytes]
    folder: str
    port: int


def start(folder: str, *options: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "XDG_RUNTIME_DIR": folder}
    return Warm(["serve", *options], env=environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)


def wait_until(true: Callable[[], object], timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="i2i") as folder:  # pytest's own are too long for a socket
        small = Path(folder, "edit.yaml")  # what web clients ask for when they name no preset
        small.write_text("extends: edit\nimage_size: 128\n")
        process = start(folder, "--preset", str(small), "--host", "127.0.0.1", "--port", "0", "--token", TOKEN)
        lines = [process.stderr.readline().decode() for _ in range(2)]
        assert "serving on" in lines[0], lines
        port = int(lines[1].rpartition(":")[2].split()[0])
        yield Running(process, folder, port)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == ExitCode.INTERRUPTED


@pytest.fixture
def server(served: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setenv("XDG_RUNTIME_DIR", served.folder)
    return served


@pytest.fixture
def lonely(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return a folder without a server."""
    with tempfile.TemporaryDirectory(prefix="i2i") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield folder


def run_many(commands: list[list[object]]) -> list[subprocess.Popen[bytes]]:
    return [Warm(command, stderr=subprocess.PIPE) for command in commands]


def model_seconds() -> float:
    return float(ask_server("GET", "/img2img/status")["model_seconds"])


def count_waiting() -> int:
    return int(ask_server("GET", "/img2img/status")["waiting"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["colorize", "--set", "num_samples=2", "--set", "num_inference_steps=2"],
        ["upscale", "--scale", "1.5"],
        ["restore", "--set", "num_inference_steps=4"],
        ["edit", "-p", "a (red:1.4) winter", "--variations", "2", "--steps", "4", "--set", "image_size=128"],
    ],
)
def test_results_are_those_of_the_command_alone(server: Running, here, picture: Path, command: list[str]) -> None:
    task, *options = command
    before = model_seconds()
    for name, more in (("warm", []), ("alone", ["--no-server"])):
        Path(picture.parent / name).mkdir()
        done = here(task, picture, f"{picture.parent}/{name}/", "--seed", 5, *options, *more)
        assert done.code == 0, done.err
        if name == "warm":
            assert model_seconds() > before, "the server was not used"
    warm, alone = (sorted((picture.parent / name).iterdir()) for name in ("warm", "alone"))
    assert [p.read_bytes() for p in warm] == [p.read_bytes() for p in alone]
    assert len(warm) == (2 if task == "edit" else 1)


@pytest.mark.slow
def test_no_torch_in_the_client(server: Running, picture: Path) -> None:
    code = (
        "import sys; from img2img_cli.cli import app; sys.argv = ['img2img', *sys.argv[1:]]; code = app._run();"
        "assert code == 0; sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    words = ["colorize", str(picture), *QUICK]
    assert subprocess.run([sys.executable, "-c", code, *words]).returncode == 0
    words = ["batch", str(picture), "-o", str(picture.parent / "out"), "--preset", "colorize", *QUICK]
    assert subprocess.run([sys.executable, "-c", code, *words]).returncode == 0


@pytest.mark.slow
def test_batch_through_the_server_is_the_batch_alone(server: Running, here, tmp_path: Path, photograph) -> None:
    (tmp_path / "in").mkdir()
    for index in range(4):
        photograph.rotate(90 * index).save(tmp_path / "in" / f"{index}.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    for name, more in (("warm", []), ("alone", ["--no-server"])):
        done = here("batch", tmp_path / "in", "-o", tmp_path / name, "--preset", "colorize", *QUICK, *more)
        assert done.code == ExitCode.SOME_FAILED
    for index in range(4):
        assert (tmp_path / "warm" / f"{index}.png").read_bytes() == (tmp_path / "alone" / f"{index}.png").read_bytes()


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a script in bash, where `img2img` is this interpreter's."""
    with tempfile.TemporaryDirectory(prefix="i2i") as place:
        command = Path(place) / "img2img"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m img2img_cli "$@"\n')
        command.chmod(0o755)
        environment = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}"}
        return subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, timeout=300)


@pytest.mark.slow
def test_a_command_stays_itself_beside_a_server(server: Running, picture: Path) -> None:
    """A command keeps its files, folder, umask, limits, name and exit codes; only the model is the server's."""
    before, folder, quick = model_seconds(), picture.parent, " ".join(QUICK)
    done = shell(f"umask 077; img2img colorize <(cat photo.png) private.png {quick}", folder)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE((folder / "private.png").stat().st_mode) == 0o600
    done = shell(f"img2img colorize - - {quick} < photo.png", folder)
    assert Image.open(io.BytesIO(done.stdout)).size == (96, 72)
    assert model_seconds() > before, "the server was not used"
    done = shell(
        f"ulimit -f 0; img2img colorize photo.png limited.png {quick} 2>&1 | cat; exit ${{PIPESTATUS[0]}}", folder
    )
    assert done.returncode == ExitCode.OUTPUT, done.stdout
    done = shell("img2img colorize --help", folder)
    assert b"Usage: python -m img2img_cli colorize" in done.stdout
    assert shell("img2img colorize nothing.png", folder).returncode == ExitCode.SOME_FAILED
    assert sorted(path.name for path in folder.iterdir()) == ["photo.png", "private.png"]


def can_run(*command: str) -> bool:
    return shutil.which(command[0]) is not None and subprocess.run([*command, "true"]).returncode == 0


PROCESSORS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["unshare", "--mount"],
        ["unshare", "--net"],
        ["nice", "-n", "1"],
        ["bash", "-c", 'ulimit -v 99999999; exec "$@"', "limited"],
        ["taskset", "--cpu-list", str(PROCESSORS[0])] if PROCESSORS[1:] else [],
        WITHOUT_RIGHTS,
    ],
    ids=" ".join,
)
def test_a_server_with_other_files_rights_or_limits_is_not_used(server: Running, command: list[str]) -> None:
    if not command or not can_run(*command):
        pytest.skip("cannot be had here")
    code = "import sys; from img2img_cli.server import sockets; sys.exit(sockets.connect() is not None)"
    for more, found in (([], 1), (command, 0)):
        assert subprocess.run([*more, sys.executable, "-c", code]).returncode == found


@pytest.mark.slow
@pytest.mark.skipif(bool(WITHOUT_RIGHTS) and not can_run(*WITHOUT_RIGHTS), reason="root has all rights here")
def test_a_server_lends_nobody_its_rights(server: Running, picture: Path) -> None:
    before, closed, secret = model_seconds(), picture.parent / "closed", picture.parent / "secret.png"
    closed.mkdir()
    shutil.copy(picture, secret)
    for path, mode in ((closed, 0o555), (secret, 0)):
        path.chmod(mode)
    img2img = " ".join([*map(shlex.quote, WITHOUT_RIGHTS), "img2img"])
    for words, code in (("secret.png made.png", ExitCode.SOME_FAILED), ("photo.png closed/made.png", ExitCode.OUTPUT)):
        done = shell(f"{img2img} colorize {words} {' '.join(QUICK)}", picture.parent)
        assert done.returncode == code, done.stderr
        assert b"permission" in done.stderr.lower()
    assert not list(closed.iterdir())
    assert model_seconds() == before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_client_that_leaves_stops_its_work(server: Running, picture: Path, number: int, code: int) -> None:
    (client,) = run_many([["colorize", picture, picture.parent / "never.png", *LONG]])
    wait_until(lambda: count_waiting() > 0)
    time.sleep(0.3)
    client.send_signal(number)
    assert client.wait(120) == code
    wait_until(lambda: count_waiting() == 0)
    assert sorted(p.name for p in picture.parent.iterdir()) == ["photo.png"]


@pytest.mark.slow
def test_eight_clients_at_once_lose_nothing(server: Running, here, picture: Path) -> None:
    folder = picture.parent
    commands = [["colorize", picture, folder / f"{seed}.png", "--seed", seed, *QUICK] for seed in range(8)]
    clients = run_many(commands)
    assert [client.wait(120) for client in clients] == [0] * 8
    for seed in (0, 7):
        assert here("colorize", picture, folder / "alone.png", "-f", "--seed", seed, *QUICK, "--no-server").code == 0
        assert (folder / "alone.png").read_bytes() == (folder / f"{seed}.png").read_bytes()


@pytest.mark.slow
def test_a_model_in_a_folder_is_found_from_any_folder(
    server: Running, fresh, tiny_sd: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_sd.parent)
    small = ["--set", "image_size=64", "--steps", "2", "--strength", "0.5"]
    done = fresh("edit", picture, "-p", "fog", "--model", f"./{tiny_sd.name}", *small)
    assert done.code == 0, done.err
    assert str(tiny_sd) in {warm["model"] for warm in ask_server("GET", "/img2img/status")["warm"]}


@pytest.mark.slow
def test_errors_of_the_model_come_back_with_their_code(server: Running, fresh, picture: Path) -> None:
    done = fresh("colorize", picture, "--preset", GREY, "--scheduler", "EulerDiscreteSchedular")
    assert done.code == ExitCode.USAGE
    assert "EulerDiscreteScheduler" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.slow
def test_a_second_server_is_refused(server: Running, fresh) -> None:
    done = fresh("serve")
    assert done.code == ExitCode.LOCKED
    assert "--stop" in done.err


def signal_at_first_step(patch: pytest.MonkeyPatch, process: subprocess.Popen[bytes], number: int) -> None:
    """Make the server receive a signal when it reports the first step."""

    def unpack(read: protocol.Read) -> tuple[dict[str, object], list[Image.Image]]:
        told, images = protocol.unpack(read)
        if "step" in told:
            process.send_signal(number)
        return told, images

    patch.setattr(client, "unpack", unpack)


@pytest.mark.slow
def test_when_the_server_stops_or_dies_the_command_goes_on(
    lonely: str, here, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(lonely)
    assert b"serving" in process.stderr.readline()
    options = [
        "--preset",
        GREY,
        "--seed",
        3,
        "--set",
        "num_samples=1",
        "--set",
        "num_inference_steps=16",
        "--set",
        "image_size=64",
    ]
    results = [picture.parent / f"{name}.png" for name in ("stopped", "silent", "killed", "alone")]
    stopped, silent, killed, alone = results
    # In the middle of its work, and before.
    with monkeypatch.context() as patch:
        patch.setattr(client, "SILENCE_S", 8.0)
        signal_at_first_step(patch, process, signal.SIGSTOP)
        done = here("colorize", picture, stopped, *options)
        assert done.code == 0, done.err
        remedy = f"the server (process {process.pid}) does not answer; `kill -9 {process.pid}` ends it; going on"
        assert remedy in done.err
        patch.setattr(client, "SILENCE_S", 0.5)
        done = here("colorize", picture, silent, *options, "--keep-warm", "1m")
        assert done.code == 0, done.err
        assert len(done.err.splitlines()) == 2
        assert remedy in done.err
        assert here("serve", "--status").code == ExitCode.TIMEOUT
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: count_waiting() == 0)
    with monkeypatch.context() as patch:
        signal_at_first_step(patch, process, signal.SIGKILL)
        done = here("colorize", picture, killed, *options)
    assert done.code == 0, done.err
    assert "the server ended; going on without it" in done.err
    assert here("colorize", picture, alone, *options, "--no-server").code == 0
    assert len({result.read_bytes() for result in results}) == 1
    assert process.wait(120) == -signal.SIGKILL
    # What a killed server leaves behind is in nobody's way.
    assert Path(sockets.socket_path("api")).exists()
    again = start(lonely)
    assert b"serving" in again.stderr.readline()
    assert here("serve", "--stop").code == 0
    assert again.wait(120) == 0
    assert not Path(sockets.socket_path("api")).exists()


@pytest.mark.slow
def test_keep_warm_leaves_a_server(lonely: str, here, picture: Path) -> None:
    done = here("colorize", picture, "--keep-warm", "10m", *QUICK)
    assert done.code == 0, done.err
    status = ask_server("GET", "/img2img/status")
    assert (status["keep_seconds"], len(status["warm"])) == (600, 1)
    assert status["model_seconds"] > 0, "the server was not used"
    assert here("colorize", picture, "--keep-warm", "20m", "-f", *QUICK).code == 0
    status |= ask_server("GET", "/img2img/status")
    assert (status["keep_seconds"], len(status["warm"])) == (1200, 1)
    assert here("serve", "--stop").code == 0
    wait_until(lambda: not Path(sockets.socket_path("api")).exists())
    assert here("serve", "--status").code == ExitCode.NOTHING_MATCHED


@pytest.mark.slow
def test_a_server_that_was_left_ends_by_itself(queue, lonely: str) -> None:
    from img2img_cli.server.state import State

    dispatcher, _, leave, spec = queue
    state = State(dispatcher=dispatcher, ends_idle=True)
    dispatcher.pool.keep_s = 0.1
    request = ask_for(dispatcher, "a", 0, spec)
    with serve_own(state) as path:
        assert not state.stop.wait(1), "somebody is waiting"
        leave.release(100)
        assert request.future.result(120)
        assert state.stop.wait(120)
        wait_until(lambda: not Path(path).exists() or sockets.connect() is None)


@pytest.mark.parametrize(("more", "words"), [(["ten"], "15m"), (["10m", "--no-server"], "exclude each other")])
def test_keep_warm_is_checked_first(lonely: str, here, picture: Path, more: list[str], words: str) -> None:
    for command in (["colorize", picture], ["batch", picture, "-o", picture.parent / "out", "--preset", "colorize"]):
        done = here(*command, "--keep-warm", *more)
        assert done.code == ExitCode.USAGE
        assert words in done.err
    assert not Path(sockets.socket_folder()).exists()


def test_a_server_with_other_settings_is_not_used(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sockets.connect() is not None
    monkeypatch.setenv("HF_HOME", "/elsewhere")
    assert sockets.connect() is None
    with pytest.raises(ServerGoneError):
        ask_server("GET", "/img2img/status")


def test_what_decides_results_decides_which_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices, rounding, caches and the route to the hub count; our own settings, speed and messages do not."""
    before = sockets.describe_self()
    decisive = (
        "CUDA_DEVICE_ORDER CUDA_VISIBLE_DEVICES HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES HSA_OVERRIDE_GFX_VERSION "
        "PYTORCH_ENABLE_MPS_FALLBACK TORCH_ALLOW_TF32_CUBLAS_OVERRIDE NVIDIA_TF32_OVERRIDE CUBLAS_WORKSPACE_CONFIG "
        "MKL_CBWR OMP_DYNAMIC KMP_DETERMINISTIC_REDUCTION GOMP_CPU_AFFINITY DNNL_MAX_CPU_ISA "
        "ONEDNN_DEFAULT_FPMATH_MODE ATEN_CPU_CAPABILITY HF_HUB_CACHE TRANSFORMERS_CACHE DIFFUSERS_ATTN_BACKEND "
        "LD_PRELOAD HTTPS_PROXY HOME"
    )
    for name in decisive.split():
        with monkeypatch.context() as patch:
            patch.setenv(name, "3")
            assert sockets.describe_self() != before, name
    for name in ("GOMP_SPINCOUNT", "HF_HUB_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TERM", "LANG", "COLUMNS"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "3")
            assert sockets.describe_self() == before, name
    monkeypatch.setattr(sockets, "count_threads", lambda: (77, "another share of the processor"))
    assert sockets.describe_self() != before


def test_a_folder_that_others_may_enter_is_not_trusted(lonely: str, server: Running) -> None:
    folder = Path(sockets.socket_folder())
    mode = folder.stat().st_mode
    folder.chmod(0o755)
    try:
        assert sockets.connect() is None
        with pytest.raises(UsageError, match="0700"):
            sockets.make_socket_folder()
    finally:
        folder.chmod(mode)


def test_only_this_user_can_open_the_sockets(server: Running) -> None:
    assert stat.S_IMODE(Path(sockets.socket_folder()).stat().st_mode) == 0o700
    assert stat.S_IMODE(Path(sockets.socket_path("api")).stat().st_mode) == 0o600


def ask(server: Running, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    named = {"Authorization": f"Bearer {TOKEN}", **{key.replace("_", "-"): value for key, value in headers.items()}}
    connection.request(method, path, body, named)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, {}),
        (200, {"Authorization": "Basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode()}),
        (401, {"Authorization": ""}),
        (401, {"Authorization": "Bearer other"}),
        (401, {"Authorization": "Basic ???"}),
        (403, {"Origin": "http://evil.example"}),
        (403, {"Origin": "null"}),
        (421, {"Host": "evil.example"}),
        (421, {"Host": "evil.example:7860"}),
        (413, {"Content_Length": str(1 << 40)}),
        (413, {"Content_Length": "-1"}),
    ],
)
def test_tcp_has_a_guard(server: Running, status: int, headers: dict[str, str]) -> None:
    if "Content_Length" in headers:
        with socket.create_connection(("127.0.0.1", server.port), timeout=120) as connection:
            length = headers["Content_Length"]
            text = f"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
            connection.sendall(text.encode())
            answer = connection.recv(100)
        assert answer.startswith(b"HTTP/1.1 413") or answer.startswith(b"HTTP/1.1 400")
        return
    assert ask(server, "GET", "/v1/models", **headers)[0] == status


@pytest.mark.slow
def test_a_body_that_never_ends_is_cut_off(server: Running) -> None:
    from img2img_cli.server.guard import MAX_BODY_BYTES

    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as connection:
        head = f"POST /sdapi/v1/img2img HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"%x\r\n" % (1 << 20) + bytes(1 << 20) + b"\r\n"
        sent = 0
        try:
            while sent <= MAX_BODY_BYTES + (64 << 20):
                connection.sendall(chunk)
                sent += 1 << 20
            answer = connection.recv(100)
        except (ConnectionResetError, BrokenPipeError):
            answer = b"HTTP/1.1 413"
    assert b"413" in answer
    assert sent <= MAX_BODY_BYTES + (66 << 20)


def test_our_own_routes_are_not_on_tcp(server: Running) -> None:
    for method, path in (("GET", "/img2img/status"), ("POST", "/img2img/stop"), ("POST", "/img2img/transform")):
        assert ask(server, method, path)[0] == 404


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff" * 100, b"\x00\x00\x00\x02{}", b"\x7f\xff\xff\xff{}"])
def test_garbage_on_our_own_socket_is_refused(server: Running, body: bytes) -> None:
    for path in ("/img2img/transform", "/img2img/pipelines", "/img2img/keep"):
        connection = http.client.HTTPConnection("localhost")
        connection.sock = sockets.connect()
        connection.request("POST", path, body)
        assert connection.getresponse().status == 422
        connection.close()
    assert count_waiting() == 0


def encode(image: Image.Image, format_: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_)
    return buffer.getvalue()


@pytest.mark.slow
def test_openai_client(server: Running, photograph: Image.Image) -> None:
    import openai

    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=TOKEN, max_retries=0)
    assert "style-oil" in {model.id for model in client.models.list()}
    mask = Image.new("RGBA", photograph.size, "black")
    mask.paste((0, 0, 0, 0), (0, 0, 40, 72))
    files = {"image": ("a.png", encode(photograph)), "mask": ("m.png", encode(mask))}
    made = client.images.edit(model="edit", prompt="winter", n=2, **files)
    results = [np.asarray(Image.open(io.BytesIO(base64.b64decode(item.b64_json)))) for item in made.data]
    before = np.asarray(photograph)
    for result in results:
        assert np.array_equal(result[:, 48:], before[:, 48:]), "what the mask leaves opaque is kept"
        assert np.abs(result[:, :36].astype(int) - before[:, :36]).mean() > 2
    assert not np.array_equal(results[0], results[1])
    image = ("a.png", encode(photograph))
    made = client.images.edit(model="gpt-image-1", prompt="fog", image=image, size="64x48", output_format="webp")
    with Image.open(io.BytesIO(base64.b64decode(made.data[0].b64_json))) as small:
        assert (small.size, small.format) == ((64, 48), "WEBP")
    for wrong in ({"model": "nope"}, {"size": "12"}, {"n": 99}, {"image": ("a.png", b"no picture")}):
        with pytest.raises(openai.APIStatusError) as caught:
            client.images.edit(**{"model": "edit", "prompt": "fog", "image": image, **wrong})
        assert caught.value.status_code == (404 if "model" in wrong else 400)
        assert caught.value.param == next(iter(wrong))
        assert "/tmp" not in str(caught.value)


@pytest.mark.slow
def test_webui_client(server: Running, photograph: Image.Image) -> None:
    import webuiapi

    client = webuiapi.WebUIApi(host="127.0.0.1", port=server.port, username="me", password=TOKEN)
    assert client.util_get_current_model() == "edit"
    assert "Euler a" in client.util_get_sampler_names()
    options = {"steps": 4, "seed": 5, "prompt": "night", "width": 80, "height": 60, "sampler_name": "Euler"}
    made = client.img2img(images=[photograph], batch_size=2, **options)
    assert [image.size for image in made.images] == [(80, 60)] * 2
    assert made.info["all_seeds"] == [5, 6]
    again = client.img2img(images=[photograph], **options)
    assert np.array_equal(np.asarray(again.image), np.asarray(made.images[0])), "one seed, one picture"
    mask = Image.new("L", photograph.size)
    mask.paste(255, (0, 0, 40, 72))
    kept = client.img2img(images=[photograph], mask_image=mask, **{**options, "width": 96, "height": 72})
    assert np.array_equal(np.asarray(kept.image)[:, 50:], np.asarray(photograph)[:, 50:])
    assert client.extra_single_image(photograph, upscaling_resize=2).image.size == (192, 144)
    assert client.get_progress()["progress"] == 0
    client.set_options({"sd_model_checkpoint": "style-oil"})
    assert client.util_get_current_model() == "style-oil"
    client.set_options({"sd_model_checkpoint": "edit"})
    for wrong in ({"sampler_name": "Nope"}, {"override_settings": {"sd_model_checkpoint": "nope"}}, {"n_iter": 99}):
        with pytest.raises(RuntimeError) as caught:
            client.img2img(images=[photograph], **{**options, **wrong})
        assert caught.value.args[0] == 422


def test_webui_resize_modes(photograph: Image.Image) -> None:
    from img2img_cli.server.a1111.orders import fit
    from img2img_cli.server.orders import wrap_picture

    picture = wrap_picture(photograph, "x")
    square = [fit(picture, (60, 60), mode).rgb for mode in (0, 1, 2)]
    assert [image.size for image in square] == [(60, 60)] * 3
    middle = photograph.crop((12, 0, 84, 72)).resize((60, 60), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(square[1], int) - np.asarray(middle, int)).mean() < 2
    assert np.abs(np.asarray(square[0], int) - np.asarray(middle, int)).mean() > 5


class Lane:
    """The bundled pipeline, set to gain from batches, which records its input and waits for permission to run."""

    def __init__(self, pipeline: object, leave: threading.Semaphore) -> None:
        self._pipeline, self._leave, self.batches = pipeline, leave, []

    def __getattr__(self, name: str) -> object:
        return getattr(self._pipeline, name)

    def make_lanes(self) -> list[Lane]:
        return [self]

    gains_from_batches = True
    batch_pixels = 3 * 64 * 64

    def transform(self, pieces: list, progress: Callable[[int, int], None]) -> list[Image.Image]:
        self.batches.append([piece.seed for piece in pieces])
        self._leave.acquire()
        return self._pipeline.transform(pieces, progress)


@pytest.fixture(scope="module")
def bundled() -> object:
    from img2img_cli.engines.device import choose_placement
    from img2img_cli.engines.diffusion.build import build_pipeline
    from img2img_cli.presets.catalogue import resolve
    from img2img_cli.presets.files import load_preset

    return build_pipeline(
        resolve(load_preset("edit"), {"prompt": "fog"}).parameters, choose_placement("cpu", "float32")
    )


def ask_for(dispatcher: object, owner: str, seed: int, spec: object, **keys: object) -> object:
    from img2img_cli.server.queue import Request

    image = Image.new("RGB", keys.pop("size", (64, 64)), (seed % 256, 90, 90))
    piece = Piece(image=image, control=image, seed=seed, parameters=spec.parameters, **keys)
    request = Request(owner=owner, spec=spec, pieces=[piece])
    dispatcher.submit(request)
    return request


@pytest.fixture
def queue(bundled: object) -> Iterator[tuple[object, Lane, threading.Semaphore, object]]:
    from img2img_cli.presets.catalogue import resolve
    from img2img_cli.presets.files import load_preset
    from img2img_cli.server.pool import Pool
    from img2img_cli.server.queue import Dispatcher
    from img2img_cli.tasks.protocol import Spec

    leave = threading.Semaphore(0)
    lane = Lane(bundled, leave)
    dispatcher = Dispatcher(Pool(60, build=lambda spec: lane), most=12)
    parameters = resolve(load_preset("edit"), {"prompt": "fog", "num_inference_steps": 1}).parameters
    yield dispatcher, lane, leave, Spec(parameters=parameters)
    leave.release(100)
    dispatcher.close()


@pytest.mark.slow
def test_owners_take_turns_and_share_batches(queue) -> None:
    dispatcher, lane, leave, spec = queue
    first = ask_for(dispatcher, "a", 0, spec)
    wait_until(lambda: lane.batches == [[0]])
    asked = [ask_for(dispatcher, owner, seed, spec) for seed, owner in enumerate("aaabbcd", 1)]
    leave.release(100)
    for request in (first, *asked):
        request.future.result(120)
    # a's are 1, 2, 3, b's 4 and 5, c's 6, d's 7; three pieces fit into a batch, and each owner's come in order.
    assert lane.batches == [[0], [1, 4, 6], [7, 2, 5], [3]] or lane.batches[1] == [1, 4, 6]
    order = [seed for batch in lane.batches for seed in batch]
    assert sorted(order) == list(range(8))
    for own in ([1, 2, 3], [4, 5]):
        assert [seed for seed in order if seed in own] == own
    assert order.index(7) < order.index(3), "whoever has many does not keep the others waiting"


@pytest.mark.slow
def test_owners_take_turns_where_nobody_shares(queue, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher, lane, leave, spec = queue
    monkeypatch.setattr(lane, "gains_from_batches", False)
    first = ask_for(dispatcher, "a", 0, spec)
    wait_until(lambda: lane.batches == [[0]])
    asked = [ask_for(dispatcher, owner, seed, spec) for seed, owner in enumerate("aaabbcd", 1)]
    leave.release(100)
    for request in (first, *asked):
        request.future.result(120)
    assert lane.batches == [[0], [1], [4], [6], [7], [2], [5], [3]]


@pytest.fixture
def slow_to_load(queue, bundled: object) -> Iterator[tuple[object, object, list[object], threading.Event]]:
    """Return a dispatcher with a loaded pipeline, its spec, two specs that load once an event is set, and the event."""
    from img2img_cli.errors import ModelError

    dispatcher, _, leave, spec = queue
    leave.release(100)
    assert ask_for(dispatcher, "z", 0, spec).future.result(120)
    may_load = threading.Event()

    def load(asked: object) -> object:
        assert may_load.wait(120)
        if asked.offload == "group":
            raise ModelError("damaged")
        return copy_of(bundled)

    dispatcher.pool._build = load
    others = [dataclasses.replace(spec, offload=offload) for offload in ("model", "group")]
    yield dispatcher, spec, others, may_load
    may_load.set()


@pytest.mark.slow
def test_models_that_load_keep_nobody_waiting(slow_to_load) -> None:
    from img2img_cli.errors import ModelError

    dispatcher, spec, others, may_load = slow_to_load
    cold = [ask_for(dispatcher, f"cold {index}", 1, other) for index, other in enumerate(others * 2)]
    for seed in range(3):
        assert ask_for(dispatcher, "warm", seed, spec).future.result(120)
    assert dispatcher.describe(spec).multiple
    assert dispatcher.pool.count_busy() == 2, "who asks for the same shares its loading"
    assert not any(request.future.done() for request in cold)
    may_load.set()
    assert [type(request.future.exception(120)) for request in cold] == [type(None), ModelError] * 2
    assert dispatcher.count_waiting() == 0


def test_who_waits_for_a_model_may_leave(slow_to_load) -> None:
    from img2img_cli.server.queue import CancelledError, QueuedPipeline

    dispatcher, _, others, may_load = slow_to_load
    cold = ask_for(dispatcher, "cold", 1, others[0])
    dispatcher.cancel(cold)
    assert isinstance(cold.future.exception(120), CancelledError)
    left = threading.Event()
    left.set()
    with pytest.raises(CancelledError):
        QueuedPipeline(dispatcher, others[0], "web", left)
    may_load.set()
    assert ask_for(dispatcher, "cold", 1, others[0]).future.result(120)


def test_the_server_computes_with_as_many_threads_as_a_command(queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Include a container with a CPU quota: the number of threads affects how sums are rounded."""
    import torch

    from img2img_cli.engines import device
    from img2img_cli.system import processors

    dispatcher, _, leave, spec = queue
    monkeypatch.setattr(device, "DEFAULT_THREADS", 5)
    monkeypatch.setattr(processors, "count_threads", lambda: (3, "the container's share of 5 cores"))
    counted: list[int] = []
    build, transform = dispatcher.pool._build, Lane.transform

    def load(asked: object) -> object:
        counted.append(torch.get_num_threads())
        return build(asked)

    def work(*arguments: object) -> list[Image.Image]:
        counted.append(torch.get_num_threads())
        return transform(*arguments)

    dispatcher.pool._build = load
    monkeypatch.setattr(Lane, "transform", work)
    leave.release(100)
    assert ask_for(dispatcher, "a", 0, dataclasses.replace(spec, device="cpu")).future.result(120)
    assert counted == [3, 3]


def read_messages(response: http.client.HTTPResponse, count: int) -> list[dict[str, object]]:
    return [protocol.unpack(response.read)[0] for _ in range(count)]


def ask_own(path: str, body: bytes) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = sockets.connect(60)
    connection.request("POST", path, body)
    return connection.getresponse()


def test_a_server_at_work_says_so(slow_to_load, lonely: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from img2img_cli.server import api_own
    from img2img_cli.server.state import State

    dispatcher, spec, others, may_load = slow_to_load
    monkeypatch.setattr(api_own, "HEARTBEAT_S", 0.02)
    image = Image.new("RGB", (64, 64))
    piece = Piece(image=image, control=image, seed=1, parameters=spec.parameters)
    with serve_own(State(dispatcher=dispatcher)):
        loads = ask_own("/img2img/pipelines", json.dumps(others[0].to_json()).encode())
        makes = ask_own("/img2img/transform", protocol.pack_pieces(others[0], [piece]))
        for response in (loads, makes):
            assert read_messages(response, 3) == [{"busy": True}] * 3
        may_load.set()
        for response, last in ((loads, "multiple"), (makes, "notes")):
            while last not in (told := read_messages(response, 1)[0]):
                assert {"busy", "step"} & set(told)


def test_a_large_request_keeps_nobody_waiting(queue, lonely: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from img2img_cli.server import api_own
    from img2img_cli.server.state import State

    dispatcher, _, leave, spec = queue
    leave.release(100)
    reads, may_go_on = threading.Event(), threading.Event()

    def read(*arguments: object) -> object:
        reads.set()
        assert may_go_on.wait(120)
        return protocol.unpack_pieces(*arguments)

    monkeypatch.setattr(api_own, "unpack_pieces", read)
    image = Image.new("RGB", (64, 64))
    piece = Piece(image=image, control=image, seed=1, parameters=spec.parameters)
    with serve_own(State(dispatcher=dispatcher)), ThreadPoolExecutor() as pool:
        asked = pool.submit(ask_own, "/img2img/transform", protocol.pack_pieces(spec, [piece]))
        assert reads.wait(120)
        assert ask_server("GET", "/img2img/status")["waiting"] == 0
        may_go_on.set()
        assert asked.result().status == 200


def test_what_is_too_large_for_the_server_is_not_said_to_have_ended_it(
    queue, lonely: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from img2img_cli.server import guard
    from img2img_cli.server.state import State

    monkeypatch.setattr(guard, "MAX_BODY_BYTES", 4)
    with serve_own(State(dispatcher=queue[0])), pytest.raises(ServerGoneError, match="does not accept this") as caught:
        ask_server("POST", "/img2img/keep", {"keep": "1m"})
    assert "send a smaller picture" in str(caught.value)


def test_what_one_thread_keeps_out_of_stdout_others_print(capsys: pytest.CaptureFixture[str]) -> None:
    from img2img_cli.system.silence import silence_stdout

    before = sys.stdout
    with silence_stdout(), ThreadPoolExecutor() as pool:
        print("a library's notice")
        pool.submit(print, "another thread's result").result()
        with silence_stdout():
            pass
        print("one more notice")
    print("a result")
    assert sys.stdout is before
    assert capsys.readouterr().out == "another thread's result\na result\n"


def test_pieces_that_differ_do_not_share_a_batch(queue) -> None:
    dispatcher, lane, leave, spec = queue
    leave.release(100)
    busy = ask_for(dispatcher, "z", 0, spec)
    asked = [
        ask_for(dispatcher, "a", 1, spec),
        ask_for(dispatcher, "b", 2, spec, size=(96, 64)),
        ask_for(dispatcher, "c", 3, spec, reconstruct=True),
    ]
    for request in (busy, *asked):
        assert request.future.result(120)
    assert all(len(batch) == 1 for batch in lane.batches if set(batch) & {2, 3})


def test_cancelled_requests_never_run(queue) -> None:
    from img2img_cli.server.queue import CancelledError

    dispatcher, lane, leave, spec = queue
    first = ask_for(dispatcher, "a", 0, spec)
    wait_until(lambda: lane.batches)
    second = ask_for(dispatcher, "b", 1, spec)
    dispatcher.cancel(second)
    dispatcher.cancel(first)
    leave.release(100)
    for request in (first, second):
        assert isinstance(request.future.exception(120), CancelledError)
    assert ask_for(dispatcher, "c", 2, spec).future.result(120)
    assert [1] not in lane.batches


@pytest.mark.slow
def test_the_queue_is_bounded(queue) -> None:
    from img2img_cli.server.queue import FullError

    dispatcher, lane, _, spec = queue
    ask_for(dispatcher, "a", 0, spec)
    wait_until(lambda: lane.batches)
    for seed in range(12):
        ask_for(dispatcher, "b", seed, spec)
    with pytest.raises(FullError):
        ask_for(dispatcher, "c", 0, spec)


def test_one_that_spoils_a_batch_spoils_it_for_itself_alone(queue, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher, lane, leave, spec = queue
    transform = type(lane).transform

    def spoil(self: Lane, pieces: list, progress: Callable[[int, int], None]) -> list[Image.Image]:
        if any(piece.seed == 2 for piece in pieces):
            self.batches.append([piece.seed for piece in pieces])
            raise ValueError("spoilt")
        return transform(self, pieces, progress)

    monkeypatch.setattr(Lane, "transform", spoil)
    ask_for(dispatcher, "z", 0, spec)
    wait_until(lambda: lane.batches)
    asked = [ask_for(dispatcher, owner, seed, spec) for seed, owner in enumerate("abc", 1)]
    leave.release(100)
    assert [type(request.future.exception(120)) for request in asked] == [type(None), ValueError, type(None)]
    assert [1, 2, 3] in lane.batches


@pytest.mark.slow
def test_pipelines_are_dropped_when_unused_or_in_the_way(bundled, monkeypatch: pytest.MonkeyPatch) -> None:
    from img2img_cli.presets.catalogue import resolve
    from img2img_cli.presets.files import load_preset
    from img2img_cli.server import pool as pools
    from img2img_cli.tasks.protocol import Spec

    built = []
    pool = pools.Pool(60, build=lambda spec: built.append(spec) or copy_of(bundled))
    specs = [Spec(parameters=resolve(load_preset(name), {"prompt": "fog"}).parameters) for name in ("edit", GREY)]
    specs.append(Spec(parameters=specs[0].parameters, device="cpu"))
    free = iter([100.0, 0.0, 0.0, 100.0])
    monkeypatch.setattr(pools, "measure_memory_gib", lambda _: (next(free, 100.0), 100.0))
    first = pool.get(specs[0])
    pool.give_lane(first, pool.take_lane(first))
    assert pool.get(specs[0]) is first
    assert pool.get(specs[1]) is first, "presets that differ in nothing that is loaded share it"
    second = pool.get(specs[2])
    assert pool.list_warm() == [second], "the first made room"
    lane = pool.take_lane(second)
    assert pool.drop_idle() == 0, "somebody works with it"
    pool.give_lane(second, lane)
    assert pool.drop_idle(unused_s=60) == 0
    assert pool.drop_idle() == 1
    assert len(built) == 2


def copy_of(pipeline: object) -> object:
    import copy

    return copy.copy(pipeline)


def test_weights_that_were_replaced_are_loaded_anew(tiny_sd: Path, tmp_path: Path) -> None:
    import shutil

    from img2img_cli.presets.catalogue import resolve
    from img2img_cli.presets.files import load_preset
    from img2img_cli.server.pool import key_of
    from img2img_cli.tasks.protocol import Spec

    folder = shutil.copytree(tiny_sd, tmp_path / "model")
    spec = Spec(parameters=resolve(load_preset("sd15-edit"), {"model": str(folder), "prompt": "fog"}).parameters)
    before = key_of(spec)
    assert key_of(spec) == before
    weights = next(folder.rglob("*.safetensors"))
    os.utime(weights, (1, 1))
    assert key_of(spec) != before


def test_pieces_survive_the_wire(photograph: Image.Image) -> None:
    from img2img_cli.presets.catalogue import resolve
    from img2img_cli.presets.files import load_preset

    p = resolve(load_preset("edit"), {"prompt": "é\n(x:1.2)"}).parameters
    mask, style = photograph.convert("L"), photograph.resize((10, 20))
    pieces = [
        Piece(image=photograph, control=photograph if seed else style, seed=seed, parameters=p, mask=mask, style=style)
        for seed in (0, 2**32 - 1)
    ]
    spec = protocol.Spec(parameters=p, device="cpu", offload="none")
    body = protocol.pack_pieces(spec, pieces)
    assert len(body) < 2 * photograph.width * photograph.height * 3, "what they share is sent once"
    again_spec, again = protocol.unpack_pieces(io.BytesIO(body).read)
    assert again_spec == spec
    for before, after in zip(pieces, again, strict=True):
        assert (after.seed, after.parameters, after.group[0]) == (before.seed, before.parameters, before.group[0])
        for name in ("image", "control", "mask", "style"):
            assert getattr(after, name).tobytes() == getattr(before, name).tobytes()
    assert again[0].image is again[1].image
    for cut in (0, 3, 100, len(body) - 1):
        with pytest.raises((EOFError, ValueError)):
            protocol.unpack_pieces(io.BytesIO(body[:cut]).read)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("1.5m", 90),
        ("2h", 7200),
        ("", None),
        ("-1s", None),
        ("0", None),
        ("nan", None),
        ("5d", None),
    ],
)
def test_lengths_of_time(text: str, seconds: float | None) -> None:
    from img2img_cli.tasks.protocol import parse_duration

    if seconds is None:
        with pytest.raises(UsageError):
            parse_duration(text)
    else:
        assert parse_duration(text) == seconds


@pytest.mark.slow
def test_a_web_client_that_leaves_stops_its_work(server: Running, photograph: Image.Image) -> None:
    body = {"init_images": [base64.b64encode(encode(photograph)).decode()], "steps": 900, "prompt": "fog"}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    connection.request("POST", "/sdapi/v1/img2img", json.dumps(body), headers)
    wait_until(lambda: ask(server, "GET", "/sdapi/v1/progress")[1]["state"]["sampling_step"] > 2)
    told = ask(server, "GET", "/sdapi/v1/progress")[1]
    assert 0 < told["progress"] < 0.9
    assert told["state"]["job_count"] == 1
    connection.close()
    wait_until(lambda: count_waiting() == 0)
    assert ask(server, "GET", "/v1/models")[0] == 200


def kick() -> None:
    with contextlib.suppress(Exception):  # what the one who sends the signal is answered is nobody's concern
        ask_server("GET", "/kick")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_server_that_is_answering(lonely: str, tmp_path: Path, number: int, code: int) -> None:
    """An exception in a request is asyncio's own matter, so a signal must not be one."""
    script = tmp_path / "serve.py"
    script.write_text(
        "import signal, sys\n"
        "from img2img_cli.server import app\n"
        "make = app.make_app\n"
        "async def kick():\n"
        f"    signal.raise_signal({int(number)})\n"
        "def make_app(state, *, native):\n"
        "    made = make(state, native=native)\n"
        "    made.add_api_route('/kick', kick, methods=['GET'])\n"
        "    return made\n"
        "app.make_app = make_app\n"
        "sys.argv = ['img2img', 'serve']\n"
        "from img2img_cli.__main__ import main\n"
        "main()\n"
    )
    environment = {**os.environ, "XDG_RUNTIME_DIR": lonely, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, script], env=environment, stderr=subprocess.PIPE) as process:
        assert b"serving" in process.stderr.readline()
        asking = threading.Thread(target=kick, daemon=True)
        asking.start()
        try:
            assert process.wait(60) == code
        finally:
            process.kill()


@pytest.mark.slow
def test_a_web_client_can_interrupt(server: Running, photograph: Image.Image) -> None:
    body = {"init_images": [base64.b64encode(encode(photograph)).decode()], "steps": 900, "prompt": "fog"}
    answers: list[int] = []

    def request() -> None:
        text = json.dumps(body).encode()
        answers.append(ask(server, "POST", "/sdapi/v1/img2img", text, Content_Type="application/json")[0])

    waiting = threading.Thread(target=request)
    waiting.start()
    wait_until(lambda: count_waiting() == 1)
    wait_until(lambda: ask(server, "GET", "/sdapi/v1/progress")[1]["state"]["sampling_step"] > 0)
    assert ask(server, "POST", "/sdapi/v1/interrupt")[0] == 200
    waiting.join(120)
    assert answers == [499]
