"""Carried metadata about sizes, thumbnails and storage matches the result."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import tifffile
from pictures import EXIF, camera_exif, decode, encode, make_picture
from PIL import ExifTags, Image

from img2img_cli.pictures.files.carried import fit_xmp
from img2img_cli.pictures.read import Picture, load_image
from img2img_cli.pictures.write import encode_image

WIDTH, HEIGHT = ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight
INTEROP = ExifTags.IFD.Interop
SUBJECT_AREA = 0x9214
CARRIERS = ("png", "jpeg", "webp", "tiff", "avif")
SMALL, LARGE = (96, 72), (192, 144)
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:ImageWidth="96" tiff:ImageLength='72'
 xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="5">
<exif:PixelXDimension>96</exif:PixelXDimension><exif:PixelYDimension> 72 </exif:PixelYDimension>
<xmp:Thumbnails><rdf:Alt><rdf:li><xmpGImg:image>/9j/4AAQ</xmpGImg:image></rdf:li></rdf:Alt></xmp:Thumbnails>
</rdf:Description></rdf:RDF></x:xmpmeta>"""


def sized_exif(orientation: int | None = None) -> bytes:
    """Return EXIF like that of phones: all tags with a size, storage tags in the first directory, and a thumbnail."""
    exif = camera_exif(orientation)
    exif[ExifTags.Base.ImageWidth], exif[ExifTags.Base.ImageLength] = SMALL
    exif[ExifTags.Base.BitsPerSample] = (8, 8, 8)
    exif[ExifTags.Base.PhotometricInterpretation] = 6
    exif[ExifTags.Base.StripOffsets] = 4
    inner = exif.get_ifd(EXIF)
    inner[WIDTH], inner[HEIGHT] = SMALL
    inner[SUBJECT_AREA] = (10, 10, 5, 5)
    inner[INTEROP] = {1: "R98", 0x1001: SMALL[0], 0x1002: SMALL[1]}
    return add_thumbnail(exif.tobytes())


def add_thumbnail(exif: bytes) -> bytes:
    """Append a second directory with a JPEG, which Pillow reads but does not write."""
    body, thumbnail = bytearray(exif[6:]), encode(make_picture("coffee", (16, 12)), "JPEG")
    (start,) = struct.unpack_from(">I", body, 4)
    (count,) = struct.unpack_from(">H", body, start)
    struct.pack_into(">I", body, start + 2 + 12 * count, len(body))
    place = len(body) + 2 + 36 + 4
    body += struct.pack(">H", 3) + struct.pack(">HHIHH", 0x103, 3, 1, 6, 0)
    body += struct.pack(">HHII", 0x201, 4, 1, place) + struct.pack(">HHII", 0x202, 4, 1, len(thumbnail)) + bytes(4)
    return exif[:6] + bytes(body) + thumbnail


def load(orientation: int | None = None, xmp: bytes = XMP, mode: str = "RGB") -> Picture:
    stored = encode(make_picture("coffee", SMALL).convert(mode), "JPEG", exif=sized_exif(orientation), xmp=xmp)
    before = decode(stored).getexif()
    assert before.get_ifd(ExifTags.IFD.IFD1)[0x103] == 6, "the thumbnail is there"
    assert before.get_ifd(INTEROP)[0x1001] == SMALL[0]
    return load_image("in.jpg", stored)


def write(picture: Picture, size: tuple[int, int], format_: str) -> Image.Image:
    result = make_picture("chelsea", size)
    return decode(encode_image(result, picture, format_, quality=None, record={"a": 1}, text="x"))


@pytest.mark.parametrize("format_", CARRIERS)
def test_exif_tells_the_results_size(format_: str) -> None:
    exif = write(load(), LARGE, format_).getexif()
    inner = exif.get_ifd(EXIF)
    assert (inner[WIDTH], inner[HEIGHT]) == LARGE
    related = {} if format_ == "tiff" else {1: "R98", 0x1001: LARGE[0], 0x1002: LARGE[1]}
    assert exif.get_ifd(INTEROP) == related
    assert (exif[ExifTags.Base.ImageWidth], exif[ExifTags.Base.ImageLength]) == LARGE
    assert inner[ExifTags.Base.DateTimeOriginal] == "1998:07:04 12:30:00"


