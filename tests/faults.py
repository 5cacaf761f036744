"""Inject faults: a shim makes the command's n-th call of a kind fail, or kills it there; then judge what it left.

`Driver` is a process under the shim that has loaded everything and forks a child for each command, so that a run takes
a tenth of a second instead of ten.
"""

from __future__ import annotations

import errno
import io
import json
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from conftest import GREY
from PIL import Image

from img2img_cli.errors import ExitCode

KINDS = {
    name: 1 << bit
    for bit, name in enumerate(
        ["write", "sync", "rename", "link", "unlink", "open", "mkdir", "truncate", "memory", "thread"]
    )
}
DISK_KINDS = ("write", "sync", "rename", "link", "open", "mkdir", "truncate")
DISK_ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)
STAGES = ("read", "encode", "denoise", "decode", "finish", "write")
# Bytes that count as a large allocation at the size of these pictures. A thread that has no 16 KiB for its first frame
# never tells that it has started, and Python waits for ever.
LARGE = 20_000
PIPED = ".piped"  # where stdout goes, below the root, so that its writes count
STATE = (".img2img.sqlite", ".img2img.sqlite-journal", ".img2img.lock", ".img2img.damaged", PIPED)
_LAYOUT = struct.Struct("8q4096s")
_TESTS = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault to inject, and the call to inject it at.

    Attributes:
        kinds: which calls count.
        at: number of the call that fails, from 1; 0 to count only.
        error: an errno; 0 for SIGKILL.
        sticky: whether all later calls fail too.
        stage: only calls within this stage of a command count.
    """

    kinds: tuple[str, ...]
    at: int = 0
    error: int = 0
    sticky: bool = False
    stage: str | None = None
    size: int = LARGE

    def __str__(self) -> str:
        """Describe the fault for messages."""
        what = errno.errorcode[self.error] if self.error else "SIGKILL"
        return f"{what}{' from' if self.sticky else ' at'} {'/'.join(self.kinds)} {self.at} {self.stage or ''}".strip()


class Orders:
    """The file through which the shim receives orders and reports counts."""

    def __init__(self, file: Path) -> None:
        if not file.exists():
            file.write_bytes(bytes(_LAYOUT.size))
        with file.open("r+b") as opened:
            self._memory = mmap.mmap(opened.fileno(), _LAYOUT.size)

    def set(self, fault: Fault, root: str, *, armed: bool) -> None:
        """Order a fault for calls below `root`."""
        kinds = sum(KINDS[kind] for kind in fault.kinds)
        values = (kinds, fault.at, fault.error, fault.sticky, fault.size, armed, 0, 0, os.fsencode(root))
        self._memory[:] = _LAYOUT.pack(*values)

    def arm(self, armed: bool) -> None:
        """Start or stop counting calls."""
        self._memory[40:48] = struct.pack("q", armed)

    def read(self) -> tuple[int, int]:
        """Return how many calls counted, and how many of them failed."""
        seen, fired = struct.unpack("2q", self._memory[48:64])
        return seen, fired


def find_compiler() -> str | None:
    """Return a C compiler, or None without one or outside Linux."""
    return (shutil.which("cc") or shutil.which("gcc")) if sys.platform == "linux" else None


def build_shim(folder: Path) -> Path:
    """Compile the shim."""
    compiler, shim = find_compiler(), folder / "faultshim.so"
    assert compiler is not None
    subprocess.run(
        [compiler, "-O1", "-Wall", "-shared", "-fPIC", "-o", shim, _TESTS / "faultshim.c", "-ldl"], check=True
    )
    return shim


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a command ended.

    Attributes:
        code: the exit code, or the negative number of a signal.
        seen: number of calls that counted.
        fired: number of calls that failed.
    """

    code: int
    out: bytes
    err: str
    seen: int = 0
    fired: int = 0
    seconds: float = 0.0

    @property
    def killed(self) -> bool:
        """Whether the process was killed."""
        return self.code == -9

    def events(self) -> list[dict[str, Any]]:
        """Parse the complete JSON lines on stdout."""
        lines = self.out.splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"\n")]


