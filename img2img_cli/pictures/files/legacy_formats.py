"""TGA, PCX, ICO, PSD and DDS: check headers before Pillow parses them, and correct what Pillow reads wrongly."""

from __future__ import annotations

import io
import itertools
import struct
from typing import IO

import numpy as np
from PIL import DdsImagePlugin, IcoImagePlugin, Image, ImageFile, PngImagePlugin, PsdImagePlugin

from img2img_cli.pictures.files.limits import MAX_PARTS, UnreadableError, check_pixels, check_structure

LEGACY_FORMATS = ("TGA", "PCX", "ICO", "PSD", "DDS")
MAX_PSD_SIDE = 30_000
MAX_ICONS, MAX_ICON_SIDE = 1024, 1024
_PSD_MODES = {0: "bitmap", 1: "grey", 2: "palette", 3: "RGB", 4: "CMYK", 7: "multichannel", 8: "duotone", 9: "Lab"}
_PSD_VERSION, _PSD_EXIF, _PSD_XMP = 1057, 1058, 1060  # resource numbers
_DDS_DATA = 128
# Pillow's raw modes without and with alpha, by bits per pixel and the masks of red, green and blue.
_DDS_MODES = {
    (24, 0xFF0000, 0xFF00, 0xFF): ("BGR", "BGR"),
    (24, 0xFF, 0xFF00, 0xFF0000): ("RGB", "RGB"),
    (32, 0xFF0000, 0xFF00, 0xFF): ("BGRX", "BGRA"),
    (32, 0xFF, 0xFF00, 0xFF0000): ("RGBX", "RGBA"),
}


def is_tga(head: bytes) -> bool:
    """Return whether a file's first 18 bytes could be a TGA header. The format has no signature."""
    if len(head) < 18:
        return False
    _, has_map, kind, _, colours, map_bits, _, _, width, height, bits, flags = struct.unpack_from("<BBBHHBHHHHBB", head)
    if not (width and height) or flags & 0xC0 or has_map != (kind & 7 == 1):
        return False
    if kind & 7 == 1 and not (colours and map_bits in (16, 24, 32)):
        return False
    return bits in {1: (8,), 2: (16, 24, 32), 3: (8, 16)}.get(kind & 7, ()) and kind <= 11


def open_legacy(stream: IO[bytes], head: bytes) -> ImageFile.ImageFile | None:
    """Open an ICO, PSD or DDS; return None for any other file. The stream must be at its beginning.

    Args:
        head: the file's first bytes.

    Raises:
        UnreadableError: this variant of the format is not supported.
        ValueError, DecompressionBombError, OSError, struct.error: the file is damaged or exceeds a limit.
    """
    if head.startswith(b"\0\0\1\0"):
        return _open_icon(stream.read())
    if head.startswith(b"8BPS"):
        return _open_psd(stream)
    if head.startswith(b"DDS "):
        return _open_dds(stream)
    return None


def mend_alpha(
    file: ImageFile.ImageFile, alpha: Image.Image | None, colour: Image.Image
) -> tuple[Image.Image | None, Image.Image]:
    """Correct the alpha and colour of a decoded file of these formats; return those of other files unchanged.

    Alpha that is 0 or 255 everywhere means that there is none. A PSD's flat picture is blended with white where it is
    transparent, which is undone.
    """
    if alpha is None or file.format not in LEGACY_FORMATS:
        return alpha, colour
    low, high = alpha.getextrema()
    if low == high and low in (0, 255):
        return None, colour
    if file.format == "PSD" and colour.mode == "RGB":
        opacity = np.asarray(alpha, np.float32)[..., None] / 255
        over = np.asarray(colour, np.float32) - 255 * (1 - opacity)
        pure = np.divide(over, opacity, out=np.full_like(over, 255), where=opacity > 0)
        return alpha, Image.fromarray(pure.round().clip(0, 255).astype(np.uint8))
    return alpha, colour


