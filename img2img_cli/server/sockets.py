"""The Unix socket between a warm server and the commands of the same user.

Commands load this module before anything else, so it imports little.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import struct
import sys
import time
from zlib import crc32

from img2img_cli import PACKAGE, __version__
from img2img_cli.errors import UsageError
from img2img_cli.system.processors import count_threads

_CREDENTIALS = struct.Struct("3i")  # process, user and group
LONGEST_NAME = 100  # bytes that every system allows for a socket's path
# Settings that decide which models are found, on which device they run and how they round. A command uses only a server
# with equal values.
SETTINGS = (
    "HOME", "XDG_CACHE_HOME", "PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "GPU_DEVICE_ORDINAL",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip
FAMILIES = (
    "ACCELERATE_", "ATEN_", "BLIS_", "CUBLAS", "CUDA_", "CUDNN_", "DIFFUSERS_", "DNNL_", "GOMP_", "HF_", "HIP", "HSA_",
    "HUGGINGFACE_", "KMP_", "MIOPEN_", "MKL_", "NVIDIA_", "OMP_", "ONEDNN_", "OPENBLAS_", "PEFT_", "PYTORCH_",
    "ROCBLAS_", "ROCM_", "ROCR_", "SAFETENSORS_", "TORCH", "TRANSFORMERS_", "TRITON_",
)  # fmt: skip
# Members of these families that img2img or torch set while a command runs and that change no result.
WITHOUT_EFFECT = (
    "CUDA_MODULE_LOADING", "DIFFUSERS_DISABLE_REMOTE_CODE", "DIFFUSERS_VERBOSITY", "GOMP_SPINCOUNT",
    "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_VERBOSITY", "TORCHINDUCTOR_CACHE_DIR",
    "TRANSFORMERS_VERBOSITY",
)  # fmt: skip


def describe_self() -> str:
    """Return a text that is equal in processes with the same results: it holds code, libraries, settings and rights."""
    settings = {
        name: value
        for name, value in os.environ.items()
        if (name in SETTINGS or name.startswith(FAMILIES)) and name not in WITHOUT_EFFECT
    }
    libraries = [
        os.stat(folder).st_mtime_ns for folder in sys.path if folder.endswith("-packages") and os.path.isdir(folder)
    ]
    code = [__version__, PACKAGE, _find_newest(PACKAGE), sys.prefix, libraries]
    return json.dumps([code, settings, count_threads(), _describe_place(), _describe_share()], sort_keys=True)


def _describe_place() -> list[object]:
    """Return values that are equal in processes with the same files, network and rights."""
    root = os.stat("/")
    place: list[object] = [root.st_dev, root.st_ino, os.getegid(), sorted(os.getgroups())]
    with contextlib.suppress(OSError):  # only Linux has these files
        place += [os.readlink(f"/proc/self/ns/{space}") for space in ("mnt", "net", "user")]
        with open("/proc/self/status") as file:
            place += [line for line in file if line.startswith("CapEff")]
    return place


def _describe_share() -> list[object]:
    """Return values that are equal in processes with the same resource limits, priority and processors."""
    import resource  # missing on some systems that import this module

    limits = (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_DATA)  # limits that model work can reach
    share: list[object] = [*map(resource.getrlimit, limits), os.getpriority(os.PRIO_PROCESS, 0)]
    if hasattr(os, "sched_getaffinity"):
        share += [os.sched_getscheduler(0), sorted(os.sched_getaffinity(0))]
    return share


def _find_newest(folder: str) -> int:
    """Return when the code in a folder last changed, in nanoseconds."""
    newest = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                newest = max(newest, entry.stat().st_mtime_ns)
            elif entry.is_dir() and entry.name not in ("__pycache__", "models", "architectures", "configs"):
                newest = max(newest, _find_newest(entry.path))
    return newest


def socket_folder() -> str:
    """Return the user's own folder for sockets, which may not exist yet."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.path.isdir(base):
        return os.path.join(base, "img2img")
    return os.path.join(os.environ.get("TMPDIR") or "/tmp", f"img2img-{os.getuid()}")


def is_private(folder: str) -> bool:
    """Return whether a path is a folder that this user owns and no other user may enter."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def make_socket_folder() -> str:
    """Return the user's folder for sockets, creating it if necessary.

    Raises:
        UsageError: it cannot be created, belongs to another user, is open to others or has too long a path.
    """
    folder = socket_folder()
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
    """Return the path of a file of the server that matches this command.

    Args:
        kind: `api` for the socket, `lock` or `log`.
    """
    text = describe_self().encode("utf-8", "surrogateescape")
    return os.path.join(socket_folder(), f"{crc32(text):08x}{crc32(text[::-1]):08x}.{kind}")


def read_peer(connection: socket.socket) -> tuple[int, int] | None:
    """Return the process id and user id at the other end; None if the system does not report them."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, _ = _CREDENTIALS.unpack(told)
    return process, user


def is_own(connection: socket.socket) -> bool:
    """Return whether this user is at the other end. The folder's mode should ensure it; this asks the system."""
    peer = read_peer(connection)
    return peer is None or peer[1] == os.getuid()  # without SO_PEERCRED, the folder's mode must suffice


def connect(timeout_s: float = 10.0) -> socket.socket | None:
    """Return a connection to the server that matches this command, or None if there is none.

    Args:
        timeout_s: time limit for connecting, and for each later operation on the socket.

    Raises:
        TimeoutError: the server does not accept the connection in time.
    """
    if not hasattr(socket, "AF_UNIX") or not is_private(socket_folder()):
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    path, end = socket_path("api"), time.monotonic() + timeout_s
    try:
        while True:
            try:
                connection.connect(path)
                break
            except BlockingIOError:  # the queue of connections is full
                if time.monotonic() > end:
                    raise TimeoutError from None
                time.sleep(0.01)
        if is_own(connection):
            return connection
    except TimeoutError:
        connection.close()
        raise
    except OSError:  # no socket, or one that a killed server left behind
        pass
    connection.close()
    return None


def listen(path: str) -> socket.socket:
    """Return a listening socket at `path`, replacing one that a killed server left. Hold the server's lock first."""
    make_socket_folder()
    if os.path.lexists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(128)
    return listener
