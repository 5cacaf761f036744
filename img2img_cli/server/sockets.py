"""Where a warm server and the commands that use it meet.

It is loaded before anything else, so it imports little.
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
LONGEST_NAME = 100  # bytes that a socket's name may have on every system
# Settings that decide which models are found, on which device they run and how they round. A server with other values
# is not found.
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
# Of these families, what we and torch set as a command goes on, and what changes no result.
WITHOUT_EFFECT = (
    "CUDA_MODULE_LOADING", "DIFFUSERS_DISABLE_REMOTE_CODE", "DIFFUSERS_VERBOSITY", "GOMP_SPINCOUNT",
    "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_VERBOSITY", "TORCHINDUCTOR_CACHE_DIR",
    "TRANSFORMERS_VERBOSITY",
)  # fmt: skip


def describe_self() -> str:
    """A text that is equal in a command and a server that give the same results: code, libraries, settings, place."""
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
    """Equal for processes that find the same files under the same names, reach the same hosts and have equal rights."""
    root = os.stat("/")
    place: list[object] = [root.st_dev, root.st_ino, os.getegid(), sorted(os.getgroups())]
    with contextlib.suppress(OSError):  # no Linux
        place += [os.readlink(f"/proc/self/ns/{space}") for space in ("mnt", "net", "user")]
        with open("/proc/self/status") as file:
            place += [line for line in file if line.startswith("CapEff")]
    return place


def _describe_share() -> list[object]:
    """Equal for processes that the user lets have the same share of the machine."""
    import resource  # not there on every system that gets here

    limits = (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_DATA)  # that a model's work comes up against
    share: list[object] = [*map(resource.getrlimit, limits), os.getpriority(os.PRIO_PROCESS, 0)]
    if hasattr(os, "sched_getaffinity"):
        share += [os.sched_getscheduler(0), sorted(os.sched_getaffinity(0))]
    return share


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
    """Where a server that is equal to this command has its socket (`api`), its lock and its log."""
    text = describe_self().encode("utf-8", "surrogateescape")
    return os.path.join(meeting_folder(), f"{crc32(text):08x}{crc32(text[::-1]):08x}.{kind}")


def read_peer(connection: socket.socket) -> tuple[int, int] | None:
    """The process and the user at the other end; None where the system does not say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, _ = _CREDENTIALS.unpack(told)
    return process, user


def is_own(connection: socket.socket) -> bool:
    """Whether this user is at the other end, too. What the folder's mode promises, asked of the system itself."""
    peer = read_peer(connection)
    return peer is None or peer[1] == os.getuid()  # where nobody tells, the folder must do


def connect(timeout_s: float = 10.0) -> socket.socket | None:
    """A connection to the server that is equal to this command; None when there is none.

    Args:
        timeout_s: for the connection and for each later call of it.

    Raises:
        TimeoutError: there is one, but it accepts nobody.
    """
    if not hasattr(socket, "AF_UNIX") or not is_private(meeting_folder()):
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    path, end = socket_path("api"), time.monotonic() + timeout_s
    try:
        while True:
            try:
                connection.connect(path)
                break
            except BlockingIOError:  # many wait to be accepted
                if time.monotonic() > end:
                    raise TimeoutError from None
                time.sleep(0.01)
        if is_own(connection):
            return connection
    except TimeoutError:
        connection.close()
        raise
    except OSError:  # none, or one that a killed server left
        pass
    connection.close()
    return None


def listen(path: str) -> socket.socket:
    """A socket for commands that are equal to this server. What a killed server left is replaced: hold the lock."""
    make_meeting_folder()
    if os.path.lexists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(128)
    return listener
