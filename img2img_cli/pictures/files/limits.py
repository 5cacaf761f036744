"""Limit the work of decoding a file, by checking its structure before Pillow or a decoder parses it.

Decoders in C cannot be interrupted, and Pillow's parsers take a step in Python for each part of a file. So all work is
limited beforehand:

- parts (chunks, segments, boxes, blocks, tags): `MAX_PARTS`, walked here in the same way as by Pillow, but not stored;
- compressed text and profiles in PNG: `MAX_TEXTS` chunks of 8 MiB and `MAX_PROFILES`; Pillow limits all text to 64 MiB;
- numbers in TIFF tags, which become Python objects: `MAX_VALUES` per directory;
- pixels: `MAX_PIXELS`, and no more than a file of that length can hold; fewer in codecs that are written in Python;
- passes over the pixels: `MAX_SCANS` of a JPEG, `MAX_BLOCKS` and `MAX_TILES` of a JPEG 2000;
- frames: counted up to `MAX_FRAMES`, never decoded.

As in Pillow, too many pixels raise DecompressionBombError; anything else over a limit raises ValueError.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import IO

from PIL import Image, ImageFile

from img2img_cli.presets.schema import MAX_PIXELS

MAX_PARTS = 250_000
MAX_TEXTS, MAX_PROFILES = 256, 8
MAX_EXIF_SEGMENTS = 64
MAX_VALUES = 250_000  # a palette for 16-bit indices has 196,608
MAX_SCANS = 100
MAX_TILES, MAX_BLOCKS = 16_384, 4_000_000
MAX_FRAMES = 10_000
MAX_HEADER = 1 << 16  # bytes of a PPM's header, comments included
MAX_JP2_HEADER = 4 << 20
# Codecs written in Python take a few seconds for this many pixels, which run lengths can encode in few bytes.
MAX_PYTHON_PIXELS = {"bmp_rle": 8_000_000, "ppm": 25_000_000, "ppm_plain": 25_000_000, "dds_rgb": 1_000_000}
# The most pixels that a byte can encode. Deflate expands up to 1032-fold, and a PNG pixel has at least a bit. A JPEG's
# block of 64 has at least a bit (a fraction of one with arithmetic coding). A GIF's code of 12 bits covers at most 4096
# pixels. A lossy WebP's block of 256 has a few flags of hundredths of a bit. Only an empty JPEG 2000 takes no bytes.
# Two bytes of run length cover 128 bytes in a TGA or PSD and 63 in a PCX. A DDS's block of 16 has 8 bytes.
PIXELS_A_BYTE = {
    "PNG": 8 * 1032,
    "JPEG": 4096,
    "MPO": 4096,
    "GIF": 4096,
    "WEBP": 1 << 16,
    "JPEG2000": 1 << 16,
    "PPM": 8,
    "TGA": 64,
    "PCX": 252,
    "PSD": 512,
    "DDS": 2,
}
# Exceptions that Pillow's parsers raise on damaged files, including their own.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    RuntimeError,
    AssertionError,
    zlib.error,
    struct.error,
)
_TEXT_CHUNKS = (b"iCCP", b"zTXt", b"iTXt")
_BYTES_TYPES = (1, 2, 7)  # Pillow keeps TIFF's types byte, text and undefined as bytes
_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_SUB_IFDS = (34665, 34853, 40965)  # EXIF, GPS, interoperability
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_COMMENT = re.compile(rb"#[^\r\n]*")


class UnreadableError(ValueError):
    """A valid file of a kind that is not supported; the message says what it is."""


def check_structure(file: IO[bytes]) -> int | None:
    """Check the number and sizes of a file's parts, then rewind it.

    Returns:
        The number of frames of a GIF or TIFF, at most `MAX_FRAMES`; None for formats in which Pillow counts them at no
        cost.

    Raises:
        ValueError, DecompressionBombError: opening the file would take too much time or memory.
    """
    file.seek(0)
    head = file.read(30)
    frames = None
    if head.startswith(b"\x89PNG"):
        _walk_png(file)
    elif head.startswith(b"\xff\xd8\xff"):
        _walk_jpeg(file)
    elif head.startswith((b"GIF87a", b"GIF89a")):
        frames = _walk_gif(file)
    elif head.startswith((b"II", b"MM")):
        frames = _walk_tiff(file, head)
    elif head.startswith(b"\xff\x4f\xff\x51"):
        _walk_codestream(file, 0)
    elif head.startswith(b"\0\0\0\x0cjP  "):
        _walk_jp2(file)
    elif head[:1] == b"P" and head[1:2].isalnum():
        _check_ppm(file)
    elif head[:4] == b"RIFF" and head[12:16] == b"VP8X" and len(head) == 30:
        width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
        check_pixels(width, height)  # the decoder allocates two canvases before it reports their size
    file.seek(0)
    return frames


def check_work(file: ImageFile.ImageFile, data: bytes) -> None:
    """Check that an opened picture, not decoded yet, can have its pixels and that decoding takes limited time.

    Args:
        data: the whole file.

    Raises:
        ValueError: the file is too short for its pixels, or decoding it would take too long.
    """
    width, height = file.size
    if width * height > len(data) * _pixels_a_byte(str(file.format), data):
        raise ValueError(f"{len(data)} bytes cannot hold {width} x {height} pixels")
    if file.format in ("JPEG", "MPO"):
        _check_scans(data, _walk_jpeg(io.BytesIO(data)))
    limit = min((MAX_PYTHON_PIXELS.get(tile[0], MAX_PIXELS) for tile in file.tile), default=MAX_PIXELS)
    if width * height > limit:
        raise ValueError(f"more than {limit // 1_000_000} million pixels in a slow encoding")


def _pixels_a_byte(format_: str, data: bytes) -> int:
    if format_ == "WEBP" and b"ANMF" in data:
        return PIXELS_A_BYTE["GIF"]  # an animation's frame may be smaller than its canvas, but not by that much
    if format_ == "WEBP" and b"VP8L" in data:
        return MAX_PIXELS  # a single colour takes no bits in this format
    return PIXELS_A_BYTE.get(format_, MAX_PIXELS)


def check_pixels(width: int, height: int) -> None:
    """Check the number of pixels.

    Raises:
        DecompressionBombError: there are more than `MAX_PIXELS`.
    """
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels")


def _too_many(what: str) -> ValueError:
    return ValueError(f"too many {what}")


def _walk_png(file: IO[bytes]) -> None:
    texts = profiles = 0
    file.seek(8)
    for _ in range(MAX_PARTS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        texts += head[4:] in _TEXT_CHUNKS
        profiles += head[4:] == b"iCCP"
        if texts > MAX_TEXTS or profiles > MAX_PROFILES:
            raise _too_many("texts")
        file.seek(int.from_bytes(head[:4]) + 4, 1)
    raise _too_many("chunks")


def _walk_jpeg(file: IO[bytes]) -> int:
    """Return the offset of the first scan. Bytes between segments count as parts, because Pillow reads each of them."""
    before, exif = 0, 0
    file.seek(2)
    for _ in range(MAX_PARTS):
        byte = file.read(1)
        if not byte:
            break
        marker = byte[0] if before == 0xFF and byte[0] not in (0, 0xFF) else None
        before = byte[0]
        if marker == 0xDA:
            break
        if marker is None or marker == 0xC8 or 0xD0 <= marker <= 0xD9 or 0xF0 <= marker <= 0xFD:
            continue  # these have no content
        before = 0
        length = max(2, int.from_bytes(file.read(2))) - 2
        if marker == 0xE1 and length >= 6:
            exif += file.read(6) == b"Exif\0\0"
            length -= 6
            if exif > MAX_EXIF_SEGMENTS:
                raise _too_many("EXIF segments")  # Pillow joins them one by one
        file.seek(length, 1)
    else:
        raise _too_many("segments")
    return file.tell()


def _check_scans(data: bytes, at: int) -> None:
    """Limit the scans up to the picture's end. Each is a pass over all pixels but takes only a few bytes."""
    scans = 1
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, at)
        if found is None or found[0] == b"\xff\xd9":
            return
        scans += found[0] == b"\xff\xda"
        if scans > MAX_SCANS:
            raise _too_many("scans")
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    raise _too_many("segments")


