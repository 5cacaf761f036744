"""On signals, closed pipes and closed streams, finished results are counted and the exit code is the documented one."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from warm import Warm

from img2img_cli.batch.assembly_line import Line
from img2img_cli.batch.journal import Journal
from img2img_cli.batch.session import Session
from img2img_cli.cli import app, batch_run, open_engine, single_run
from img2img_cli.errors import ModelError, OutputError
from img2img_cli.system.interrupts import SIGNALS, Interrupted, Interrupts
from img2img_cli.system.streams import _Stdout

QUICK = ["--set", "num_inference_steps=1", "--set", "num_samples=1", "--set", "image_size=64"]
COMMAND = [sys.executable, "-m", "img2img_cli"]


@pytest.fixture
def folder(tmp_path: Path, photograph: Image.Image, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with six pictures in in/."""
    (tmp_path / "in").mkdir()
    for index in range(6):
        photograph.rotate(index).save(tmp_path / "in" / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def interrupts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Interrupts]:
    """Handle signals of this process as the command does."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    fresh = Interrupts()
    for module in (app, batch_run):
        monkeypatch.setattr(module, "INTERRUPTS", fresh)
    fresh.install()
    yield fresh
    for number, handler in before.items():
        signal.signal(number, handler)


def run(here, *arguments: object):
    return here("batch", "in", "-o", "out", "--preset", "colorize", "--json", "--no-server", *QUICK, *arguments)


def check_counts(lines: list[dict], folder: Path) -> dict:
    """Check that the summary counts exactly the files in the folder, and that every input has one end."""
    summary = lines[-1]
    ends = [line["event"] for line in lines if "output" in line]
    assert summary["event"] == "summary"
    assert len(ends) == summary["inputs"] == summary["done"] + summary["failed"] + summary["skipped"]
    assert ends.count("done") == summary["done"] == len(list((folder / "out").glob("*.png")))
    assert not list((folder / "out").glob("*.tmp"))
    return summary


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "place"),
    [
        (signal.SIGINT, "Line._finish"),
        (signal.SIGINT, "Line.__exit__"),
        (signal.SIGINT, "Journal.finish"),
        (signal.SIGTERM, "Line._collect"),
        (signal.SIGHUP, "Session.end"),
    ],
)
def test_a_signal_comes_nowhere_between_a_result_and_its_count(
    here, folder: Path, interrupts: Interrupts, monkeypatch: pytest.MonkeyPatch, place: str, number: int
) -> None:
    owner, name = {"Line": Line, "Session": Session, "Journal": Journal}[place.split(".")[0]], place.split(".")[1]
    original, sent = getattr(owner, name), []

    def interrupted(self, *arguments, **more):
        written = list(Path("out").glob("*.png"))
        if written and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return original(self, *arguments, **more)

    monkeypatch.setattr(owner, name, interrupted)
    done = run(here, "--workers", 1)
    assert sent
    assert done.code == 128 + number, done.err
    assert done.err.splitlines() == [f"img2img: {SIGNALS[signal.Signals(number)]}"]
    summary = check_counts([json.loads(line) for line in done.out.splitlines()], folder)
    assert summary["done"] > 0
    assert place == "Line.__exit__" or summary["skipped"] > 0


@pytest.mark.slow
def test_a_result_that_the_journal_cannot_note_is_counted(here, folder: Path, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OutputError("no room")

    monkeypatch.setattr(Journal, "finish", fail)
    done = run(here)
    assert done.code == 6
    assert check_counts([json.loads(line) for line in done.out.splitlines()], folder)["done"] > 0


def test_signals_wait_where_they_are_held_and_are_never_lost(interrupts: Interrupts) -> None:
    reached = False
    with pytest.raises(Interrupted), interrupts.hold():
        os.kill(os.getpid(), signal.SIGTERM)
        reached = True
        with pytest.raises(Interrupted):
            interrupts.check()
        with pytest.raises(Interrupted), interrupts.allow():
            raise AssertionError("not reached")
    assert reached


def test_a_signal_ends_at_once_what_allows_it(interrupts: Interrupts) -> None:
    with pytest.raises(Interrupted) as caught, interrupts.hold(), interrupts.allow():
        os.kill(os.getpid(), signal.SIGHUP)
        raise AssertionError("not reached")
    assert caught.value.exit_code == 129


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_the_process(number: int) -> None:
    code = f"""
import os
from img2img_cli.system.interrupts import INTERRUPTS
INTERRUPTS.install()
with INTERRUPTS.hold():
    os.kill(os.getpid(), {number})
    os.kill(os.getpid(), {number})
    print("still here")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")


