"""HTTP connections: limits on their number and on the time for a request's head, and refusals in JSON."""

from __future__ import annotations

import asyncio
import json

import h11
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from img2img_cli.server.guard import describe_refusal
from img2img_cli.server.sockets import is_own

# uvicorn's own limits do not meet SECURITY.md: beyond `limit_concurrency`, and to anything but HTTP, it answers in
# plain text instead of JSON; and `timeout_keep_alive` stops at the first byte of a head, whose rest may never come.
MOST_CONNECTIONS = 256
HEAD_S = 20.0  # for the whole head of a request, including the wait for it
CROWDED_S = 1.0  # the same for connections beyond MOST_CONNECTIONS
REASONS = {400: b"Bad Request", 408: b"Request Timeout"}


class Connection(H11Protocol):
    """A web client's connection: uvicorn's, with a time limit for the head of a request."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for a request's head. Connections beyond `MOST_CONNECTIONS` get status 503."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            self.app = turn_away
        self._wait(CROWDED_S if self.app is turn_away else HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        if self._patience is not None:
            self._patience.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Restart the timer for the next request. The unread rest of a body does not extend it."""
        super().on_response_complete()
        self._wait(HEAD_S)

    def send_400_response(self, msg: str) -> None:
        """Answer anything that is not HTTP/1.1, in JSON."""
        self._refuse(400, "not a request in HTTP/1.1, or one with too long a head")

    def _wait(self, seconds: float) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self.loop.call_later(seconds, self._lose_patience)

    def _lose_patience(self) -> None:
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            return
        if self.cycle is None and self.conn.our_state is h11.IDLE:
            self._refuse(408, "the request's head did not arrive in time; send it at once")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps(describe_refusal(message, status)).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = h11.Response(status_code=status, headers=headers, reason=REASONS[status])
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class OwnConnection(H11Protocol):
    """A command's connection over the user's own socket. The folder's mode excludes other users; this checks again."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close the connection if another user is at the other end."""
        super().connection_made(transport)
        if not is_own(transport.get_extra_info("socket")):
            transport.abort()


async def turn_away(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer any request with status 503; the ASGI application for connections beyond `MOST_CONNECTIONS`."""
    content = describe_refusal("the server has too many connections; try again later", 503)
    await JSONResponse(content, 503, {"Connection": "close", "Retry-After": "5"})(scope, receive, send)
