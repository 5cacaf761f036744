"""Start `img2img` without waiting for imports: commands are forked from a process that has imported everything.

Starting Python, torch and diffusers takes far longer than most commands then take. What a new interpreter does is
tested where that matters; for the rest there is `Warm`. On other systems than Linux, and where the environment is
another than at the start of the tests, it starts a new interpreter.
"""

from __future__ import annotations

import array
import atexit
import ctypes
import functools
import importlib
import inspect
import json
import os
import pkgutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

_COMMAND = [sys.executable, "-m", "img2img_cli"]
# What may differ of the environment: huggingface_hub's settings are read anew, other libraries read theirs on import.
_OF_THE_HUB = (
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_DISABLE_XET",
    "HF_HUB_DOWNLOAD_TIMEOUT",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
)
_MAY_DIFFER = ("PYTEST_CURRENT_TEST", "XDG_RUNTIME_DIR", *_OF_THE_HUB)
_PR_SET_CHILD_SUBREAPER = 36
_MOST_BYTES = 1 << 20
HASTE = 20
_AT_START = dict(os.environ)


class Warm(subprocess.Popen):
    """`img2img ARGUMENTS` as a child process; the options `cwd`, `env`, `text` and streams are `subprocess.Popen`'s."""

    def __init__(self, arguments: list[object], **options: Any) -> None:
        super().__init__([*_COMMAND, *map(str, arguments)], **options)

    if sys.platform == "linux":

        def _execute_child(self, args: list[str], *rest: Any) -> None:
            given = inspect.signature(subprocess.Popen._execute_child).bind(self, args, *rest).arguments
            environment = dict(os.environ if given["env"] is None else given["env"])
            if not _start_template().suits(environment):
                super()._execute_child(args, *rest)
                return
            assert not (given["preexec_fn"] or given["pass_fds"] or given["shell"] or given["start_new_session"])
            pipes = [given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
            ends = pipes[0], pipes[3], pipes[5]
            streams = [number if end == -1 else end for number, end in enumerate(ends)]
            cwd = os.fspath(given["cwd"] or Path.cwd())
            self.pid = _start_template().fork(args[len(_COMMAND) :], cwd, environment, streams)
            self._child_created = True
            self._close_pipe_fds(*pipes)


class _Template:
    """A process that has imported everything and forks a child for each command."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._before, self._turn = environment, threading.Lock()
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # a command becomes this process's own child
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            command = [sys.executable, __file__, str(other.fileno())]
            environment = {**environment, "PYTHONPATH": str(Path(__file__).parents[1])}
            self._process = subprocess.Popen(command, env=environment, pass_fds=[other.fileno()])
        self._after = json.loads(self._socket.recv(_MOST_BYTES))

    def suits(self, environment: dict[str, str]) -> bool:
        """Return whether a command of this environment may be forked: nothing differs that is read on import.

        What the package and its libraries set when they are imported is so in this process too, if it has imported
        them, and in the template.
        """
        known = ({**self._before, **self._after}, self._before)
        names = self._before.keys() | self._after.keys() | environment.keys()
        return all(environment.get(n) in [each.get(n) for each in known] for n in names if n not in _MAY_DIFFER)

    def fork(self, arguments: list[str], cwd: str, environment: dict[str, str], streams: list[int]) -> int:
        """Fork a command and return its process ID."""
        order = json.dumps([arguments, cwd, environment]).encode()
        ends = array.array("i", streams).tobytes()
        with self._turn:  # of two threads that ask at once, each gets its own command's
            self._socket.sendmsg([order], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, ends)])
            return int(self._socket.recv(32))

    def close(self) -> None:
        """End the process."""
        self._socket.close()
        self._process.wait(timeout=60)


@functools.cache
def _start_template() -> _Template:
    """Start this process's template, under the environment that the tests begin with."""
    template = _Template(_AT_START)
    atexit.register(template.close)
    return template


def fork_on_request(end: int) -> None:
    """Import everything; then fork a command for each order, and answer with its process ID."""
    _import_everything()
    with socket.socket(fileno=end) as orders:
        orders.send(json.dumps(dict(os.environ)).encode())
        while True:
            order, streams, _, _ = socket.recv_fds(orders, _MOST_BYTES, 3)
            if not order:
                return
            told, tell = os.pipe()
            between = os.fork()
            if not between:  # ends at once, so that the command becomes a child of the process that asked for it
                command = os.fork()
                if command:
                    os.write(tell, str(command).encode())
                    os._exit(0)
                orders.close()
                os.close(told)
                os.close(tell)
                _run(*json.loads(order), streams)
            os.waitpid(between, 0)
            orders.send(os.read(told, 32))
            for number in (told, tell, *streams):
                os.close(number)


def _import_everything() -> None:
    import img2img_cli

    for module in pkgutil.walk_packages(img2img_cli.__path__, "img2img_cli."):
        if not module.name.endswith("__main__"):
            __import__(module.name)
    from diffusers import AutoencoderKL, StableDiffusionImg2ImgPipeline, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401


def _read_hub_settings() -> None:
    """Have huggingface_hub read the environment again, and give what it read to all who have taken a copy."""
    from huggingface_hub import constants, file_download, hf_api
    from huggingface_hub.utils import _http

    before = {name: value for name, value in vars(constants).items() if name.isupper()}
    importlib.reload(constants)
    changed = {name: value for name, value in before.items() if vars(constants)[name] != value}
    for module in list(sys.modules.values()):
        for name, value in changed.items():
            if vars(module).get(name) == value:
                setattr(module, name, vars(constants)[name])
    hf_api.api.endpoint = constants.ENDPOINT
    # Between its tries it waits for seconds, which the hub on loopback does not need.
    hasty = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: time.sleep(seconds / HASTE)})
    for module in (_http, file_download):
        module.time = hasty


def _run(arguments: list[str], cwd: str, environment: dict[str, str], streams: list[int]) -> NoReturn:
    """Run a command in this process, which was forked for it."""
    from img2img_cli.__main__ import main

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    before = {name: os.environ.get(name) for name in _OF_THE_HUB}
    os.environ.clear()
    os.environ.update(environment)
    if before != {name: os.environ.get(name) for name in _OF_THE_HUB}:
        _read_hub_settings()
    os.chdir(cwd)
    sys.argv = ["img2img", *arguments]
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    main()


if __name__ == "__main__":
    fork_on_request(int(sys.argv[1]))
