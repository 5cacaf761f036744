"""Inputs of a batch that change during the run, are not regular files, or take too long."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from PIL import Image

from img2img_cli.batch import assembly_line
from img2img_cli.batch.entries import Opener
from img2img_cli.engines.base import BasePipeline
from img2img_cli.errors import ChangedError
from img2img_cli.system.source_files import read_source

QUICK = ["--set", "num_inference_steps=1", "--set", "num_samples=1", "--set", "image_size=64"]


@pytest.fixture
def folder(tmp_path: Path, photograph: Image.Image, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with two pictures in in/ and another one beside it."""
    (tmp_path / "in").mkdir()
    small = photograph.resize((64, 64))
    for name, angle in (("in/a.png", 0), ("in/b.png", 90), ("other.png", 180)):
        small.rotate(angle).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(here, *arguments: object) -> tuple[int, list[dict]]:
    done = here("batch", "in", "-o", "out", "--preset", "colorize", "--json", "--no-server", *QUICK, *arguments)
    return done.code, [json.loads(line) for line in done.out.splitlines()]


def find_ends(events: list[dict]) -> dict[str, str]:
    """Return how each input ended."""
    return {Path(event["input"]).name: event["event"] for event in events if "output" in event}


@pytest.mark.slow
def test_an_input_that_is_replaced_meanwhile_is_made_again(here, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transform = BasePipeline.transform

    def replace(self, *arguments, **options):
        made = transform(self, *arguments, **options)
        shutil.copyfile("other.png", "in/a.png")  # after its decoding, before its result is written
        return made

    monkeypatch.setattr(BasePipeline, "transform", replace)
    assert run(here)[0] == 0
    monkeypatch.setattr(BasePipeline, "transform", transform)
    assert find_ends(run(here)[1]) == {"a.png": "done", "b.png": "up-to-date"}
    assert find_ends(run(here)[1]) == {"a.png": "up-to-date", "b.png": "up-to-date"}


def test_a_file_that_grows_while_it_is_read_is_no_picture_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "half.png"
    path.write_bytes(bytes(1000))
    fstat, calls = os.fstat, []

    def grow(number: int) -> os.stat_result:
        calls.append(number)
        if len(calls) == 2:  # the second look, after the reading
            with path.open("ab") as more:
                more.write(bytes(1000))
        return fstat(number)

    assert read_source(str(path))[0] == bytes(1000)
    monkeypatch.setattr(os, "fstat", grow)
    with pytest.raises(ChangedError, match="changed while it was read"):
        read_source(str(path))


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_file_is_left_aside_in_a_scan(here, folder: Path, kind: str) -> None:
    os.mkfifo("in/c.png") if kind == "fifo" else Path("in/c.png").symlink_to("/dev/zero")
    code, events = run(here)
    assert code == 0
    assert find_ends(events) == {"a.png": "done", "b.png": "done"}
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert len(notes) == 1
    assert "in/c.png: is a " in notes[0]


def test_a_named_fifo_is_read(here, folder: Path) -> None:
    os.mkfifo("pipe.png")
    data = Path("other.png").read_bytes()
    writer = threading.Thread(target=lambda: Path("pipe.png").write_bytes(data), daemon=True)
    writer.start()
    code, events = run(here, "pipe.png")
    writer.join(30)
    assert code == 0
    assert find_ends(events)["pipe.png"] == "done"


@pytest.mark.slow
def test_a_fifo_that_nobody_writes_to_ends_with_its_time(here, folder: Path) -> None:
    os.mkfifo("pipe.png")
    code, events = run(here, "pipe.png", "--item-timeout", "0.5")
    reasons = {Path(event["input"]).name: event["reason"] for event in events if event["event"] == "failed"}
    assert code == 3
    assert "--item-timeout" in reasons["pipe.png"]


@pytest.mark.slow
def test_what_is_told_as_late_is_not_there(here, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    # The last look before writing.
    monkeypatch.setattr(assembly_line, "check_place", lambda *place: looked.append(place))
    monkeypatch.setattr(Opener, "is_late", lambda self, entry: bool(looked))
    code, events = run(here, "--item-timeout", "600")
    assert code == 3
    assert find_ends(events) == {"a.png": "failed", "b.png": "failed"}
    assert not list(Path("out").glob("*.png"))
