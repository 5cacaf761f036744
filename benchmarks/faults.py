"""Inject faults, kills and concurrent runs, and check that no result is lost, torn or reported wrongly.

- `points`: runs single commands and a batch, and makes each write, sync, rename, link, open, mkdir and truncate fail
  in turn (ENOSPC, EIO, EDQUOT, EROFS; once, or from that call on). It also kills the process at each of these calls
  and at each unlink, lets memory run out at each large allocation of each stage, and prevents threads from starting.
  After each fault, an undisturbed run must complete the results exactly.
- `kills`: kills a batch over mixed pictures at random moments and resumes it until it is done, and repeats this until
  there were `--kills` kills. The files are checked after every kill.
- `crowd`: runs eight batches at once into one folder and into nested folders, and eight commands onto one OUTPUT.

To make so many runs affordable, a driver process under the shim of `tests/faultshim.c` imports everything and loads
the model, and each run is a fork of it that executes the whole command, from its arguments to its exit code. Except
when memory runs out, results of the model for known pieces come from a cache, so kills hit reading, finishing, writing
and the journal rather than the model. The moments are uniform over parts of the time of an undisturbed run. A further
`--processes` kills, and all of `crowd`, use normally started processes.
"""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faults import (
    DISK_ERRORS,
    KINDS,
    QUICK,
    STAGES,
    Answer,
    Driver,
    Fault,
    Scene,
    count_calls,
    describe_damage,
    judge,
    judge_end,
    judge_files,
    list_disk_faults,
    make_batch_inputs,
    make_batch_scene,
    make_photograph,
    make_single_scenes,
    read_tree,
    resume,
    start_driver,
    try_fault,
)

COLUMNS = ("runs", "fired", "kills", "lost", "torn", "tracebacks", "wrong codes", "not resumed", "other")
PREFIXES = {"lost": "lost", "torn": "torn", "traceback": "tracebacks", "exit code": "wrong codes",
            "failed with code": "wrong codes", "after resuming": "not resumed"}  # fmt: skip


@dataclass
class Table:
    """A table of counts with a row for each kind of test."""

    rows: dict[str, Counter[str]] = field(default_factory=dict)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def add(self, row: str, answer: Answer | None, problems: list[str], about: object = "") -> None:
        """Count a run and its problems, and print the problems at once.

        Args:
            answer: the outcome of the run; None for a check without a run.
            about: a description of the fault, for the printed lines.
        """
        with self.guard:
            counts = self.rows.setdefault(row, Counter())
            counts["runs"] += 1
            counts["fired"] += answer is not None and answer.fired > 0
            counts["kills"] += answer is not None and answer.killed
            for problem in problems:
                counts[next((PREFIXES[p] for p in PREFIXES if problem.startswith(p)), "other")] += 1
                print(f"{row}, {about}: {problem}", file=sys.stderr, flush=True)

    def print(self) -> bool:
        """Print the table as Markdown; return whether there were no problems."""
        print(f"| | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 1)}")
        for name, counts in self.rows.items():
            print(f"| {name} | {' | '.join(str(counts[column]) for column in COLUMNS)} |")
        return not any(counts[column] for counts in self.rows.values() for column in COLUMNS[3:])


def try_points(table: Table, scene_names: set[str], lane: int, lanes: int, every: int, memory_every: int) -> None:
    """Try the faults of one lane, which is one of several drivers that run at once and share the faults.

    Args:
        scene_names: the scenes to try; all if empty.
        every: try only each n-th call.
        memory_every: try only each n-th large allocation.
    """
    with start_driver() as driver, tempfile.TemporaryDirectory() as name:
        work = Path(name)
        scenes = [*make_single_scenes(driver, work), make_batch_scene(driver, work)]
        for scene in scenes:
            if scene_names and scene.name not in scene_names:
                continue
            points = list(list_points(driver, scene, work / "root", every, memory_every))
            for index, (row, fault, code, recall) in enumerate(points):
                if index % lanes == lane:
                    answer, problems = try_fault(driver, scene, work / "root", fault, code, recall=recall)
                    table.add(f"{scene.name}: {row}", answer, problems, fault)


def list_points(
    driver: Driver, scene: Scene, root: Path, every: int, memory_every: int
) -> Iterator[tuple[str, Fault, int, bool]]:
    """Yield the table row, the fault, the expected exit code, and whether the model's results come from the cache."""
    kinds = [kind for kind in KINDS if kind not in ("memory", "thread")]
    counts = {kind: count_calls(driver, scene, root, (kind,)) for kind in kinds}
    for fault in list_disk_faults(counts, DISK_ERRORS, every=every):
        yield ("disk" if fault.error else "SIGKILL"), fault, 6, True
    for stage in STAGES:
        for at in range(1, count_calls(driver, scene, root, ("memory",), stage) + 1, memory_every):
            for sticky in (False, True):
                fault = Fault(kinds=("memory",), at=at, error=errno.ENOMEM, stage=stage, sticky=sticky)
                yield "memory", fault, 8, False
    for at in range(1, count_calls(driver, scene, root, ("thread",)) + 1, every):
        yield "threads", Fault(kinds=("thread",), at=at, error=errno.EAGAIN, sticky=True), 8, True