@pytest.mark.parametrize("format_", CARRIERS)
def test_a_picture_that_was_turned_tells_its_size_upright(format_: str) -> None:
    picture = load(6)
    assert picture.size == SMALL[::-1]
    inner = write(picture, picture.size, format_).getexif().get_ifd(EXIF)
    assert (inner[WIDTH], inner[HEIGHT]) == SMALL[::-1]
    assert SUBJECT_AREA not in inner, "it lies elsewhere now"


def test_places_in_a_picture_of_the_same_size_stay() -> None:
    assert write(load(), SMALL, "jpeg").getexif().get_ifd(EXIF)[SUBJECT_AREA] == (10, 10, 5, 5)


@pytest.mark.parametrize("format_", CARRIERS)
def test_thumbnails_and_storage_of_the_input_are_left_out(format_: str) -> None:
    image = write(load(), LARGE, format_)
    exif = image.getexif()
    assert not exif.get_ifd(ExifTags.IFD.IFD1)
    if format_ != "tiff":
        assert not {0x102, 0x106, 0x111, 0x201, 0x202} & set(exif)
    assert image.convert("RGB").size == LARGE


def test_a_tiff_is_stored_as_its_own_tags_say() -> None:
    picture = load(mode="L")
    result = make_picture("chelsea", SMALL).convert("L")
    data = encode_image(result, picture, "tiff", quality=None, record={"a": 1}, text="x")
    assert (tifffile.imread(io.BytesIO(data)) == np.asarray(result)).all()
    deep = np.asarray(result, np.uint16)[..., None].repeat(3, 2) * 257
    data = encode_image(result, picture, "tiff", quality=None, record={"a": 1}, text="x", deep=deep)
    assert (tifffile.imread(io.BytesIO(data)) == deep).all()


def test_nothing_is_added_that_the_input_did_not_tell() -> None:
    picture = load_image("in.jpg", encode(make_picture("coffee", SMALL), "JPEG", exif=camera_exif()))
    exif = write(picture, LARGE, "jpeg").getexif()
    assert not {WIDTH, HEIGHT, INTEROP} & set(exif.get_ifd(EXIF))
    bare = load_image("in.jpg", encode(make_picture("coffee", SMALL), "JPEG"))
    assert "exif" not in write(bare, LARGE, "png").info


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp", "avif"])
def test_xmp_tells_the_results_size_and_holds_no_thumbnail(format_: str) -> None:
    xmp = write(load(), LARGE, format_).info["xmp"]
    for text in (b'tiff:ImageWidth="192"', b"tiff:ImageLength='144'", b"<exif:PixelXDimension>192</exif:"):
        assert text in xmp
    assert b"<exif:PixelYDimension>144</exif:PixelYDimension>" in xmp
    assert b"Thumbnails" not in xmp
    assert b"/9j/4AAQ" not in xmp
    assert b'xmp:Rating="5"' in xmp


def test_sizes_of_a_thumbnails_file_are_left_out() -> None:
    picture = load_image("in.png", encode(make_picture("coffee", SMALL), "PNG"))
    picture.text.update({"Thumb::Image::Width": "4000", "Title": "x"})
    assert set(write(picture, LARGE, "png").text) == {"Title", "parameters", "img2img"}


def test_xmp_that_opens_more_than_it_closes_is_read_once() -> None:
    """A reader that searched for each end tag again would take hours."""
    for part in (b"<xmp:Thumbnails>", b"<tiff:ImageWidth>1", b"tiff:ImageWidth= ", b"exif:PixelXDimension='1"):
        xmp = part * (4_000_000 // len(part))
        assert fit_xmp(xmp, SMALL) == xmp
