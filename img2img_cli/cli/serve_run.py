"""How `img2img serve` goes: check everything, only then load torch."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Sequence

from img2img_cli.cli.choices import check_offload
from img2img_cli.cli.open_engine import check_packages
from img2img_cli.errors import NothingMatchedError, TimeLimitError, UsageError
from img2img_cli.presets.catalogue import resolve
from img2img_cli.presets.files import load_preset
from img2img_cli.server.client import ServerGoneError, ServerSilentError, ask_server
from img2img_cli.server.sockets import socket_path
from img2img_cli.tasks.protocol import parse_duration
from img2img_cli.text import printable

LEAST_TOKEN = 16  # characters: other users of the machine reach the port too


def run_server(
    *,
    presets: Sequence[str],
    keep: str,
    ends_idle: bool,
    host: str | None,
    port: int,
    token: str | None,
    request_timeout: str,
    device: str,
    offload: str,
    quiet: bool,
) -> None:
    """Serve until interrupted.

    Raises:
        UsageError: anything that cannot be, before a model is loaded.
    """
    check_packages()
    keep_s, request_s, offload_ = parse_duration(keep), parse_duration(request_timeout), check_offload(offload)
    for name in presets:
        resolve(load_preset(name), {}).parameters.check_references()
    if host is not None and token is not None and len(token) < LEAST_TOKEN:
        raise UsageError(f"--token: under {LEAST_TOKEN} characters; others can reach {host}, so choose a longer one")

    def tell(line: str) -> None:
        if not quiet:
            print(f"img2img: {printable(line)}", file=sys.stderr, flush=True)

    if host is not None and token is None:
        token = secrets.token_urlsafe(24)
        print(f"img2img: token {token}", file=sys.stderr, flush=True)
    # Before torch starts its threads: spinning, they would starve those that speak with the clients.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    place = socket_path("api")  # before torch: it may change settings, and which processors this process may use
    from img2img_cli.server.app import ServeOptions, serve

    options = ServeOptions(
        presets=presets,
        keep_s=keep_s,
        host=host,
        port=port,
        token=token,
        request_s=request_s,
        device=device,
        offload=offload_,
        ends_idle=ends_idle,
    )
    serve(options, place, tell)


def end_server() -> None:
    """Ask the running server to end.

    Raises:
        NothingMatchedError: there is none.
        TimeLimitError: it does not answer.
    """
    _ask("POST", "/img2img/stop")


def tell_status() -> None:
    """What the running server does, as JSON on stdout.

    Raises:
        NothingMatchedError: there is none.
        TimeLimitError: it does not answer.
    """
    print(json.dumps(_ask("GET", "/img2img/status")))


def _ask(method: str, path: str) -> dict[str, object]:
    try:
        return ask_server(method, path)
    except ServerSilentError as error:
        raise TimeLimitError(str(error)) from None
    except ServerGoneError:
        raise NothingMatchedError("no server is running; `img2img serve` starts one") from None
