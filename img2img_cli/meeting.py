"""Where a warm server and the commands that use it meet.

It is loaded before anything else, so it imports little.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import sys
from zlib import crc32

from img2img_cli import __version__
from img2img_cli.errors import UsageError

_CREDENTIALS = struct.Struct("3i")  # process, user and group
PACKAGE = os.path.dirname(__file__)
LONGEST_NAME = 100  # bytes that a socket's name may have on every system
# What decides which models are found and how they compute. A server with other values is not found.
SETTINGS = (
    "HOME",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTHONPATH",
)


def describe_self() -> str:
    """A text that is equal in a command and a server that give the same results: code, version, settings."""
    settings = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    return json.dumps([__version__, PACKAGE, _find_newest(PACKAGE), sys.prefix, settings], sort_keys=True)


def _find_newest(folder: str) -> int:
    """When the code in a folder was changed last, in nanoseconds."""
    newest = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                newest = max(newest, entry.stat().st_mtime_ns)
            elif entry.is_dir() and entry.name not in ("__pycache__", "models", "architectures", "configs"):
                newest = max(newest, _find_newest(entry.path))
    return newest


def meeting_folder() -> str:
    """The user's own folder for sockets; it may not be there yet."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.path.isdir(base):
        return os.path.join(base, "img2img")
    return os.path.join(os.environ.get("TMPDIR") or "/tmp", f"img2img-{os.getuid()}")


def is_private(folder: str) -> bool:
    """Whether it is a folder that this user owns and nobody else may enter."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def make_meeting_folder() -> str:
    """The folder, made if need be.

    Raises:
        UsageError: somebody else's, open to others, or with too long a name.
    """
    folder = meeting_folder()
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror}); set XDG_RUNTIME_DIR to a folder") from None
    if not is_private(folder):
        raise UsageError(f"{folder}: must be yours alone (mode 0700); remove it, or set XDG_RUNTIME_DIR to another")
    if len(os.fsencode(folder)) > LONGEST_NAME - 24:
        raise UsageError(f"{folder}: too long a name for a socket; set XDG_RUNTIME_DIR to a shorter one")
    return folder


def socket_path(kind: str) -> str:
    """The socket of a server that is equal to this command: `api` speaks HTTP, `door` takes whole commands."""
    text = describe_self().encode("utf-8", "surrogateescape")
    return os.path.join(meeting_folder(), f"{crc32(text):08x}{crc32(text[::-1]):08x}.{kind}")


def is_own(connection: socket.socket) -> bool:
    """Whether this user is at the other end, too. What the folder's mode promises, asked of the system itself."""
    if not hasattr(socket, "SO_PEERCRED"):  # elsewhere the folder must do
        return True
    _, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(user == os.getuid())


def connect(kind: str) -> socket.socket | None:
    """A connection to the server that is equal to this command; None when there is none."""
    if not hasattr(socket, "AF_UNIX") or not is_private(meeting_folder()):
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(socket_path(kind))
        if is_own(connection):
            return connection
    except OSError:  # none, or one that a killed server left
        pass
    connection.close()
    return None


def listen(kind: str) -> socket.socket:
    """A socket for commands that are equal to this server. What a killed server left is replaced: hold the lock."""
    make_meeting_folder()
    path = socket_path(kind)
    if os.path.lexists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(128)
    return listener
