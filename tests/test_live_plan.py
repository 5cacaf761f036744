"""A watch checks again only inputs that have changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from img2img_cli.batch import live_plan
from img2img_cli.batch.live_plan import LivePlan
from img2img_cli.errors import UsageError
from img2img_cli.tasks.inputs import find_items
from img2img_cli.tasks.plan import BatchChoices, Planned, Refused


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with in/a.jpg, in/b.jpg and in/c.png; new files are taken at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(live_plan, "SETTLE_S", 0.0)
    Path("in").mkdir()
    for name in ("a.jpg", "b.jpg", "c.png"):
        Path("in", name).write_bytes(b"x")
    return tmp_path


def watch(*inputs: str, **choices: object) -> LivePlan:
    settings = {"folder": Path("out"), "preset": "colorize"} | choices
    plan = LivePlan(lambda: find_items(inputs or ["in"]), BatchChoices(**settings))
    plan.start()
    return plan


def names(jobs: list[Planned]) -> list[str]:
    return [Path(job.input).name for job in jobs]


def test_what_comes_or_changes_is_looked_at_alone() -> None:
    plan = watch()
    assert names(plan.planned) == ["a.jpg", "b.jpg", "c.png"]
    assert plan.update() == []
    Path("in/0.jpg").write_bytes(b"x")
    Path("in/b.jpg").write_bytes(b"longer")
    assert names(plan.update()) == ["0.jpg", "b.jpg"]
    assert plan.update() == []
    assert names(plan.planned) == ["0.jpg", "a.jpg", "b.jpg", "c.png"]


def test_a_file_that_is_replaced_by_one_of_its_size_and_time_is_looked_at() -> None:
    plan = watch()
    status = Path("in/a.jpg").stat()
    Path("in/new").write_bytes(b"y")
    os.utime("in/new", ns=(status.st_atime_ns, status.st_mtime_ns))
    Path("in/new").replace("in/a.jpg")
    assert names(plan.update()) == ["a.jpg"]


def test_what_has_gone_leaves_the_plan_and_frees_its_name() -> None:
    plan = watch(name="{stem}.png")
    Path("in/a.png").write_bytes(b"x")
    (refused,) = plan.update()
    assert isinstance(refused, Refused)
    assert "in/a.jpg and in/a.png -> out/a.png" in str(refused.error)
    Path("in/a.jpg").unlink()
    assert names(plan.update()) == ["a.png"]
    assert not any(isinstance(job, Refused) for job in plan.planned)
    assert names(plan.planned) == ["a.png", "b.jpg", "c.png"]
    for path in Path("in").iterdir():
        path.unlink()
    assert plan.update() == []
    assert plan.planned == []


def test_what_a_signal_or_a_full_disk_left_is_tried_again_once() -> None:
    plan = watch()
    plan.try_again(plan.planned[1:2])
    assert names(plan.update()) == ["b.jpg"]
    plan.try_again([])
    assert plan.update() == []


def test_a_row_is_planned_again_when_it_or_its_mask_changes() -> None:
    Path("mask.png").write_bytes(b"m")
    Path("jobs.csv").write_text("input,output,mask\nin/a.jpg,1.png,mask.png\nin/b.jpg,2.png,\n")
    plan = watch("jobs.csv")
    Path("mask.png").write_bytes(b"another")
    assert names(plan.update()) == ["a.jpg"]
    Path("jobs.csv").write_text("input,output,mask\nin/a.jpg,1.png,mask.png\nin/b.jpg,3.png,\n")
    (job,) = plan.update()
    assert job.output == "out/3.png"


def test_a_manifest_that_cannot_be_read_for_now_leaves_the_plan_as_it_is() -> None:
    Path("jobs.csv").write_text("input,output\nin/a.jpg,1.png\n")
    plan = watch("jobs.csv")
    Path("jobs.csv").write_text("input,output\nin/a.jpg,1.png\nin/b.jpg\n")
    with pytest.raises(UsageError, match=r"jobs\.csv:3"):
        plan.update()
    assert names(plan.planned) == ["a.jpg"]
    Path("jobs.csv").write_text("input,output\nin/a.jpg,1.png\nin/b.jpg,2.png\n")
    assert names(plan.update()) == ["b.jpg"]


def test_everything_is_planned_again_when_its_preset_or_style_changes() -> None:
    Path("look.yaml").write_text("extends: colorize\nsaturation: 0.4\n")
    plan = watch(preset="look.yaml")
    Path("look.yaml").write_text("extends: colorize\nsaturation: 0.75\n")
    jobs = plan.update()
    assert names(jobs) == ["a.jpg", "b.jpg", "c.png"]
    assert {job.parameters.saturation for job in jobs} == {0.75}
    Path("look.yaml").write_text("extends: colorize\nsaturation: much\n")
    with pytest.raises(Exception, match="saturation"):
        plan.update()
    assert {job.parameters.saturation for job in plan.planned} == {0.75}


def test_numbers_in_names_are_given_anew_when_a_file_comes() -> None:
    plan = watch(name="{index:03}{ext}")
    Path("in/b.jpg").write_bytes(b"longer")
    assert [job.output for job in plan.update()] == ["out/002.jpg"]
    Path("in/0.jpg").write_bytes(b"x")
    outputs = [job.output for job in plan.update()]
    assert outputs == ["out/001.jpg", "out/002.jpg", "out/003.jpg", "out/004.png"]


def test_files_on_their_way_are_left_for_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_: float) -> None:
        with Path("in/d.jpg").open("ab") as file:
            file.write(b"x")

    plan = watch()
    write(0)
    Path("in/e.jpg").write_bytes(b"x")
    monkeypatch.setattr(live_plan.time, "sleep", write)
    assert names(plan.update()) == ["e.jpg"]
    assert plan.is_unsettled
    monkeypatch.setattr(live_plan.time, "sleep", lambda _: None)
    assert names(plan.update()) == ["d.jpg"]
    assert not plan.is_unsettled


def test_an_inode_that_is_given_again_is_nobodys_input(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = watch()
    Path("out").mkdir()
    Path("in/a.jpg").replace("out/d.jpg")  # as if the number of a file that has gone were a result's now
    assert plan.update() == []
    Path("in/d.jpg").write_bytes(b"x")
    (job,) = plan.update()
    assert not isinstance(job, Refused)
