"""When a call fails, memory runs out or the process is killed, all files remain and none is damaged.

Here each call of a single command fails once. `benchmarks/faults.py` does the same to batches, with a thousand kills.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import (
    QUICK,
    STAGES,
    Driver,
    Fault,
    Scene,
    count_calls,
    find_compiler,
    list_disk_faults,
    make_batch_scene,
    make_photograph,
    make_single_scenes,
    read_tree,
    start_driver,
    try_fault,
)
from PIL import Image

from img2img_cli.batch.journal import STATE, hold_folder
from img2img_cli.cli import app
from img2img_cli.errors import OutputError
from img2img_cli.pictures.write import write_output

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="needs a C compiler on Linux")
SINGLE_KINDS = ("write", "sync", "rename", "link", "unlink", "open")
BATCH_KINDS = (*SINGLE_KINDS, "mkdir", "truncate")


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with start_driver() as started:
        yield started


@pytest.fixture(scope="module")
def singles(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scene]:
    return {scene.name: scene for scene in make_single_scenes(driver, tmp_path_factory.mktemp("singles"))}


@pytest.fixture(scope="module")
def batch(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_batch_scene(driver, tmp_path_factory.mktemp("batches"))


def count_kinds(driver: Driver, scene: Scene, root: Path, kinds: tuple[str, ...]) -> dict[str, int]:
    return {kind: count_calls(driver, scene, root, (kind,)) for kind in kinds}


def try_all(driver: Driver, scene: Scene, root: Path, faults: list[Fault], code: int, *, recall: bool = True) -> int:
    """Try all faults, check that none did harm, and return how many took effect."""
    fired, harm = 0, []
    for fault in faults:
        answer, problems = try_fault(driver, scene, root, fault, code, recall=recall)
        fired += answer.fired > 0
        harm += [f"{scene.name}, {fault}: {problem}" for problem in problems]
    assert not harm, "\n".join(harm[:10])
    return fired


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", ["new", "force", "in-place", "variations", "stdout"])
def test_no_single_call_that_fails_does_harm(driver: Driver, singles, tmp_path: Path, name: str) -> None:
    counts = count_kinds(driver, singles[name], tmp_path / "root", SINGLE_KINDS)
    assert counts["write"] >= 1
    if name != "stdout":
        assert counts["sync"] >= 2
        assert counts["rename"] + counts["link"] >= 1
        assert counts["unlink"] + counts["rename"] >= 1
    errors = (errno.ENOSPC, errno.EIO) if name == "new" else (errno.ENOSPC,)
    faults = list(list_disk_faults(counts, errors))
    assert try_all(driver, singles[name], tmp_path / "root", faults, 6) >= len(faults) - 2


@pytest.mark.slow
@needs_compiler
def test_a_batch_survives_a_sample_of_faults(driver: Driver, batch: Scene, tmp_path: Path) -> None:
    counts = count_kinds(driver, batch, tmp_path / "root", BATCH_KINDS)
    assert counts["write"] > 20, "SQLite's own calls are seen"
    faults = list(list_disk_faults(counts, (errno.ENOSPC,)))[::25]
    assert try_all(driver, batch, tmp_path / "root", faults, 6) > len(faults) * 0.8


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("stage", STAGES)
def test_running_out_of_memory_is_told_as_such(driver: Driver, singles, tmp_path: Path, stage: str) -> None:
    scene = singles["mask"]
    count = count_calls(driver, scene, tmp_path / "root", ("memory",), stage)
    assert count > 0
    places = sorted({1, 2, count // 2 or 1, count})
    faults = [
        Fault(kinds=("memory",), at=at, error=errno.ENOMEM, stage=stage, sticky=sticky)
        for at in places
        for sticky in (False, True)
    ]
    assert try_all(driver, scene, tmp_path / "root", faults, 8, recall=False)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_that_runs_out_of_memory_fails_pictures_or_ends(driver, batch, tmp_path: Path, stage: str) -> None:
    count = count_calls(driver, batch, tmp_path / "root", ("memory",), stage)
    faults = [
        Fault(kinds=("memory",), at=at, error=errno.ENOMEM, stage=stage, sticky=sticky)
        for at, sticky in ((1, True), (count // 2 or 1, False))
    ]
    assert try_all(driver, batch, tmp_path / "root", faults, 8, recall=False)


@pytest.mark.slow
@needs_compiler
def test_threads_that_cannot_start_are_one_line(driver: Driver, batch: Scene, tmp_path: Path) -> None:
    count = count_calls(driver, batch, tmp_path / "root", ("thread",))
    faults = [Fault(kinds=("thread",), at=at, error=errno.EAGAIN, sticky=True) for at in range(1, count + 1)]
    assert try_all(driver, batch, tmp_path / "root", faults, 8)


@pytest.mark.slow
@needs_compiler
def test_the_shim_reaches_a_whole_process(driver: Driver, tmp_path: Path, fresh, picture: Path) -> None:
    """The driver's children are forked; this command is started like any other."""
    from faults import Orders, build_shim

    shim, orders = build_shim(tmp_path), Orders(tmp_path / "orders")
    root = tmp_path / "root"
    root.mkdir()
    environment = {"LD_PRELOAD": str(shim), "FAULT_FILE": str(tmp_path / "orders")}
    orders.set(Fault(kinds=("write",), at=1, error=errno.EDQUOT), str(root), armed=True)
    done = fresh("colorize", picture, root / "new.png", *QUICK, "--no-server", **environment)
    assert done.code == 6, done.err
    assert os.strerror(errno.EDQUOT) in done.err
    orders.set(Fault(kinds=("link",), at=1), str(root), armed=True)
    done = fresh("colorize", picture, root / "new.png", *QUICK, "--no-server", **environment)
    assert done.code == -9
    assert all(name.endswith(".tmp") for name in read_tree(root))