class Driver:
    """Runs commands under the shim, one at a time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        orders = folder / "orders"
        Orders(orders)
        environment = {
            **os.environ,
            "LD_PRELOAD": str(build_shim(folder)),
            "FAULT_FILE": str(orders),
            "PYTHONPATH": str(_TESTS.parent),
            "OMP_NUM_THREADS": "1",  # a forked process has none of its parent's threads
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "XDG_RUNTIME_DIR": str(folder),
        }
        self._process = subprocess.Popen(
            [sys.executable, str(_TESTS / "fault_driver.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def close(self) -> None:
        """End the driver's process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def run(
        self,
        arguments: Sequence[object],
        root: Path,
        fault: Fault | None = None,
        *,
        kill_after: float | None = None,
        recall: bool = True,
        out: Path | None = None,
    ) -> Answer:
        """Run `img2img ARGUMENTS` in the folder `root`, with a fault for calls below it.

        Args:
            kill_after: seconds until the command is killed.
            recall: whether to reuse the model's results from `remember` for the same pieces.
            out: where stdout goes.
        """
        order = {
            "arguments": [str(argument) for argument in arguments],
            "root": str(root),
            "fault": None if fault is None else vars(fault),
            "kill_after": kill_after,
            "recall": recall,
            "out": str(out or self._folder / "out"),
            "err": str(self._folder / "err"),
        }
        told = self._ask(order)
        out_bytes, err = Path(order["out"]).read_bytes(), Path(order["err"]).read_bytes()
        return Answer(out=out_bytes, err=err.decode(errors="replace"), **told)

    def remember(self, arguments: Sequence[object], root: Path) -> Answer:
        """Run a command in the driver itself without a fault, and store the model's results."""
        order = {"arguments": [str(argument) for argument in arguments], "root": str(root), "remember": True}
        files = {"out": str(self._folder / "out"), "err": str(self._folder / "err")}
        told = self._ask(order | files)
        return Answer(out=Path(files["out"]).read_bytes(), err=Path(files["err"]).read_text(), **told)

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def start_driver() -> Iterator[Driver]:
    """Start a driver with its own folder."""
    with tempfile.TemporaryDirectory(prefix="i2f") as name:
        driver = Driver(Path(name))
        try:
            yield driver
        finally:
            driver.close()


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A command, the contents of its folder before it runs, and those required at its end.

    Attributes:
        start: a folder; each run begins with a copy of it.
        wanted: names of results with their exact bytes.
        code: the exit code of a run without a fault.
        pages: names of reports, whose bytes differ from run to run.
        stdout: the picture required on stdout, if any.
    """

    name: str
    arguments: tuple[str, ...]
    start: Path
    wanted: dict[str, bytes]
    code: int
    pages: tuple[str, ...] = ()
    stdout: bytes | None = None
    before: dict[str, bytes] = field(default_factory=dict)

    @property
    def is_batch(self) -> bool:
        """Whether the command is a batch, which can resume."""
        return self.arguments[0] == "batch"

    def find_out(self, root: Path) -> Path | None:
        """Return where to send stdout so that faults can affect it."""
        return None if self.stdout is None else root / PIPED

    def lay(self, root: Path) -> Path:
        """Create the folder as it is before the command."""
        if root.exists():
            shutil.rmtree(root)
        shutil.copytree(self.start, root, symlinks=True)
        return root


def read_tree(root: Path) -> dict[str, bytes]:
    """Return every file below a folder by its name, except the state of batches."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name not in STATE
    }


def make_scene(driver: Driver, name: str, arguments: Sequence[str], start: Path, work: Path, **facts: Any) -> Scene:
    """Run the command without a fault, store the model's results, and require the files that it makes."""
    before = read_tree(start)
    root = work / "undisturbed"
    if root.exists():
        shutil.rmtree(root)
    shutil.copytree(start, root, symlinks=True)
    answer = driver.remember(arguments, root)
    pages = facts.get("pages", ())
    after = read_tree(root)
    wanted = {key: data for key, data in after.items() if before.get(key) != data and key not in pages}
    shutil.rmtree(root)
    assert "Traceback" not in answer.err, answer.err
    stdout = answer.out if "-" in arguments[1:] else None
    return Scene(
        name=name, arguments=tuple(arguments), start=start, wanted=wanted, code=answer.code, before=before,
        stdout=stdout, **facts,
    )  # fmt: skip


def judge(scene: Scene, root: Path, answer: Answer, code: int = 0, *, after_kills: bool = False) -> list[str]:
    """Return everything that is wrong after a run under a fault.

    Args:
        code: the exit code that the fault must lead to, 6 or 8.
        after_kills: whether killed runs may have left temporary files that only a batch removes, in its own folder.
    """
    problems = judge_files(scene, root)
    if "Traceback" in answer.err or "Exception ignored" in answer.err:
        problems.append(f"traceback: {answer.err[-1500:]}")
    # C libraries abort, or fall over, where they cannot do without memory. That is no better than a kill, and no worse.
    if answer.killed or (code == ExitCode.MEMORY and answer.code in C_ABORTS):
        return problems
    lines = answer.err.splitlines()
    allowed = {scene.code, code, 3} if scene.is_batch else {scene.code, code}
    if answer.code not in allowed:
        problems.append(f"exit code {answer.code}, not one of {sorted(allowed)}: {answer.err[-600:]}")
    if not scene.is_batch:
        if answer.code and (len(lines) != 1 or not lines[0].startswith("img2img: ")):
            problems.append(f"not one line: {answer.err!r}")
        if answer.code == 0 and judge_end(scene, root, answer):
            problems.append("success, but the result is not there")
    else:
        problems += _judge_events(scene, root, answer, code)
    problems += [f"temporary file: {n}" for n in read_tree(root / ("out" if after_kills else "")) if n.endswith(".tmp")]
    return problems