def _walk_gif(file: IO[bytes]) -> int:
    file.seek(10)
    flags = file.read(3)[:1]
    _skip_palette(file, flags)
    frames, parts, inside = 0, 0, False
    while parts < MAX_PARTS and frames < MAX_FRAMES:
        parts += 1
        byte = file.read(1)
        if inside:
            inside = byte not in (b"", b"\0")
            file.seek(byte[0] if byte else 0, 1)
        elif byte in (b"", b";"):
            return max(frames, 1)
        elif byte == b"!":
            file.seek(1, 1)
            inside = True
        elif byte == b",":
            frames += 1
            _skip_palette(file, file.read(9)[8:])
            file.seek(1, 1)
            inside = True
    if not frames:
        raise _too_many("blocks before the first frame")
    return frames


def _skip_palette(file: IO[bytes], flags: bytes) -> None:
    if flags and flags[0] & 128:
        file.seek(3 << (flags[0] & 7) + 1, 1)


def _check_ppm(file: IO[bytes]) -> None:
    """Limit a PPM's header, because Pillow reads it byte by byte, including comments."""
    file.seek(0)
    start = file.read(MAX_HEADER)
    words = _COMMENT.sub(b" ", start).split(None, 3)
    if len(start) == MAX_HEADER and len(words) < 4:
        raise ValueError("its header is too long")


