"""A command handed over whole: a process that has everything loaded but the model runs it in this one's place.

Starting Python and importing what a command needs takes longer than the command itself when the model is warm. The
server's door (`server/door.py`) forks a process that has imported it all; it gets this process's files, folder,
environment and signals, so that nobody can tell the difference.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import struct
from collections.abc import Iterator, Sequence
from types import FrameType

from img2img_cli.meeting import connect

HEADER = struct.Struct("!I")
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ask_door(arguments: Sequence[str]) -> int | None:
    """The exit code of a command that the door has run; None when there is no door."""
    door = connect("door")
    if door is None:
        return None
    with door, _forward_signals(door):
        try:
            folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
            umask = os.umask(0)
            os.umask(umask)
            order = json.dumps({"arguments": list(arguments), "environment": dict(os.environ), "umask": umask}).encode(
                "utf-8", "surrogatepass"
            )
            files = array.array("i", [0, 1, 2, folder])
            socket.socket.sendmsg(
                door, [HEADER.pack(len(order))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files.tobytes())]
            )
            door.sendall(order)
        except OSError:  # no folder, a closed stdin, or a server that is about to go
            return None
        with contextlib.suppress(OSError):
            if answer := door.recv(1):
                return answer[0]
    # It has begun, so it must not be run a second time.
    os.write(2, b"img2img: the server ended before the command did; run it again, with --no-server if need be\n")
    return 1


@contextlib.contextmanager
def _forward_signals(door: socket.socket) -> Iterator[None]:
    """What ends this process is passed on; the answer is the other's exit code."""

    def forward(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            door.send(bytes([number]))

    before = {number: signal.getsignal(number) for number in FORWARDED}
    try:
        for number in FORWARDED:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, forward)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
