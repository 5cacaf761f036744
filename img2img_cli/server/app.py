"""The server process: open the sockets, serve the APIs, report errors and shut down."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from filelock import FileLock, Timeout
from starlette.exceptions import HTTPException

from img2img_cli.errors import Img2ImgError, LockedError, UsageError
from img2img_cli.presets.catalogue import resolve
from img2img_cli.presets.files import load_preset
from img2img_cli.presets.schema import Offload
from img2img_cli.server import api_openai, api_own
from img2img_cli.server.a1111 import api
from img2img_cli.server.connection import Connection, OwnConnection
from img2img_cli.server.guard import LOOPBACK, Guard, describe_refusal
from img2img_cli.server.orders import RefusedError
from img2img_cli.server.pool import Pool
from img2img_cli.server.queue import CancelledError, Dispatcher, FullError
from img2img_cli.server.sockets import listen, make_socket_folder
from img2img_cli.server.state import State
from img2img_cli.system.interrupts import INTERRUPTS
from img2img_cli.tasks.protocol import HTTP_STATUS, Spec, describe_error
from img2img_cli.text import printable

BACKLOG_S = 5  # how long running requests may take to finish at shutdown


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How to serve.

    Attributes:
        presets: names or files of presets to load at the start and to offer to web clients.
        keep_s: how long an unused pipeline stays loaded, in seconds.
        host: address for TCP; None to serve only the user's own socket.
        token: secret that web clients must send; required with `host`.
        request_s: time limit of a web client's request, in seconds.
        ends_idle: whether to shut down after `keep_s` without requests.
    """

    presets: Sequence[str] = ()
    keep_s: float = 900.0
    host: str | None = None
    port: int = 7860
    token: str | None = None
    request_s: float = 1800.0
    device: str = "auto"
    offload: Offload = "auto"
    ends_idle: bool = False


class _PlainText(logging.Formatter):
    """Formatter that removes control characters, which requests, files or libraries may have put into a message."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as Python does, and make each line printable."""
        return "\n".join(map(printable, super().format(record).splitlines()))