@pytest.fixture
def bmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with one picture whose result cannot record its input."""
    (tmp_path / "in").mkdir()
    make_photograph().save(tmp_path / "in" / "a.bmp")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_batch(here, *arguments: object):
    return here("batch", "in", "-o", "out", "--preset", "colorize", "--json", *QUICK, *arguments)


class _Killed(BaseException):
    """Stands for a kill of the process, but ends only a thread."""


def test_a_run_that_dies_after_writing_knows_its_file_again(here, bmp: Path, monkeypatch) -> None:
    """Without the journal entry before the rename, a later run would not recognize the file as its own."""

    def die(*_: object, **__: object) -> None:
        raise _Killed

    monkeypatch.setattr("img2img_cli.batch.journal.Journal.finish", die)
    with pytest.raises(_Killed):
        run_batch(here)
    made = (bmp / "out" / "a.bmp").read_bytes()
    monkeypatch.undo()
    monkeypatch.chdir(bmp)
    again = run_batch(here)
    assert again.code == 0, again.out
    assert (bmp / "out" / "a.bmp").read_bytes() == made


@pytest.mark.slow
def test_an_older_result_is_known_after_two_runs_that_died_before_replacing_it(here, bmp: Path, monkeypatch) -> None:
    assert run_batch(here).code == 0

    def die(*_: object, **__: object) -> None:
        raise _Killed

    monkeypatch.setattr("img2img_cli.batch.assembly_line.write_output", die)
    for _ in range(2):
        with pytest.raises(_Killed):
            run_batch(here, "--set", "saturation=0.5")
    monkeypatch.undo()
    monkeypatch.chdir(bmp)
    done = run_batch(here, "--set", "saturation=0.5")
    assert done.code == 0, done.out


def test_a_run_leaves_the_unfinished_files_of_another_in_a_folder_below(tmp_path: Path) -> None:
    (tmp_path / "out" / "sub").mkdir(parents=True)
    with hold_folder(tmp_path / "out" / "sub") as below, hold_folder(tmp_path / "out") as above:
        tags = {below.tag, above.tag}
        for tag in tags:
            (tmp_path / "out" / "sub" / f".img2img-{tag}1.tmp").touch()
    assert len(tags) == 2
    with hold_folder(tmp_path / "out"):
        left = [path.name for path in (tmp_path / "out").rglob("*.tmp")]
    assert left == [f".img2img-{below.tag}1.tmp"]
    with hold_folder(tmp_path / "out" / "sub"):
        assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_state_that_is_damaged_in_its_middle_is_put_aside(tmp_path: Path) -> None:
    with hold_folder(tmp_path):
        pass
    with sqlite3.connect(tmp_path / STATE) as connection:
        connection.executemany(
            "INSERT INTO result (output, reason, status) VALUES (?, ?, 'done')",
            ((str(i), "x" * 500) for i in range(99)),
        )
    connection.close()
    data = bytearray((tmp_path / STATE).read_bytes())
    for page in range(4, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    (tmp_path / STATE).write_bytes(data)
    with hold_folder(tmp_path):
        assert (tmp_path / ".img2img.damaged").exists()


def test_a_damaged_state_that_cannot_be_put_aside_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / STATE).write_bytes(b"not a database" * 100)
    (tmp_path / ".img2img.damaged" / "in the way").mkdir(parents=True)
    with pytest.raises(OutputError, match="damaged"), hold_folder(tmp_path):
        pass


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EPERM])
def test_only_where_there_are_no_hard_links_is_a_result_moved(tmp_path: Path, monkeypatch, code: int) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", fail)
    data = (tmp_path / "source.png", tmp_path / "new.png")
    make_photograph().save(data[0])
    if code == errno.EPERM:
        write_output(data[0].read_bytes(), str(data[1]), replace=False)
    else:
        with pytest.raises(OutputError, match=os.strerror(code)):
            write_output(data[0].read_bytes(), str(data[1]), replace=False)
    assert data[1].exists() == (code == errno.EPERM)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [
        ["presets", "list"],
        ["colorize", "in/a.bmp", "--dry-run"],
        ["batch", "none-*.png", "-o", "x", "--preset", "colorize"],
    ],
)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_disk_behind_a_stream_is_no_bug(bmp: Path, arguments: list[str], stream: str) -> None:
    with Path("/dev/full").open("wb") as full:
        other = {"stdout": "stderr", "stderr": "stdout"}[stream]
        done = subprocess.run(
            [sys.executable, "-m", "img2img_cli", *arguments], **{stream: full, other: subprocess.PIPE}, text=True
        )
    assert done.returncode == (4 if arguments[0] == "batch" else 6 if stream == "stdout" else 0)
    assert "Traceback" not in (done.stderr or "")
    assert len((done.stderr or "").splitlines()) <= 1


def test_every_input_has_an_end_when_the_state_cannot_be_kept(here, bmp: Path, monkeypatch) -> None:
    import json

    for name in ("b", "c"):
        make_photograph(1).save(bmp / "in" / f"{name}.png")
    (bmp / "in" / "a.bmp").write_bytes(b"")

    def fail(*_: object) -> None:
        raise OutputError("no room")

    monkeypatch.setattr("img2img_cli.batch.journal.Journal.fail", fail)
    done = run_batch(here)
    assert done.code == 6
    kinds = [json.loads(line)["event"] for line in done.out.splitlines()]
    assert kinds == ["plan", "failed", "skipped", "skipped", "summary"]


def test_a_folder_that_cannot_be_made_is_no_bug(here, bmp: Path) -> None:
    import json

    (bmp / "in" / "sub").mkdir()
    make_photograph(1).save(bmp / "in" / "sub" / "b.png")
    (bmp / "out").mkdir()
    (bmp / "out" / "sub").write_text("in the way")
    done = run_batch(here)
    assert done.code == 3
    assert [e["code"] for e in map(json.loads, done.out.splitlines()) if e["event"] == "failed"] == [6]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["unet", "vae"])
def test_numbers_that_are_none_make_no_picture(here, tmp_path: Path, tiny_sd: Path, picture: Path, place: str) -> None:
    """The last layer of the model yields NaN, which would become a black picture."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(tiny_sd, model)
    (file,) = (model / place).glob("*.safetensors")
    weights = load_file(file)
    weights["conv_out.bias" if place == "unet" else "decoder.conv_out.bias"][:] = torch.nan
    save_file(weights, file, {"format": "pt"})
    picture.rename(tmp_path / "in.png")
    out = tmp_path / "out.png"
    make_photograph(3).save(out)
    before = out.read_bytes()
    done = here(
        "edit",
        tmp_path / "in.png",
        out,
        "--force",
        "--prompt",
        "x",
        "--model",
        model,
        "--set",
        "strength=1",
        *QUICK,
        "--quiet",
    )
    assert done.code == 5
    assert len(done.err.splitlines()) == 1
    assert "not numbers" in done.err
    assert out.read_bytes() == before


def test_a_decoder_that_runs_out_of_memory_does_not_blame_the_picture(here, picture: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("out of memory error when reading image file")

    monkeypatch.setattr(Image.Image, "load", fail)
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    done = here("colorize", picture, *QUICK)
    assert done.code == 8
    assert "too little memory" in done.err


@pytest.mark.slow
def test_a_thread_that_cannot_start_is_told(monkeypatch, capsys) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(app, "build_command", lambda *_: fail)
    assert app._run() == 8
    assert len(capsys.readouterr().err.splitlines()) == 1
