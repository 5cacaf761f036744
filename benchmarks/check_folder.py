"""Run `img2img batch` over a folder and count files that are decoded, refused, crash, hang or leave partial output."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

QUICK = ["--set", "num_inference_steps=1", "--set", "num_samples=1", "--set", "image_size=64"]
COMMAND = [sys.executable, "-m", "img2img_cli"]
DOCUMENTED = (0, 2, 3, 4, 5, 6, 7, 8)
TIMEOUT = 124
OWN_FILES = (".img2img.sqlite", ".img2img.lock")
# Text that never occurs in an intended message of this tool.
BUG = re.compile(r"a bug|Traceback|\b[A-Z]\w*(Error|Exception|Warning)\b")
KINDS = ("decoded", "refused", "crashed", "hung")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one run.

    Attributes:
        stall_s: seconds without output.
        item_s: seconds for one file.
        memory_mib: resident memory in MiB.
    """

    stall_s: float = 60
    item_s: float = 10
    memory_mib: int = 6000


@dataclass(frozen=True, kw_only=True)
class Run:
    """The outcome of a process.

    Attributes:
        code: the exit code, negative for a signal.
        killed: the limit for which it was killed, `time` or `memory`; None if it ended by itself.
    """

    code: int
    out: str
    err: str
    seconds: float
    peak_mib: int
    killed: str | None


@dataclass
class Report:
    """The outcomes of all files.

    Attributes:
        counts: the number of files for each of `KINDS`, and of outputs that are `partial`.
        culprits: kind, name and reason for each file that crashed, hung or left a partial output.
        refusals: the number of files for each generalised reason.
        slowest: seconds and names of the five slowest files.
    """

    counts: Counter[str] = field(default_factory=Counter)
    culprits: list[tuple[str, str, str]] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    slowest: list[tuple[float, str]] = field(default_factory=list)
    peak_mib: int = 0
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Whether no file crashed, hung or left a partial output."""
        return not (self.counts["crashed"] or self.counts["hung"] or self.counts["partial"])

    def add(self, kind: str, name: str, reason: str = "", seconds: float = 0.0) -> None:
        """Count the outcome of one file."""
        self.counts[kind] += 1
        if kind in ("crashed", "hung", "partial"):
            self.culprits.append((kind, name, reason))
        elif kind == "refused":
            self.refusals[generalise(reason)] += 1
        self.slowest = sorted([*self.slowest, (seconds, name)], reverse=True)[:5]

    def to_markdown(self) -> str:
        """Return tables of the counts, the culprits and the 12 most common reasons for refusal."""
        total = sum(self.counts[kind] for kind in KINDS)
        rows = ["| outcome | files |", "| --- | ---: |"]
        rows += [f"| {kind} | {self.counts[kind]} |" for kind in (*KINDS, "partial")]
        rows += [f"| all | {total} |", ""]
        slowest = ", ".join(f"{name} {seconds:.2f} s" for seconds, name in self.slowest[:3])
        rows.append(
            f"{total / max(self.seconds, 1e-9):.1f} files/s; peak memory {self.peak_mib} MiB; slowest: {slowest}"
        )
        if self.culprits:
            rows += ["", "| kind | file | reason |", "| --- | --- | --- |"]
            rows += [f"| {kind} | {name} | {reason[:200]} |" for kind, name, reason in self.culprits]
        if self.refusals:
            rows += ["", "| refused because | files |", "| --- | ---: |"]
            rows += [f"| {reason} | {count} |" for reason, count in self.refusals.most_common(12)]
        return "\n".join(rows)


def generalise(reason: str) -> str:
    """Return a reason without the names and numbers that differ from file to file, in at most 90 characters."""
    rest = reason.removeprefix("img2img: ").partition(": ")[2] or reason
    return re.sub(r"\b\d[\d,.x]*", "N", re.sub(r"\(.*?\)", "(...)", rest))[:90].replace("|", "/")


def run_limited(arguments: Sequence[str], limits: Limits, *, total_s: float | None = None, stdin: bytes = b"") -> Run:
    """Run a command, and kill it if it is silent for too long, runs for too long, or uses too much memory.

    Args:
        total_s: the seconds that the command may run; None for no limit.
        stdin: the bytes that the command reads.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        began = news = time.monotonic()
        process = subprocess.Popen([*COMMAND, *arguments], stdin=given, stdout=out, stderr=err, env=environment)
        killed, size, peak = None, 0, 0
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            now, told = time.monotonic(), os.fstat(out.fileno()).st_size
            size, news = (told, now) if told != size else (size, news)
            resident = _resident_mib(process.pid)
            peak = max(peak, resident)
            if killed is None:
                killed = "memory" if resident > limits.memory_mib else "time" if now - news > limits.stall_s else None
                killed = killed or ("time" if total_s is not None and now - began > total_s else None)
                if killed:
                    process.kill()
            time.sleep(0.05)
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    peak = max(peak, usage.ru_maxrss >> 10)
    return Run(
        code=process.returncode,
        out=texts[0],
        err=texts[1],
        seconds=time.monotonic() - began,
        peak_mib=peak,
        killed=killed,
    )


def _resident_mib(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() >> 20
    return 0


def check_files(files: Sequence[Path], limits: Limits, report: Report, keep: Path | None = None) -> None:
    """Run one `img2img batch` over the files. Run those without an outcome again in halves, down to single commands.

    Args:
        keep: a folder to which files that crash, hang or leave partial output are copied; None to copy none.
    """
    began = time.monotonic()
    before = len(report.culprits)
    _check_chunk(files, limits, report)
    report.seconds += time.monotonic() - began
    by_name = {str(file): file for file in files}
    for _, name, _ in report.culprits[before:] if keep else ():
        if name in by_name:
            assert keep is not None
            keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, keep)


