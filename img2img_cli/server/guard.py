"""What a request must be before anything looks at it, and how long it may take: on TCP with the token, for this host,
from no other site's page, small enough, and done in time."""

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

# starlette's TrustedHostMiddleware and RequestBodyLimitMiddleware fall short of SECURITY.md: they answer in plain text,
# the first takes no address where a server has many, and the second knows no time and no sum of all bodies.
MAX_BODY_BYTES = 256 << 20
MAX_HELD_BYTES = 1 << 30  # of all bodies that are being worked on
BODY_S, LEAST_RATE = 30.0, 64 << 10  # a body's time: seconds, and one more for so many bytes
TOO_LARGE = f"the request is over {MAX_BODY_BYTES >> 20} MiB; send a smaller picture"
TOO_SLOW = "the request's body comes too slowly; check the connection"
CODES = {401: "invalid_api_key"}  # OpenAI's words for what its status alone tells
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """ASGI middleware.

    Args:
        token: what requests must carry, as a bearer token or as the password of basic authentication; None on the
            user's own socket, which nobody else can open.
        hosts: names under which the server may be asked for, so that no web page can have its own name point here.
        any_address: whether every address will do as a name, as the server listens on all that there are; no page
            can have an address point elsewhere.
        limit_s: how long a request may take, its body's way here included; None for as long as it likes.
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
        """Refuse, or pass on with a watch over the body and the time. There is nothing here but HTTP."""
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
        """Account for bytes that have come.

        Raises:
            HTTPException: all requests together hold too many.
        """
        self._held += count
        if self._held > MAX_HELD_BYTES:
            raise HTTPException(503, "the server has too much to do; try again later", {"Retry-After": "5"})

    @property
    def is_open(self) -> bool:
        """Whether it is for the user alone, who may take as long as he likes."""
        return self._limit_s is None

    def _find_fault(self, headers: Mapping[str, str]) -> tuple[int, str] | None:
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 20 or int(length) > MAX_BODY_BYTES:
            return 413, TOO_LARGE
        if self._token is None:
            return None
        if not self._is_ours(_host_of(headers.get("host", ""))):
            return 421, "this server goes by another name; see --host"
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
    """A request's body on its way to the application."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self._guard, self._receive = guard, receive
        self._began = asyncio.get_running_loop().time()
        self._more = True
        self.seen = 0

    async def receive(self) -> Message:
        """The next part, unless it is one too many or too late."""
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
    """A message in the forms that the several clients read: `error` is for OpenAI's, `detail` for the web UI's.

    Args:
        param: the field that is at fault.
        code: OpenAI's word for the fault.
    """
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": param, "code": code or CODES.get(status)}
    return {"message": message, "detail": message, "error": error}


async def _refuse(status: int, text: str, scope: Scope, receive: Receive, send: Send) -> None:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 504: {"Connection": "close"}}.get(status)
    await JSONResponse(describe_refusal(text, status), status, headers)(scope, receive, send)


def _host_of(header: str) -> str:
    """A Host header without its port."""
    host, colon, port = header.lower().rpartition(":")
    return host if colon and port.isdecimal() else header.lower()


def _place_of(origin: str) -> str | None:
    """Host and port of a page."""
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
