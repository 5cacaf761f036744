"""Erase: what a mask marks is filled with patches of what is around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import psnr
from PIL import Image, ImageDraw

from img2img_cli.engines.looks.erase import LEAST_MARGIN, Level, _interpolate, choose_boxes, erase
from img2img_cli.errors import InputError


def draw_wall(size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Return bricks under light that falls off to the right."""
    y, x = np.mgrid[: size[1], : size[0]]
    row = y // 8
    mortar = (y % 8 < 2) | ((x + 8 * (row % 2)) % 16 < 2)
    light = 1 - 0.4 * x / size[0]
    bricks = np.where(mortar[..., None], (200, 195, 185), (150, 70, 50)) * light[..., None]
    return Image.fromarray(bricks.round().astype(np.uint8))


def mark(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


def test_bricks_go_on_behind_what_is_taken_away() -> None:
    wall = draw_wall()
    mask = mark(wall.size, (60, 40, 95, 80))
    seen = wall.copy()
    seen.paste((20, 200, 40), mask=mask)
    made = erase(seen, mask, 0)
    before, after = np.asarray(wall, float), np.asarray(made, float)
    outside = np.asarray(mask) == 0
    assert (before[outside] == after[outside]).all()
    smooth = _interpolate(before.astype(np.float32) / 255, outside) * 255
    errors = [np.sqrt(((each - before)[~outside] ** 2).mean()) for each in (after, smooth)]
    assert errors[0] < 22 and errors[0] < 0.6 * errors[1], errors


def test_the_same_seed_fills_the_same_and_another_differs(photograph: Image.Image) -> None:
    image = photograph.resize((160, 120))
    mask = mark(image.size, (50, 40, 90, 80))
    first, again, other = (erase(image, mask, seed) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_a_large_hole_is_searched_small_and_filled_with_whole_patches() -> None:
    wall = draw_wall((900, 700))
    mask = mark(wall.size, (300, 200, 540, 420))
    seen = wall.copy()
    seen.paste((20, 200, 40), mask=mask)
    made = np.asarray(erase(seen, mask, 0), float)
    inside = np.asarray(mask) > 0
    truth = np.asarray(wall, float)
    edges = [np.abs(np.diff(each, axis=1))[:, :-1][inside[:, 2:]].mean() for each in (made, truth)]
    assert edges[0] > 0.5 * edges[1], "the patches are copied from the full resolution"
    assert psnr(made[inside], truth[inside]) > 12


@pytest.mark.parametrize("box", [(0, 0, 30, 119), (0, 0, 159, 20), (130, 90, 159, 119), (5, 5, 5, 5)])
def test_holes_at_the_border_and_of_one_pixel_are_filled(photograph: Image.Image, box) -> None:
    image = photograph.resize((160, 120))
    made = erase(image, mark(image.size, box), 0)
    assert made.size == image.size
    assert np.abs(np.asarray(made, float) - np.asarray(image, float)).max() < 256


def test_a_mask_that_leaves_nothing_is_refused_and_one_that_marks_nothing_changes_nothing() -> None:
    image = draw_wall((40, 30))
    assert erase(image, Image.new("L", image.size), 0).tobytes() == image.tobytes()
    with pytest.raises(InputError, match="too little"):
        erase(image, mark(image.size, (2, 2, 39, 29)), 0)


def test_smaller_levels_know_what_touches_the_hole() -> None:
    hole = np.zeros((8, 8), bool)
    hole[3, 3] = True
    pixels = np.full((8, 8, 3), 0.5, np.float32)
    pixels[3, 3] = 9
    small = Level(pixels, hole).reduce(4, 4)
    assert small.hole.sum() == 1 and small.hole[1, 1]
    assert np.allclose(small.pixels, 0.5)


def test_marks_far_apart_are_looked_at_one_by_one() -> None:
    hole = np.zeros((900, 2000), bool)
    for top, left in ((10, 20), (870, 1960), (400, 1000), (420, 1030), (400, 1900)):
        hole[top : top + 5, left : left + 7] = True
    boxes = choose_boxes(hole)
    assert len(boxes) == 4
    covered = np.zeros(hole.shape, int)
    for left, top, right, bottom in boxes:
        covered[top:bottom, left:right] += 1
        assert (right - left) * (bottom - top) < 0.05 * hole.size
    assert covered.max() == 1, "boxes overlap"
    assert covered[hole].min() == 1
    assert choose_boxes(np.zeros((5, 9), bool)) == []
    assert choose_boxes(np.ones((50, 90), bool)) == [(0, 0, 90, 50)]
    scattered = np.random.default_rng(0).random((3000, 3000)) < 1e-4
    boxes = choose_boxes(scattered)
    sizes = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
    assert sum(sizes) <= scattered.size and min(sizes) >= LEAST_MARGIN**2


def test_a_soft_mask_takes_away_all_that_it_touches(here, tmp_path: Path) -> None:
    wall = draw_wall()
    spoiled = wall.copy()
    spoiled.paste((0, 255, 0), (60, 40, 96, 81))
    spoiled.save(tmp_path / "in.png")
    soft = mark(wall.size, (58, 38, 97, 82)).point(lambda level: level // 4)  # a quarter: a pale brush
    soft.putpixel((0, 0), 255)
    soft.putpixel((2, 0), 8)  # nearly black
    soft.save(tmp_path / "mask.png")
    done = here("edit", tmp_path / "in.png", tmp_path / "o.png", "--mask", tmp_path / "mask.png", "--seed", 1)
    assert done.code == 0, done.err
    made = np.asarray(Image.open(tmp_path / "o.png"), int)
    assert (made[..., 1] - made[..., 0] < 40).all(), "the green thing shines through"


@pytest.mark.parametrize("words", [[], ["--erase"], ["--preset", "erase"]])
def test_a_mask_without_a_prompt_erases(here, tmp_path: Path, words: list[str]) -> None:
    wall = draw_wall()
    wall.putalpha(Image.linear_gradient("L").resize(wall.size))
    wall.save(tmp_path / "wall.png")
    mark(wall.size, (60, 40, 95, 80)).save(tmp_path / "mask.png")
    done = here("edit", tmp_path / "wall.png", tmp_path / "o.png", "--mask", tmp_path / "mask.png", "--seed", 1, *words)
    assert done.code == 0, done.err
    with Image.open(tmp_path / "o.png") as made:
        assert made.mode == "RGBA"
        assert made.getchannel("A").tobytes() == wall.getchannel("A").tobytes()
        changed = np.abs(np.asarray(made, int) - np.asarray(wall, int)).max(-1) > 0
    assert changed[40:81, 60:96].any() and not changed[:40].any() and not changed[:, 96:].any()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--erase"], "give one with --mask"),
        (["--erase", "--prompt", "a cat", "--mask", "{mask}"], "reads no words"),
        (["--erase", "--preset", "edit", "--mask", "{mask}"], "leave out one of --erase and --preset"),
        (["--mask", "{all}"], "too little lies outside it"),
    ],
)
def test_what_cannot_be_erased_is_told_in_one_line(here, tmp_path: Path, words, said) -> None:
    wall = draw_wall((64, 48))
    wall.save(tmp_path / "wall.png")
    files = {"mask": tmp_path / "mask.png", "all": tmp_path / "all.png"}
    mark(wall.size, (20, 20, 30, 30)).save(files["mask"])
    Image.new("L", wall.size, 255).save(files["all"])
    done = here("edit", tmp_path / "wall.png", tmp_path / "o.png", *(word.format(**files) for word in words))
    assert done.code in (2, 3), done.err
    assert said in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "o.png").exists()