def _walk_tiff(file: IO[bytes], head: bytes) -> int:
    if len(head) < 16:
        return 1
    endian, big = "<" if head[:2] == b"II" else ">", b"\x2b" in head[2:4]
    form = f"{endian}Q" if big else f"{endian}L"
    (offset,) = struct.unpack_from(form, head, 8 if big else 4)
    _check_directory(file, offset, endian, big, depth=0)
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < MAX_FRAMES:
        seen.add(offset)
        if (count := _read_count(file, offset, endian, big)) is None:
            break
        file.seek(count * (20 if big else 12), 1)
        link = file.read(struct.calcsize(form))
        offset = struct.unpack(form, link)[0] if len(link) == struct.calcsize(form) else 0
    return max(len(seen), 1)


def _read_count(file: IO[bytes], offset: int, endian: str, big: bool) -> int | None:
    """Return the number of tags that a directory claims; None if there is no directory at the offset."""
    if offset >= 1 << 62:
        return None
    file.seek(offset)
    data = file.read(8 if big else 2)
    if len(data) < (8 if big else 2):
        return None
    count = int(struct.unpack(f"{endian}Q" if big else f"{endian}H", data)[0])
    if count > MAX_PARTS:
        raise _too_many("tags")
    return count


def _check_directory(file: IO[bytes], offset: int, endian: str, big: bool, *, depth: int) -> None:
    count = _read_count(file, offset, endian, big)
    values, tile, below = 0, [1, 1], []
    for tag, type_, amount, value in _list_tags(file, count or 0, endian, big):
        values += amount if type_ not in _BYTES_TYPES else 0
        if values > MAX_VALUES:
            raise _too_many("numbers in its tags")
        if amount == 1 and _VALUE_BYTES[type_] <= 4:
            number = int.from_bytes(value[: _VALUE_BYTES[type_]], "little" if endian == "<" else "big")
            if tag in _SUB_IFDS:
                below.append(number)
            elif tag in (_TILE_WIDTH, _TILE_LENGTH):
                tile[tag - _TILE_WIDTH] = number
    check_pixels(*tile)
    for other in below if depth < 3 else ():
        _check_directory(file, other, endian, big, depth=depth + 1)


