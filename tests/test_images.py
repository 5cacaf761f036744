"""Reading pictures: any mode, upright, in sRGB; a bad file gives one clear line."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import (
    EXIF,
    GPS,
    ORIENTATION,
    bomb,
    camera_exif,
    decode,
    encode,
    make_picture,
    psnr,
    scanner_profile,
    wide_profile,
)
from PIL import Image, ImageCms, PngImagePlugin

from img2img_cli.errors import InputError
from img2img_cli.pictures.colour import from_srgb
from img2img_cli.pictures.read import fit_image, load_image, pad_image, plan_fit
from img2img_cli.pictures.write import encode_image
from img2img_cli.tasks.side_inputs import load_mask

FILE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "PPM", "JPEG2000")
# From what a camera stored to what it saw, by the EXIF standard.
UPRIGHT = {
    1: lambda p: p,
    2: np.fliplr,
    3: lambda p: np.rot90(p, 2),
    4: np.flipud,
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p.swapaxes(0, 1), 2),
    8: lambda p: np.rot90(p, 1),
}
RAMP = np.arange(256, dtype=np.uint8)[None, :].repeat(16, 0)


def assert_one_helpful_line(error, name):
    text = str(error.value)
    assert name in text
    assert len(text.splitlines()) == 1
    assert ";" in text, "what to do next"


def refuse(content, name="photo.x"):
    with pytest.raises(InputError) as error:
        load_image(name, content)
    assert_one_helpful_line(error, name)
    return str(error.value)


@pytest.mark.parametrize("format_", FILE_FORMATS)
def test_every_format_is_read(format_):
    picture = make_picture("gradient", (40, 28))
    loaded = load_image("photo", encode(picture, format_))
    assert (loaded.size, loaded.rgb.mode, loaded.alpha) == ((40, 28), "RGB", None)
    assert loaded.format == format_
    assert psnr(loaded.rgb, picture) > 25


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format_", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_pictures_come_out_upright(format_, orientation):
    stored = make_picture("gradient", (40, 24))
    seen = Image.fromarray(np.ascontiguousarray(UPRIGHT[orientation](np.asarray(stored))))
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}.get(format_, {})
    loaded = load_image("photo", encode(stored, format_, exif=camera_exif(orientation).tobytes(), **options))
    assert loaded.size == seen.size
    assert psnr(loaded.rgb, seen) > (30 if format_ == "JPEG" else 99)
    assert ORIENTATION not in loaded.exif, "or a viewer would turn it again"


def test_alpha_is_turned_with_the_picture():
    stored = Image.merge("RGBA", [make_picture("gradient", (40, 24)).getchannel(i) for i in (0, 1, 2, 0)])
    loaded = load_image("photo", encode(stored, "PNG", exif=camera_exif(6)))
    assert loaded.size == loaded.alpha.size == (24, 40)
    assert loaded.alpha.tobytes() == stored.rotate(-90, expand=True).getchannel("A").tobytes()


def test_orientation_in_a_raw_profile_is_not_applied_twice():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    raw = exif.tobytes()
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(raw):8d}\n{raw.hex()}\n", zip=True)
    once = load_image("photo", encode(make_picture("gradient", (40, 24)), "PNG", pnginfo=info))
    assert once.size == (24, 40)
    content = encode_image(once.rgb, once, "png", quality=None, record={}, text="")
    twice = load_image("result", content)
    assert twice.rgb.tobytes() == once.rgb.tobytes()
    assert not [key for key in decode(content).text if key.startswith("Raw profile")], "it still says turned"


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_with_gps_is_read(format_):
    loaded = load_image("photo", encode(make_picture("coffee"), format_, exif=camera_exif(3).tobytes()))
    assert loaded.exif[0x010F] == "Lumen"
    assert loaded.exif.get_ifd(EXIF)[0x9003] == "1998:07:04 12:30:00"
    assert loaded.exif.get_ifd(GPS)[1] == "N"


@pytest.mark.parametrize("broken", [b"Exif\0\0no header", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0"], ids=range(3))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_does_not_spoil_a_good_picture(format_, broken):
    picture = make_picture("coffee")
    loaded = load_image("photo", encode(picture, format_, exif=broken))
    assert loaded.size == picture.size


@pytest.mark.slow
def test_scrambled_exif_never_escapes_as_a_bug():
    rng, good = np.random.default_rng(5), camera_exif(6).tobytes()
    for _ in range(300):
        bad = bytearray(good)
        for place in rng.integers(6, len(bad), rng.integers(1, 6)):
            bad[place] = rng.integers(0, 256)
        loaded = load_image("photo", encode(Image.new("RGB", (16, 8), "teal"), "JPEG", exif=bytes(bad)))
        for format_ in ("png", "jpeg"):
            content = encode_image(loaded.rgb, loaded, format_, quality=None, record={}, text="x")
            assert decode(content).size == loaded.size


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_wide_profile_is_kept_and_the_model_sees_srgb(mode):
    native, profile = make_picture("astronaut"), wide_profile()
    stored = native.convert(mode)
    loaded = load_image("photo", encode(stored, "PNG", icc_profile=profile))
    assert loaded.icc_profile == profile
    assert loaded.native.convert("RGB").tobytes() == native.tobytes()
    wanted = ImageCms.profileToProfile(
        native, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert psnr(loaded.rgb, wanted) > 45
    assert psnr(loaded.rgb, native) < 40, "the profile has to matter"


def test_colours_return_to_the_wide_profile():
    muted = make_picture("coffee").point(lambda v: 60 + v // 2)
    loaded = load_image("photo", encode(muted, "PNG", icc_profile=wide_profile()))
    returned = from_srgb(loaded.rgb, loaded.icc_profile)
    assert np.abs(np.asarray(returned, int) - np.asarray(muted)).max() <= 3
    assert from_srgb(loaded.rgb, None) is loaded.rgb


def test_a_profile_without_a_way_back_still_gives_a_result():
    native = make_picture("coffee")
    loaded = load_image("scan.png", encode(native, "PNG", icc_profile=scanner_profile()))
    result = from_srgb(loaded.rgb, loaded.icc_profile)
    assert result.size == native.size
    content = encode_image(result, loaded, "png", quality=None, record=None, text="")
    assert psnr(load_image("result", content).rgb, loaded.rgb) > 40, "pixels and profile belong together"


@pytest.mark.parametrize("profile", [b"garbage", wide_profile()[:300]])
def test_a_broken_profile_is_ignored(profile):
    picture = make_picture("coffee")
    loaded = load_image("photo", encode(picture, "PNG", icc_profile=profile))
    assert loaded.icc_profile is None
    assert loaded.rgb.tobytes() == picture.tobytes()
    content = encode_image(loaded.native, loaded, "png", quality=None, record=None, text="")
    assert "icc_profile" not in decode(content).info


@pytest.mark.parametrize(
    ("mode", "format_"),
    [
        *(("L", "PNG"), ("L", "JPEG"), ("LA", "PNG"), ("RGB", "BMP"), ("RGBA", "PNG"), ("RGBA", "WEBP"), ("P", "PNG")),
        *(("P", "GIF"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("YCbCr", "JPEG"), ("LAB", "TIFF")),
    ],
)
def test_modes_keep_their_brightness(mode, format_):
    grey = Image.fromarray(RAMP)
    if mode == "LAB":
        flat = np.full_like(RAMP, 128)
        stored = Image.merge("LAB", [grey, Image.fromarray(flat), Image.fromarray(flat)])
    else:
        stored = (grey if mode in ("L", "LA", "P") else grey.convert("RGB")).convert(mode)
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(format_, {})
    loaded = load_image("photo", encode(stored, format_, **options))
    got = np.asarray(loaded.rgb, int)
    assert loaded.rgb.mode == loaded.native.mode == "RGB"
    assert np.ptp(got, axis=-1).max() <= 4
    assert (np.diff(got[8].mean(axis=-1)) >= -2).all()
    if mode != "LAB":
        assert np.abs(got - RAMP[..., None]).max() <= 4
    assert got[0, 0].max() <= 3
    assert got[0, 255].min() >= 252


def test_black_and_white_bits():
    stored = Image.fromarray(RAMP > 99)
    loaded = load_image("scan", encode(stored, "PNG"))
    assert loaded.rgb.tobytes() == stored.convert("RGB").tobytes()


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(format_):
    stored = Image.fromarray(RAMP.astype(np.uint16) * 257)
    assert stored.mode == "I;16"
    loaded = load_image("scan", encode(stored, format_))
    np.testing.assert_array_equal(np.asarray(loaded.rgb)[..., 0], RAMP)


def test_thirty_two_bit_integers_are_scaled_not_clipped():
    stored = Image.fromarray(RAMP.astype(np.int32) * 257)
    loaded = load_image("scan", encode(stored, "TIFF"))
    np.testing.assert_array_equal(np.asarray(loaded.rgb)[..., 0], RAMP)


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_floats_are_scaled_by_their_range(top):
    stored = Image.fromarray(RAMP.astype(np.float32) / 255 * np.float32(top))
    loaded = load_image("scan", encode(stored, "TIFF"))
    assert np.abs(np.asarray(loaded.rgb, int)[..., 0] - RAMP).max() <= 1


def test_floats_that_are_not_numbers_are_refused():
    stored = np.zeros((16, 16), np.float32)
    stored[3, 3] = np.nan
    refuse(encode(Image.fromarray(stored), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_kept_apart(mode):
    alpha = Image.fromarray(RAMP)
    stored = make_picture("coffee", alpha.size).convert(mode)
    stored.putalpha(alpha)
    loaded = load_image("photo", encode(stored, "PNG"))
    assert loaded.alpha.tobytes() == alpha.tobytes()
    assert loaded.rgb.tobytes() == stored.convert("RGB").tobytes(), "colour under full transparency stays"


def test_a_palettes_transparent_colour_becomes_alpha():
    stored = Image.new("P", (16, 8), 1)
    stored.putpalette([255, 0, 0, 0, 0, 255])
    stored.paste(0, (0, 0, 8, 8))
    loaded = load_image("icon", encode(stored, "PNG", transparency=0))
    assert loaded.alpha.crop((0, 0, 8, 8)).getextrema() == (0, 0)
    assert loaded.alpha.crop((8, 0, 16, 8)).getextrema() == (255, 255)
    assert loaded.rgb.getpixel((12, 4)) == (0, 0, 255)


def test_of_an_animation_the_first_frame_is_read():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    loaded = load_image("film", encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert loaded.frames == 2
    assert loaded.rgb.getpixel((5, 5)) == (255, 0, 0)


def test_missing_files_and_folders_are_refused(tmp_path):
    for name in (tmp_path / "none.png", tmp_path):
        with pytest.raises(InputError) as error:
            load_image(str(name))
        assert_one_helpful_line(error, name.name)


NO_PICTURES = (b"", b"\0", b"\x89PNG\r\n\x1a\n", b"hello\nworld\n" * 50, b"%PDF-1.7\n", b"\xff\xd8\xff")
HEADS = (b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"RIFF")


@pytest.mark.parametrize("content", NO_PICTURES, ids=("empty", "zero", "png", "text", "pdf", "jpeg"))
def test_what_is_no_picture_is_refused(tmp_path, content):
    path = tmp_path / "notes.png"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_image(str(path))
    assert_one_helpful_line(error, "notes.png")


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=300), st.sampled_from(HEADS))
def test_random_bytes_are_refused(tail, head):
    refuse(head + tail)


@pytest.mark.parametrize("format_", FILE_FORMATS)
def test_a_truncated_file_is_refused_unless_all_its_pixels_are_there(format_):
    content = encode(make_picture("coffee", (64, 48)), format_)
    whole = load_image("whole", content).rgb.tobytes()
    for length in sorted({1, 2, 10, *np.linspace(20, len(content) - 1, 40).astype(int)}):
        try:
            loaded = load_image("photo.x", content[:length])
        except InputError as error:
            assert "photo.x" in str(error)
            assert len(str(error).splitlines()) == 1
        else:
            assert loaded.rgb.tobytes() == whole, f"{length} of {len(content)} bytes passed for the whole"
            assert length > 0.9 * len(content)


@pytest.mark.parametrize("format_", FILE_FORMATS)
def test_a_scrambled_file_gives_a_picture_or_a_refusal(format_):
    rng, content = np.random.default_rng(9), encode(make_picture("coffee", (32, 24)), format_)
    for _ in range(150):
        bad = bytearray(content)
        for place in rng.integers(0, min(len(bad), 400), rng.integers(1, 6)):
            bad[place] = rng.integers(0, 256)
        try:
            loaded = load_image("photo.x", bytes(bad))
        except InputError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert loaded.rgb.mode == "RGB"


def test_a_decompression_bomb_is_refused_by_its_header():
    assert "million pixels" in refuse(bomb())
    assert "million pixels" in refuse(bomb(20_000, 15_000))


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (7, 8), (1, 1)])
def test_a_sliver_is_refused(size):
    assert "at least 8" in refuse(encode(Image.new("RGB", size), "PNG"))


def test_the_smallest_side_allowed_is_read():
    assert load_image("photo", encode(Image.new("RGB", (8, 9)), "PNG")).size == (8, 9)


def test_too_long_a_side_is_refused():
    assert "65500" in refuse(encode(Image.new("L", (65_501, 8)), "PNG"))


def mask_file(folder, mask):
    path = folder / "mask.png"
    mask.save(path)
    return str(path)


def test_a_masks_transparent_parts_are_black(tmp_path):
    mask = Image.new("LA", (20, 10), (255, 255))
    mask.paste((255, 0), (0, 0, 10, 10))
    loaded, _ = load_mask(mask_file(tmp_path, mask), (20, 10))
    assert loaded.mode == "L"
    assert loaded.crop((0, 0, 10, 10)).getextrema() == (0, 0)
    assert loaded.crop((10, 0, 20, 10)).getextrema() == (255, 255)


@pytest.mark.parametrize(("size", "white", "hint"), [((10, 20), 255, "10 x 20"), ((20, 10), 0, "black")])
def test_masks_that_cannot_fit_are_refused(tmp_path, size, white, hint):
    with pytest.raises(InputError, match=hint) as error:
        load_mask(mask_file(tmp_path, Image.new("L", size, white)), (20, 10))
    assert_one_helpful_line(error, "mask.png")


@given(
    st.tuples(st.integers(8, 20_000), st.integers(8, 20_000)),
    st.integers(64, 2048),
    st.sampled_from([8, 16, 32, 64]),
)
def test_fit_keeps_the_aspect_ratio_and_comes_near_the_area(size, image_size, multiple):
    fit = plan_fit(size, image_size, multiple)
    factor = image_size / math.sqrt(size[0] * size[1])
    for side, content, canvas in zip(size, fit.content, fit.canvas, strict=True):
        assert content >= 1
        assert abs(content - side * factor) <= 0.5 or content == 1
        assert canvas % multiple == 0
        assert content <= canvas < content + multiple
    if min(fit.content) > 1:
        assert abs(fit.content[0] * fit.content[1] - image_size**2) <= sum(fit.content) / 2 + 1


@given(st.integers(0, 9), st.integers(0, 9), st.sampled_from(["RGB", "L"]))
def test_padding_repeats_the_border(right, below, mode):
    image = make_picture("noise", (13, 11)).convert(mode)
    padded = pad_image(image, (13 + right, 11 + below))
    assert (padded.size, padded.mode) == ((13 + right, 11 + below), mode)
    assert padded.crop((0, 0, 13, 11)).tobytes() == image.tobytes()
    for x in range(13, 13 + right):
        assert padded.crop((x, 0, x + 1, 11)).tobytes() == image.crop((12, 0, 13, 11)).tobytes()
    for y in range(11, 11 + below):
        assert padded.crop((0, y, 13, y + 1)).tobytes() == image.crop((0, 10, 13, 11)).tobytes()


@pytest.mark.parametrize("size", [(300, 200), (40, 90), (64, 64)])
def test_fitted_pictures_fill_the_canvas(size):
    fit = plan_fit(size, 64, 32)
    fitted = fit_image(make_picture("coffee", size), fit)
    assert fitted.size == fit.canvas