def _check_chunk(files: Sequence[Path], limits: Limits, report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="hostile-") as place:
        root = Path(place)
        links = {}
        (root / "in").mkdir()
        for index, file in enumerate(files):
            link = root / "in" / f"{index:06}{file.suffix}"  # all in one folder, each name unique
            link.symlink_to(file.resolve())
            links[str(link)] = file
        arguments = [
            "batch",
            "-",
            "-o",
            str(root / "out"),
            "--preset",
            "colorize",
            *QUICK,
            "--name",
            "{stem}-{index}{ext}",
        ]
        arguments += ["--json", "--no-server", "--item-timeout", str(limits.item_s)]
        run = run_limited(arguments, limits, stdin="\0".join(links).encode("utf-8", "surrogateescape"))
        report.peak_mib = max(report.peak_mib, run.peak_mib)
        open_, whole = dict(links), set()
        for line in run.out.splitlines():
            event = _read_event(line)
            if event.get("input") not in open_:
                continue
            file, reason, seconds = open_.pop(event["input"]), event.get("reason", ""), event.get("seconds", 0.0)
            kind = "decoded"
            if event["event"] == "done":
                whole.add(event["output"])
            else:
                kind = judge(event.get("code", 1), reason)
            report.add(kind, str(file), reason.replace(event["input"], file.name), seconds)
        for path in find_partial(root / "out", whole, ended=run.killed is None and run.code >= 0):
            report.add("partial", path)
        if not open_ and run.code in (0, 3):
            return
        if not open_:
            report.add("crashed", f"{len(files)} files", f"exit code {run.code}: {run.err[-300:]}")
            return
    rest = list(open_.values())
    if len(rest) == 1:
        check_alone(rest[0], limits, report)
        return
    half = len(rest) // 2
    for part in (rest[:half], rest[half:]):
        _check_chunk(part, limits, report)


def _read_event(line: str) -> dict[str, object]:
    try:
        return dict(json.loads(line))
    except ValueError:
        return {}  # the line was cut off by a kill


def judge(code: int, reason: str) -> str:
    """Classify a failure as `hung`, `refused` or `crashed` by its exit code and message."""
    if code == TIMEOUT:
        return "hung"
    return "refused" if code in DOCUMENTED and code and not BUG.search(reason) and "\n" not in reason else "crashed"


def find_partial(folder: Path, whole: set[str], *, ended: bool = True) -> list[str]:
    """Find temporary files, files that no event reported, and results that do not decode.

    Args:
        whole: the paths that events reported.
        ended: the run ended by itself. A killed run may leave temporary files and unreported results.

    Returns:
        a line with name and error for each file.
    """
    bad = []
    for path in folder.rglob("*") if folder.exists() else ():
        if path.is_dir() or path.name in OWN_FILES or path.name.startswith(tuple(f"{name}-" for name in OWN_FILES)):
            continue
        if not ended and path.suffix == ".tmp":
            continue
        try:
            if ended and str(path) not in whole:
                raise ValueError("nobody told of it")
            with Image.open(path) as image:
                image.load()
        except Exception as error:  # noqa: BLE001 - any error means that the result is incomplete
            bad.append(f"{path.name}: {error}")
    return bad


def check_alone(file: Path, limits: Limits, report: Report) -> None:
    """Run `img2img colorize` on one file and report the outcome."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as place:
        output = Path(place) / "out.png"
        arguments = ["colorize", str(file), str(output), *QUICK, "--no-server"]
        run = run_limited(arguments, limits, total_s=limits.item_s + limits.stall_s)
        report.peak_mib = max(report.peak_mib, run.peak_mib)
        told = [line for line in run.err.splitlines() if line.startswith("img2img:")]  # libtiff also prints lines
        reason = told[0] if len(told) == 1 and "Traceback" not in run.err else run.err.strip()[-300:]
        if run.killed:
            kind, reason = ("hung", run.killed) if run.killed == "time" else ("crashed", "too much memory")
        elif run.code < 0:
            kind, reason = "crashed", f"signal {signal.Signals(-run.code).name}"
        else:
            kind = "decoded" if run.code == 0 and output.exists() else judge(run.code, reason)
        report.add(kind, str(file), reason, run.seconds)
        for path in find_partial(Path(place), {str(output)} if run.code == 0 else set()):
            report.add("partial", str(file), path)


def main() -> None:
    """Check a folder. Exit with 1 if any file crashed, hung or left a partial output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chunk", type=int, default=1000, help="files of one run")
    parser.add_argument("--item-timeout", type=float, default=10, help="seconds for one file")
    parser.add_argument("--memory", type=int, default=6000, help="MiB that a run may take")
    parser.add_argument("--keep", type=Path, help="folder that culprits are copied to")
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.folder.rglob("*") if path.is_file())
    if not files:
        sys.exit(f"{arguments.folder}: holds no file")
    limits, report = Limits(item_s=arguments.item_timeout, memory_mib=arguments.memory), Report()
    for at in range(0, len(files), arguments.chunk):
        check_files(files[at : at + arguments.chunk], limits, report, arguments.keep)
        print(f"{min(at + arguments.chunk, len(files))} of {len(files)}: {dict(report.counts)}", file=sys.stderr)
    print(report.to_markdown())
    sys.exit(0 if report.is_clean else 1)


if __name__ == "__main__":
    main()