def _list_tags(file: IO[bytes], count: int, endian: str, big: bool) -> Iterator[tuple[int, int, int, bytes]]:
    form = f"{endian}HHQ8s" if big else f"{endian}HHL4s"
    for _ in range(count):
        entry = file.read(struct.calcsize(form))
        if len(entry) < struct.calcsize(form):
            return
        tag, type_, amount, value = struct.unpack(form, entry)
        if type_ in _VALUE_BYTES:
            yield tag, type_, amount, value


def _walk_jp2(file: IO[bytes]) -> None:
    at = 0
    for _ in range(MAX_PARTS):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return
        length = int.from_bytes(head[:4])
        start = at + (16 if length == 1 else 8)
        length = int.from_bytes(head[8:16]) if length == 1 else length
        if head[4:8] == b"jp2h" and length > MAX_JP2_HEADER:
            raise ValueError("its header is too long")
        if head[4:8] == b"jp2c":
            _walk_codestream(file, start)
            return
        if length < start - at or at + length >= 1 << 62:
            return
        at += length
    raise _too_many("boxes")


def _walk_codestream(file: IO[bytes], start: int) -> None:
    """Check a JPEG 2000's main and tile headers: OpenJPEG allocates by tiles, code-blocks, precincts and layers."""
    at, samples, tiles, next_tile = start + 2, 0, 1, 0
    for _ in range(MAX_PARTS):
        file.seek(at)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF:
            return
        length = int.from_bytes(head[2:])
        content = file.read(min(max(length - 2, 0), 64))
        if head[1] == 0x51 and len(content) >= 36:
            samples, tiles = _check_size(content)
        elif head[1] in (0x52, 0x53):
            _check_coding(content, samples, tiles, in_component=head[1] == 0x53)
        elif head[1] == 0x90 and len(content) >= 6:
            part = int.from_bytes(content[2:6])
            next_tile = at + part if part >= 12 else 0
        if head[1] == 0x93:  # the tile's data
            if not next_tile or next_tile >= 1 << 62:
                return
            at = next_tile
        else:
            at += 2 + max(length, 2)
    raise _too_many("markers")


def find_jp2_depth(data: bytes) -> int:
    """Return the largest depth of a JPEG 2000's channels in bits; 0 if its codestream is not found."""
    at = data.find(b"\xff\x4f\xff\x51")
    channels = int.from_bytes(data[at + 40 : at + 42]) if at >= 0 else 0
    return max(((part & 127) + 1 for part in data[at + 42 : at + 42 + 3 * channels : 3]), default=0)


def _check_size(content: bytes) -> tuple[int, int]:
    """Return the number of samples and of tiles, over all components."""
    x1, y1, x0, y0, width, height, left, top, components = struct.unpack_from(">8IH", content, 2)
    if not (width and height and x0 < x1 and y0 < y1 and 1 <= components <= 4):
        raise ValueError("its size makes no sense")
    check_pixels(x1 - x0, y1 - y0)
    tiles = -(-(x1 - left) // width) * -(-(y1 - top) // height)
    if tiles > MAX_TILES:
        raise _too_many("tiles")
    return (x1 - x0) * (y1 - y0) * components, tiles * components


def _check_coding(content: bytes, samples: int, tiles: int, *, in_component: bool) -> None:
    """Limit code-blocks and packets by the content of a COD marker or, with `in_component`, a COC marker.

    COD holds style, progression, layers, transform, levels, block; COC holds component (1 or 2 bytes), style, levels.
    """
    if in_component:
        style, layers, body = content[1:2], 1, content[2:]
    else:
        style, layers, body = content[:1], int.from_bytes(content[2:4]), content[5:]
    if len(body) < 5:
        return
    levels, block = body[0], 1 << ((body[1] & 15) + (body[2] & 15) + 4)
    sizes = body[5 : 5 + levels + 1] if style and style[0] & 1 else b""
    # Precincts halve in each band of every level but the lowest.
    precinct = min((1 << (size & 15) + (size >> 4) for size in sizes), default=1 << 30)
    packets = (samples // precinct + (levels + 1) * tiles) * layers
    if samples // min(block, precinct) > MAX_BLOCKS or packets > MAX_BLOCKS:
        raise _too_many("code-blocks")
