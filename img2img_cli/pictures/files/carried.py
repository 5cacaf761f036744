"""Adapt the input's metadata to the result: update sizes, and drop thumbnails and storage tags."""

from __future__ import annotations

import re

from PIL import ExifTags, Image

TRUE_SIZE = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)
RELATED_SIZE = (ExifTags.Interop.RelatedImageWidth, ExifTags.Interop.RelatedImageHeight)
STORED_SIZE = (ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength)
PLACES = (0x9214, 0xA214)  # SubjectArea and SubjectLocation, in pixels of the input
# Tags for the storage of the input's or a thumbnail's pixels, which the TIFF writer would apply to the result.
STORAGE = frozenset(
    {254, 255, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289, 290, 291, 292, 293, 297}
    | {317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 332, 333, 334, 336, 337, 338, 339, 340, 341, 342, 347}
    | {512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 700, 33723, 34377, 34675}
)
_XMP_SIZES = (rb"tiff:ImageWidth|exif:PixelXDimension", rb"tiff:ImageLength|exif:PixelYDimension")
_XMP_THUMBNAILS = (b"xmp:Thumbnails", b"xap:Thumbnails")


def fit_exif(exif: Image.Exif, size: tuple[int, int], format_: str) -> Image.Exif:
    """Return a copy for a result of this size and format, without thumbnails. No tags are added."""
    fitted = Image.Exif()
    fitted.load(exif.tobytes())  # the first directory and its subdirectories; the thumbnail is in the second
    for tag in STORAGE & set(fitted):
        del fitted[tag]
    inner = fitted.get_ifd(ExifTags.IFD.Exif) if ExifTags.IFD.Exif in fitted else {}
    if any(inner.get(tag, side) != side for tag, side in zip(TRUE_SIZE, size, strict=True)):
        for tag in PLACES:
            inner.pop(tag, None)
    if format_ == "tiff":
        inner.pop(ExifTags.IFD.Interop, None)  # only for JPEGs of cameras; Pillow would write an invalid offset
    related = fitted.get_ifd(ExifTags.IFD.Interop) if ExifTags.IFD.Interop in inner else {}
    for directory, tags in ((inner, TRUE_SIZE), (related, RELATED_SIZE), (fitted, STORED_SIZE)):
        for tag, side in zip(tags, size, strict=True):
            if tag not in directory:
                continue
            if directory is fitted and format_ == "tiff":
                del fitted[tag]  # Pillow's writer sets it
            else:
                directory[tag] = side
    return fitted


def fit_xmp(xmp: bytes, size: tuple[int, int]) -> bytes:
    """Return XMP for a result of this size, without thumbnails. Handles properties as attributes and as elements."""
    for name in _XMP_THUMBNAILS:
        xmp = _drop_elements(xmp, name)
    for names, side in zip(_XMP_SIZES, size, strict=True):
        value = str(side).encode()
        xmp = re.sub(rb"\b(" + names + rb")(\s*=\s*[\"'])\d+(?=[\"'])", rb"\1\g<2>" + value, xmp)
        xmp = re.sub(rb"<(" + names + rb")>\s*\d+\s*(?=</\1>)", rb"<\1>" + value, xmp)
    return xmp


def _drop_elements(xmp: bytes, name: bytes) -> bytes:
    kept, place, end_tag = [], 0, b"</" + name + b">"
    while (start := xmp.find(b"<" + name, place)) >= 0 and (end := xmp.find(end_tag, start)) >= 0:
        kept.append(xmp[place:start])
        place = end + len(end_tag)
    return b"".join((*kept, xmp[place:]))
