"""Where a command's pipeline comes from: a warm server, one that is started for it, or this process."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from img2img_cli.errors import ExitCode, UsageError
from img2img_cli.server.client import RemotePipeline, ServerGoneError, ServerSilentError, ask_server
from img2img_cli.server.sockets import connect, make_socket_folder, socket_folder, socket_path
from img2img_cli.tasks.protocol import Spec, parse_duration
from img2img_cli.text import printable

if TYPE_CHECKING:
    from img2img_cli.tasks.pieces import Pipeline

START_TIMEOUT_S = 120.0
NEEDED = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}


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
            UsageError: not a length of time, a server that is not to be used, or one that lacks its packages.
        """
        if self.keep_warm is None:
            return
        if not self.server:
            raise UsageError("--keep-warm and --no-server exclude each other; leave one of them out")
        parse_duration(self.keep_warm)
        check_packages()

    def open(self, spec: Spec) -> Pipeline:
        """The pipeline, loaded.

        Raises:
            Img2ImgError: it cannot be loaded.
        """
        try:
            if self.keep_warm is not None:
                self._leave_server(self.keep_warm)
            if self.server:
                return RemotePipeline(_absolute(spec), build)
        except ServerSilentError as error:
            self._tell(f"{error}; going on without it")
        except ServerGoneError:
            pass
        return build(spec)

    def _leave_server(self, keep: str) -> None:
        """Start a server, or have the one that is there stay; without one the command goes on by itself.

        Raises:
            ServerSilentError: one is there but says nothing.
        """
        try:
            ask_server("POST", "/img2img/keep", {"keep": keep})
        except ServerSilentError:
            raise
        except ServerGoneError:
            if reason := start_server(keep):
                self._tell(f"--keep-warm: {reason}; going on without a server")

    def _tell(self, line: str) -> None:
        if not self.quiet:
            print(f"img2img: {printable(line)}", file=sys.stderr)


def start_server(keep: str) -> str | None:
    """Start a server that ends when it was idle so long, and wait until it listens; else say why not."""
    command = [sys.executable, "-m", "img2img_cli", "serve", "--keep", keep, "--end-idle", "--quiet"]
    try:
        make_socket_folder()
        log = Path(socket_path("log"))
        with log.open("wb") as file:
            server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True, cwd="/"
            )
    except UsageError as error:
        return str(error)
    except OSError as error:
        return f"{socket_folder()}: no server can be started ({error.strerror})"
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end:
        with contextlib.suppress(TimeoutError):
            if (connection := connect()) is not None:
                connection.close()
                return None
        if server.poll() not in (None, ExitCode.LOCKED):  # which means that another command has started one just now
            lines = log.read_text(errors="replace").splitlines()
            return lines[-1].removeprefix("img2img: ") if lines else f"it ended with {server.returncode}"
        time.sleep(0.05)
    return "it does not answer"


def _absolute(spec: Spec) -> Spec:
    """The same for a process in another folder."""
    return Spec(parameters=spec.parameters.make_absolute(), device=spec.device, offload=spec.offload)


def build(spec: Spec) -> Pipeline:
    """A pipeline in this process."""
    from img2img_cli.engines.device import choose_placement
    from img2img_cli.engines.open import open_pipeline

    return open_pipeline(spec.parameters, choose_placement(spec.device, spec.parameters.dtype, spec.offload))


def tell_offload(pipeline: Pipeline) -> None:
    """Say it when the model was too large for its device as a whole."""
    if pipeline.offload != "none":
        print(f"img2img: --offload {pipeline.offload} on {pipeline.device_name}", file=sys.stderr)


def check_packages() -> None:
    """Refuse where the server's packages are missing.

    Raises:
        UsageError: saying what to install.
    """
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(f"the server needs {', '.join(missing)}; run `pip install {' '.join(missing)}`")