def kill_at_random(table: Table, kills: int, pictures: int, seed: int) -> None:
    """Kill a batch at random moments and resume it until it ends; repeat this until there were `kills` kills.

    Args:
        pictures: the number of pictures in the batch.
    """
    rng = np.random.default_rng(seed)
    with start_driver() as driver, tempfile.TemporaryDirectory() as name:
        work, row, done = Path(name), "batch: random SIGKILLs", 0
        scene = make_batch_scene(driver, work, pictures=pictures)
        root = work / "root"
        whole = driver.run(scene.arguments, scene.lay(root)).seconds
        while done < kills:
            scene.lay(root)
            while True:
                moment = float(rng.uniform(0, whole) * rng.choice([0.2, 0.5, 1]))
                answer = driver.run(scene.arguments, root, kill_after=moment)
                problems = judge_files(scene, root)
                if not answer.killed:
                    problems = judge(scene, root, answer, after_kills=True)
                if not answer.killed:
                    problems += judge_end(scene, root, answer) + resume(driver, scene, root)
                done += answer.killed
                table.add(row, answer, problems, f"after {moment:.3f} s")
                if not answer.killed:
                    break
                if done >= kills:
                    table.add(row, None, resume(driver, scene, root), "at the end")
                    break


def kill_processes(table: Table, kills: int, seed: int) -> None:
    """Kill whole processes at random moments, while the model runs, and check the files as `kill_at_random` does."""
    rng = np.random.default_rng(seed)
    with start_driver() as driver, tempfile.TemporaryDirectory() as name:
        work = Path(name)
        scene = make_batch_scene(driver, work, pictures=12)
        root, done = scene.lay(work / "root"), 0
        began = time.monotonic()
        run_process(scene.arguments, root)
        whole = time.monotonic() - began
        scene.lay(root)
        while done < kills:
            answer = run_process(scene.arguments, root, kill_after=float(rng.uniform(0.5, 1.05) * whole))
            problems = judge_files(scene, root) if answer.killed else judge(scene, root, answer, after_kills=True)
            if not answer.killed:
                problems += judge_end(scene, root, answer)
                scene.lay(root)
            done += answer.killed
            table.add("batch: SIGKILLs of whole processes", answer, problems)
        table.add("batch: SIGKILLs of whole processes", None, resume(driver, scene, root), "at the end")


def run_process(arguments: tuple[str, ...], root: Path, kill_after: float | None = None) -> Answer:
    """Run a command in a normal process with one thread, as in the driver.

    Args:
        kill_after: seconds after which the process is killed; None for no limit.
    """
    process = start_process(arguments, root)
    try:
        out, err = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    return Answer(code=process.returncode, out=out, err=err.decode())


