"""Colour conversion agrees with scikit-image and keeps lightness."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import KINDS, make_picture
from skimage import color

from img2img_cli.pictures.lab import lab_to_rgb, rgb_to_lab


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_scikit_image(kind):
    rgb = np.asarray(make_picture(kind))
    np.testing.assert_allclose(rgb_to_lab(rgb), color.rgb2lab(rgb), atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_gives_the_same_bytes(kind):
    rgb = np.asarray(make_picture(kind))
    np.testing.assert_array_equal(lab_to_rgb(rgb_to_lab(rgb)), rgb)


def test_round_trip_of_all_corners_and_greys():
    corners = np.array([[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)], np.uint8)
    greys = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    for rgb in (corners, greys):
        np.testing.assert_array_equal(lab_to_rgb(rgb_to_lab(rgb)), rgb)


def test_greys_have_no_chroma():
    greys = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    lab = rgb_to_lab(greys)
    assert np.abs(lab[:, 1:]).max() < 0.01
    assert lab[0, 0] == pytest.approx(0, abs=1e-4)
    assert lab[-1, 0] == pytest.approx(100, abs=1e-3)


@given(st.floats(0, 100), st.floats(-300, 300), st.floats(-300, 300))
def test_any_colour_keeps_its_lightness_and_never_gains_chroma(lightness, a, b):
    wanted = np.array([[lightness, a, b]], np.float32)
    rgb = lab_to_rgb(wanted)
    got = color.rgb2lab(rgb[None])[0, 0]
    assert abs(got[0] - lightness) <= 0.6, "more than 8-bit rounding"
    assert np.hypot(*got[1:]) <= np.hypot(a, b) + 2.5


@given(st.floats(15, 90), st.floats(-np.pi, np.pi), st.floats(150, 300))
def test_a_colour_outside_srgb_keeps_its_hue(lightness, angle, chroma):
    wanted = np.array([[lightness, chroma * np.cos(angle), chroma * np.sin(angle)]], np.float32)
    got = color.rgb2lab(lab_to_rgb(wanted)[None])[0, 0]
    got_chroma = np.hypot(got[1], got[2])
    assert got_chroma > 5, "some colour is left"
    turned = abs((np.arctan2(got[2], got[1]) - angle + np.pi) % (2 * np.pi) - np.pi)
    assert turned * got_chroma <= 2.5
