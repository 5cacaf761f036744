"""Which inputs a batch finds, and what it refuses before any work."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from img2img_cli.errors import (
    Img2ImgError,
    InputError,
    NothingMatchedError,
    OutputError,
    PresetError,
    UsageError,
)
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.claims import check_outputs
from img2img_cli.tasks.inputs import check_inside, find_items, read_manifest, read_names
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.plan import BatchChoices, Refused, plan_batch


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create in/a.jpg, in/sub/b.PNG, in/sub/deep/c.webp, and files that are not pictures."""
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
    return [job.output for job in plan_batch(find_items(inputs), BatchChoices(**settings))]


def test_folders_are_searched_and_mirrored(tree: Path) -> None:
    assert found("in") == ["a.jpg", "sub/b.PNG", "sub/deep/c.webp"]
    assert plan("in") == ["out/a.jpg", "out/sub/b.PNG", "out/sub/deep/c.webp"]


def test_globs_files_and_folders_mix_and_count_once(tree: Path) -> None:
    assert found("in/sub/**/*.webp", "in/a.jpg", "in/a.jpg", "./in/a.jpg") == ["deep/c.webp", "a.jpg"]


def test_formats_that_lie_beside_exported_pictures_are_picked_up_by_their_own_globs_alone(tree: Path) -> None:
    (tree / "in" / "a.psd").write_bytes(b"x")
    (tree / "in" / "b.TGA").write_bytes(b"x")
    assert found("in") == found("in/**/*") == ["a.jpg", "sub/b.PNG", "sub/deep/c.webp"]
    assert found("in/*.psd", "in/*.TGA") == ["a.psd", "b.TGA"]


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
    jobs = plan_batch(items, BatchChoices(folder=Path("out"), preset=None))
    assert jobs[0].output == "out/x/one.png"
    assert (jobs[0].parameters.prompt, jobs[0].parameters.strength, jobs[0].seed) == ("fog, grey", 0.5, 7)
    assert jobs[1].output == "out/sub/b.PNG"
    assert jobs[1].parameters.look == "oil"


