"""Good files that a reader could refuse or misread. `test_grid.py` has those that differ in how pixels are stored."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
from grid_formats import chunk
from pictures import ORIENTATION, encode, make_picture, wide_profile
from PIL import Image, ImageCms, PngImagePlugin

from img2img_cli.errors import InputError
from img2img_cli.pictures.read import Picture, load_image

SIZE = (96, 72)
PHOTO = make_picture("coffee", SIZE)


def with_alpha() -> Image.Image:
    image = PHOTO.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(SIZE))
    return image


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def split_properties(content: bytes) -> bytes:
    """Return an AVIF with separate `ipma` boxes for colour and alpha, as cavif wrote before 2022."""
    place = content.index(b"ipma") - 4
    (size,) = struct.unpack_from(">I", content, place)
    entries, at = [], place + 16
    for _ in range(2):
        length = 3 + content[at + 2]
        entries.append(content[at : at + length])
        at += length
    two = b"".join(box(b"ipma", bytes(4) + struct.pack(">I", 1) + entry) for entry in entries)
    grown = len(two) - size
    mended = bytearray(content[:place] + two + content[place + size :])
    for kind in (b"iprp", b"meta"):  # which hold it
        at = content.index(kind) - 4
        struct.pack_into(">I", mended, at, struct.unpack_from(">I", content, at)[0] + grown)
    locations = content.index(b"iloc") + 4  # of two items with a place of 4 bytes each
    for item in range(2):
        at = locations + 8 + 14 * item + 6
        struct.pack_into(">I", mended, at, struct.unpack_from(">I", content, at)[0] + grown)
    return bytes(mended)


def refer_to_nothing(content: bytes) -> bytes:
    """Return an AVIF whose alpha refers to item 0."""
    at = content.index(b"auxl") + 8
    assert content[at : at + 2] == b"\0\1"
    return content[:at] + b"\0\0" + content[at + 2 :]


@pytest.mark.parametrize(
    "spoil", [split_properties, refer_to_nothing, lambda data: refer_to_nothing(split_properties(data))]
)
def test_alpha_of_older_avif_files_is_read(spoil) -> None:
    good = encode(with_alpha(), "AVIF")
    wanted, picture = load_image("good", good), load_image("old", spoil(good))
    assert picture.alpha is not None
    assert picture.alpha.tobytes() == wanted.alpha.tobytes()
    assert picture.rgb.tobytes() == wanted.rgb.tobytes()


def test_alpha_of_avif_is_written_as_it_was(here, tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(encode(with_alpha(), "PNG"))
    from img2img_cli.pictures.write import encode_image

    source = load_image(str(tmp_path / "a.png"))
    data = encode_image(with_alpha(), source, "avif", quality=50, record=None, text="")
    alpha = load_image("b", data).alpha
    assert alpha is not None
    assert np.abs(np.asarray(alpha, int) - np.asarray(source.alpha, int)).max() <= 1


def test_a_large_profile_of_a_png_is_read() -> None:
    profile = bytearray(wide_profile())
    noise = np.random.default_rng(1).integers(0, 256, 2_000_000, dtype=np.uint8).tobytes()
    struct.pack_into(">I", profile, 0, len(profile) + len(noise))
    picture = load_image("x", encode(PHOTO, "PNG", icc_profile=bytes(profile) + noise))
    assert picture.icc_profile is not None
    assert picture.rgb.tobytes() != picture.native.tobytes()


def test_profiles_of_a_png_are_bounded() -> None:
    zeros = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(50_000_000), 9))
    good = encode(PHOTO, "PNG")
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="profile of more than 8 MiB"):
            load_image("x", good[:33] + zeros * 8 + good[33:])
        with pytest.raises(InputError, match="too many"):
            load_image("x", good[:33] + zeros * 9 + good[33:])
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


TOLD = {
    "attribute": b"<d xmlns:tiff='http://ns.adobe.com/tiff/1.0/' tiff:Orientation='6'/>",
    "element": b"<tiff:Orientation>6</tiff:Orientation>",
}


@pytest.mark.parametrize("format_", ["JPEG", "WEBP", "PNG", "TIFF"])
@pytest.mark.parametrize("told", TOLD)
def test_exif_that_says_upright_counts_before_xmp(told: str, format_: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 1
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>" + TOLD[told] + b"</x:xmpmeta>"
    options: dict[str, object] = {"exif": exif}
    if format_ == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    elif format_ == "TIFF":
        exif[700] = xmp
    else:
        options["xmp"] = xmp
    picture = load_image("x", encode(PHOTO, format_, **options))
    assert picture.size == SIZE
    assert picture.xmp is not None
    assert b"6" not in picture.xmp


def big_tiff(**options: object) -> Picture:
    stream = io.BytesIO()
    options = {"photometric": "rgb", "bigtiff": True, "byteorder": ">", "metadata": None} | options
    tifffile.imwrite(stream, np.asarray(PHOTO), **options)
    return load_image("x", stream.getvalue())


@pytest.mark.parametrize("codec", [None, "lzw", "deflate", "jpeg"])
def test_a_big_tiff_in_big_endian_order_is_read(codec: str | None) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = big_tiff(compression=codec, rowsperstrip=16, iccprofile=profile, resolution=(300, 300))
    difference = np.abs(np.asarray(picture.rgb, int) - np.asarray(PHOTO, int)).mean()
    assert difference < (5 if codec == "jpeg" else 0.01)
    assert picture.dpi == (300, 300)


def test_a_big_tiff_of_lying_tags_is_refused_in_small_memory() -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.asarray(PHOTO), photometric="rgb", bigtiff=True, byteorder=">", metadata=None)
    content = bytearray(stream.getvalue() + bytes(40_000_000))
    (start,) = struct.unpack_from(">Q", content, 8)
    struct.pack_into(">HHQQ", content, start + 8, 256, 18, 4_000_000, 1000)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="too many numbers"):
            load_image("x", bytes(content))
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x18ftypheic", "HEIF"),
        (b"\xff\x0a\0\0", "JPEG XL"),
        (b"%PDF-1.7", "PDF"),
        (b"v/1\x01\2\0\0\0", "OpenEXR"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'>", "SVG"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"qoif", "QOI"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(head: bytes, kind: str) -> None:
    with pytest.raises(InputError, match=rf"not a picture in a format that can be read, but {kind}; \w+"):
        load_image("x", head + bytes(600))


def test_a_premultiplied_grey_tiff_is_divided_by_its_alpha() -> None:
    alpha = np.full((12, 12), 128, np.uint8)
    grey = np.full((12, 12), 64, np.uint8)
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.stack([grey, alpha], -1), photometric="minisblack", extrasamples=[1], metadata=None)
    picture = load_image("x", stream.getvalue())
    assert picture.alpha is not None
    assert picture.alpha.getextrema() == (128, 128)
    assert picture.grey
    assert abs(picture.rgb.getpixel((3, 3))[0] - 128) <= 1


@pytest.mark.parametrize("codec", ["deflate", "lzma", "lzw", "zstd"])
def test_strips_are_unpacked_no_further_than_their_pixels(codec: str) -> None:
    side, large = 16, np.zeros((2000, 2000, 3), np.float32)
    stream = io.BytesIO()
    tifffile.imwrite(stream, large, photometric="rgb", compression=codec, rowsperstrip=2000, metadata=None)
    content = bytearray(stream.getvalue())
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tag = file.pages.first.tags[name]
            struct.pack_into("<H" if tag.dtype == 3 else "<I", content, tag.valueoffset, side)
    tracemalloc.start()
    try:
        assert load_image("x", bytes(content)).size == (side, side)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20, "all of it has 48 MB, and LZMA's dictionary 8"
    finally:
        tracemalloc.stop()