def _open_icon(data: bytes) -> ImageFile.ImageFile:
    """Open the largest of an icon's pictures; among equal sizes, the one with the most bits."""
    (count,) = struct.unpack_from("<H", data, 4)
    if not 1 <= count <= MAX_ICONS:
        raise ValueError(f"an icon of {count} pictures")
    entries = [struct.unpack_from("<BBBBHHII", data, 6 + 16 * index) for index in range(count)]
    *_, size, start = max(entries, key=lambda entry: ((entry[0] or 256) * (entry[1] or 256), entry[5]))
    content = data[start : start + size]
    if len(content) < size or size < 40:
        raise ValueError("the icon's picture is cut short")
    if content.startswith(b"\x89PNG"):
        inner = io.BytesIO(content)
        check_structure(inner)
        file = PngImagePlugin.PngImageFile(inner)
        check_pixels(*file.size)
        return file
    header, width, height, _, bits, compression = struct.unpack_from("<IiiHHI", content)
    if header != 40 or compression:
        raise UnreadableError(f"an icon whose bitmap has compression {compression}")
    if not (0 < width <= MAX_ICON_SIDE and 1 < height <= 2 * MAX_ICON_SIDE and bits in (1, 4, 8, 24, 32)):
        raise ValueError(f"an icon of {width} x {height // 2} pixels of {bits} bits")
    if size < 40 + (width * bits + 31) // 32 * 4 * (height // 2):
        raise ValueError("the icon's bitmap is cut short")
    sides = [side if side < 256 else 0 for side in (width, height // 2)]
    alone = struct.pack("<HHHBBBBHHII", 0, 1, 1, *sides, 0, 0, 1, bits, size, 22)
    return IcoImagePlugin.IcoImageFile(io.BytesIO(alone + content))


def _open_psd(stream: IO[bytes]) -> ImageFile.ImageFile:
    """Open a PSD's flat picture, ignoring its layers."""
    version, channels, height, width, bits, mode = struct.unpack(">4xH6xHIIHH", stream.read(26))
    kind = f"{_PSD_MODES.get(mode, f'mode {mode}')} of {bits} bits"
    if version == 2:
        raise UnreadableError("a large Photoshop document (PSB)")
    if (mode, bits) not in PsdImagePlugin.MODES or mode == 7:
        raise UnreadableError(f"a PSD in {kind}")
    if not (0 < width <= MAX_PSD_SIDE and 0 < height <= MAX_PSD_SIDE and 1 <= channels <= 56):
        raise ValueError(f"{width} x {height} pixels, {channels} channels")
    check_pixels(width, height)
    _skip_section(stream)
    end = _section_end(stream)
    _check_resources(stream, end)
    stream.seek(end)
    end = _section_end(stream)
    layers = stream.read(6)
    has_alpha = len(layers) == 6 and struct.unpack(">Ih", layers)[1] < 0 < end - stream.tell() + 6
    stream.seek(end)
    pillow_mode, colours = PsdImagePlugin.MODES[mode, bits]
    has_alpha = has_alpha and channels > colours
    if has_alpha and mode != 3:
        raise UnreadableError(f"a PSD in {kind} with transparency")
    if channels < colours:
        raise ValueError(f"{channels} channels for {kind}")
    starts, codec = _find_channels(stream, channels, height, (width * bits + 7) // 8)
    stream.seek(0)
    file = PsdImagePlugin.PsdImageFile(stream)
    file._mode, file._n_frames = "RGBA" if has_alpha else pillow_mode, 1
    # In bitmaps, 1 is black; in CMYK, 255 is no ink.
    suffix = ";I" if pillow_mode in ("1", "CMYK") else ""
    names = (file._mode,) if pillow_mode in ("1", "L", "P") else tuple(file._mode)
    extents = (0, 0, width, height)
    file.tile = [
        ImageFile._Tile(codec, extents, start, name + suffix) for name, start in zip(names, starts, strict=False)
    ]
    for number, _, content in file.resources:
        if number == _PSD_EXIF:
            file.info["exif"] = b"Exif\0\0" + content
        elif number == _PSD_XMP:
            file.info["xmp"] = content
    return file


def _section_end(stream: IO[bytes]) -> int:
    (length,) = struct.unpack(">I", stream.read(4))
    return stream.tell() + int(length)


def _skip_section(stream: IO[bytes]) -> None:
    stream.seek(_section_end(stream))


def _check_resources(stream: IO[bytes], end: int) -> None:
    """Walk the resources of a PSD in the same way as Pillow.

    Raises:
        UnreadableError: a resource says that there is no flat picture.
        ValueError: there are too many resources.
    """
    for _ in range(MAX_PARTS):
        if stream.tell() >= end:
            return
        _, number, name = struct.unpack(">4sHB", stream.read(7))
        stream.seek(name + 1 - name % 2, 1)
        (length,) = struct.unpack(">I", stream.read(4))
        place = stream.tell()
        if number == _PSD_VERSION and stream.read(5)[4:] == b"\0":
            raise UnreadableError("a PSD that was saved without its flat picture")
        stream.seek(place + length + length % 2)
    raise ValueError("too many resources")


def _find_channels(stream: IO[bytes], channels: int, height: int, row: int) -> tuple[list[int], str]:
    """Return the offset of each channel, and the codec of all."""
    (compression,) = struct.unpack(">H", stream.read(2))
    if compression == 0:
        return [stream.tell() + index * row * height for index in range(channels)], "raw"
    if compression != 1:
        raise UnreadableError("a PSD whose flat picture is compressed with zip")
    table = stream.read(2 * channels * height)
    sizes = np.frombuffer(table, ">u2").reshape(channels, height).sum(axis=1, dtype=np.int64).tolist()
    return [stream.tell() + before for before in itertools.accumulate([0, *sizes[:-1]])], "packbits"


def _open_dds(stream: IO[bytes]) -> ImageFile.ImageFile:
    """Open a DDS's first surface."""
    head = stream.read(_DDS_DATA)
    height, width = struct.unpack_from("<II", head, 12)
    check_pixels(width, height)
    stream.seek(0)
    file = DdsImagePlugin.DdsImageFile(stream)
    kind = getattr(file, "pixel_format", "")
    if kind.startswith(("BC5", "BC6")):
        raise UnreadableError(f"a DDS of {'two channels' if kind.startswith('BC5') else 'high dynamic range'} ({kind})")
    bits, *masks = struct.unpack_from("<4I", head, 88)
    rawmodes = _DDS_MODES.get((bits, *masks))
    if file.tile[0].codec_name == "dds_rgb" and rawmodes:
        rawmode = rawmodes[file.mode == "RGBA"]
        file.tile = [ImageFile._Tile("raw", (0, 0, width, height), _DDS_DATA, rawmode)]
    return file