def keep_log_plain() -> None:
    """Send all log messages of this process to stderr as plain text."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PlainText())
    logging.basicConfig(handlers=[handler], force=True)


class _Uvicorn(uvicorn.Server):
    """A server that handles no signals, because two run in this process and both must end on a signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def serve(options: ServeOptions, place: str, tell: Callable[[str], None]) -> None:
    """Serve until a client or the idle time ends the server.

    Args:
        place: path of the user's own socket.
        tell: called with each line to show to the user who started the server.

    Raises:
        LockedError: an equal server is already running.
        UsageError: the address is not available, or the socket's folder cannot be used.
        Img2ImgError: a preset cannot be loaded.
    """
    keep_log_plain()
    make_socket_folder()
    lock = FileLock(Path(place).with_suffix(".lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise LockedError("a server is running already; `img2img serve --stop` ends it") from None
    with lock, contextlib.ExitStack() as stack:
        listeners = [] if options.host is None else [stack.enter_context(_listen_tcp(options.host, options.port))]
        state = _make_state(options)
        stack.callback(state.dispatcher.close)
        for preset in state.presets.values():
            spec = Spec(
                parameters=resolve(load_preset(preset), {}).parameters, device=options.device, offload=options.offload
            )
            state.dispatcher.describe(spec)
        own = stack.enter_context(_listen_own(place))
        tell(f"serving on {own.getsockname()}; end it with Ctrl-C or `img2img serve --stop`")
        for listener in listeners:
            host, port = listener.getsockname()[:2]
            tell(f"serving on http://{f'[{host}]' if ':' in host else host}:{port} with the token")
        apps = [(Guard(make_app(state, native=True)), own)]
        apps += [(_guard_web(state, options, tcp), tcp) for tcp in listeners]
        # Raised within a request, a signal would end that request alone: asyncio keeps it there.
        with INTERRUPTS.hold():
            asyncio.run(_run(state, apps))


def _guard_web(state: State, options: ServeOptions, listener: socket.socket) -> Guard:
    assert options.token is not None
    return Guard(
        make_app(state, native=False),
        token=options.token,
        hosts=_list_hosts(options.host),
        any_address=ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_unspecified,
        limit_s=options.request_s,
    )


def _make_state(options: ServeOptions) -> State:
    presets: Mapping[str, str] = {Path(name).stem: name for name in options.presets}
    dispatcher = Dispatcher(Pool(options.keep_s))
    return State(
        dispatcher=dispatcher,
        presets=presets,
        device=options.device,
        offload=options.offload,
        ends_idle=options.ends_idle,
    )


async def _run(state: State, apps: Sequence[tuple[Guard, socket.socket]]) -> None:
    servers = []
    for app, _ in apps:
        config = uvicorn.Config(
            app,
            http=OwnConnection if app.is_open else Connection,
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=BACKLOG_S,
        )
        servers.append(_Uvicorn(config))

    def watch() -> None:
        state.watch()
        for server in servers:
            server.should_exit = True

    watcher = threading.Thread(target=watch, name="img2img-watch", daemon=True)
    watcher.start()
    try:
        await asyncio.gather(
            *(server.serve(sockets=[listener]) for server, (_, listener) in zip(servers, apps, strict=True))
        )
    finally:
        state.stop.set()
        watcher.join()


def make_app(state: State, *, native: bool) -> FastAPI:
    """Return the application.

    Args:
        native: whether to include the routes for img2img's own commands; only for a socket that no other user can open.
    """
    app = FastAPI(title="img2img", docs_url=None, redoc_url=None, openapi_url=None)
    if native:
        app.include_router(api_own.make_router(state))
    app.include_router(api_openai.make_router(state))
    app.include_router(api.make_router(state))

    def refuse(request: Request, error: Exception) -> JSONResponse:
        return explain(error, tells_bugs=native)

    for kind in (Img2ImgError, FullError, CancelledError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, refuse)
    return app


def explain(error: Exception, *, tells_bugs: bool = False) -> JSONResponse:
    """Return the HTTP response for an error, as JSON that every supported client can read.

    Args:
        tells_bugs: whether to include the text of an unexpected exception, which may name files on this machine.
    """
    told = describe_error(error)
    status = 500
    headers: Mapping[str, str] | None = None
    param: str | None = None
    code: str | None = None
    if isinstance(error, FullError):
        status, told = 503, {"message": "the server has too much to do; try again later"}
        headers = {"Retry-After": "5"}
    elif isinstance(error, CancelledError):
        status, told = 499, {"message": "the client no longer waits for the result"}
    elif isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:])) or "body"
        status, told = 422, {"kind": "UsageError", "message": f"{where}: {first['msg']}"}
    elif isinstance(error, HTTPException):
        status, told, headers = error.status_code, {"message": str(error.detail)}, error.headers
    elif isinstance(error, RefusedError):
        status, param, code = error.status, error.param, error.code
    elif isinstance(error, Img2ImgError):
        status = HTTP_STATUS.get(error.exit_code, 500)
    elif not tells_bugs:
        told = {"message": "a bug in the server; see its log"}
    message = printable(" ".join(told["message"].split()))
    return JSONResponse({**told, **describe_refusal(message, status, param, code)}, status, headers)


@contextlib.contextmanager
def _listen_own(path: str) -> Iterator[socket.socket]:
    try:
        with listen(path) as listener:
            yield listener
    finally:
        Path(path).unlink(missing_ok=True)


def _listen_tcp(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except (OSError, OverflowError) as error:
        raise UsageError(f"--host {host} --port {port}: cannot be used ({error}); choose another") from None


def _list_hosts(host: str | None) -> list[str]:
    """Return the host names under which clients may address this server."""
    name = f"[{host}]" if host and ":" in host else str(host)
    return [name, socket.gethostname(), *LOOPBACK]
