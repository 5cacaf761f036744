"""Several inputs, names of results, and what need not be made again, as a user of cp, make and ffmpeg expects it."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import pytest
from PIL import Image

from img2img_cli.cli.paths import Paths, split_paths
from img2img_cli.errors import UsageError
from img2img_cli.pictures.write import keep_owner

INK = ["--preset", "style-ink"]  # needs no model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with three pictures."""
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(("a.jpg", "b.jpg", "c.png")):
        Image.effect_noise((40 + index, 30), 60).convert("RGB").save(tmp_path / name)
    return tmp_path


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir() if not each.name.startswith("."))


def test_one_input_may_have_an_output_and_streams_have_names(folder: Path) -> None:
    assert split_paths("edit", ["a.jpg"], None) == Paths(("a.jpg",), None, many=False)
    assert split_paths("edit", ["a.jpg", "out.png"], None) == Paths(("a.jpg",), "out.png", many=False)
    assert split_paths("edit", ["a.jpg"], "out.png") == Paths(("a.jpg",), "out.png", many=False)
    assert split_paths("edit", ["/dev/stdin", "/dev/stdout"], None) == Paths(("-",), "-", many=False)
    assert split_paths("edit", ["missing-[1].jpg"], None) == Paths(("missing-[1].jpg",), None, many=False)
    (folder / "really[1].jpg").write_bytes(b"")
    assert not split_paths("edit", ["really[1].jpg"], None).many


@pytest.mark.parametrize(
    ("paths", "output"),
    [
        (["a.jpg", "b.jpg"], "out"),
        (["a.jpg", "b.jpg", "out/"], None),
        (["."], "out"),
        (["*.jpg"], "out"),
        ([".", "out/"], None),
    ],
)
def test_several_inputs_go_into_a_folder(folder: Path, paths: list[str], output: str | None) -> None:
    found = split_paths("edit", paths, output)
    assert found.many
    assert str(found.output).rstrip("/") == "out"
    assert "out/" not in found.inputs