def start_process(arguments: tuple[str, ...], root: Path) -> subprocess.Popen[bytes]:
    """Start a command with one thread in the folder `root` and return its process."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "XDG_RUNTIME_DIR": str(root.parent),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }  # fmt: skip
    command = [sys.executable, "-m", "img2img_cli", *arguments]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def run_together(commands: list[tuple[str, ...]], root: Path) -> list[Answer]:
    """Run commands at the same time and return their answers in order."""
    processes = [start_process(command, root) for command in commands]
    with ThreadPoolExecutor(len(processes)) as pool:
        outputs = list(pool.map(lambda process: process.communicate(), processes))
    return [
        Answer(code=process.returncode, out=out, err=err.decode())
        for process, (out, err) in zip(processes, outputs, strict=True)
    ]


def crowd_one_folder(table: Table, root: Path) -> None:
    """Run eight batches into one folder. One gets the lock; the others exit with a message or find all results done."""
    make_batch_inputs(root / "in", 12)
    command = ("batch", "in", "-o", "out", "--preset", "colorize", "--json", *QUICK)
    answers = run_together([command] * 8, root)
    made = Counter(e["output"] for a in answers for e in a.events() if e["event"] == "done")
    for answer in answers:
        problems = check_lines(answer, {3, 7})
        if answer.code == 7 and "works on it" not in answer.err:
            problems.append(f"not a clear line: {answer.err!r}")
        table.add("8 batches into one folder", answer, problems)
    doubled = [f"made {count} times: {name}" for name, count in made.items() if count != 1]
    if len(made) != 12:
        doubled.append(f"{len(made)} results, not 12")
    table.add("8 batches into one folder", None, doubled + check_pictures(root / "out"))


def crowd_nested_folders(table: Table, root: Path) -> None:
    """Run eight batches into nested folders, over the same pictures and with one seed, so the results are equal."""
    make_batch_inputs(root / "in", 12)
    (root / "in" / "x-broken.png").unlink()
    (root / "in" / "x-text.jpg").unlink()
    common = ("--preset", "colorize", "--seed", "5", "--json", *QUICK)
    pairs = [("in", "out"), ("in/sub", "out/sub"), ("in", "out/sub"), ("in", "other"), ("in/sub", "other/sub"),
             ("in", "out"), ("in/sub", "out/sub"), ("in", "other/deep/er")]  # fmt: skip
    answers = run_together([("batch", source, "-o", folder, *common) for source, folder in pairs], root)
    for answer in answers:
        problems = check_lines(answer, {0, 3, 7})
        failed = [e["reason"] for e in answer.events() if e["event"] == "failed"]
        problems += [f"failed: {reason}" for reason in failed if "exists already" not in reason]
        table.add("8 batches into nested folders", answer, problems)
    # A batch that lost a race for a name has not written that result elsewhere. A second round completes all results.
    for source, folder in pairs[:5]:
        answer = run_process(("batch", source, "-o", folder, *common), root)
        table.add("8 batches into nested folders", answer, check_lines(answer, {0, 3}))
    inputs = [name.removeprefix("in/") for name in read_tree(root) if name.startswith("in/")]
    missing = [f"missing: out/{name}" for name in inputs if not (root / "out" / name).exists()]
    table.add("8 batches into nested folders", None, missing + check_pictures(root))


def crowd_one_output(table: Table, root: Path) -> None:
    """Run eight commands onto one OUTPUT without --force. Exactly one must write it."""
    root.mkdir(parents=True)
    make_photograph(0).save(root / "in.png")
    commands = [("colorize", "in.png", "out.png", "--quiet", "--seed", str(seed), *QUICK) for seed in range(8)]
    answers = run_together(commands, root)
    for answer in answers:
        problems = check_lines(answer, {0, 6})
        if answer.code and ("exists already" not in answer.err or len(answer.err.splitlines()) != 1):
            problems.append(f"not a clear line: {answer.err!r}")
        table.add("8 commands onto one OUTPUT", answer, problems)
    winners = [index for index, answer in enumerate(answers) if answer.code == 0]
    problems = check_pictures(root) if len(winners) == 1 else [f"{len(winners)} winners"]
    problems += [f"left behind: {name}" for name in read_tree(root) if name.endswith(".tmp")]
    if len(winners) == 1:
        told = run_process(("info", "out.png"), root)
        if f"--seed {winners[0]}" not in told.out.decode():
            problems.append(f"not the winner's: {told.out!r}")
    table.add("8 commands onto one OUTPUT", None, problems)


def check_lines(answer: Answer, codes: set[int]) -> list[str]:
    """Return the problems of an exit code and its message."""
    problems = [] if answer.code in codes else [f"exit code {answer.code}: {answer.err[-500:]}"]
    if "Traceback" in answer.err:
        problems.append(f"traceback: {answer.err[-1500:]}")
    if len(answer.err.splitlines()) > 1:
        problems.append(f"more than one line: {answer.err!r}")
    return problems


def check_pictures(root: Path) -> list[str]:
    """Return a line for each result that does not decode and for each temporary file that is left behind."""
    problems = []
    for name, data in read_tree(root).items():
        if name.endswith(".tmp"):
            problems.append(f"left behind: {name}")
        elif "x-" not in name and not describe_damage(data).startswith("decodes"):
            problems.append(f"torn: {name}")
    return problems


def main() -> None:
    """Run all parts, or those that are named. Exit with 1 if there is any problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[], help="points, kills, crowd; all if none is named")
    parser.add_argument("--scenes", nargs="*", default=[], help="of points: new, force, batch and so on; all if none")
    parser.add_argument("--every", type=int, default=1, help="of points: only each n-th call")
    parser.add_argument("--memory-every", type=int, default=1, help="of points: only each n-th large allocation")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=20, help="kills of whole processes")
    parser.add_argument("--pictures", type=int, default=20, help="of the batch that is killed")
    parser.add_argument("--rounds", type=int, default=2, help="of crowds")
    parser.add_argument("--lanes", type=int, default=2, help="drivers at once")
    arguments = parser.parse_args()
    parts, lanes, table = arguments.parts or ["points", "kills", "crowd"], arguments.lanes, Table()
    with ThreadPoolExecutor(lanes) as pool:
        futures = []
        if "points" in parts:
            scenes = set(arguments.scenes)
            strides = arguments.every, arguments.memory_every
            futures += [pool.submit(try_points, table, scenes, lane, lanes, *strides) for lane in range(lanes)]
        if "kills" in parts:
            shares = [len(range(lane, arguments.kills, lanes)) for lane in range(lanes)]
            futures += [pool.submit(kill_at_random, table, n, arguments.pictures, i) for i, n in enumerate(shares)]
        for future in futures:
            future.result()
    if "kills" in parts and arguments.processes:
        kill_processes(table, arguments.processes, 0)
    if "crowd" in parts:
        for index in range(arguments.rounds):
            for crowd in (crowd_one_folder, crowd_nested_folders, crowd_one_output):
                with tempfile.TemporaryDirectory() as name:
                    crowd(table, Path(name) / str(index))
    sys.exit(0 if table.print() else 1)


if __name__ == "__main__":
    main()
