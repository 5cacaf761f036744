"""The journal of a batch recognizes finished work, and damage to its file does no harm."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import sqlite3
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from img2img_cli.batch import state_file
from img2img_cli.batch.entries import Entry, Opener
from img2img_cli.batch.journal import STATE, Failure, hold_folder
from img2img_cli.batch.run import _skip_unreadable
from img2img_cli.batch.session import Limits, Session, Tally
from img2img_cli.errors import OutputError
from img2img_cli.pictures.read import load_image
from img2img_cli.pictures.write import write_output
from img2img_cli.tasks.inputs import find_items
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.plan import BatchChoices, plan_batch
from img2img_cli.tasks.run import Finished, encode_result

FLIPS = 250


def plan(folder: Path, **choices: object) -> list[Job]:
    items = find_items([str(folder / "in")])
    return plan_batch(items, BatchChoices(**({"folder": folder / "out", "preset": "restore"} | choices)))


def sort_out(folder: Path, jobs: list[Job], **limits: object) -> tuple[list[Entry], list[dict], Session]:
    """Return the remaining work and the events of a run that ends before it needs a model."""
    seen: list[dict] = []
    with hold_folder(folder / "out") as journal:
        session = Session(
            journal=journal, limits=Limits(**limits), emit=seen.append, tally=Tally(inputs=len(jobs)), load=None
        )
        return session.sort_out(jobs), seen, session


def finish(folder: Path, jobs: list[Job]) -> None:
    """Write each job's input as its result, and record it like a run that finishes."""
    with hold_folder(folder / "out") as journal:
        for job in jobs:
            entry = Entry(job=job, provenance=journal.trace(job), replace=False)
            Opener(None).open(entry, lambda: None)
            picture = load_image(job.input)
            made_from = {"fingerprint": entry.provenance.fingerprint, "source_sha256": entry.provenance.source_sha256}
            data, _ = encode_result(Finished(image=picture.rgb, format=picture.format), picture, job, **made_from)
            journal.begin(job, entry.provenance, data)
            write_output(data, job.output, replace=False)
            journal.finish(job, entry.provenance, 0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with three pictures that have results, and a broken one that has failed."""
    (tmp_path / "in").mkdir()
    for index in range(3):
        Image.effect_noise((16, 16), 50 + index).save(tmp_path / "in" / f"{index}.png")
    finish(tmp_path, plan(tmp_path))
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG no more")
    jobs = plan(tmp_path)
    (entry,), _, session = sort_out(tmp_path, jobs)
    with hold_folder(tmp_path / "out") as journal:
        session.journal = journal
        _skip_unreadable(session, [entry], set())
    return tmp_path


def kinds(events: list[dict]) -> list[str]:
    return [event["event"] for event in events if event["event"] != "note"]


def test_a_broken_picture_is_known_by_its_bytes_until_they_change(folder: Path) -> None:
    jobs = plan(folder)
    left, seen, _ = sort_out(folder, jobs)
    assert (left, kinds(seen)) == ([], ["up-to-date"] * 3 + ["failed"])
    assert "broken.png" in seen[3]["reason"]
    assert "--retry-failed" in seen[4]["text"]
    broken = folder / "in" / "broken.png"
    os.utime(broken, (1, 1))
    assert sort_out(folder, jobs)[0] == []
    (left, seen, _) = sort_out(folder, jobs, retry_failed=True)
    assert [entry.job.input for entry in left] == [str(broken)]
    before = broken.stat()
    broken.write_bytes(b"\x89PNG No more")  # as long, and as old
    os.utime(broken, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(sort_out(folder, jobs)[0]) == 1


@pytest.mark.parametrize(
    "choices", [{"overrides": {"keep_detail": 0.5}}, {"seed": 3}, {"force": True}, {"quality": 50}]
)
def test_a_failure_is_forgotten_where_anything_else_is_asked_for(folder: Path, choices: dict) -> None:
    left, _, _ = sort_out(folder, plan(folder, **choices))
    assert str(folder / "in" / "broken.png") in [entry.job.input for entry in left]


def test_a_newer_version_tries_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("img2img_cli.batch.journal.__version__", "99")
    assert len(sort_out(folder, plan(folder))[0]) == 1


def test_a_success_and_a_failure_of_another_kind_are_not_held_against_the_picture(folder: Path) -> None:
    job = plan(folder)[3]
    with hold_folder(folder / "out") as journal:
        journal.fail(job, Failure(code=8, reason="out of memory"), 0.1)
        assert journal.recall_failure(job, journal.trace(job)) is None
    assert len(sort_out(folder, plan(folder))[0]) == 1


@pytest.mark.slow
def test_nothing_that_is_flipped_in_the_journal_ends_a_run(folder: Path) -> None:
    """Change one bit or byte at a time: in the header, in the used part of each page, and anywhere."""
    jobs, state = plan(folder), folder / "out" / STATE
    sound, rng = state.read_bytes(), random.Random(0)
    results = {path.name: path.read_bytes() for path in (folder / "out").glob("*.png")}
    used = [place for place, byte in enumerate(sound) if byte]
    places = [*range(16, 100, 4), *rng.sample(used, FLIPS - 71), *(rng.randrange(len(sound)) for _ in range(50))]
    aside = 0
    for place in places:
        data = bytearray(sound)
        data[place] ^= rng.choice([1 << rng.randrange(8), 0xFF])
        state.write_bytes(data)
        left, seen, session = sort_out(folder, jobs)
        assert len(left) + len(kinds(seen)) == session.tally.inputs == 4, place
        assert all(event.get("code", 3) == 3 or event["code"] == 3 for event in seen), (place, seen)
        damaged = folder / "out" / ".img2img.damaged"
        notes = [event["text"] for event in seen if event["event"] == "note" and "damaged" in event["text"]]
        assert len(notes) == damaged.exists(), place
        aside += damaged.exists()
        damaged.unlink(missing_ok=True)
    assert aside > 20
    assert results == {path.name: path.read_bytes() for path in (folder / "out").glob("*.png")}


@pytest.mark.parametrize(
    ("column", "value"), [("made_of", "0"), ("code", 67), ("reason", "another"), ("reason", b"bytes")]
)
def test_a_failure_that_was_changed_in_the_journal_is_not_believed(folder: Path, column: str, value: object) -> None:
    jobs = plan(folder)
    assert sort_out(folder, jobs)[0] == []
    with contextlib.closing(sqlite3.connect(folder / "out" / STATE)) as connection, connection:
        connection.execute(f"UPDATE failure SET {column} = ?", [value])
    left, _, _ = sort_out(folder, jobs)
    assert [Path(entry.job.input).name for entry in left] == ["broken.png"]


def test_damage_that_comes_during_a_run_is_set_aside_too(folder: Path) -> None:
    job = plan(folder)[0]
    with hold_folder(folder / "out") as journal:
        state = folder / "out" / STATE
        state.write_bytes(b"SQLite format 3\0" + b"\xff" * (state.stat().st_size - 16))
        journal.fail(job, Failure(code=3, reason="x"), 0.1)
        assert journal.status(job) == "failed"
        assert len(journal.take_notes()) == 1


def test_text_in_the_journal_that_is_none_is_damage(folder: Path) -> None:
    """Python's own error for invalid text has no SQLite error code."""
    with sqlite3.connect(folder / "out" / STATE) as connection:
        connection.execute("UPDATE result SET reason = CAST(x'ff' AS TEXT)")
    connection.close()
    left, seen, _ = sort_out(folder, plan(folder))
    assert "damaged" in seen[0]["text"]
    assert (len(left), kinds(seen)) == (1, ["up-to-date"] * 3)


def test_a_journal_of_an_earlier_version_is_kept(folder: Path) -> None:
    with sqlite3.connect(folder / "out" / STATE) as connection:
        connection.execute("DROP TABLE failure")
    connection.close()
    left, seen, _ = sort_out(folder, plan(folder))
    assert (len(left), kinds(seen)) == (1, ["up-to-date"] * 3)
    assert not [event for event in seen if event["event"] == "note"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "check its permissions"),
        (errno.EPERM, "immutable"),
        (errno.EROFS, "read-only; choose another place"),
        (errno.ENOSPC, "free space on its disk"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "check the disk"),
    ],
)
def test_the_advice_is_of_what_is_in_the_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    """SQLite reports few details, so the system is asked. The journal is not set aside."""
    job = plan(folder)[0]
    with hold_folder(folder / "out") as journal:
        other = sqlite3.connect(folder / "out" / STATE)
        other.execute("PRAGMA query_only = 1")
        journal._file._connection, own = other, journal._file._connection
        refuse = OSError(number, os.strerror(number))
        monkeypatch.setattr(state_file, "_ask_system", lambda path: refuse)
        with pytest.raises(OutputError, match=advice) as caught:
            journal.fail(job, Failure(code=3, reason="x"), 0.1)
        assert os.strerror(number) in str(caught.value)
        own.close()
    assert not (folder / "out" / ".img2img.damaged").exists()


