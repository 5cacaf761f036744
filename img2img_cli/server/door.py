"""The server's door: a process with everything imported but torch, which forks to run whole commands.

It has one thread, and so may fork. It ends when the server does: the pipe on its stdin closes.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import selectors
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from img2img_cli.meeting import is_own, listen
from img2img_cli.visitor import FORWARDED, HEADER

PRELOADED = ("cli.app", "cli.picture", "cli.engine", "remote", "runner", "record", "report")
MAX_ORDER = 16 << 20
ANSWER_TIMEOUT_S = 5.0


class Door:
    """Accepts commands, forks for each, passes on signals and answers with exit codes."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._visitors: dict[int, socket.socket] = {}  # by the process that works for them
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self, life: int) -> None:
        """Until the file descriptor `life` closes."""
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake, selectors.EVENT_READ, self._reap)
        self._selector.register(life, selectors.EVENT_READ, None)
        open_ = True
        while open_ or self._visitors:
            for key, _ in self._selector.select():
                if key.data is not None:
                    key.data()
                elif open_:  # the commands under way go on by themselves
                    open_ = False
                    self._selector.unregister(self._listener)
                    self._selector.unregister(life)

    def _accept(self) -> None:
        visitor, _ = self._listener.accept()
        try:
            visitor.settimeout(ANSWER_TIMEOUT_S)
            if not is_own(visitor):
                raise ValueError("another user")
            order, files = _receive(visitor)
        except (OSError, ValueError):
            visitor.close()
            return
        process = os.fork()
        if process == 0:
            _become(order, files)
        for file in files:
            os.close(file)
        self._visitors[process] = visitor
        self._selector.register(visitor, selectors.EVENT_READ, lambda: self._forward(process, visitor))

    def _forward(self, process: int, visitor: socket.socket) -> None:
        """A signal's number, or the end of a visitor that was killed."""
        try:
            numbers = visitor.recv(64)
        except OSError:
            numbers = b""
        if not numbers:
            self._selector.unregister(visitor)
            numbers = bytes([signal.SIGTERM])
        for number in numbers:
            if number in FORWARDED:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake.recv(4096):
                pass
        while self._visitors:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                return
            visitor = self._visitors.pop(process, None)
            if visitor is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(visitor)
            with contextlib.suppress(OSError):
                visitor.send(bytes([code if code >= 0 else 128 - code]))
            visitor.close()


def _receive(visitor: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A command, and its stdin, stdout, stderr and folder.

    Raises:
        OSError, ValueError: not what a visitor sends.
    """
    header, files, _, _ = socket.recv_fds(visitor, HEADER.size, 4)
    try:
        length = HEADER.unpack(header)[0] if len(header) == HEADER.size else MAX_ORDER + 1
        if len(files) != 4 or length > MAX_ORDER:
            raise ValueError("not a visitor")
        data = bytearray()
        while len(data) < length:
            if not (part := visitor.recv(length - len(data))):
                raise ValueError("the visitor has left")
            data += part
        return json.loads(data.decode("utf-8", "surrogatepass")), files
    except BaseException:
        for file in files:
            os.close(file)
        raise


def _become(order: dict[str, Any], files: list[int]) -> NoReturn:
    """Run the command in the visitor's place."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for usual in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(usual, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.fchdir(files[3])
        for stream in range(3):
            os.dup2(files[stream], stream)
        os.closerange(3, 1024)  # the door's own, and other visitors'
        os.umask(order["umask"])
        os.environ.clear()
        os.environ.update(order["environment"])
        _open_streams()
        sys.argv = ["img2img", *order["arguments"]]
        from img2img_cli.cli.app import main

        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001 - what Python would do at the end of a process
        sys.excepthook(*sys.exc_info())
    finally:
        for written in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                written.flush()
        os._exit(code)


def _open_streams() -> None:
    """Streams as Python makes them for these files at its start."""
    sys.stdin = io.TextIOWrapper(
        io.BufferedReader(io.FileIO(0, "rb", closefd=False)), encoding="utf-8", errors="surrogateescape"
    )
    for name, number, errors in (("stdout", 1, "surrogateescape"), ("stderr", 2, "backslashreplace")):
        binary = io.BufferedWriter(io.FileIO(number, "wb", closefd=False))
        lines = number == 2 or os.isatty(number)
        setattr(sys, name, io.TextIOWrapper(binary, encoding="utf-8", errors=errors, line_buffering=lines))


def main() -> None:
    """Import, listen, serve."""
    for name in PRELOADED:
        importlib.import_module(f"img2img_cli.{name}")
    from PIL import Image

    from img2img_cli.cli.app import build_command
    from img2img_cli.finish import keep_luminance
    from img2img_cli.preset_files import load_preset
    from img2img_cli.work import derive_seed

    Image.init()
    build_command()
    for task in ("colorize", "upscale", "edit", "restore"):  # what loads something when it is first called
        load_preset(task)
    keep_luminance(Image.new("RGB", (16, 16)), [Image.new("RGB", (8, 8))], 1.0)
    derive_seed(0, 1)
    gc.collect()
    gc.freeze()  # what is imported stays shared between the processes
    listener = listen("door")
    try:
        Door(listener).serve(life=0)
    finally:
        Path(listener.getsockname()).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