@contextmanager
def started(*arguments: str, **streams: object) -> Iterator[subprocess.Popen]:
    process = Warm(arguments, stderr=subprocess.PIPE, text=True, **streams)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_the_plan_is_one_line(folder: Path, number: int) -> None:
    os.mkfifo("jobs.jsonl")
    arguments = ["batch", "jobs.jsonl", "-o", "out", "--preset", "colorize"]
    with started(*arguments) as process, Path("jobs.jsonl").open("wb"):  # opened when the command has opened it, too
        time.sleep(0.2)  # Python acts on a signal that came just before a `read` only when that returns
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err == f"img2img: {SIGNALS[signal.Signals(number)]}\n"


@pytest.mark.slow
def test_a_signal_that_the_caller_ignores_stays_ignored(folder: Path) -> None:
    os.mkfifo("jobs.jsonl")
    arguments = ["batch", "jobs.jsonl", "-o", "out", "--preset", "colorize", "--dry-run"]
    command = ["sh", "-c", 'trap "" HUP; exec "$0" "$@"', *COMMAND, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        with Path("jobs.jsonl").open("w") as jobs:
            process.send_signal(signal.SIGHUP)
            jobs.write('{"input": "in/0.png"}\n')
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


@pytest.mark.slow
def test_a_batch_whose_reader_leaves_stops_and_counts(here, folder: Path, interrupts, monkeypatch) -> None:
    reading, writing = os.pipe()
    reader, told = os.fdopen(reading, "r"), []
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(_Stdout(writing, "w"))))
    end = Session.end

    def leave(self, job, event, **facts):
        end(self, job, event, **facts)
        told.append(event)
        if not reader.closed:
            assert json.loads(reader.readline())["event"] == "plan"
            assert json.loads(reader.readline())["event"] == "done"
            reader.close()

    monkeypatch.setattr(Session, "end", leave)
    done = run(here)
    assert done.code == 6
    assert done.err == "img2img: stdout: the reader closed the pipe before everything was written\n"
    assert len(told) == 6
    assert told.count("done") == len(list((folder / "out").glob("*.png")))
    assert "skipped" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["presets", "list"], ["--help"], ["presets", "schema"], ["colorize", "in/0.png", "--dry-run"]],
    ids=" ".join,
)
def test_every_command_tells_that_its_reader_has_left(folder: Path, arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with started(*arguments, stdout=writing) as process:
        os.close(writing)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 6
    assert err == "img2img: stdout: the reader closed the pipe before everything was written\n"


@pytest.mark.parametrize(
    ("redirect", "arguments", "code", "words"),
    [
        (">&-", ["presets", "schema"], 6, "stdout: is closed"),
        (">&-", ["colorize", "missing.png"], 3, "missing.png"),
        ("2>&-", ["presets", "schema"], 0, ""),
        ("2>&-", ["colorize", "missing.png"], 3, ""),
        (">&- 2>&-", ["presets", "schema"], 6, ""),
        ("<&-", ["colorize", "-", "out.png"], 3, "stdin: cannot be read"),
        ("<&- >&- 2>&-", ["presets", "validate", "colorize"], 0, ""),
    ],
)
def test_closed_streams_change_only_what_goes_through_them(
    folder: Path, redirect: str, arguments: list[str], code: int, words: str
) -> None:
    command = ["sh", "-c", f'exec "$0" "$@" {redirect}', *COMMAND, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == bool(words)
    if redirect == "2>&-" and arguments[0] == "presets":
        assert json.loads(done.stdout)["title"]


def test_a_message_that_nobody_reads_changes_nothing(folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*COMMAND, "presets", "validate", "colorize"], stderr=writing)
    os.close(writing)
    assert done.returncode == 0


def test_a_stream_that_does_not_block_gets_everything(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    code = "from img2img_cli.system.streams import protect_streams; protect_streams(); print('x' * 1_000_000)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as reader:
        assert len(reader.read()) == 1_000_001
    assert process.wait(60) == 0


def test_a_signal_that_python_has_dropped_ends_the_command_at_its_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Interrupts()
    monkeypatch.setattr(single_run, "INTERRUPTS", fresh)
    with single_run.show_progress("edit", enabled=False) as progress:
        progress(1, 3)
        with pytest.raises(Interrupted):
            fresh._take(signal.SIGTERM, None)
        with pytest.raises(Interrupted):
            progress(2, 3)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_error_that_a_library_makes_of_a_signal_is_told_as_the_signal(
    here, folder: Path, interrupts: Interrupts, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def build(spec: object) -> object:
        try:
            os.kill(os.getpid(), number)
        except BaseException as error:
            raise ModelError("the model cannot be loaded") from error
        raise AssertionError("not reached")

    monkeypatch.setattr(open_engine, "build", build)
    done = here("colorize", "in/0.png", "--no-server")
    assert (done.code, done.err) == (128 + number, f"img2img: {SIGNALS[signal.Signals(number)]}\n")