def test_a_folder_that_is_removed_meanwhile_is_named_as_that(folder: Path) -> None:
    import shutil

    job = plan(folder)[0]
    with hold_folder(folder / "out") as journal:
        shutil.rmtree(folder / "out")
        with pytest.raises(OutputError, match=r"its folder is gone"):
            journal.fail(job, Failure(code=3, reason="x"), 0.1)
        (folder / "out").mkdir()
        with pytest.raises(OutputError, match=r"removed meanwhile; start again"):
            journal.fail(job, Failure(code=3, reason="x"), 0.1)


def test_a_journal_that_another_program_holds_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **b: connect(*a, **b, timeout=0.01))
    other = connect(folder / "out" / STATE)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OutputError, match="another program"), hold_folder(folder / "out"):
        pass
    other.close()
    assert not (folder / "out" / ".img2img.damaged").exists()


@pytest.fixture
def immutable(folder: Path):
    """Make the journal immutable, as an administrator might."""
    state = folder / "out" / STATE
    if subprocess.run(["chattr", "+i", state], capture_output=True, check=False).returncode:
        pytest.skip("needs chattr, its rights and a file system that has it")
    yield folder
    subprocess.run(["chattr", "-i", state], check=True)


def test_an_immutable_journal_is_named_as_that(immutable: Path) -> None:
    with pytest.raises(OutputError, match=r"Operation not permitted.*immutable"):
        sort_out(immutable, plan(immutable))


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of files that are opened to be hashed or decoded."""
    opened: list[str] = []
    import builtins

    plain, of_path, of_system = builtins.open, Path.open, os.open

    def note(name, *more, **options):
        opened.append(Path(name).name)
        return plain(name, *more, **options)

    def note_path(path, *more, **options):
        opened.append(path.name)
        return of_path(path, *more, **options)

    def note_system(name, *more, **options):
        opened.append(Path(name).name)
        return of_system(name, *more, **options)

    monkeypatch.setattr(os, "open", note_system)
    monkeypatch.setattr(builtins, "open", note)
    monkeypatch.setattr(Path, "open", note_path)
    return opened


def test_new_inputs_are_read_once_and_pictures_beside_them_once_for_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(10, 14):
        Image.effect_noise((16, 16), index).save(folder / "in" / f"{index}.png")
    Image.new("L", (16, 16), 255).save(folder / "mask.png")
    jobs = [job.model_copy(update={"mask": str(folder / "mask.png")}) for job in plan(folder)]
    opened = count_reads(monkeypatch)
    with hold_folder(folder / "out") as journal:
        session = Session(
            journal=journal, limits=Limits(), emit=lambda _: None, tally=Tally(inputs=len(jobs)), load=None
        )
        left = session.sort_out(jobs)
        assert opened.count("mask.png") == 1
        assert not [name for name in opened if name in ("10.png", "11.png", "12.png", "13.png")]
        for entry in left:
            if entry.job.input.endswith("10.png"):
                Opener(None).open(entry, lambda: None)
                assert entry.provenance.source_sha256
    assert opened.count("10.png") == 1
