"""Run the stages of each picture in a separate process, because a hung process can be killed and a hung thread cannot.

Used for --item-timeout. A server process imports the modules that the stages need once, without torch, and forks a
child for each picture. The server has a single thread, so forking is safe. It alone reaps its children, so the system
cannot reuse the process ID of a child that is about to be killed. When the parent process ends, even by a signal, the
server kills its children and exits.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from PIL import Image

from img2img_cli.batch.stages import Encoded, Read, Stages
from img2img_cli.errors import Img2ImgError, InputError, OutOfMemoryError, TimeLimitError
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.pieces import Piece, Pipeline
from img2img_cli.tasks.protocol import Elsewhere, describe_error, describe_pipeline, restore_error

_NUMBER = struct.Struct("!q")
_START = 0  # the order to fork; any other number is the ID of the process to kill
GRACE_S = 1.0  # how long to wait for a killed process to exit


class Forks:
    """A client of the server process that starts and kills the processes of pictures.

    Raises:
        OutOfMemoryError: the server process cannot be started.
    """

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair()
        command = [sys.executable, "-W", "ignore", "-m", __name__, str(theirs.fileno())]
        with theirs:
            # Start a new session, so that Ctrl-C reaches only this process, which first finishes the current writes.
            try:
                self._server = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except OSError as error:
                self._orders.close()
                raise _no_process(error.strerror or "") from None
        self._guard = threading.Lock()

    def start(self) -> tuple[int, Connection]:
        """Start a process and return its ID and the connection to it.

        Raises:
            OutOfMemoryError: no process can be started.
        """
        mine, theirs = socket.socketpair()
        with theirs, mine:
            process = self._order(_START, [theirs.fileno()])
            if process <= 0:
                raise _no_process(os.strerror(-process) if process else "the decoders' server has ended")
            return process, Connection(mine.detach())

    def end(self, process: int) -> int:
        """Kill a process if it still runs.

        Returns:
            its exit code, negative for a signal as in `subprocess`; 0 if the code is unknown.
        """
        return self._order(process)

    def _order(self, number: int, files: Sequence[int] = ()) -> int:
        with self._guard:
            try:
                socket.send_fds(self._orders, [_NUMBER.pack(number)], list(files))
                return int(_NUMBER.unpack(self._orders.recv(_NUMBER.size, socket.MSG_WAITALL))[0])
            except (OSError, struct.error):
                return 0

    def close(self) -> None:
        """Kill all processes and end the server."""
        with self._guard:
            self._orders.close()
        self._server.wait()


def _no_process(reason: str) -> OutOfMemoryError:
    return OutOfMemoryError(f"no process for --item-timeout can be started ({reason}); raise `ulimit -u`")


class StagesApart:
    """The counterpart of `Stages` that runs in another process.

    Args:
        time_left: returns the seconds left until the time limit.

    Raises:
        OutOfMemoryError: no process can be started.
    """

    def __init__(self, forks: Forks, job: Job, fingerprint: str, time_left: Callable[[], float]) -> None:
        self._forks, self._job, self._time_left, self._killed = forks, job, time_left, False
        self._process, self._connection = forks.start()
        self._connection.send((job, fingerprint))

    def load(self, data: bytes | None = None) -> Read:
        """Do as `Stages.load` does.

        Raises:
            Img2ImgError: the input cannot be read, the time limit has passed, or the decoder has crashed.
        """
        read: Read = self._ask("load", data)
        return read

    def prepare(self, pipeline: Pipeline) -> list[Piece]:
        """Do as `Stages.prepare` does.

        Raises:
            Img2ImgError: the time limit has passed, or the process has crashed.
        """
        pieces: list[Piece] = self._ask("prepare", asdict(describe_pipeline(pipeline, lanes=1)))
        return pieces

    def advance(self, images: Sequence[Image.Image]) -> list[Piece] | Encoded:
        """Do as `Stages.advance` does.

        Raises:
            Img2ImgError: the time limit has passed, or the process has crashed.
        """
        advanced: list[Piece] | Encoded = self._ask("advance", images)
        return advanced

    def _ask(self, name: str, argument: object) -> Any:
        try:
            self._connection.send((name, argument))
            if not self._connection.poll(max(0.0, self._time_left())):
                self.kill()
                raise TimeLimitError
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._explain_end() from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _explain_end(self) -> Img2ImgError:
        if self._killed:
            return TimeLimitError()
        code = self._forks.end(self._process)
        if code == -signal.SIGKILL:  # only the system's out-of-memory killer sends this signal
            return OutOfMemoryError(f"{self._job.input}: its process was killed; make it smaller, or use --workers 1")
        ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return InputError(f"{self._job.input}: the library that reads or writes it has crashed ({ended}); convert it")

    def kill(self) -> None:
        """Kill the process. A thread that waits for its answer gets a `TimeLimitError`."""
        self._killed = True
        self._forks.end(self._process)

    def close(self) -> None:
        """Kill the process and close the connection. Call this only when no thread waits for an answer."""
        self.kill()
        self._connection.close()


def _serve(orders: socket.socket) -> None:
    """Fork and kill children as ordered, until the other end closes the socket."""
    children = set[int]()
    try:
        while True:
            message, files, _, _ = socket.recv_fds(orders, _NUMBER.size, 1)
            if len(message) < _NUMBER.size:
                return
            (number,) = _NUMBER.unpack(message)
            if number == _START:
                answer = _fork(orders, files[0])
                os.close(files[0])
                children.add(answer)
            else:
                answer = _end(number) if number in children else 0
                children.discard(number)
            orders.sendall(_NUMBER.pack(answer))
    finally:
        for child in children:
            _end(child)


def _fork(orders: socket.socket, file: int) -> int:
    """Fork a child that works on the connection `file`; return its process ID, or a negated `errno`."""
    try:
        process = os.fork()
    except OSError as error:
        return -(error.errno or 1)
    if process == 0:
        orders.close()
        _work(Connection(file))
    return process


def _end(process: int) -> int:
    """Kill a child and return its exit code; 0 if it does not exit because it hangs in a system call."""
    if process <= 0:
        return 0
    end = time.monotonic() + GRACE_S
    found, status = os.waitpid(process, os.WNOHANG)
    if not found:
        os.kill(process, signal.SIGKILL)
    while not found and time.monotonic() < end:
        time.sleep(0.0005)
        found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else 0


def _work(connection: Connection) -> NoReturn:
    """Serve the stages of one picture in a child process, until the connection closes."""
    with contextlib.suppress(EOFError, OSError, MemoryError):
        stages = Stages(*connection.recv())
        while True:
            name, argument = connection.recv()
            if name == "prepare":
                argument = Elsewhere(**argument)
            try:
                answer = getattr(stages, name)(argument)
            except MemoryError as error:
                answer = error
            except Exception as error:  # noqa: BLE001 - sent back to the caller
                answer = restore_error(describe_error(error))
            connection.send_bytes(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))
    os._exit(0)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