def _judge_events(scene: Scene, root: Path, answer: Answer, code: int) -> list[str]:
    """Check that a batch with --json reports each input's end once, with the right reason."""
    problems = []
    events = answer.events()
    ends = [event for event in events if event["event"] in ("done", "up-to-date", "failed", "skipped")]
    if events:
        names = [event["output"] for event in ends]
        if len(set(names)) != len(names) or len(names) != events[0]["inputs"]:
            problems.append(f"{events[0]['inputs']} inputs, ends of {sorted(names)}: {answer.err[-300:]}")
        if events[-1]["event"] != "summary":
            problems.append("no summary")
    for event in ends:
        present = (root / event["output"]).exists()
        if event["event"] in ("done", "up-to-date") and not present:
            problems.append(f"told of as {event['event']}, but not there: {event['output']}")
        if event["event"] == "failed" and event["code"] not in (3, 6, code):
            problems.append(f"failed with code {event['code']}: {event['reason']}")
    if answer.code != scene.code and not answer.err.startswith("img2img: "):
        problems.append(f"no reason: {answer.err!r}")
    if len(answer.err.splitlines()) > 1:
        problems.append(f"more than one line: {answer.err!r}")
    return problems


def judge_files(scene: Scene, root: Path) -> list[str]:
    """Return lost or damaged files: every file must be unchanged or the complete result."""
    problems = []
    now = read_tree(root)
    for name, data in scene.before.items():
        if name not in now:
            problems.append(f"lost: {name}")
        elif now[name] not in (data, scene.wanted.get(name, data)) and name not in scene.pages:
            problems.append(f"torn: {name}, neither old nor new")
    for name, data in now.items():
        if name in scene.before or name.endswith(".tmp"):
            continue
        if name in scene.pages:
            if not data.rstrip().endswith(b"</html>"):
                problems.append(f"torn: {name}")
        elif name not in scene.wanted:
            problems.append(f"a file that nobody asked for: {name}")
        elif data != scene.wanted[name]:
            problems.append(f"torn: {name}: {describe_damage(data)}")
    return problems