def test_json_lines_are_a_manifest_too(tree: Path) -> None:
    manifest = tree / "jobs.jsonl"
    manifest.write_text(
        '{"input": "in/a.jpg", "saturation": 0.5}\n\n{"input": "in/a.jpg", "output": "b.jpg", "saturation": 1}\n'
    )
    jobs = plan_batch(find_items([str(manifest)]), BatchChoices(folder=Path("out"), preset="colorize"))
    assert [job.parameters.saturation for job in jobs] == [0.5, 1.0]
    assert jobs[0].output == "out/in/a.jpg"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("m.csv", "input,promt\na.jpg,x\n", ["m.csv:2", "promt", "'prompt'"]),
        ("m.csv", "input,seed\na.jpg,1,2\n", ["m.csv:2", "fields"]),
        ("m.csv", "output\na.jpg\n", ["m.csv:2", "no input"]),
        ("m.csv", 'input\n"a.jpg\n', ["m.csv:", "CSV"]),
        ("m.jsonl", '{"input": "a.jpg"}\n[1]\n', ["m.jsonl:2", "object"]),
        ("m.jsonl", '{"input": "a.jpg"\n', ["m.jsonl:1", "JSON"]),
        ("m.jsonl", "[" * 100_000 + "\n", ["m.jsonl:1", "JSON"]),
        ("m.jsonl", '{"input": "a.jpg", "seed": ' + "9" * 5000 + "}\n", ["m.jsonl:1", "number"]),
        ("m.jsonl", '{"input": "a.jpg", "promt": "x"}\n', ["m.jsonl:1", "promt", "'prompt'"]),
    ],
)
def test_a_manifest_that_is_none_is_refused_with_its_line(tree: Path, name: str, text: str, words: list[str]) -> None:
    (tree / name).write_text(text)
    with pytest.raises((UsageError, PresetError)) as caught:
        plan_batch(find_items([name]), BatchChoices(folder=Path("out"), preset="colorize"))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("m.csv", "input,seed\ngood.jpg,1\nb.jpg,x\n", ["m.csv:3", "seed"]),
        ("m.csv", "input,output\ngood.jpg,a.jpg\nb.jpg,../../etc/x.png\n", ["m.csv:3", "'..'"]),
        ("m.csv", "input,output\ngood.jpg,a.jpg\nb.jpg,/etc/x.png\n", ["m.csv:3", "/etc/x.png"]),
        ("m.csv", "input,output\ngood.jpg,a.jpg\nb.jpg,x.doc\n", ["m.csv:3", "'.doc'"]),
        ("m.csv", "input,output\ngood.jpg,a.jpg\nb.jpg,.img2img.jpg\n", ["m.csv:3", "own"]),
        ("m.csv", "input,output\ngood.jpg,a.jpg\nb.jpg," + "x" * 300 + ".jpg\n", ["too long", "255"]),
        ("m.csv", "input,strength\ngood.jpg,1\nb.jpg,7\n", ["m.csv:3", "strength", "7"]),
        ("m.csv", "input,preset\ngood.jpg,\nb.jpg,coulorize\n", ["m.csv:3", "'colorize'"]),
        ("m.csv", "input,preset\ngood.jpg,\nb.jpg,gone/mine.yaml\n", ["m.csv:3", "mine.yaml"]),
        ("m.csv", "input,model\ngood.jpg,bundled\nb.jpg,gone.safetensors\n", ["m.csv:3", "gone.safetensors"]),
        ("m.csv", "input,prompt\ngood.jpg,\n,x\n", ["m.csv:3", "no input"]),
        ("m.jsonl", '{"input": "good.jpg"}\n{"input": 3}\n', ["m.jsonl:2", "input"]),
        ("m.jsonl", '{"input": "good.jpg"}\n{"input": "b.jpg", "seed": true}\n', ["m.jsonl:2", "seed"]),
        ("m.jsonl", '{"input": "good.jpg"}\n{"input": "b.jpg", "lora": [[1]]}\n', ["m.jsonl:2", "nested"]),
        ("m.jsonl", '{"input": "good.jpg"}\n{"input": "b", "prompt": "\\ud800"}\n', ["m.jsonl:2", "prompt"]),
        ("m.jsonl", '{"input": "good.jpg"}\n{"input": "b", "preset": "edit"}\n', ["m.jsonl:2", "no prompt"]),
        ("m.jsonl", '{"input": "good.jpg"}\n{"input": "b.jpg", "style": "x.png"}\n', ["m.jsonl:2", "--style"]),
    ],
)
def test_a_bad_row_fails_alone_and_is_named_by_its_line(tree: Path, name: str, text: str, words: list[str]) -> None:
    (tree / name).write_text(text)
    good, bad = plan_batch(find_items([name]), BatchChoices(folder=Path("out"), preset="colorize"))
    assert isinstance(good, Job)
    assert isinstance(bad, Refused)
    for word in words:
        assert word in str(bad.error)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"overrides": {"strenght": 1}}, "'strength'"),
        ({"overrides": {"strength": 7}}, "strength"),
        ({"overrides": {"model": "gone.safetensors"}}, "gone.safetensors"),
        ({"more_lora": ["gone.ckpt"]}, "gone.ckpt"),
        ({"preset": "coulorize"}, "'colorize'"),
        ({"preset": None}, "--preset"),
        ({"style": "gone.png"}, "gone.png"),
        ({"name": "{stem}"}, "--name"),
    ],
)
def test_options_that_are_wrong_are_told_once_and_not_of_every_row(tree: Path, choices, words: str) -> None:
    (tree / "m.csv").write_text("input,saturation\na.jpg,0.5\nb.jpg,1\n")
    with pytest.raises(Img2ImgError, match=words) as caught:
        plan_batch(find_items(["m.csv"]), BatchChoices(**({"folder": Path("out"), "preset": "colorize"} | choices)))
    assert "m.csv" not in str(caught.value)


def test_nulls_and_odd_line_ends_in_json_are_no_errors(tree: Path) -> None:
    (tree / "m.jsonl").write_bytes(
        '{"input": "a\u2028b\x85.jpg", "mask": null, "seed": null}\r\n{"input": "c.jpg"}'.encode()
    )
    assert [item.relative for item in find_items(["m.jsonl"])] == ["a\u2028b\x85.jpg", "c.jpg"]


@pytest.mark.parametrize(
    "name",
    ["a\\b.png", "C:\\x\\y.png", "a\nb.png", "a\udcff.png", "\u202eb.png", "-o.png", "a\u2028.png", "~.png", "[x].png"],
)
def test_any_name_that_a_file_can_have_is_an_ordinary_name(tree: Path, name: str) -> None:
    (tree / "odd").mkdir()
    (tree / "odd" / name).write_bytes(b"x")
    assert plan("odd") == [f"out/{name}"]


def test_a_name_that_would_lead_out_elsewhere_fails_alone(tree: Path) -> None:
    (tree / "in" / "x\\..\\..\\y.png").write_bytes(b"x")
    planned = plan_batch(find_items(["in"]), BatchChoices(folder=Path("out"), preset="colorize"))
    assert [type(job) for job in planned] == [Job, Refused, Job, Job]
    assert "'..'" in str(planned[1].error)


@pytest.mark.parametrize("name", ["gone/", "gone/..", "..//gone.png", "gone.png"])
def test_a_name_of_nothing_fails_alone(tree: Path, name: str, here) -> None:
    (job,) = plan_batch(find_items([name]), BatchChoices(folder=Path("out"), preset="colorize"))
    assert job.input == name


def test_a_result_of_a_glob_that_climbs_stays_below_the_output_folder(tree: Path, monkeypatch) -> None:
    monkeypatch.chdir(tree / "in" / "sub")
    assert plan("*/../../*.jpg") == ["out/a.jpg"]


