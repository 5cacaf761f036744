"""Control pictures have the input's size, the right mode, and edges in the right places."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import KINDS, make_picture
from PIL import Image

from img2img_cli.pictures.control_maps import make_control_image

CONTROLS = ("grey", "softedge", "canny", "picture")


def square():
    image = Image.new("RGB", (96, 96), (40, 40, 40))
    image.paste((210, 210, 210), (30, 30, 66, 66))
    return image


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("size", [(8, 8), (64, 48), (33, 71)])
def test_every_kind_has_the_inputs_size_and_is_rgb(control, size):
    made = make_control_image(make_picture("astronaut", size), control)
    assert (made.size, made.mode) == (size, "RGB")
    if control != "picture":
        assert np.ptp(np.asarray(made), axis=-1).max() == 0


def test_picture_is_the_input_and_grey_its_luminance():
    image = make_picture("coffee")
    assert make_control_image(image, "picture").tobytes() == image.tobytes()
    assert make_control_image(image, "grey").getchannel(0).tobytes() == image.convert("L").tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_softedge_of_a_tile_is_softedge_of_the_whole_away_from_borders(kind):
    image, box, margin = make_picture(kind, (120, 100)), (24, 16, 88, 80), 6
    whole = np.asarray(make_control_image(image, "softedge").crop(box), int)
    tile = np.asarray(make_control_image(image.crop(box), "softedge"), int)
    inner = (slice(margin, -margin), slice(margin, -margin))
    assert np.abs(whole[inner] - tile[inner]).max() <= 1


def test_softedge_is_dark_where_flat_and_grows_with_contrast():
    def strength(contrast):
        image = Image.new("RGB", (60, 40), (100, 100, 100))
        image.paste((100 + contrast,) * 3, (30, 0, 60, 40))
        return np.asarray(make_control_image(image, "softedge"))[..., 0]

    assert strength(0).max() == 0
    assert strength(80)[:, :20].max() == 0
    assert 10 < strength(20).max() < strength(80).max() < strength(150).max() <= 255


def test_canny_draws_a_square_in_thin_white_lines_on_black():
    edges = np.asarray(make_control_image(square(), "canny"))[..., 0]
    assert set(np.unique(edges)) == {0, 255}
    for lines in (edges[38:58] > 0, edges.T[38:58] > 0):
        assert (lines.sum(axis=1) == 2).all(), "each line across meets two sides, one pixel wide"
    rows, columns = np.nonzero(edges)
    for where in (rows, columns):
        assert 28 <= where.min() <= 31
        assert 64 <= where.max() <= 67


@pytest.mark.parametrize("angle", [20, 45, 70])
def test_canny_lines_stay_thin_when_turned(angle):
    turned = square().rotate(angle, Image.Resampling.BICUBIC, fillcolor=(40, 40, 40))
    edges = np.asarray(make_control_image(turned, "canny"))[..., 0] > 0
    assert edges[48].sum() in (2, 3, 4)
    assert 100 <= edges.sum() <= 220, "about the square's perimeter of 144"


def test_canny_of_a_flat_picture_is_black():
    assert make_control_image(Image.new("RGB", (40, 40), (90, 20, 200)), "canny").getextrema() == ((0, 0),) * 3


def test_canny_follows_a_faint_end_of_a_strong_edge_but_no_faint_edge_alone():
    fading = np.full((80, 80, 3), 100, np.uint8)
    fading[:, 40:] += np.linspace(150, 45, 80).astype(np.uint8)[:, None, None]
    edges = np.asarray(make_control_image(Image.fromarray(fading), "canny"))[..., 0]
    assert (edges[5:-5].max(axis=1) == 255).all()
    faint = np.full((80, 80, 3), 100, np.uint8)
    faint[:, 40:] += 50
    assert np.asarray(make_control_image(Image.fromarray(faint), "canny")).max() == 0