def describe_damage(data: bytes) -> str:
    """Return what is wrong with the bytes of a picture."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
        return "decodes, but other bytes"
    except (OSError, SyntaxError, ValueError) as error:
        return f"does not decode ({error})"


def judge_end(scene: Scene, root: Path, answer: Answer) -> list[str]:
    """Return what is missing or left over after a run without a fault."""
    now = read_tree(root)
    problems = [f"missing: {name}" for name, data in scene.wanted.items() if now.get(name) != data]
    problems += [f"left behind: {name}" for name in now if name.endswith(".tmp") and name.startswith("out/")]
    problems += [f"no report: {name}" for name in scene.pages if name not in now]
    if scene.stdout is not None and answer.out != scene.stdout:
        problems.append("stdout is not the picture")
    return problems


def resume(driver: Driver, scene: Scene, root: Path) -> list[str]:
    """Run the command again without a fault and judge its end. Do not ask again for results that exist."""
    now = read_tree(root)
    present = [name for name, data in scene.wanted.items() if now.get(name) == data]
    if not scene.is_batch and scene.stdout is None and len(present) == len(scene.wanted):
        return judge_files(scene, root)
    more = ["--force"] if present and not scene.is_batch else []
    answer = driver.run([*scene.arguments, *more], root)
    problems = [*judge_files(scene, root), *judge_end(scene, root, answer)]
    if answer.code != scene.code or "Traceback" in answer.err:
        problems.append(f"the rerun ended with {answer.code}: {answer.err[-600:]}")
    return [f"after resuming: {problem}" for problem in problems]


def count_calls(driver: Driver, scene: Scene, root: Path, kinds: tuple[str, ...], stage: str | None = None) -> int:
    """Return how many calls of these kinds the command makes."""
    fault = Fault(kinds=kinds, stage=stage)
    answer = driver.run(scene.arguments, scene.lay(root), fault, recall=stage is None, out=scene.find_out(root))
    assert answer.code == scene.code, answer.err
    return answer.seen


def list_disk_faults(counts: dict[str, int], errors: Sequence[int] = DISK_ERRORS, *, every: int = 1) -> Iterator[Fault]:
    """List faults: a kill at each call of each kind, each error at each call, a disk that fails from each call on."""
    for kind, count in counts.items():
        for at in range(1, count + 1, every):
            yield Fault(kinds=(kind,), at=at)
            yield from (Fault(kinds=(kind,), at=at, error=error) for error in errors if kind in DISK_KINDS)
    for at in range(1, sum(counts[kind] for kind in DISK_KINDS if kind in counts) + 1, every):
        yield from (Fault(kinds=DISK_KINDS, at=at, error=error, sticky=True) for error in errors)


def try_fault(
    driver: Driver, scene: Scene, root: Path, fault: Fault, code: int, *, recall: bool = True
) -> tuple[Answer, list[str]]:
    """Run a command under a fault and then without; return how the first run ended and everything that is wrong."""
    answer = driver.run(scene.arguments, scene.lay(root), fault, recall=recall, out=scene.find_out(root))
    problems = judge(scene, root, answer, code)
    if answer.code != scene.code or scene.is_batch or problems:
        problems += resume(driver, scene, root)
    return answer, problems


C_ABORTS = (127, -signal.SIGABRT, -signal.SIGSEGV)  # 127 is glibc's for memory of threads
QUICK = ("--set", "num_inference_steps=1", "--set", "num_samples=1", "--set", "image_size=64", "--device", "cpu")


def make_photograph(index: int = 0, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Return a smooth colour picture with some grain, different for each index."""
    rng = np.random.default_rng(index)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.integers(-6, 7, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + grain).clip(0, 255).astype(np.uint8))


def make_single_scenes(driver: Driver, work: Path) -> list[Scene]:
    """Make scenes of single commands, one for each way to write a result."""
    start = work / "single"
    start.mkdir(parents=True)
    make_photograph(0).save(start / "in.png")
    make_photograph(1).save(start / "old.png")
    make_photograph(2).convert("L").point(lambda value: 255 * (value > 128)).save(start / "mask.png")
    common = ("--seed", "1", "--quiet", *QUICK)
    commands = {
        "new": ("colorize", "in.png", "new.png", *common),
        "force": ("colorize", "in.png", "old.png", "--force", *common),
        "in-place": ("colorize", "in.png", "--in-place", *common),
        "mask": ("edit", "in.png", "m.png", "--mask", "mask.png", "--prompt", "fog", *common),
        "variations": ("edit", "in.png", "v.jpg", "--variations", "2", "--prompt", "fog", *common),
        "stdout": ("colorize", "in.png", "-", *common),
    }
    return [make_scene(driver, name, command, start, work) for name, command in commands.items()]


def make_batch_scene(driver: Driver, work: Path, *, pictures: int = 4, report: bool = True) -> Scene:
    """Make a scene of a batch over good and broken pictures, into a folder with older results and unrelated files."""
    start = work / "batch"
    make_batch_inputs(start / "in", pictures)
    (start / "out").mkdir()
    (start / "out" / "notes.txt").write_text("not to be touched")
    make_photograph(50).save(start / "out" / "taken.png")
    make_photograph(51).save(start / "in" / "taken.png")
    own = ("-o", "out", "--preset", GREY, "--json", *QUICK)
    older = [f"in/{name}" for name in sorted(read_tree(start / "in"))[:2]]
    answer = driver.remember(("batch", *older, *own, "--set", "saturation=0.5"), start)
    assert answer.code == 0, answer.err
    told = ("--report", "report.html") if report else ()
    return make_scene(
        driver, "batch", ("batch", "in", *own, *told), start, work, pages=("report.html",) if report else ()
    )


def make_batch_inputs(folder: Path, pictures: int) -> None:
    """Make pictures of several formats and sizes in two folders, and two that are broken."""
    extensions = (".bmp", ".jpg", ".png", ".webp", ".tif")
    for index in range(pictures):
        path = folder / ("sub" if index % 3 == 2 else "") / f"{index:03}{extensions[index % len(extensions)]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = make_photograph(100 + index, (96 + 8 * (index % 5), 80))
        if path.suffix == ".png":
            image.putalpha(image.getchannel(0))
        image.save(path)
    (folder / "x-broken.png").write_bytes(b"\x89PNG\r\n")
    (folder / "x-text.jpg").write_text("no picture")
