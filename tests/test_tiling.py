"""Tiles cover everything, overlap enough, and leave no seam."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pictures import KINDS, make_picture

from img2img_cli.pictures.tiles import Canvas, plan_tiles

lengths = st.integers(1, 700)


@given(lengths, lengths, st.integers(8, 256), st.integers(0, 127))
def test_tiles_cover_all_stay_inside_and_share_the_overlap(width, height, tile, overlap):
    assume(2 * overlap < tile)
    tiles = plan_tiles(width, height, tile, overlap)
    assert len(set(tiles)) == len(tiles)
    assert all(min(t.left, t.top) >= 0 and t.box[2] <= width and t.box[3] <= height for t in tiles)
    assert all((t.width, t.height) == (min(tile, width), min(tile, height)) for t in tiles)
    for first, side, total in (("left", "width", width), ("top", "height", height)):
        starts = sorted({getattr(t, first) for t in tiles})
        assert starts[0] == 0
        assert starts[-1] + getattr(tiles[0], side) == total
        assert all(a + tile - b >= overlap for a, b in itertools.pairwise(starts))
    assert len(tiles) == len({t.left for t in tiles}) * len({t.top for t in tiles})


@given(st.integers(257, 4000), st.integers(32, 256), st.integers(0, 100))
def test_there_are_no_more_tiles_than_needed(length, tile, overlap):
    assume(2 * overlap < tile)
    count = len(plan_tiles(length, 1, tile, overlap))
    assert (count - 1) * (tile - overlap) + overlap < length, "one tile fewer would not cover it"


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(KINDS), st.integers(10, 150), st.integers(10, 150), st.integers(16, 64), st.integers(0, 31))
def test_tiles_of_one_picture_blend_to_exactly_that_picture(kind, width, height, tile, overlap):
    assume(2 * overlap < tile)
    pixels = np.asarray(make_picture(kind, (width, height)))
    canvas = Canvas(width, height, overlap)
    for piece in plan_tiles(width, height, tile, overlap):
        left, top, right, bottom = piece.box
        canvas.add(piece, pixels[top:bottom, left:right])
    np.testing.assert_array_equal(canvas.merge(), pixels)


@settings(deadline=None, max_examples=40)
@given(st.integers(65, 300), st.integers(65, 140), st.integers(4, 31))
def test_tiles_of_different_brightness_show_no_seam(width, height, overlap):
    low, offset = 90, 60
    canvas = Canvas(width, height, overlap)
    for index, tile in enumerate(plan_tiles(width, height, 64, overlap)):
        canvas.add(tile, np.full((tile.height, tile.width, 3), low + offset * (index % 2), np.uint8))
    merged = canvas.merge().astype(int)
    steepest = offset * np.pi / 2 / overlap + 1
    for axis in (0, 1):
        assert np.abs(np.diff(merged, axis=axis)).max() <= steepest
    assert low <= merged.min() <= merged.max() <= low + offset


def test_far_inside_a_tile_only_that_tile_counts():
    canvas = Canvas(112, 64, 16)
    for index, tile in enumerate(plan_tiles(112, 64, 64, 16)):
        canvas.add(tile, np.full((tile.height, tile.width, 3), 50 + 100 * index, np.uint8))
    merged = canvas.merge()
    assert (merged[:, :48] == 50).all()
    assert (merged[:, 64:] == 150).all()


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (64, 1)])
def test_what_fits_into_one_tile_is_one_tile(size):
    assert [tile.box for tile in plan_tiles(*size, 64, 16)] == [(0, 0, *size)]
