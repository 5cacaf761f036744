"""What a request must be before anything looks at it: small enough, and on TCP with the token and for this host."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 256 << 20
TOO_LARGE = f"the request is over {MAX_BODY_BYTES >> 20} MiB; send a smaller picture"
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """ASGI middleware.

    Args:
        token: what requests must carry, as a bearer token or as the password of basic authentication; None on the
            user's own socket, which nobody else can open.
        hosts: names under which the server may be asked for, so that no web page can have its own name point here.
    """

    def __init__(self, app: ASGIApp, *, token: str | None = None, hosts: Sequence[str] = ()) -> None:
        self._app, self._token = app, token
        self._hosts = [host.lower() for host in hosts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with a watch over the body's length."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = self._find_fault(headers)
        if refusal is not None:
            status, text = refusal
            challenge = {"WWW-Authenticate": "Bearer"} if status == 401 else None
            await JSONResponse({"message": text, "error": {"message": text}}, status, challenge)(scope, receive, send)
            return
        seen = 0

        async def count() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY_BYTES:
                raise HTTPException(413, TOO_LARGE)
            return message

        await self._app(scope, count, send)

    def _find_fault(self, headers: dict[str, str]) -> tuple[int, str] | None:
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return 413, TOO_LARGE
        if self._token is None:
            return None
        if _host_of(headers.get("host", "")) not in self._hosts:
            return 421, "this server goes by another name; see --host"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return 403, "pages of other sites may not use this server"
        if not self._is_known(headers.get("authorization", "")):
            return 401, "the token is missing or wrong; send it as Authorization: Bearer TOKEN"
        return None

    def _is_known(self, authorization: str) -> bool:
        assert self._token is not None
        kind, _, value = authorization.partition(" ")
        if kind.lower() == "basic":
            try:
                value = base64.b64decode(value, validate=True).decode().partition(":")[2]
            except (binascii.Error, ValueError):
                return False
        elif kind.lower() != "bearer":
            return False
        return secrets.compare_digest(value.encode(), self._token.encode())


def _host_of(header: str) -> str:
    """A Host header without its port."""
    host, colon, port = header.lower().rpartition(":")
    return host if colon and port.isdecimal() else header.lower()
