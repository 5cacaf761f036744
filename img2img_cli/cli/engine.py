"""Where a command's pipeline comes from: a warm server, one that is started for it, or this process."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from img2img_cli.job import printable
from img2img_cli.meeting import connect, make_meeting_folder, socket_path
from img2img_cli.remote import RemotePipeline, ServerGoneError, ask_server
from img2img_cli.wire import Spec, parse_duration

if TYPE_CHECKING:
    from img2img_cli.work import Pipeline

START_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How a command comes by pipelines.

    Attributes:
        server: whether one that runs may be used.
        keep_warm: how long a server is to stay behind; None for no longer than there is one anyway.
    """

    server: bool = True
    keep_warm: str | None = None
    quiet: bool = False

    def check(self) -> None:
        """Refuse what cannot be, before anything is loaded.

        Raises:
            UsageError: not a length of time, or a server that lacks its packages.
        """
        if self.keep_warm is not None:
            from img2img_cli.cli.serve_run import check_packages

            parse_duration(self.keep_warm)
            check_packages()

    def open(self, spec: Spec) -> Pipeline:
        """The pipeline, loaded.

        Raises:
            Img2ImgError: it cannot be loaded.
        """
        if self.keep_warm is not None:
            self._leave_server(self.keep_warm)
        if self.server or self.keep_warm is not None:
            try:
                return RemotePipeline(_absolute(spec), build)
            except ServerGoneError:
                pass
        return build(spec)

    def _leave_server(self, keep: str) -> None:
        """Start a server, or have the one that is there stay; without one the command goes on by itself."""
        try:
            ask_server("POST", "/img2img/keep", {"keep": keep})
            return
        except ServerGoneError:
            pass
        error = start_server(keep)
        if error and not self.quiet:
            print(f"img2img: --keep-warm: {printable(error)}; going on without a server", file=sys.stderr)


def start_server(keep: str) -> str | None:
    """Start a server that ends when it was idle so long, and wait until it listens; else say why not."""
    make_meeting_folder()
    log = Path(socket_path("log"))
    command = [sys.executable, "-m", "img2img_cli", "serve", "--keep", keep, "--end-idle", "--quiet"]
    with log.open("wb") as file:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True, cwd="/"
        )
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end:
        if (connection := connect("api")) is not None:
            connection.close()
            return None
        if server.poll() not in (None, 7):  # 7: another command has started one a moment ago
            lines = log.read_text(errors="replace").splitlines()
            return lines[-1].removeprefix("img2img: ") if lines else f"it ended with {server.returncode}"
        time.sleep(0.05)
    return "it does not answer"


def _absolute(spec: Spec) -> Spec:
    """The same for a process in another folder."""
    return Spec(parameters=spec.parameters.make_absolute(), device=spec.device, offload=spec.offload)


def build(spec: Spec) -> Pipeline:
    """A pipeline in this process."""
    from img2img_cli.building import build_pipeline
    from img2img_cli.device import choose_placement

    return build_pipeline(spec.parameters, choose_placement(spec.device, spec.parameters.dtype, spec.offload))