@pytest.mark.parametrize("choices", [{"name": "{stem}-" + "x" * 20 + "{ext}"}, {"name": "{name}.png"}])
def test_a_result_whose_name_gets_too_long_fails_alone_and_before_any_work(tree: Path, choices) -> None:
    long = "y" * 248 + ".jpg"
    (tree / "in" / long).write_bytes(b"x")
    planned = plan_batch(find_items(["in"]), BatchChoices(folder=Path("out"), preset="colorize", **choices))
    (refused,) = [job for job in planned if isinstance(job, Refused)]
    assert long in refused.input
    assert "255" in str(refused.error)


def test_a_folder_that_cannot_be_read_fails_alone(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    planned = plan_batch(find_items(["in"]), BatchChoices(folder=Path("out"), preset="colorize"))
    assert [job.output for job in planned] == ["out/a.jpg", "out/sub/b.PNG", None]
    assert planned[-1].input == "in/sub/deep"
    assert "Permission denied" in str(planned[-1].error)


def test_an_unreadable_manifest_is_named(tree: Path) -> None:
    (tree / "m.csv").write_bytes(b"input\n\xff\xfe.jpg\n")
    with pytest.raises(UsageError, match=r"m\.csv.*UTF-8"):
        find_items(["m.csv"])
    with pytest.raises(InputError, match=r"gone\.csv"):
        find_items(["gone.csv"])


@pytest.mark.parametrize(
    "output", ["/abs.png", "../up.png", "a/../../b.png", "", "a\0b.png", "a\\..\\b.png", "..\\b.png", "a/..\\b.png"]
)
def test_paths_may_not_leave_the_output_folder(output: str) -> None:
    with pytest.raises(UsageError):
        check_inside(output, "m.csv:2")


@pytest.mark.parametrize(
    ("names", "choices"),
    [
        (["a.jpg", "a.png"], {"format": "png"}),
        (["a.png", "b.png"], {"name": "same.png"}),
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


ALIKE = [
    ("A.png", "a.png"),
    ("\u00e9.png", "e\u0301.png"),
    ("STRASSE.png", "stra\u00dfe.png"),
    ("Sub/a.png", "sub/a.png"),
]


@pytest.mark.parametrize("pair", ALIKE)
@pytest.mark.parametrize("told_apart", [True, False])
def test_names_that_differ_in_case_or_form_collide_where_they_are_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[str, str], told_apart: bool
) -> None:
    """Test the real file system, and simulate one that folds names by a look-up that folds them."""
    if not told_apart:
        fold = {Path(name).name for name in pair} | {name.split("/")[0] for name in pair}
        lexists = os.path.lexists
        monkeypatch.setattr(os.path, "lexists", lambda p: Path(p).name in fold or lexists(p))
    jobs = [make_job(tmp_path, name) for name in pair]
    if told_apart and not is_case_sensitive(tmp_path):
        pytest.skip("this file system folds names")
    if told_apart:
        check_outputs(jobs, tmp_path / "out")
    else:
        with pytest.raises(OutputError) as caught:
            check_outputs(jobs, tmp_path / "out")
        assert all(name in str(caught.value) for name in pair)
    assert not list(tmp_path.iterdir()), "the probe leaves nothing"


def make_job(root: Path, name: str) -> Job:
    return Job(input=name, output=str(root / "out" / name), preset="x", parameters=Parameters(), seed=0)


def is_case_sensitive(folder: Path) -> bool:
    (folder / "Probe").touch()
    try:
        return not (folder / "pROBE").exists()
    finally:
        (folder / "Probe").unlink()


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
            for job in plan_batch(find_items(inputs), BatchChoices(folder=Path("out"), preset="colorize", **choices))
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


@pytest.mark.parametrize(
    ("free", "choices", "refused"),
    [
        (5 << 20, {}, False),  # a few kilobytes
        (0, {}, False),  # what is written then fails by itself
        (5 << 20, {"preset": "upscale"}, True),
        (1 << 20, {"format": "png"}, True),
        (1 << 20, {"format": "jpeg"}, False),
        (100 << 10, {"format": "jpeg"}, True),
    ],
)
def test_a_disk_is_too_full_only_for_what_is_to_be_written(
    tree: Path, monkeypatch: pytest.MonkeyPatch, free: int, choices: dict[str, str], refused: bool
) -> None:
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    if choices:
        (tree / "in" / "large.tif").touch()
        os.truncate(tree / "in" / "large.tif", 12 << 20)
    if not refused:
        assert plan("in", **choices)
        return
    with pytest.raises(OutputError, match=r"free on its disk.*make room"):
        plan("in", **choices)
    (tree / "out").mkdir()
    for job in tree.joinpath("in").rglob("*"):
        target = tree / "out" / job.relative_to(tree / "in")
        target.mkdir(exist_ok=True) if job.is_dir() else target.with_suffix(".png").write_bytes(b"x")
    plain = {**choices, "format": "keep"}
    assert plan("in", **plain, name="{stem}.png"), "what lies there already takes no more room"
