"""Guarantees about finished pixels: luminance, agreement with the input, untouched masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import KINDS, lightness, make_picture, psnr, random_chroma
from PIL import Image, ImageFilter
from skimage import color

from img2img_cli.pictures import keep
from img2img_cli.pictures.keep import (
    back_project,
    keep_base,
    keep_detail,
    keep_luminance,
    restore_alpha,
    unpad,
)
from img2img_cli.pictures.masks import feather_mask, paste_masked


def lightness_errors(picture, result):
    return np.abs(lightness(result) - lightness(picture))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sample_size", [(40, 30), (96, 72), (160, 120)])
def test_luminance_survives_saturated_colours(kind, sample_size):
    picture = make_picture(kind)
    result = keep_luminance(picture, [random_chroma(sample_size, seed=1)], 1.5)
    errors = lightness_errors(picture, result)
    assert result.size == picture.size
    assert errors.mean() <= 0.5
    assert errors.max() <= 2


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(KINDS),
    st.tuples(st.integers(8, 90), st.integers(8, 90)),
    st.tuples(st.integers(8, 60), st.integers(8, 60)),
    st.integers(0, 1000),
    st.floats(0, 4),
)
def test_luminance_survives_any_size_and_saturation(kind, size, sample_size, seed, saturation):
    picture = make_picture(kind, size)
    samples = [random_chroma(sample_size, seed), make_picture("noise", sample_size, seed)]
    result = keep_luminance(picture, samples, saturation)
    errors = lightness_errors(picture, result)
    assert (result.size, result.mode) == (size, "RGB")
    assert errors.mean() <= 0.5
    assert errors.max() <= 2


def test_no_saturation_gives_grey_of_the_same_lightness():
    picture = make_picture("astronaut")
    result = keep_luminance(picture, [random_chroma((48, 36))], 0)
    assert np.ptp(np.asarray(result, int), axis=-1).max() <= 1, "no more than rounding"
    assert lightness_errors(picture, result).max() <= 0.5


def test_colours_of_the_sample_arrive():
    picture = Image.new("RGB", (64, 64), (128, 128, 128))
    sample = Image.new("RGB", (32, 32), (200, 100, 60))
    wanted = color.rgb2lab(np.asarray(sample))[0, 0, 1:]
    got = color.rgb2lab(np.asarray(keep_luminance(picture, [sample], 1.0)))[..., 1:]
    assert np.abs(got - wanted).max() < 2
    halved = color.rgb2lab(np.asarray(keep_luminance(picture, [sample], 0.5)))[..., 1:]
    assert np.abs(halved - wanted / 2).max() < 2


def test_opposite_samples_average_to_grey():
    picture = Image.new("RGB", (32, 32), (128, 128, 128))
    lab = np.array([[[55.0, 15.0, 10.0]], [[55.0, -15.0, -10.0]]])
    samples = [Image.new("RGB", (16, 16), tuple(map(int, (color.lab2rgb(c)[0] * 255).round()))) for c in lab]
    result = np.asarray(keep_luminance(picture, samples, 1.0), int)
    assert np.ptp(result, axis=-1).max() <= 3


def test_colour_ends_where_the_picture_has_an_edge():
    grey = np.full((64, 64, 3), 90, np.uint8)
    grey[:, 32:] = 170
    sample = np.full((16, 16, 3), (150, 60, 60), np.uint8)
    sample[:, 8:] = (60, 60, 150)
    result = color.rgb2lab(np.asarray(keep_luminance(Image.fromarray(grey), [Image.fromarray(sample)], 1.0)))
    blue_to_yellow = result[..., 2]
    assert blue_to_yellow[:, 30].min() > 5, "still red one pixel before the edge"
    assert blue_to_yellow[:, 33].max() < -5, "blue one pixel behind it"


def test_bands_leave_no_trace(monkeypatch):
    picture, sample = make_picture("coffee", (120, 90)), random_chroma((37, 29), 3)
    whole = np.asarray(keep_luminance(picture, [sample], 1.0), int)
    monkeypatch.setattr(keep, "BAND_PIXELS", 120 * 7)
    banded = np.asarray(keep_luminance(picture, [sample], 1.0), int)
    assert np.abs(whole - banded).max() <= 1


def wrong_start(source, factor, how):
    large = source.resize((source.width * factor, source.height * factor), Image.Resampling.BICUBIC)
    if how == "blurry":
        return large.filter(ImageFilter.GaussianBlur(factor))
    if how == "noisy":
        noise = np.random.default_rng(factor).normal(0, 25, (large.height, large.width, 3))
        return Image.fromarray((np.asarray(large) + noise).clip(0, 255).astype(np.uint8))
    return large.point(lambda v: v * 0.8 + 20)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("kind", "how"),
    [(kind, how) for kind in ("astronaut", "coffee", "chelsea") for how in ("blurry", "noisy", "tinted")]
    + [(kind, "noisy") for kind in ("gradient", "near_black", "near_white")],
)
def test_scaled_down_again_it_is_the_input(kind, how, factor):
    source = make_picture(kind, (48, 40))
    start = wrong_start(source, factor, how)
    assert psnr(start.resize(source.size, Image.Resampling.BICUBIC), source) < 40, "the start has to be wrong"
    result = back_project(start, source)
    assert result.size == start.size
    assert psnr(result.resize(source.size, Image.Resampling.BICUBIC), source) >= 40


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("kind", ["noise", "primaries"])
def test_back_projection_comes_nearer_even_where_no_picture_would_agree(kind, factor):
    # Between pure black and pure white the bicubic kernel's negative lobes ask for values beyond 0 and 255.
    source = make_picture(kind, (48, 40))
    start = wrong_start(source, factor, "blurry")
    images = start, back_project(start, source)
    before, after = (psnr(image.resize(source.size, Image.Resampling.BICUBIC), source) for image in images)
    assert after >= max(28, before + 8)


@pytest.mark.parametrize("size", [(77, 51), (100, 64), (60, 50)])
def test_back_projection_of_odd_factors(size):
    source = make_picture("astronaut", (48, 40))
    start = make_picture("astronaut", size).filter(ImageFilter.GaussianBlur(2))
    result = back_project(start, source)
    assert psnr(result.resize(source.size, Image.Resampling.BICUBIC), source) >= 40


def test_back_projection_leaves_a_faithful_picture_alone():
    source = Image.new("RGB", (24, 24), (200, 30, 90))
    start = Image.new("RGB", (48, 48), (200, 30, 90))
    assert back_project(start, source).tobytes() == start.tobytes()


def random_mask(seed, size=(60, 44)):
    rng = np.random.default_rng(seed)
    patches = Image.fromarray((rng.random((5, 7)) > 0.5).astype(np.uint8) * 255)
    return patches.resize(size, Image.Resampling.NEAREST if seed % 2 else Image.Resampling.BICUBIC)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.floats(0, 200))
def test_where_the_mask_is_black_the_original_bytes_stay(seed, feather):
    mask = random_mask(seed)
    original, result = make_picture("coffee", mask.size), make_picture("noise", mask.size, seed)
    pasted = np.asarray(paste_masked(result, original, feather_mask(mask, feather)))
    black = np.asarray(mask) == 0
    np.testing.assert_array_equal(pasted[black], np.asarray(original)[black])


@pytest.mark.parametrize("feather", [0, 1, 4, 10])
def test_deep_inside_the_mask_is_the_result(feather):
    mask = Image.new("L", (120, 120))
    mask.paste(255, (20, 20, 100, 100))
    original, result = make_picture("coffee", mask.size), make_picture("noise", mask.size)
    pasted = np.asarray(paste_masked(result, original, feather_mask(mask, feather)))
    margin = 20 + 2 * feather + 3
    deep = (slice(margin, 120 - margin), slice(margin, 120 - margin))
    np.testing.assert_array_equal(pasted[deep], np.asarray(result)[deep])


def test_the_feather_fades_in_from_the_border():
    mask = Image.new("L", (120, 60))
    mask.paste(255, (40, 0, 120, 60))
    row = np.asarray(feather_mask(mask, 12))[30]
    assert (np.diff(row.astype(int)) >= 0).all()
    assert ((row > 0) & (row < 255)).sum() >= 5
    assert row[119] == 255, "the picture's own border is no border of the mask"
    assert np.asarray(feather_mask(mask, 0)).tobytes() == mask.tobytes()


@pytest.mark.parametrize("feather", [1, 4, 30, 200])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_thin_masks_do_not_vanish(feather, width):
    mask = Image.new("L", (90, 90))
    mask.paste(255, (10, 40, 80, 40 + width))
    line = np.asarray(feather_mask(mask, feather))[40 : 40 + width, 10:80]
    assert line.min() >= 32


def test_alpha_returns_at_the_results_size():
    alpha = make_picture("gradient", (40, 30)).getchannel(0)
    result = make_picture("coffee", (40, 30))
    restored = restore_alpha(result, alpha)
    assert restored.mode == "RGBA"
    assert restored.getchannel("A").tobytes() == alpha.tobytes()
    assert restored.convert("RGB").tobytes() == result.tobytes()
    larger = restore_alpha(make_picture("coffee", (80, 60)), alpha)
    assert psnr(larger.getchannel("A").resize((40, 30), Image.Resampling.BOX), alpha) > 35
    assert restore_alpha(result, None).mode == "RGB"


@pytest.mark.parametrize("size", [(50, 40), (100, 80), (31, 17)])
def test_unpad_lets_no_padding_in(size):
    canvas = Image.new("RGB", (64, 64), (255, 0, 255))
    canvas.paste((10, 200, 10), (0, 0, 50, 40))
    result = unpad(canvas, (50, 40), size)
    assert result.size == size
    assert result.getcolors() == [(size[0] * size[1], (10, 200, 10))]


def test_base_takes_coarse_colours_from_the_source_and_fine_detail_from_the_result(photograph: Image.Image) -> None:
    tinted = Image.fromarray(
        (np.asarray(photograph, np.float32) * [1.1, 0.9, 0.8] + [9, 0, 0]).clip(0, 255).astype(np.uint8)
    )
    kept = keep_base(tinted, photograph)
    assert psnr(kept, photograph) > psnr(tinted, photograph) + 10
    grain = np.indices((72, 96)).sum(0)[..., None] % 2 * 30.0
    grainy = Image.fromarray((np.asarray(photograph, np.float32) * 0.8 + grain).astype(np.uint8))
    result = np.asarray(keep_base(grainy, photograph), np.float32)
    assert (
        np.abs(np.diff(result, axis=1)).mean() > np.abs(np.diff(np.asarray(photograph, np.float32), axis=1)).mean() + 10
    )
    assert keep_base(photograph, photograph).tobytes() == photograph.tobytes()


def test_detail_is_kept_from_clean_pictures_and_not_from_noisy_ones(photograph: Image.Image) -> None:
    smooth = photograph.filter(ImageFilter.GaussianBlur(1))
    kept = keep_detail(smooth, photograph, smooth, 1.0)
    assert psnr(kept, photograph) > psnr(smooth, photograph) + 6
    noisy = Image.fromarray(
        (np.asarray(photograph) + np.random.default_rng(0).normal(0, 30, (72, 96, 3))).clip(0, 255).astype(np.uint8)
    )
    kept = keep_detail(smooth, noisy, noisy.filter(ImageFilter.GaussianBlur(1)), 1.0)
    assert psnr(kept, photograph) > psnr(smooth, photograph) - 1.5
    assert psnr(kept, photograph) > psnr(noisy, photograph) + 4
    assert keep_detail(smooth, photograph, smooth, 0.0).tobytes() == smooth.tobytes()
