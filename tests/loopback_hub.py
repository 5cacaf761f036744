"""A model hub on 127.0.0.1 with the part of the hub's protocol that downloading a repository needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LoopbackHub:
    """Serves local folders as repositories. Others are missing, or fail as the end of their name says.

    `gated`, `unauthorised` and `busy` are refused. Large files of `cutoff` end early, those of `slow` stop halfway,
    and those of `lying` have a flipped bit.
    """

    def __init__(self, repositories: Mapping[str, Path]) -> None:
        self.requests: list[str] = []
        self.stopped = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, *, body: bool) -> None:
                hub.requests.append(self.path)
                status, headers, content = hub.respond(self.path.partition("?")[0], repositories)
                self.send_response(status)
                for key, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                if body and "cutoff/" in self.path and len(content) > 10_000:
                    self.wfile.write(content[:5_000])
                    self.close_connection = True
                elif body and "slow/" in self.path and len(content) > 10_000:
                    self.wfile.write(content[:5_000])
                    self.wfile.flush()
                    hub.stopped.wait(20)
                    self.close_connection = True
                elif body and "lying/" in self.path and len(content) > 10_000:
                    self.wfile.write(content[:-1] + bytes([content[-1] ^ 1]))
                elif body:
                    self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def respond(self, path: str, repositories: Mapping[str, Path]) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and content for a request."""
        match = re.match(r"/(?:api/models/)?([\w.-]+/[\w.-]+)(?:/(.*))?$", path)
        name, rest = (match[1], match[2] or "") if match else ("", "")
        if name.endswith("gated"):
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if name.endswith("unauthorised"):
            return 401, {}, b"{}"
        if name.endswith("busy"):
            return 429, {"Retry-After": "0"}, b"{}"
        if name not in repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        pinned = re.match(r"(?:resolve|revision|tree)/([0-9a-f]{40})", rest)
        commit = pinned[1] if pinned else COMMIT
        folder = repositories[name]
        files = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
        if path.startswith("/api/"):
            if rest.startswith("tree/"):
                rows = [
                    {"type": "file", "path": f, "size": (folder / f).stat().st_size, "oid": "0" * 40} for f in files
                ]
                return 200, {"Content-Type": "application/json"}, json.dumps(rows).encode()
            siblings = [{"rfilename": f} for f in files]
            info = {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "private": False, "tags": []}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        file = folder / re.sub(r"^resolve/[^/]+/", "", rest)
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        content = file.read_bytes()
        return 200, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}, content

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
