"""Choose the decoder of a file, and decode it completely or as far as possible."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import re
from pathlib import Path
from typing import IO

from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin

from img2img_cli.errors import is_shortage
from img2img_cli.pictures.files.avif import mend_boxes
from img2img_cli.pictures.files.legacy_formats import LEGACY_FORMATS, is_tga, open_legacy
from img2img_cli.pictures.files.limits import DAMAGE, UnreadableError
from img2img_cli.pictures.files.tiff import Tiff, open_tiff

# MPO is not listed: Pillow opens it as JPEG.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "PPM", "JPEG2000", *LEGACY_FORMATS)
TIFF_HEADS = tuple(TiffImagePlugin.PREFIXES)
JPEG_HEAD, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_NOT_HANDLED = re.compile(r"un(implemented|supported|known|recogni[sz]ed) ", re.IGNORECASE)


def open_file(stream: IO[bytes]) -> ImageFile.ImageFile:
    """Open a picture and read its header; `load_pixels` decodes it.

    Raises:
        UnidentifiedImageError: the file's format is not supported.
        UnreadableError: the format is supported, but not this variant of it.
    """
    head = stream.read(18)
    stream.seek(0)
    try:
        if head.startswith(TIFF_HEADS):
            return open_tiff(stream)
        if head[4:8] == b"ftyp":
            stream = io.BytesIO(mend_boxes(stream.read()))
        if (file := open_legacy(stream, head)) is not None:
            return file
        return Image.open(stream, formats=[name for name in FORMATS if name != "TGA" or is_tga(head)])
    except (OSError, NotImplementedError) as error:
        if _NOT_HANDLED.match(str(error)):
            raise UnreadableError(f"a file of this kind ({error})") from None
        raise


def load_pixels(file: ImageFile.ImageFile, *, keep: bool) -> None:
    """Decode a file in place.

    Args:
        keep: whether to accept a truncated or damaged file. Missing pixels are black or transparent (grey in a JPEG).

    Raises:
        OSError, ValueError and others of `DAMAGE`: the file cannot be decoded, or, with `keep`, all its pixels have
            one colour.
    """
    if isinstance(file, Tiff):
        file.keep = keep
    try:
        file.load()
    except DAMAGE as error:
        if not keep or is_shortage(error) or file._im is None:
            raise
        _finish_in_part(file)
        if _is_plain(file):
            raise
        return
    if keep and _is_plain(file):
        raise ValueError("all its pixels are missing")


def _finish_in_part(file: ImageFile.ImageFile) -> None:
    """Do the steps that follow decoding, so that Pillow treats the file as loaded."""
    file.tile = []
    if isinstance(file, Tiff):
        file.load_end()
        file.load_kept()
    elif isinstance(file, PngImagePlugin.PngImageFile) and file.png is not None:
        file._text = file.png.im_text


def _is_plain(image: Image.Image) -> bool:
    bands = image.split() if image.mode not in ("P", "L", "1") else (image,)
    return all(low == high for low, high in (band.getextrema() for band in bands))


@functools.cache
def silence_libtiff() -> None:
    """Stop libtiff from printing its own messages to stderr; Pillow's errors are sufficient."""
    with contextlib.suppress(OSError, AttributeError):  # on other systems than Linux, it may be linked into Pillow
        loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libtiff" in line}
        for path in loaded:
            library = ctypes.CDLL(path)
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)
