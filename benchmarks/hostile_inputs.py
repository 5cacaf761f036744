"""Run the command line on 100,000 hostile inputs. It may not cause a traceback, signal, hang or partial output."""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from check_folder import DOCUMENTED, Limits, Report, check_files, run_limited
from hostile import make_hostile, make_manifest, make_metadata, make_preset

SHARES = {"pictures": 0.9, "presets": 0.04, "manifests": 0.03, "metadata": 0.03}
MAKERS: dict[str, Callable[[int], tuple[str, bytes]]] = {
    "presets": make_preset,
    "manifests": make_manifest,
    "metadata": make_metadata,
}


class Hang(BaseException):
    """A command exceeded its time limit."""


def _ring(number: int, frame: FrameType | None) -> None:
    raise Hang


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    previous = signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def list_arguments(kind: str, file: Path, out: Path) -> list[str]:
    """Return the arguments of a command that reads a file of this kind without running a model."""
    if kind == "presets":
        return ["presets", "validate", str(file)]
    if kind == "metadata":
        return ["info", str(file)]
    return ["batch", str(file), "-o", str(out), "--preset", "colorize", "--dry-run"]


def check_text(kind: str, file: Path, out: Path, limits: Limits, report: Report) -> None:
    """Run the command line on one file in this process, to save the start of a new one, and report the outcome."""
    from img2img_cli.cli import app

    began = time.monotonic()
    sys.argv = ["img2img", *list_arguments(kind, file, out)]
    stdout, stderr = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), _alarm(limits.item_s):
            code = app._run()
    except Hang:
        outcome, reason = "hung", f"over {limits.item_s:g} s"
    except BaseException:  # noqa: BLE001 - any exception that escapes is a finding
        outcome, reason = "crashed", traceback.format_exc()[-400:].replace("\n", " ")
    else:
        reason = stderr.getvalue().strip()
        outcome = "decoded" if code == 0 else "refused" if code in DOCUMENTED and reason.count("\n") == 0 else "crashed"
    report.add(outcome, str(file), reason, time.monotonic() - began)
    if out.exists():
        report.add("partial", str(file), "a dry run wrote something")


def check_chunk(seeds: range, limits: Limits, reports: dict[str, Report], keep: Path | None) -> None:
    """Write the inputs for these seeds, check them, and remove them.

    Args:
        keep: a folder to which files that crash, hang or leave partial output are copied; None to copy none.
    """
    with tempfile.TemporaryDirectory(prefix="hostile-") as place:
        root, seed = Path(place), seeds.start
        for kind, share in SHARES.items():
            count = round(len(seeds) * share)
            files, maker = [], MAKERS.get(kind, make_hostile)
            for _ in range(count):
                name, content = maker(seed)
                path = root / f"{kind}-{name}"
                path.write_bytes(content)
                files.append(path)
                seed += 1
            if kind == "pictures":
                check_files(files, limits, reports[kind], keep)
                continue
            began = time.monotonic()
            for path in files:
                check_text(kind, path, root / "out", limits, reports[kind])
            reports[kind].seconds += time.monotonic() - began
            _check_in_processes(kind, files[:1], root / "out", limits, reports[kind])


def _check_in_processes(kind: str, files: list[Path], out: Path, limits: Limits, report: Report) -> None:
    """Check a few files in separate processes, which end with the real exit code of the command."""
    for file in files:
        run = run_limited(list_arguments(kind, file, out), limits, total_s=limits.item_s)
        report.peak_mib = max(report.peak_mib, run.peak_mib)
        if run.killed or run.code not in DOCUMENTED or "Traceback" in run.err:
            report.add("hung" if run.killed == "time" else "crashed", str(file), run.err[-300:])


def main() -> None:
    """Check all inputs in chunks. Exit with 1 if any input crashed, hung or left a partial output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed; go on from where the progress ended")
    parser.add_argument("--chunk", type=int, default=5000)
    parser.add_argument("--item-timeout", type=float, default=10)
    parser.add_argument("--memory", type=int, default=6000, help="MiB that a run may take")
    parser.add_argument("--keep", type=Path, help="folder that culprits are copied to")
    arguments = parser.parse_args()
    limits = Limits(item_s=arguments.item_timeout, memory_mib=arguments.memory)
    reports = {kind: Report() for kind in SHARES}
    began, end = time.monotonic(), arguments.seed + arguments.count
    for at in range(arguments.seed, end, arguments.chunk):
        seeds = range(at, min(at + arguments.chunk, end))
        check_chunk(seeds, limits, reports, arguments.keep)
        done, seconds = seeds.stop - arguments.seed, time.monotonic() - began
        counts = {kind: dict(report.counts) for kind, report in reports.items()}
        print(f"up to --seed {seeds.stop}: {done / seconds:.1f}/s, {counts}", file=sys.stderr, flush=True)
    for kind, report in reports.items():
        print(f"\n## {kind}\n\n{report.to_markdown()}")
    print(f"\n{arguments.count} inputs in {(time.monotonic() - began) / 60:.1f} minutes")
    sys.exit(0 if all(report.is_clean for report in reports.values()) else 1)


if __name__ == "__main__":
    main()
