"""The process behind `faults.Driver`: load everything once, then fork a child for each command.

The parent computes with one thread, because a forked child has no other threads. The model is loaded once, and its
results are stored by the bytes of its input. Everything else is the command's own code, to the end of the interpreter.
"""

from __future__ import annotations

import json
import os
import pkgutil
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from faults import Fault, Orders
from PIL import Image

from img2img_cli.cli import app, open_engine
from img2img_cli.engines.base import BasePipeline
from img2img_cli.tasks.pieces import Piece
from img2img_cli.tasks.protocol import Spec

LONGEST_S = 120.0
# What belongs to a stage, as module and name; `run` is for single commands, `stages` and `assembly_line` for batches.
PARTS = {
    "read": ("tasks.run.load_image", "batch.stages.load_image", "batch.stages.read_source"),
    "encode": ("engines.diffusion.latents.LatentsPipeline.encode",),
    "denoise": ("engines.diffusion.latents.LatentsPipeline.denoise",),
    "decode": ("engines.diffusion.latents.LatentsPipeline.decode",),
    "finish": ("tasks.run.finish_picture", "batch.stages.finish_picture"),
    "write": (
        "tasks.run.encode_result",
        "tasks.run.write_output",
        "batch.stages.encode_result",
        "batch.assembly_line.write_output",
    ),
}

Made = dict[tuple[object, ...], list[Image.Image]]
_pipelines: dict[str, Any] = {}
_made: Made = {}


def share_models() -> None:
    """Load each model once, for all children."""
    build = open_engine.build

    def find(spec: Spec) -> Any:
        key = json.dumps(spec.to_json(), sort_keys=True, default=str)
        if key not in _pipelines:
            _pipelines[key] = build(spec)
        return _pipelines[key]

    open_engine.build = find


def recall_results() -> None:
    """Replace the model's results by stored ones if it has had the same input before."""
    transform = BasePipeline.transform

    def recall(self: BasePipeline, pieces: Sequence[Piece], progress: Any = None) -> list[Image.Image]:
        key = tuple(map(_identify, pieces))
        if key not in _made:
            _made[key] = transform(self, pieces, progress)
        return [image.copy() for image in _made[key]]

    BasePipeline.transform = recall


def _identify(piece: Piece) -> tuple[object, ...]:
    pictures = (piece.image, piece.control, piece.mask, piece.style)
    content = tuple(None if picture is None else (picture.size, picture.tobytes()) for picture in pictures)
    return (*content, piece.seed, piece.enlarge, piece.reconstruct, piece.parameters.model_dump_json())


def listen_within(stage: str, orders: Orders) -> None:
    """Make the shim count calls only while a stage runs."""
    for place in PARTS[stage]:
        path, last = place.rsplit(".", 1)
        owner: Any = pkgutil.resolve_name(f"img2img_cli.{path}")
        setattr(owner, last, _listening(getattr(owner, last), orders))


def _listening(part: Callable[..., Any], orders: Orders) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        orders.arm(True)
        try:
            return part(*arguments, **options)
        finally:
            orders.arm(False)

    return run


def start(order: dict[str, Any], orders: Orders) -> NoReturn:
    """Run the command in a forked child, to the end of the process."""
    os.chdir(order["root"])
    redirect(order)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - the parent's has read ahead
    sys.argv = ["img2img", *order["arguments"]]
    if not order["recall"]:
        _made.clear()
    if order["fault"] is not None:
        fault = Fault(**{**order["fault"], "kinds": tuple(order["fault"]["kinds"])})
        orders.set(fault, order["root"], armed=fault.stage is None)
        if fault.stage is not None:
            listen_within(fault.stage, orders)
    leave(run_main())


def run_main() -> int:
    """Run the command and return its exit code."""
    try:
        app.main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        return 1


def leave(code: int) -> NoReturn:
    """Do what the interpreter does at exit, except unloading a thousand modules, which takes two seconds."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    try:
        sys.stdout.flush()
    except OSError:
        print("Exception ignored while flushing sys.stdout", file=sys.stderr)
        code = 120
    os._exit(code)


def redirect(order: dict[str, Any]) -> None:
    """Use the command's own files as stdin, stdout and stderr of this process."""
    for name, target in (("out", 1), ("err", 2)):
        file = os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, target)
        os.close(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def wait_for(pid: int, seconds: float) -> int:
    """Return a child's exit code. Kill the child if it takes too long."""
    process = os.pidfd_open(pid)
    if not select.select([process], [], [], seconds)[0]:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(process)
    return os.waitstatus_to_exitcode(status)


def remember(order: dict[str, Any]) -> int:
    """Run a command in this process and store the model's results."""
    kept = {number: os.dup(number) for number in (0, 1, 2)}
    redirect(order)
    sys.argv = ["img2img", *order["arguments"]]
    os.chdir(order["root"])
    code = app._run()
    os.chdir("/")
    sys.stdout.flush()
    sys.stderr.flush()
    for number, file in kept.items():
        os.dup2(file, number)
        os.close(file)
    return code


def main() -> None:
    """Read one order per line and carry it out, until stdin ends."""
    orders = Orders(Path(os.environ["FAULT_FILE"]))
    share_models()
    recall_results()
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        began = time.monotonic()
        orders.arm(False)
        if order.get("remember"):
            answer: dict[str, Any] = {"code": remember(order)}
        else:
            orders.set(Fault(kinds=()), "", armed=False)
            pid = os.fork()
            if pid == 0:
                start(order, orders)
            code = wait_for(pid, order["kill_after"] if order["kill_after"] is not None else LONGEST_S)
            seen, fired = orders.read()
            orders.arm(False)
            answer = {"code": code, "seen": seen, "fired": fired}
        print(json.dumps(answer | {"seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    main()
