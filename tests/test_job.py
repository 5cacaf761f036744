"""Names of results, and what is refused before any work."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from img2img_cli.errors import Img2ImgError, InputError, OutputError, UsageError
from img2img_cli.pictures.files.formats import EXTENSIONS
from img2img_cli.presets.schema import Parameters
from img2img_cli.system.streams import STDIO
from img2img_cli.tasks.claims import check_outputs
from img2img_cli.tasks.job import MAX_SEED, Job, check_input, choose_seed
from img2img_cli.tasks.plan import plan_variations
from img2img_cli.tasks.result_names import choose_suffix
from img2img_cli.text import printable


def make_job(input_, task="edit", **changes):
    values = {"input": str(input_), "output": "", "preset": task, "parameters": Parameters(task=task), "seed": 7}
    return Job(**values | changes)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (16, 16), "teal").save(path)
    return path


def planned(job, output=None, **options):
    return [Path(made.output) for made in plan_variations(job, output if output is None else str(output), **options)]


@pytest.mark.parametrize(("task", "suffix"), [("edit", "-edit"), ("colorize", "-colorize"), ("upscale", "-x2")])
def test_the_result_lies_beside_the_input_under_a_telling_name(photo, task, suffix):
    assert planned(make_job(photo, task)) == [photo.with_name(f"photo{suffix}.jpg")]


@pytest.mark.parametrize(("scale", "suffix"), [(2.0, "-x2"), (1.5, "-x1.5"), (8.0, "-x8")])
def test_the_factor_is_in_the_suffix(scale, suffix):
    assert choose_suffix(Parameters(task="upscale", scale=scale)) == suffix


@pytest.mark.parametrize(
    ("name", "format_", "result"),
    [
        ("a.jpg", "png", "a-edit.png"),
        ("a.JPG", "keep", "a-edit.JPG"),
        ("a.png", "jpeg", "a-edit.jpg"),
        ("a.png", "tiff", "a-edit.tif"),
        ("a.gif", "keep", "a-edit.png"),
        ("a", "keep", "a-edit.png"),
        ("a.b.webp", "keep", "a.b-edit.webp"),
        ("фото 1.png", "keep", "фото 1-edit.png"),
    ],
)
def test_extension_of_the_result(tmp_path, photo, name, format_, result):
    source = tmp_path / name
    source.write_bytes(photo.read_bytes())
    assert planned(make_job(source, format=format_)) == [tmp_path / result]


def test_an_output_that_is_named_gets_that_name(photo, tmp_path):
    assert planned(make_job(photo), tmp_path / "new.webp") == [tmp_path / "new.webp"]


@pytest.mark.parametrize("end", ["", "/"])
def test_an_output_folder_gets_a_telling_name(photo, tmp_path, end):
    (tmp_path / "out").mkdir()
    assert planned(make_job(photo), f"{tmp_path / 'out'}{end}") == [tmp_path / "out" / "photo-edit.jpg"]


def test_variations_are_numbered_and_seeded_in_a_row(photo, tmp_path):
    jobs = plan_variations(make_job(photo, seed=41), str(tmp_path / "new.png"), variations=3)
    assert [Path(job.output).name for job in jobs] == ["new-1.png", "new-2.png", "new-3.png"]
    assert [job.seed for job in jobs] == [41, 42, 43]


def test_seeds_wrap_around(photo):
    seeds = [job.seed for job in plan_variations(make_job(photo, seed=MAX_SEED), None, variations=2)]
    assert seeds == [MAX_SEED, 0]


def test_chosen_seeds_differ_and_stay_in_range():
    seeds = {choose_seed() for _ in range(50)}
    assert len(seeds) > 45
    assert all(0 <= seed <= MAX_SEED for seed in seeds)


def test_jobs_survive_json(photo):
    (job,) = plan_variations(make_job(photo), None)
    assert Job.model_validate_json(job.model_dump_json()) == job


def test_an_existing_output_is_refused_without_force(photo, tmp_path):
    target = tmp_path / "there.png"
    target.write_bytes(b"old")
    with pytest.raises(OutputError, match="--force"):
        planned(make_job(photo), target)
    assert planned(make_job(photo, force=True), target) == [target]
    assert target.read_bytes() == b"old"


def test_one_existing_variation_refuses_all(photo, tmp_path):
    (tmp_path / "new-2.png").write_bytes(b"old")
    with pytest.raises(OutputError, match=r"new-2\.png"):
        planned(make_job(photo), tmp_path / "new.png", variations=3)


def test_a_dangling_link_is_refused_without_force(photo, tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(OutputError, match="exists"):
        planned(make_job(photo), tmp_path / "link.png")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["itself", "hard link", "symbolic link"])
def test_the_input_itself_is_refused_even_with_force(photo, tmp_path, kind, force):
    target = tmp_path / "other.jpg"
    if kind == "itself":
        target = photo
    elif kind == "hard link":
        os.link(photo, target)
    else:
        target.symlink_to(photo)
    with pytest.raises(OutputError, match="the input itself"):
        planned(make_job(photo, force=force), target)


def test_in_place_is_the_inputs_own_place(photo):
    assert planned(make_job(photo, in_place=True)) == [photo]


def test_in_place_goes_with_no_other_output(photo, tmp_path):
    with pytest.raises(UsageError):
        planned(make_job(photo, in_place=True), tmp_path / "b.jpg")
    with pytest.raises(UsageError):
        planned(make_job(photo, in_place=True), variations=2)
    with pytest.raises(UsageError):
        planned(make_job(STDIO, in_place=True))


def test_the_mask_is_not_overwritten(photo, tmp_path):
    mask = tmp_path / "mask.png"
    Image.new("L", (16, 16), 255).save(mask)
    with pytest.raises(OutputError):
        planned(make_job(photo, mask=str(mask), force=True), mask)


def test_a_missing_folder_is_refused(photo, tmp_path):
    for output in (tmp_path / "none" / "a.png", f"{tmp_path}/none/"):
        with pytest.raises(OutputError, match="does not exist"):
            planned(make_job(photo), output)


def test_an_unknown_extension_is_refused_unless_a_format_is_given(photo, tmp_path):
    with pytest.raises(OutputError, match=r"\.psd"):
        planned(make_job(photo), tmp_path / "a.psd")
    assert planned(make_job(photo, format="png"), tmp_path / "a.psd") == [tmp_path / "a.psd"]


def test_in_place_needs_a_format_that_can_be_written(tmp_path):
    film = tmp_path / "film.gif"
    Image.new("RGB", (16, 16)).save(film)
    with pytest.raises(Img2ImgError):
        planned(make_job(film, in_place=True))


@pytest.mark.parametrize("name", ["none.png", "", "folder", "empty.png", "x" * 300 + ".png"])
def test_bad_inputs_are_refused_in_one_line(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputError) as error:
        check_input(str(tmp_path / name))
    assert len(str(error.value).splitlines()) == 1
    assert name in str(error.value)


def test_a_name_that_grows_too_long_is_refused(tmp_path, photo):
    source = photo.rename(tmp_path / ("x" * 248 + ".jpg"))
    with pytest.raises(OutputError):
        planned(make_job(source))


def test_a_mask_comes_from_a_file(photo):
    with pytest.raises(UsageError):
        planned(make_job(photo, mask=STDIO))
    with pytest.raises(InputError):
        planned(make_job(photo, mask="no-such-mask.png"))


def test_only_one_result_goes_to_stdout(photo, monkeypatch, tmp_path):
    with (tmp_path / "stdout").open("w") as file:
        monkeypatch.setattr("sys.stdout", file)
        assert [job.output for job in plan_variations(make_job(photo), STDIO)] == [STDIO]
        with pytest.raises(UsageError):
            plan_variations(make_job(photo), STDIO, variations=2)


def test_no_result_lands_on_another_jobs_input(tmp_path, photo):
    other = tmp_path / "photo-edit.jpg"
    other.write_bytes(photo.read_bytes())
    jobs = [job for source in (photo, other) for job in plan_variations(make_job(source, force=True), None)]
    with pytest.raises(OutputError, match=r"photo-edit\.jpg"):
        check_outputs(jobs, tmp_path)
    check_outputs(plan_variations(make_job(photo, in_place=True), None), tmp_path)


@pytest.mark.parametrize("kind", ["mask", "style", "control_image"])
@pytest.mark.parametrize("link", [None, os.link, os.symlink])
def test_no_result_lands_on_a_side_input(tmp_path, photo, kind, link):
    side = tmp_path / "side.jpg"
    side.write_bytes(photo.read_bytes())
    target = side
    if link is not None:
        target = tmp_path / "linked.jpg"
        link(side, target)
    job = make_job(photo, output=str(target), force=True, **{kind: str(side)})
    with pytest.raises(OutputError, match=r"side\.jpg"):
        check_outputs([job], tmp_path)


@given(st.text())
def test_printable_text_has_no_control_characters(text):
    shown = printable(text + "\x1b[2J\r\n\u202e")
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c == "\u202e" for c in shown)


def test_every_extension_belongs_to_a_format_that_pillow_writes():
    Image.init()
    assert all(format_.upper() in Image.SAVE for format_ in EXTENSIONS.values())


@pytest.mark.parametrize("name", ["caf\udce9.safetensors", "\ud800"])
@pytest.mark.parametrize(("key", "code"), [("lora", 5), ("embedding", 5), ("model", 2)])
def test_names_that_are_no_text_are_refused(
    here, tmp_path: Path, picture: Path, name: str, key: str, code: int
) -> None:
    row = {"input": str(picture), "prompt": "fog", "preset": "edit", key: f"./{name}", "seed": 1}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(row))
    done = here("edit", picture, "-p", "fog", f"--{key}", f"./{name}")
    assert (done.code, len(done.err.splitlines())) == (code, 1), done.err
    done = here("batch", tmp_path / "jobs.jsonl", "-o", tmp_path / "out", "--json")
    (failed,) = [event for event in map(json.loads, done.out.splitlines()) if event["event"] == "failed"]
    assert (done.code, failed["code"], len(failed["reason"].splitlines())) == (3, code, 1), done.err
