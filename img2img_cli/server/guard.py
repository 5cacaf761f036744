"""Check requests before the application sees them: token, host, origin, size, and time limits."""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import secrets
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# starlette's TrustedHostMiddleware and RequestBodyLimitMiddleware do not meet SECURITY.md: they answer in plain text,
# the first cannot accept every address of a machine, and the second limits neither time nor the sum of all bodies.
MAX_BODY_BYTES = 256 << 20
MAX_HELD_BYTES = 1 << 30  # sum over the bodies of all requests in progress
BODY_S, LEAST_RATE = 30.0, 64 << 10  # time limit of a body: BODY_S seconds, plus one per LEAST_RATE bytes
TOO_LARGE = f"the request is over {MAX_BODY_BYTES >> 20} MiB; send a smaller picture"
TOO_SLOW = "the request's body arrives too slowly; check the connection"
CODES = {401: "invalid_api_key"}  # OpenAI's error codes for statuses
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """ASGI middleware that refuses requests it does not allow and limits the size and time of the others.

    Args:
        token: required of requests, as a bearer token or as the password of basic authentication; None on the user's
            own socket, which no other user can open.
        hosts: accepted host names. Others are refused, in case a web page made its own name resolve to this server.
        any_address: whether to accept any IP address as the host, for a server that listens on all addresses. That is
            safe, because no page can make an IP address resolve to this server.
        limit_s: time limit of a request in seconds, including the transfer of its body; None for no limit.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None = None,
        hosts: Sequence[str] = (),
        any_address: bool = False,
        limit_s: float | None = None,
    ) -> None:
        self._app, self._token, self._any_address, self._limit_s = app, token, any_address, limit_s
        self._hosts = [host.lower() for host in hosts]
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on with limits on its body and time. Only HTTP is served."""
        if scope["type"] != "http":
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = self._find_fault(headers)
        if refusal is not None:
            await _refuse(*refusal, scope, receive, send)
            return
        began = False

        async def watch(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        body = _Body(self, receive)
        try:
            async with asyncio.timeout(self._limit_s) as timer:
                await self._app(scope, body.receive, watch)
        except TimeoutError:
            if not timer.expired():
                raise
            if not began:
                text = f"the request took longer than {self._limit_s:g} s; ask for less, or see --request-timeout"
                await _refuse(504, text, scope, receive, send)
        finally:
            self._held -= body.seen

    def hold(self, count: int) -> None:
        """Count received bytes of a body.

        Raises:
            HTTPException: all requests together hold more than `MAX_HELD_BYTES` (status 503).
        """
        self._held += count
        if self._held > MAX_HELD_BYTES:
            raise HTTPException(503, "the server has too much to do; try again later", {"Retry-After": "5"})

    @property
    def is_open(self) -> bool:
        """Whether requests have no time limit, as on the user's own socket."""
        return self._limit_s is None

    def _find_fault(self, headers: Mapping[str, str]) -> tuple[int, str] | None:
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 20 or int(length) > MAX_BODY_BYTES:
            return 413, TOO_LARGE
        if self._token is None:
            return None
        if not self._is_ours(_host_of(headers.get("host", ""))):
            return 421, "this host name is not one of the server's; see --host"
        origin = headers.get("origin")
        if origin is not None and _place_of(origin) != headers.get("host"):
            return 403, "pages of other sites may not use this server"
        if not self._is_known(headers.get("authorization", "")):
            return 401, "the token is missing or wrong; send it as Authorization: Bearer TOKEN"
        return None

    def _is_ours(self, host: str) -> bool:
        return host in self._hosts or (self._any_address and _is_address(host))

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


class _Body:
    """A request's body, received under the guard's limits.

    Attributes:
        seen: bytes received so far.
    """

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self._guard, self._receive = guard, receive
        self._began = asyncio.get_running_loop().time()
        self._more = True
        self.seen = 0

    async def receive(self) -> Message:
        """Return the next part.

        Raises:
            HTTPException: the body is too slow (408), too large (413), or too much with all others (503).
        """
        waits = self._guard.is_open or not self._more
        try:
            async with asyncio.timeout_at(None if waits else self._began + BODY_S + self.seen / LEAST_RATE):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, TOO_SLOW, {"Connection": "close"}) from None
        count = len(message.get("body", b""))
        self.seen += count
        self._more = bool(message.get("more_body", False))
        self._guard.hold(count)
        if self.seen > MAX_BODY_BYTES:
            raise HTTPException(413, TOO_LARGE)
        return message


def describe_refusal(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return a message as JSON that all clients can read: `error` for OpenAI's, `detail` for the web UI's.

    Args:
        param: the field at fault.
        code: OpenAI's error code; None for that of `status`.
    """
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": param, "code": code or CODES.get(status)}
    return {"message": message, "detail": message, "error": error}


async def _refuse(status: int, text: str, scope: Scope, receive: Receive, send: Send) -> None:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 504: {"Connection": "close"}}.get(status)
    await JSONResponse(describe_refusal(text, status), status, headers)(scope, receive, send)


def _host_of(header: str) -> str:
    """Return a Host header in lower case, without its port."""
    host, colon, port = header.lower().rpartition(":")
    return host if colon and port.isdecimal() else header.lower()


def _place_of(origin: str) -> str | None:
    """Return the host and port of an Origin header; None if it is malformed."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