@pytest.mark.parametrize(
    ("paths", "output", "said"),
    [
        (["a.jpg", "b.jpg", "c.png"], None, "img2img edit a.jpg b.jpg c.png -o FOLDER"),
        (["."], None, "img2img edit . -o FOLDER"),
        (["*.jpg"], None, "img2img edit '*.jpg' -o FOLDER"),
        (["a.jpg", "b.jpg"], "all.png", "cannot go into 'all.png'"),
        (["a.jpg", "b.jpg"], "-", "cannot go into '-'"),
        (["a.jpg", "-"], "out", "img2img batch - -o FOLDER --preset edit"),
        (["a.jpg", "jobs.csv"], "out", "img2img batch jobs.csv"),
    ],
)
def test_what_cannot_be_several_is_refused(folder: Path, paths: list[str], output: str | None, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        split_paths("edit", paths, output)
    assert said in str(raised.value)


def test_a_command_makes_several_results_with_one_model_and_goes_on(here, folder: Path) -> None:
    done = here("edit", "a.jpg", "b.jpg", "-o", "out", *INK)
    assert done.code == 0, done.err
    assert names(folder / "out") == ["a-style-ink.jpg", "b-style-ink.jpg"]
    assert "2 done" in done.err
    done = here("edit", "*.*", "-o", "out", *INK)
    assert done.code == 0, done.err
    assert "1 done, 2 up to date" in done.err
    (folder / "broken.png").write_bytes(b"no picture")
    done = here("edit", ".", "new", *INK)
    assert done.code == 2 and "-o FOLDER" in done.err  # the folder is not there, so it may be a slip of the pen
    done = here("edit", "a.jpg", "broken.png", "-o", "new", *INK, "--suffix", "{x}")
    assert done.code == 3, done.err
    assert "broken.png" in done.err
    assert names(folder / "new") == ["a{x}.jpg"]


@pytest.mark.parametrize("option", [["--mask", "a.jpg"], ["--variations", 2], ["--in-place"], ["--skip-existing"]])
def test_what_belongs_to_one_picture_is_refused_for_several(here, folder: Path, option: list[object]) -> None:
    done = here("edit", "a.jpg", "b.jpg", "-o", "out", *INK, *option)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert f"{option[0]} is for one picture" in done.err
    assert not (folder / "out").exists()


def test_the_second_of_two_pictures_is_not_taken_for_an_output_in_silence(here, folder: Path) -> None:
    before = (folder / "b.jpg").read_bytes()
    done = here("edit", "a.jpg", "b.jpg", *INK)
    assert done.code == 6 and "-o FOLDER" in done.err
    assert (folder / "b.jpg").read_bytes() == before


def test_results_are_named_after_the_preset_that_was_named(here, folder: Path) -> None:
    (folder / "mine.yaml").write_text("extends: style-sepia\n")
    for options, name in ((INK, "a-style-ink.jpg"), (["--preset", "mine.yaml"], "a-mine.jpg")):
        assert here("edit", "a.jpg", *options).code == 0
        assert (folder / name).exists()
    assert here("edit", "a.jpg", *INK, "--suffix", ".final", "--format", "jpg").code == 0
    assert (folder / "a.final.jpg").exists()
    assert here("edit", "a.jpg", *INK, "--suffix", "", "-o", ".", "--format", "tif").code == 0
    assert (folder / "a.tif").exists()
    done = here("edit", "a.jpg", *INK, "--suffix", "/../../x")
    assert done.code == 2 and "--suffix" in done.err


def test_bytes_of_one_format_never_get_the_name_of_another(here, folder: Path) -> None:
    before = (folder / "a.jpg").read_bytes()
    for words in (["a.jpg", "o.jpg", "--format", "png"], ["a.jpg", "--in-place", "--format", "png"]):
        done = here("edit", *words, *INK)
        assert (done.code, done.err.count("\n")) == (6, 1), done.err
        assert "'.jpg' does not go with --format png" in done.err
    assert (folder / "a.jpg").read_bytes() == before and not (folder / "o.jpg").exists()
    assert here("edit", "a.jpg", "o.dat", "--format", "png", *INK).code == 0
    assert Image.open(folder / "o.dat").format == "PNG"
    done = here("batch", "a.jpg", "-o", "out", "--name", "x.jpg", "--format", "png", *INK)
    assert done.code == 2 and "does not go with --format png" in done.err


def test_the_streams_of_the_system_are_streams(fresh, folder: Path) -> None:
    done = fresh("edit", "/dev/stdin", "/dev/stdout", *INK, stdin=(folder / "a.jpg").read_bytes())
    assert done.code == 0, done.err
    assert Image.open(io.BytesIO(done.out)).size == (40, 30)


def test_what_exists_can_be_left_as_it_is(here, folder: Path) -> None:
    command = ["edit", "a.jpg", "o.png", *INK, "--skip-existing"]
    assert here(*command).code == 0
    before = (folder / "o.png").read_bytes()
    done = here(*command, "--strength", 0.5)
    assert done.code == 0 and "exists; left as it is" in done.err
    assert here(*command, "--quiet").err == ""
    assert (folder / "o.png").read_bytes() == before
    done = here("edit", "a.jpg", "o.png", *INK, "--variations", 2, "--skip-existing")
    assert done.code == 0 and names(folder)[-2:] == ["o-2.png", "o.png"]


def test_a_rule_of_make_needs_no_tricks(here, folder: Path) -> None:
    def run(*more: object) -> bytes:
        done = here("edit", "a.jpg", "o.png", *INK, "--update", *more)
        assert done.code == 0, done.err
        return (folder / "o.png").read_bytes()

    first = run("--seed", 1)
    stamp = (folder / "o.png").stat().st_mtime_ns
    assert run("--seed", 1) == first and run() == first
    assert (folder / "o.png").stat().st_mtime_ns == stamp, "it was not made again"
    other = run("--strength", 0.5)
    assert other != first and run("--strength", 0.5) == other
    Image.effect_noise((50, 30), 60).save(folder / "a.jpg")
    os.utime(folder / "a.jpg", ns=(stamp + 10**12, stamp + 10**12))
    run("--strength", 0.5)
    assert Image.open(folder / "o.png").size == (50, 30)
    Image.new("RGB", (9, 9)).save(folder / "stranger.png")
    os.utime(folder / "a.jpg", ns=(0, 0))
    assert here("edit", "a.jpg", "stranger.png", *INK, "--update").code == 0
    assert Image.open(folder / "stranger.png").size == (50, 30)  # it says of itself that it is not this result


def test_a_file_that_is_replaced_keeps_its_mode(here, folder: Path) -> None:
    (folder / "a.jpg").chmod(0o640)
    assert here("edit", "a.jpg", "--in-place", *INK).code == 0
    assert stat.S_IMODE((folder / "a.jpg").stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_file_that_is_replaced_keeps_its_owner(folder: Path) -> None:
    os.chown(folder / "a.jpg", 1234, 4321)
    keep_owner((folder / "a.jpg").stat(), folder / "b.jpg")
    found = (folder / "b.jpg").stat()
    assert (found.st_uid, found.st_gid) == (1234, 4321)


def test_results_of_earlier_runs_are_no_inputs(here, folder: Path) -> None:
    assert here("edit", "a.jpg", *INK).code == 0  # a-style-ink.jpg beside it
    Image.open(folder / "b.jpg").save(folder / "a-stranger.jpg")  # has the name, but no record
    assert here("batch", "b.jpg", "-o", "old", *INK).code == 0
    done = here("batch", ".", "-o", "new", *INK)
    assert done.code == 0, done.err
    assert names(folder / "new") == ["a-stranger.jpg", "a.jpg", "b.jpg", "c.png"]
    (told,) = [line for line in done.err.splitlines() if "left aside" in line]
    assert "1 of img2img's own results" in told and "old, the output folder of a batch" in told
    assert "--include-results" in told
    done = here("batch", ".", "-o", "all", *INK, "--include-results")
    assert done.code == 0 and "left aside" not in done.err
    assert "a-style-ink.jpg" in names(folder / "all") and (folder / "all" / "old" / "b.jpg").exists()
    done = here("batch", "old", "-o", "again", *INK)  # the second step of two
    assert done.code == 0 and names(folder / "again") == ["b.jpg"]
    (folder / "a.jpg").unlink()
    done = here("batch", ".", "-o", "orphans", *INK)
    assert "a-style-ink.jpg" in names(folder / "orphans"), "its input is gone"


def test_what_is_not_read_is_counted_once(here, folder: Path) -> None:
    (folder / "sub").mkdir()
    for name in ("x.HEIC", "sub/y.heic", "sub/film.mp4", "z.tga", "notes.txt", ".hidden.heic"):
        (folder / name).write_bytes(b"")
    done = here("batch", ".", "-o", "out", *INK)
    assert done.code == 0, done.err
    (told,) = [line for line in done.err.splitlines() if "left aside" in line]
    assert told.endswith("2 .heic, 1 .mp4, 1 .tga")
    done = here("batch", "sub", "-o", "out2", *INK)
    assert done.code == 4 and "1 .heic, 1 .mp4" in done.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["edit", "a.jpg", "--set", "steps=4"], 2, "did you mean 'num_inference_steps'?"),
        (["edit", "a.jpg", "--set", "cfg-scale=4"], 2, "did you mean 'guidance_scale'?"),
        (["edit", "a.jpg", "-p", "fog", "--size", "128"], 2, 'WIDTHxHEIGHT such as 128x128, not "128"'),
        (["edit", "https://example.org/a.jpg", "-p", "fog"], 3, "curl -L https://example.org/a.jpg | img2img ... -"),
        (["batch", "a.jpg", "out/", *INK], 2, "img2img batch a.jpg -o out/"),
        (["batch", "a.jpg", *INK], 2, "img2img batch a.jpg -o FOLDER"),
        (["edit", "a.jpg", "--quality", "200"], 2, "try 'img2img edit --help'"),
        (["--frobnicate"], 2, "try 'img2img --help'"),
        (["edit", "drawing.svg", *INK], 3, "SVG; draw it first, as `rsvg-convert"),
        (["edit", "pointer.jpg", *INK], 3, "git lfs pull"),
    ],
)
def test_messages_say_what_to_type_next(here, folder: Path, words: list[str], code: int, said: str) -> None:
    (folder / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "pointer.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    done = here(*words)
    assert (done.code, done.err.count("\n")) == (code, 1), done.err
    assert said in done.err
