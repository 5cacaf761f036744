"""What a batch finds, and what it refuses before any work."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from img2img_cli.errors import InputError, NothingMatchedError, OutputError, PresetError, UsageError
from img2img_cli.inputs import check_inside, find_items, read_manifest, read_names
from img2img_cli.plan import Choices, plan_batch


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """in/a.jpg, in/sub/b.PNG, in/sub/deep/c.webp, and what is no picture."""
    for name in ("a.jpg", "sub/b.PNG", "sub/deep/c.webp", "notes.txt", ".hidden.png", ".git/d.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*inputs: str, **options: object) -> list[str]:
    return [item.relative for item in find_items(inputs, **options)]


def plan(*inputs: str, **choices: object) -> list[str]:
    settings = {"folder": Path("out"), "preset": "colorize"} | choices
    return [job.output for job in plan_batch(find_items(inputs), Choices(**settings))]


def test_folders_are_searched_and_mirrored(tree: Path) -> None:
    assert found("in") == ["a.jpg", "sub/b.PNG", "sub/deep/c.webp"]
    assert plan("in") == ["out/a.jpg", "out/sub/b.PNG", "out/sub/deep/c.webp"]


def test_globs_files_and_folders_mix_and_count_once(tree: Path) -> None:
    assert found("in/sub/**/*.webp", "in/a.jpg", "in/a.jpg", "./in/a.jpg") == ["deep/c.webp", "a.jpg"]


def test_include_and_exclude_look_at_names_and_paths(tree: Path) -> None:
    assert found("in", include=["*.jpg", "*.webp"]) == ["a.jpg", "sub/deep/c.webp"]
    assert found("in", exclude=["sub/*"]) == ["a.jpg"]
    with pytest.raises(NothingMatchedError, match="--include and --exclude"):
        find_items(["in"], exclude=["*"])


def test_links_are_followed_and_loops_end(tree: Path) -> None:
    (tree / "in" / "loop").symlink_to(tree / "in", target_is_directory=True)
    (tree / "else").mkdir()
    (tree / "else" / "e.png").write_bytes(b"x")
    (tree / "in" / "other").symlink_to(tree / "else", target_is_directory=True)
    assert found("in") == ["a.jpg", "other/e.png", "sub/b.PNG", "sub/deep/c.webp"]


def test_the_output_folder_inside_the_input_is_left_out(tree: Path) -> None:
    (tree / "in" / "out").mkdir()
    (tree / "in" / "out" / "a.jpg").write_bytes(b"x")
    assert "out/a.jpg" not in found("in", skip_folder=tree / "in" / "out")


def test_an_empty_folder_matches_nothing(tree: Path) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(NothingMatchedError, match="empty"):
        find_items(["empty"])


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\0"])
def test_names_come_on_stdin(tree: Path, monkeypatch: pytest.MonkeyPatch, separator: str) -> None:
    data = separator.join(["in/a.jpg", "in/sub", ""]).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert found("-") == ["a.jpg", "b.PNG", "deep/c.webp"]


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_names_separated_by_nul_are_any_names(names: list[str]) -> None:
    assert read_names("\0".join([*names, ""]).encode()) == names


def test_a_manifest_row_is_a_job(tree: Path) -> None:
    manifest = tree / "in" / "jobs.csv"
    manifest.write_text(
        'input,output,preset,prompt,strength,seed\na.jpg,x/one.png,edit,"fog, grey",0.5,7\nsub/b.PNG,,style-oil,,,\n'
    )
    items = read_manifest(manifest)
    assert [Path(item.path) for item in items] == [tree / "in/a.jpg", tree / "in/sub/b.PNG"]
    jobs = plan_batch(items, Choices(folder=Path("out"), preset=None))
    assert jobs[0].output == "out/x/one.png"
    assert (jobs[0].parameters.prompt, jobs[0].parameters.strength, jobs[0].seed) == ("fog, grey", 0.5, 7)
    assert jobs[1].output == "out/sub/b.PNG"
    assert jobs[1].parameters.prompt == "oil painting"


def test_json_lines_are_a_manifest_too(tree: Path) -> None:
    manifest = tree / "jobs.jsonl"
    manifest.write_text(
        '{"input": "in/a.jpg", "saturation": 0.5}\n\n{"input": "in/a.jpg", "output": "b.jpg", "saturation": 1}\n'
    )
    jobs = plan_batch(find_items([str(manifest)]), Choices(folder=Path("out"), preset="colorize"))
    assert [job.parameters.saturation for job in jobs] == [0.5, 1.0]
    assert jobs[0].output == "out/in/a.jpg"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("m.csv", "input,promt\na.jpg,x\n", ["m.csv:2", "promt", "'prompt'"]),
        ("m.csv", "input,seed\na.jpg,1\nb.jpg,x\n", ["m.csv:3", "seed"]),
        ("m.csv", "input,seed\na.jpg,1,2\n", ["m.csv:2", "fields"]),
        ("m.csv", "output\na.jpg\n", ["m.csv:2", "no input"]),
        ("m.csv", "input,output\na.jpg,../../etc/x.png\n", ["m.csv:2", "'..'"]),
        ("m.csv", "input,output\na.jpg,/etc/x.png\n", ["m.csv:2", "/etc/x.png"]),
        ("m.csv", 'input\n"a.jpg\n', ["m.csv:", "CSV"]),
        ("m.csv", "input,strength\na.jpg,7\n", ["m.csv:2", "strength", "7"]),
        ("m.csv", "input,preset\na.jpg,coulorize\n", ["m.csv:2", "'colorize'"]),
        ("m.jsonl", '{"input": "a.jpg"}\n[1]\n', ["m.jsonl:2", "object"]),
        ("m.jsonl", '{"input": "a.jpg"\n', ["m.jsonl:1", "JSON"]),
        ("m.jsonl", '{"input": 3}\n', ["m.jsonl:1", "input"]),
        ("m.jsonl", "[" * 100_000 + "\n", ["m.jsonl:1", "JSON"]),
        ("m.jsonl", '{"input": "a.jpg", "seed": true}\n', ["m.jsonl:1", "seed"]),
    ],
)
def test_a_bad_row_is_named_by_its_line(tree: Path, name: str, text: str, words: list[str]) -> None:
    (tree / name).write_text(text)
    with pytest.raises((UsageError, PresetError)) as caught:
        plan_batch(find_items([name]), Choices(folder=Path("out"), preset="colorize"))
    for word in words:
        assert word in str(caught.value)


def test_an_unreadable_manifest_is_named(tree: Path) -> None:
    (tree / "m.csv").write_bytes(b"input\n\xff\xfe.jpg\n")
    with pytest.raises(UsageError, match=r"m\.csv.*UTF-8"):
        find_items(["m.csv"])
    with pytest.raises(InputError, match=r"gone\.csv"):
        find_items(["gone.csv"])


@pytest.mark.parametrize("output", ["/abs.png", "../up.png", "a/../../b.png", "", "a\0b.png", "a\\..\\b.png"])
def test_paths_may_not_leave_the_output_folder(output: str) -> None:
    with pytest.raises(UsageError):
        check_inside(output, "m.csv:2")


@pytest.mark.parametrize(
    ("names", "choices"),
    [
        (["a.jpg", "a.png"], {"format": "png"}),
        (["A.png", "a.png"], {}),
        (["\u00e9.png", "e\u0301.png"], {}),
        (["a.png", "b.png"], {"name": "same.png"}),
        (["STRASSE.png", "stra\u00dfe.png"], {}),
    ],
)
def test_results_with_one_name_are_refused_with_the_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], choices: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in names:
        Path("in", name).write_bytes(b"x")
    with pytest.raises(OutputError) as caught:
        plan("in", **choices)
    assert all(name in str(caught.value) for name in names)
    assert "--name" in str(caught.value)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_result_in_an_inputs_place_is_refused(tree: Path, link) -> None:
    (tree / "out").mkdir()
    link(tree / "in" / "a.jpg", tree / "out" / "a.jpg")
    with pytest.raises(OutputError, match=r"in/a\.jpg"):
        plan("in/a.jpg")
    with pytest.raises(OutputError, match="input"):
        plan("in", folder=Path("in"))


def test_a_link_out_of_the_output_folder_is_refused(tree: Path) -> None:
    (tree / "else").mkdir()
    (tree / "out").mkdir()
    (tree / "out" / "sub").symlink_to(tree / "else")
    with pytest.raises(OutputError, match="leads out"):
        plan("in")


def test_an_output_folder_that_is_a_file_is_refused(tree: Path) -> None:
    (tree / "out").write_text("here")
    with pytest.raises(OutputError, match="not a folder"):
        plan("in")


def test_names_of_results_are_made_from_fields(tree: Path) -> None:
    assert plan("in/a.jpg", name="{stem}-{preset}-{index}{ext}", seed=3) == ["out/a-colorize-1.jpg"]
    assert plan("in/a.jpg", name="{name}.{seed}.png", seed=3) == ["out/a.jpg.3.png"]
    assert plan("in", format="jpeg") == ["out/a.jpg", "out/sub/b.jpg", "out/sub/deep/c.jpg"]


@pytest.mark.parametrize(
    "name", ["{stem", "{stem.__class__}{ext}", "{colour}{ext}", "{}{ext}", "{0}", "../{stem}{ext}"]
)
def test_bad_names_are_refused(tree: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"--name|'\.\.'"):
        plan("in/a.jpg", name=name)


def test_seeds_follow_names_unless_one_is_given(tree: Path) -> None:
    def seeds(*inputs: str, **choices: object) -> list[int]:
        return [
            job.seed
            for job in plan_batch(find_items(inputs), Choices(folder=Path("out"), preset="colorize", **choices))
        ]

    assert seeds("in") == seeds("in")
    assert len(set(seeds("in"))) == 3
    assert seeds("in", "in/a.jpg")[0] == seeds("in/a.jpg")[0]
    assert seeds("in", seed=5) == [5, 5, 5]


def test_a_batch_needs_a_preset_and_an_edit_a_prompt(tree: Path) -> None:
    with pytest.raises(UsageError, match="--preset"):
        plan("in", preset=None)
    with pytest.raises(UsageError, match="prompt"):
        plan("in", preset="edit")


def test_a_full_disk_is_told_beforehand(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 5 << 20})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="5 MiB"):
        plan("in")
