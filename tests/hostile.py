"""Make hostile pictures, presets, manifests and records from a seed: `make_hostile(7)` is the same on every machine.

A picture starts as a small good file in a supported format and mode. Then it is damaged in one way: cut at a boundary
of its structure, bits flipped, a header field changed and its checksum corrected, parts repeated, swapped or enlarged,
metadata malformed, another file appended. Some stay good, and some are built by hand because no encoder makes them.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

Random = random.Random
LIES = (0, 1, 2, 3, 7, 8, 9, 16, 127, 128, 255, 256, 4096, 32767, 32768, 65535, 65536, 1 << 24, (1 << 31) - 1, 1 << 31,
        (1 << 32) - 1)  # fmt: skip
SIDES = (1, 2, 7, 8, 9, 13, 16, 17, 24, 31, 32, 48)
EXTENSIONS = {
    "PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp", "GIF": ".gif", "AVIF": ".avif",
    "PPM": ".ppm", "JPEG2000": ".jp2", "MPO": ".mpo",
}  # fmt: skip
MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA", "L"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB"),
    "AVIF": ("RGB", "RGBA", "L"),
    "PPM": ("1", "L", "I;16", "RGB", "F"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
    "MPO": ("RGB", "L"),
}
FRAMED = ("PNG", "WEBP", "TIFF", "GIF", "AVIF", "MPO")
FORMATS = tuple(EXTENSIONS)
# AVIF and MPO are rarer in the wild, and AVIF is slow to encode.
WEIGHTS = (5, 5, 3, 5, 3, 4, 1, 3, 2, 1)


def make_hostile(seed: int) -> tuple[str, bytes]:
    """Return a file's name and content."""
    rng = Random(seed)
    kind = rng.choices(FORMATS, WEIGHTS)[0]
    name = f"{seed:06}{EXTENSIONS[kind]}"
    if rng.random() < 0.12:
        special, content = rng.choice(SPECIALS)(rng)
        name = f"{seed:06}{special}"
    else:
        content = bytearray(make_good(rng, kind))
        content = rng.choice(SPOILERS)(rng, kind, bytes(content))
    if rng.random() < 0.04:
        name = f"{seed:06}{rng.choice(tuple(EXTENSIONS.values()))}"  # the wrong one, mostly
    return name, bytes(content)


# --- good files


def _sides(rng: Random) -> tuple[int, int]:
    if rng.random() < 0.1:
        return rng.choice([(1, 1), (1, 300), (400, 1), (8, 320), (321, 8), (8, 400), (2, 2), (7, 8)])
    return rng.choice(SIDES[3:]), rng.choice(SIDES[3:])


def make_image(rng: Random, mode: str, size: tuple[int, int]) -> Image.Image:
    """Return noise, a gradient or one colour."""
    pixels = np.random.default_rng(rng.getrandbits(32))
    shape = size[1], size[0]
    if mode == "F":
        values = pixels.uniform(0, rng.choice([1.0, 255.0, 65535.0, 3e38]), shape).astype(np.float32)
        if rng.random() < 0.4:
            values[-1, -1] = rng.choice([np.nan, np.inf, -np.inf, -3e38, 3e38, 1e-45])
        return Image.fromarray(values)
    if mode in ("I;16", "I"):
        top = 65536 if mode == "I;16" else 1 << 31
        return Image.fromarray(pixels.integers(0, top, shape).astype(np.uint16 if mode == "I;16" else np.int32))
    kind = rng.randrange(3)
    if kind == 0:
        values = pixels.integers(0, 256, (*shape, 4), dtype=np.uint8)
    elif kind == 1:
        ramp = np.linspace(0, 255, size[0])[None, :, None] * np.ones((size[1], 1, 4))
        values = ramp.astype(np.uint8)
    else:
        values = np.full((*shape, 4), rng.randrange(256), np.uint8)
    image = Image.fromarray(values)
    if mode in ("RGBA", "LA"):
        return image.convert(mode)
    if mode == "LAB":
        return Image.merge("LAB", image.split()[:3])
    if mode == "P":
        return image.convert("RGB").quantize(rng.choice([2, 3, 16, 200]))
    return image.convert("RGB").convert(mode)


def make_good(rng: Random, kind: str) -> bytes:
    """Return a small file that every reader can read, unless its sides are too short."""
    mode = rng.choice(MODES[kind])
    image = make_image(rng, mode, _sides(rng))
    options = _metadata(rng, kind)
    if kind == "JPEG":
        options |= {"progressive": rng.random() < 0.3, "quality": rng.choice([5, 75, 100])}
    elif kind == "TIFF":
        options["compression"] = rng.choice(["raw", "raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
        if mode == "1" and rng.random() < 0.5:
            options["compression"] = rng.choice(["group3", "group4", "tiff_ccitt"])
        options["big_tiff"] = rng.random() < 0.1
    elif kind == "WEBP":
        options["lossless"] = rng.random() < 0.5
    elif kind == "AVIF":
        options |= {"speed": 10, "quality": 40, "max_threads": 1}
    elif kind == "JPEG2000":
        options |= {"no_jp2": rng.random() < 0.4, "num_resolutions": rng.choice([1, 2, 3])}
        if rng.random() < 0.3:
            options["tile_size"] = (rng.choice([4, 8, 16]), rng.choice([4, 8, 16]))
    elif kind in ("PNG", "GIF") and mode in ("P", "1", "L") and rng.random() < 0.5:
        options["transparency"] = rng.choice([0, 1, 255]) if mode != "1" else 0
    if kind in FRAMED and rng.random() < (0.9 if kind == "MPO" else 0.15):
        more = [make_image(rng, mode, image.size) for _ in range(rng.randrange(1, 4))]
        options |= {"save_all": True, "append_images": more}
    exif = options.get("exif")
    if kind == "AVIF" and isinstance(exif, bytes):  # Pillow's encoder crashes on some, so they are put in afterwards
        options["exif"] = _plain_exif(len(exif))
    for trial in (options, {}):
        try:
            buffer = io.BytesIO()
            image.save(buffer, kind, **trial)
            content = buffer.getvalue()
            return content if exif is None or kind != "AVIF" else content.replace(options["exif"][6:], exif[6:])
        except (OSError, ValueError, TypeError, KeyError, RuntimeError):
            continue
    image.convert("RGB").save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


# --- metadata


@functools.cache
def _srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _exif(rng: Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = rng.choice([1, 3, 6, 8, 0, 9, 65535])
    exif[0x010F] = "Lumen" * rng.choice([1, 1, 500])
    exif[0x011A] = rng.choice([72.0, 0.0, 1e9])
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "Steps: 1".encode("utf-16-be")
    content = bytearray(exif.tobytes())
    how = rng.randrange(5)
    if how == 0:
        for _ in range(rng.randrange(1, 5)):
            content[rng.randrange(6, len(content))] = rng.randrange(256)
    elif how == 1:  # a directory that leads to itself, or far away
        at = content.find(b"\x87\x69")
        if at > 0:
            content[at + 8 : at + 12] = struct.pack(">L", rng.choice([8, at, *LIES]))
    elif how == 2:  # a tag with as many values as it likes
        content[16:20] = struct.pack(">L", rng.choice(LIES))
    elif how == 3:
        del content[rng.randrange(6, len(content)) :]
    return bytes(content)


def _plain_exif(length: int) -> bytes:
    """Return EXIF with only a maker's name, of the given length if possible."""
    exif = Image.Exif()
    exif[0x010F] = "x" * max(5, length - len(b"Exif\0\0") - 8 - 2 - 12 - 4 - 1)
    return exif.tobytes()


def _profile(rng: Random) -> bytes:
    content = bytearray(_srgb_profile())
    how = rng.randrange(5)
    if how == 0:
        for _ in range(rng.randrange(1, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif how == 1:
        content[128:132] = struct.pack(">I", rng.choice(LIES))
    elif how == 2:
        content[16:20] = rng.choice([b"CMYK", b"GRAY", b"Lab ", b"\xff\xfe\0\0", b"15CL"])
    elif how == 3:
        at = 132 + 12 * rng.randrange(8)
        content[at + 4 : at + 12] = struct.pack(">II", rng.choice(LIES), rng.choice(LIES))
    return bytes(content[: rng.randrange(1, len(content))] if how == 4 else content)


def _xmp(rng: Random) -> bytes:
    turned = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % rng.choice([1, 6, 8, 99])
    return rng.choice([turned, b"\xff\xfe\0", b"<" * 2000, turned * 200, b"", b"tiff:Orientation=\xff"])


def _metadata(rng: Random, kind: str) -> dict[str, object]:
    options: dict[str, object] = {}
    if kind in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF", "MPO"):
        if rng.random() < 0.25 and kind != "TIFF":
            options["exif"] = _exif(rng)
        if rng.random() < 0.2:
            options["icc_profile"] = _profile(rng)
        if rng.random() < 0.1 and kind in ("JPEG", "WEBP", "AVIF"):
            options["xmp"] = _xmp(rng)
    if kind == "PNG" and rng.random() < 0.3:
        info = PngImagePlugin.PngInfo()
        for _ in range(rng.randrange(1, 4)):
            _add_text(rng, info)
        options["pnginfo"] = info
    return options


def _add_text(rng: Random, info: PngImagePlugin.PngInfo) -> None:
    key = rng.choice([
        "Comment", "parameters", "img2img", "XML:com.adobe.xmp", "Raw profile type exif", "icc_profile", "exif", "dpi",
        "transparency", "xmp", "interlace", "bbox", "gamma", "default_image", "k" * 200,
    ])  # fmt: skip
    value = rng.choice(["", "x", "6", "{}", '{"parameters": {}}', "\nexif\n 8\n49492a00", "\xff", "y" * 5000])
    how = rng.randrange(4)
    if how == 0:
        info.add_text(key, value)
    elif how == 1:
        info.add_itxt(key, value, zip=rng.random() < 0.5)
    elif how == 2:
        packed = zlib.compress(bytes(rng.choice([100, 2_000_000])), 9)  # the second is a bomb of a kilobyte or two
        info.add(rng.choice([b"zTXt", b"iCCP"]), key.encode()[:79] + b"\0" + bytes([rng.choice([0, 0, 1])]) + packed)
    else:
        info.add(
            rng.choice([b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"tRNS", b"gAMA", b"pHYs"]),
            rng.randbytes(rng.randrange(12)),
        )


# --- structure: where the parts of a file begin


def split_parts(kind: str, content: bytes) -> list[int]:
    """Return offsets of the parts of a file's structure; none if the structure is not known here."""
    walkers: dict[str, Callable[[bytes], Iterator[int]]] = {
        "PNG": _png_parts, "JPEG": _jpeg_parts, "MPO": _jpeg_parts, "WEBP": _riff_parts, "GIF": _gif_parts,
        "TIFF": _tiff_parts, "AVIF": _box_parts, "JPEG2000": _jp2_parts, "BMP": lambda c: iter((2, 14, 18, 54)),
        "PPM": lambda c: (i for i, b in enumerate(c[:20]) if b in b" \n"),
    }  # fmt: skip
    return [at for at in walkers[kind](content) if 0 < at < len(content)]


def _png_parts(content: bytes) -> Iterator[int]:
    at = 8
    while at + 8 <= len(content):
        yield at
        yield at + 8
        at += 12 + int.from_bytes(content[at : at + 4])


def _jpeg_parts(content: bytes) -> Iterator[int]:
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        yield at
        yield at + 4
        if content[at + 1] == 0xDA:
            yield (at + len(content)) // 2
            return
        at += 2 + int.from_bytes(content[at + 2 : at + 4])


def _riff_parts(content: bytes) -> Iterator[int]:
    at = 12
    while at + 8 <= len(content):
        yield at
        yield at + 8
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        at += 8 + size + size % 2


def _gif_parts(content: bytes) -> Iterator[int]:
    at = 13 + (3 << (content[10] & 7) + 1 if content[10] & 128 else 0)
    yield 13
    while at < len(content) and content[at] in b"!,":
        yield at
        if content[at] == 0x2C:
            flags = content[at + 9] if at + 9 < len(content) else 0
            at += 11 + (3 << (flags & 7) + 1 if flags & 128 else 0)
        else:
            at += 2
        while at < len(content) and content[at]:
            yield at
            at += 1 + content[at]
        at += 1


def _tiff_parts(content: bytes) -> Iterator[int]:
    if len(content) < 16 or content[2:3] == b"\x2b":
        return
    order = "little" if content[:2] == b"II" else "big"
    at = int.from_bytes(content[4:8], order)
    for _ in range(8):
        if not at or at + 2 > len(content):
            return
        count = int.from_bytes(content[at : at + 2], order)
        yield at
        for index in range(min(count, 64)):
            yield at + 2 + 12 * index
            yield at + 2 + 12 * index + 4
            yield at + 2 + 12 * index + 8
        yield at + 2 + 12 * count
        at = int.from_bytes(content[at + 2 + 12 * count : at + 6 + 12 * count], order)


def _box_parts(content: bytes, at: int = 0, end: int | None = None) -> Iterator[int]:
    end = len(content) if end is None else min(end, len(content))
    while at + 8 <= end:
        size, name = struct.unpack_from(">I4s", content, at)
        yield at
        yield at + 8
        if name in (b"meta", b"iprp", b"ipco", b"moov", b"trak", b"mdia", b"minf", b"stbl", b"jp2h"):
            yield from _box_parts(content, at + (12 if name == b"meta" else 8), at + size)
        at += max(size, 8)


def _jp2_parts(content: bytes) -> Iterator[int]:
    start = content.find(b"\xff\x4f\xff\x51")
    if start > 0:
        yield from _box_parts(content)
    at = start + 2
    while 0 < at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0x93:
        yield at
        yield at + 4
        at += 2 + int.from_bytes(content[at + 2 : at + 4])


def mend(kind: str, content: bytes) -> bytes:
    """Correct a PNG's checksums, so that readers accept its changed chunks."""
    if kind != "PNG":
        return content
    mended, at = bytearray(content), 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4])
        if at + 12 + length > len(content):
            break
        mended[at + 8 + length : at + 12 + length] = struct.pack(">I", zlib.crc32(content[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(mended)


# --- ways to spoil a file


def _leave(rng: Random, kind: str, content: bytes) -> bytes:
    return content


def _cut(rng: Random, kind: str, content: bytes) -> bytes:
    parts = split_parts(kind, content) or [len(content) // 2]
    at = rng.choice(parts) + rng.choice([0, 0, 1, -1, 4])
    return content[: max(1, at)]


def _cut_anywhere(rng: Random, kind: str, content: bytes) -> bytes:
    return content[: rng.randrange(1, len(content))]


def _turn_bits(rng: Random, kind: str, content: bytes) -> bytes:
    bad = bytearray(content)
    reach = len(bad) if rng.random() < 0.5 else min(len(bad), 200)
    for _ in range(rng.choice([1, 1, 3, 20])):
        bad[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return mend(kind, bytes(bad)) if rng.random() < 0.7 else bytes(bad)


def _lie(rng: Random, kind: str, content: bytes) -> bytes:
    """Change numbers of one to four bytes near the beginning of a part."""
    bad = bytearray(content)
    parts = split_parts(kind, content) or [0]
    for _ in range(rng.choice([1, 1, 2])):
        at = rng.choice(parts) + rng.randrange(-4, 24)
        width = rng.choice([1, 2, 4, 4])
        value = rng.choice(LIES) & ((1 << 8 * width) - 1)
        if 0 <= at <= len(bad) - width:
            bad[at : at + width] = value.to_bytes(width, rng.choice(["big", "little"]))
    return mend(kind, bytes(bad))


def _lie_about_size(rng: Random, kind: str, content: bytes) -> bytes:
    """Change width and height in the format's header."""
    bad = bytearray(content)
    small = [1, 7, 8, 60, 100, 1000]
    width, height = (rng.choice([*small, 3000, 20_000, 65_500, 65_535, 1 << 24, (1 << 31) - 1]) for _ in range(2))
    if 10_000_000 < width * height <= 200_000_000:
        height = 65_535  # what is within the limits may be decoded, and then takes its time
    if kind == "PNG":
        bad[16:24] = struct.pack(">II", width, height)
    elif kind in ("JPEG", "MPO"):
        for at in split_parts(kind, content):
            if content[at - 4 : at - 3] == b"\xff" and content[at - 3] in (0xC0, 0xC1, 0xC2):
                bad[at + 1 : at + 5] = struct.pack(">HH", height & 65535, width & 65535)
    elif kind == "GIF":
        bad[6:10] = struct.pack("<HH", width & 65535, height & 65535)
        at = content.find(b",", 13)
        if rng.random() < 0.6 and 0 < at < len(bad) - 9:
            bad[at + 5 : at + 9] = struct.pack("<HH", width & 65535, height & 65535)
    elif kind == "BMP":
        bad[18:26] = struct.pack("<II", width & 0xFFFFFFFF, rng.choice([height, -height & 0xFFFFFFFF]))
    elif kind == "WEBP":
        if content[12:16] == b"VP8X":
            bad[24:30] = (width & 0xFFFFFF).to_bytes(3, "little") + (height & 0xFFFFFF).to_bytes(3, "little")
        else:
            bad[26:30] = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)
    elif kind == "PPM":
        head, _, rest = content.partition(b"\n")
        bad = bytearray(head + b"\n%d %d\n" % (width, height) + rest.partition(b"\n")[2])
    elif kind == "AVIF":
        at = content.find(b"ispe")
        if at > 0:
            bad[at + 8 : at + 16] = struct.pack(">II", width, height)
    elif kind == "JPEG2000":
        at = content.find(b"\xff\x4f\xff\x51")
        bad[at + 8 : at + 16] = struct.pack(">II", width, height)
        if rng.random() < 0.5 and (box := content.find(b"ihdr")) > 0:
            bad[box + 4 : box + 12] = struct.pack(">II", height, width)
    elif kind == "TIFF":
        form = "<HHL" if content[:2] == b"II" else ">HHL"
        for at in split_parts(kind, content):
            if at + 12 <= len(content) and struct.unpack_from(form, content, at)[0] in (256, 257, 278, 322, 323):
                struct.pack_into(form[0] + "HLL", bad, at + 2, 4, 1, rng.choice([width, height]) & 0xFFFFFFFF)
    return mend(kind, bytes(bad))


def _shuffle_parts(rng: Random, kind: str, content: bytes) -> bytes:
    """Drop, double or swap parts; whole chunks of a PNG."""
    parts = split_parts(kind, content)
    if kind in ("PNG", "JPEG", "WEBP", "AVIF", "MPO"):
        parts = parts[::2]
    if len(parts) < 3:
        return content[: len(content) // 2] * 2
    edges = [0, *sorted(parts), len(content)]
    pieces = [content[a:b] for a, b in itertools.pairwise(edges)]
    at = rng.randrange(1, len(pieces))
    how = rng.randrange(4)
    if how == 0:
        del pieces[at]
    elif how == 1:
        pieces[at:at] = [pieces[at]] * rng.choice([1, 2, 50])
    elif how == 2:
        other = rng.randrange(1, len(pieces))
        pieces[at], pieces[other] = pieces[other], pieces[at]
    else:
        pieces[at] = bytes(len(pieces[at]))
    return b"".join(pieces)


def _swell(rng: Random, kind: str, content: bytes) -> bytes:
    """Insert junk in the middle or append it."""
    at = rng.choice([len(content), *(split_parts(kind, content) or [0])])
    junk = rng.choice([bytes(3000), b"\xff" * 3000, rng.randbytes(500), b"\xff\xda" * 300, b"<?php ?>" * 9])
    return content[:at] + junk + content[at:]


def _glue(rng: Random, kind: str, content: bytes) -> bytes:
    """Return a polyglot: two files in one, or a file with another format's first bytes."""
    other = make_good(rng, rng.choice(FORMATS))
    return rng.choice(
        [content + other, other[:20] + content[20:], b"PK\3\4" + content, content + b"PK\5\6" + bytes(18)]
    )


SPOILERS = (
    _leave, _cut, _cut, _cut_anywhere, _turn_bits, _turn_bits, _lie, _lie, _lie, _lie_about_size, _lie_about_size,
    _shuffle_parts, _swell, _glue,
)  # fmt: skip


# --- files made by hand


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png(size: tuple[int, int], *chunks: bytes, depth: int = 8, colour: int = 2, rows: bytes | None = None) -> bytes:
    width, height = size
    rows = bytes(height * (1 + width * 3)) if rows is None else rows
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def png_of_text_bombs(rng: Random, count: int | None = None) -> tuple[str, bytes]:
    """Return text chunks of 1 KiB that unpack to 1 MiB each. Pillow does not count those with a damaged end."""
    packed = zlib.compress(bytes(1_048_000), 9)
    body = rng.choice([packed, packed[:-4] + b"zzzz", zlib.compress(b"\xff" * 1_048_000, 9)])
    name, head = rng.choice([(b"iCCP", b"p\0\0"), (b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0")])
    return ".png", _png((9, 9), *[_chunk(name, head + body)] * (rng.choice([1, 20]) if count is None else count))


def png_of_many_chunks(rng: Random, count: int | None = None) -> tuple[str, bytes]:
    """Return a PNG of many unknown chunks."""
    return ".png", _png((9, 9), _chunk(b"prVt", b"") * (rng.choice([10, 3000]) if count is None else count))


def png_bomb(rng: Random) -> tuple[str, bytes]:
    """Return many pixels in few bytes."""
    size = rng.choice([(60_000, 60_000), (14_000, 14_000), (65_500, 1700), (1, 1 << 31), ((1 << 31) - 1, 8)])
    return ".png", _png(size, rows=bytes(100_000))


def apng_of_many_frames(rng: Random) -> tuple[str, bytes]:
    """Return an animation that claims millions of frames."""
    control = _chunk(b"acTL", struct.pack(">II", rng.choice([0, 1, 2, 10**6, 1 << 31, (1 << 32) - 1]), 0))
    frame = _chunk(
        b"fcTL", struct.pack(">IIIIIHHBB", 0, *rng.choice([(9, 9, 0, 0), (9, 9, 1, 0), (0, 0, 9, 9)]), 1, 0, 2, 1)
    )
    return ".png", _png((9, 9), control, frame)


def _gif(size: tuple[int, int], *blocks: bytes) -> bytes:
    palette = bytes(range(6))
    return b"GIF89a" + struct.pack("<HHBBB", *size, 0x80, 0, 0) + palette + b"".join(blocks) + b";"


@functools.cache
def _gif_frame() -> bytes:
    """Return one frame of 9 x 9 pixels: its descriptor of ten bytes, then its data."""
    buffer = io.BytesIO()
    Image.new("P", (9, 9), 1).save(buffer, "GIF")
    content = buffer.getvalue()
    return content[next(at for at in _gif_parts(content) if content[at] == 0x2C) : -1]


def gif_of_many_frames(rng: Random, count: int | None = None) -> tuple[str, bytes]:
    """Return an animation of more frames than are counted."""
    control = rng.choice([b"", b"!\xf9\x04\x04\x01\0\0\0", b"!\xf9\x04\x0d\x01\0\1\0"])
    return ".gif", _gif((9, 9), (control + _gif_frame()) * (rng.choice([2, 300, 4000]) if count is None else count))


def gif_of_many_blocks(rng: Random, count: int | None = None) -> tuple[str, bytes]:
    """Return a comment in thousands of blocks of one byte."""
    blocks = b"\1x" * (rng.choice([10, 5000]) if count is None else count)
    return ".gif", _gif((9, 9), b"!\xfe" + blocks + b"\0", _gif_frame())


def gif_with_a_frame_outside(rng: Random) -> tuple[str, bytes]:
    """Return a frame outside the screen, which makes the screen larger."""
    place = rng.choice([(0, 0, 65535, 65535), (65535, 65535, 9, 9), (8, 8, 9, 9), (0, 0, 0, 0), (0, 0, 65500, 3000)])
    return ".gif", _gif((9, 9), b"!\xf9\x04\x08\x01\0\0\0", b"," + struct.pack("<HHHHB", *place, 0) + _gif_frame()[10:])


def make_tiff(
    tags: list[tuple[int, int, int, int]], body: bytes = b"", following: int = 0, *, big: bool = False
) -> bytes:
    """Return a little-endian TIFF of one directory at its beginning, followed by a body."""
    if big:
        entries = b"".join(struct.pack("<HHQQ", *tag) for tag in tags)
        return struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, len(tags)) + entries + struct.pack("<Q", following) + body
    entries = b"".join(struct.pack("<HHLL", *tag) for tag in tags)
    return struct.pack("<2sHLH", b"II", 42, 8, len(tags)) + entries + struct.pack("<L", following) + body


def grey_tags(
    width: int, height: int, more: tuple[tuple[int, int, int, int], ...] = ()
) -> list[tuple[int, int, int, int]]:
    """Return the tags of a raw 8-bit picture whose pixels follow the directory."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 8 + 2 + 12 * (8 + len(more)) + 4), (278, 4, 1, height), (279, 4, 1, width * height)]
    return sorted([*tags, *more])


def tiff_cycle(rng: Random) -> tuple[str, bytes]:
    """Return directories that refer to themselves or each other."""
    following = rng.choice([8, 10, 20, 34, 4_000_000_000])
    return ".tif", make_tiff(grey_tags(12, 12), bytes(144), following)


def tiff_of_many_directories(rng: Random, count: int | None = None) -> tuple[str, bytes]:
    """Return a long chain of directories that hold only a size."""
    count = rng.choice([50, 2000]) if count is None else count
    first = make_tiff(grey_tags(12, 12), bytes(144), 8 + 2 + 12 * 8 + 4 + 144)
    chain, at = [], len(first)
    for index in range(count):
        at += 30
        tags = struct.pack("<HHHLLHHLL", 2, 256, 4, 1, 9, 257, 4, 1, 9)
        chain.append(tags + struct.pack("<L", at if index < count - 1 else 0))
    return ".tif", first + b"".join(chain)


def tiff_of_many_values(rng: Random, count: int | None = None) -> tuple[str, bytes]:
    """Return a tag with so many numbers that they would fill the memory as Python objects."""
    count = rng.choice([3000, 1 << 30]) if count is None else count
    kind, width = rng.choice([(5, 8), (3, 2), (12, 8), (4, 4)])
    more = ((rng.choice([33432, 315, 700, 34675, 50000]), kind, count, 200),)
    return ".tif", make_tiff(grey_tags(12, 12, more), bytes(144 + (count if count < 1 << 24 else 4000) * width))


def tiff_of_odd_types(rng: Random) -> tuple[str, bytes]:
    """Return well-known tags with values of an unexpected type."""
    known = [254, *range(256, 260), 262, 273, 274, 277, 278, 282, 283, 284, 296, 317, 320, 338, 339, 700]
    names = rng.sample([*known, 34665, 34675, 34853], 3)
    more = tuple((name, rng.randrange(1, 17), rng.choice([0, 1, 2, 3, 4]), rng.choice(LIES)) for name in names)
    return ".tif", make_tiff(grey_tags(12, 12, more), bytes(600))


def tiff_of_large_tiles(rng: Random) -> tuple[str, bytes]:
    """Return tiles much larger than the picture, compressed or not."""
    side = rng.choice([16, 4096, 65_536, 1 << 20])
    tags = [(256, 4, 1, 12), (257, 4, 1, 12), (258, 3, 1, 8), (259, 3, 1, rng.choice([1, 5, 8, 7])), (262, 3, 1, 1)]
    tags += [(322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 130), (325, 4, 1, 300)]
    return ".tif", make_tiff(tags, bytes(500))


def bigtiff_of_many_tags(rng: Random) -> tuple[str, bytes]:
    """Return a directory with a 64-bit count."""
    content = bytearray(make_tiff(grey_tags(12, 12), bytes(300), big=True))
    content[16:24] = struct.pack("<Q", rng.choice([1 << 63, 1 << 40, 70_000, 0, 8]))
    return ".tif", bytes(content)


def jpeg_of_many_scans(rng: Random, size: tuple[int, int] = (48, 48), count: int | None = None) -> tuple[str, bytes]:
    """Return a progressive picture that repeats its last scan many times; each scan is a pass over all pixels."""
    buffer = io.BytesIO()
    Image.new("L", size, 99).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rfind(b"\xff\xda")
    count = rng.choice([50, 120, 3000]) if count is None else count
    return ".jpg", content[:-2] + content[last:-2] * count + b"\xff\xd9"


def jpeg_of_many_segments(rng: Random, count: int | None = None) -> tuple[str, bytes]:
    """Return EXIF in pieces of one byte, empty segments, or bytes between segments."""
    good = make_good(rng, "JPEG")
    at = list(_jpeg_parts(good))[2]
    piece = rng.choice([b"\xff\xe1\0\x09Exif\0\0x", b"\xff\xe5\0\2", b"\xff\xff", b"\0", b"\xff\xfe\0\2"])
    return ".jpg", good[:at] + piece * (rng.choice([5, 100, 3000]) if count is None else count) + good[at:]


def jp2_with_a_lying_codestream(rng: Random) -> tuple[str, bytes]:
    """Return a box and a codestream that differ in tiles, components, code-blocks or layers."""
    buffer = io.BytesIO()
    make_image(rng, "RGB", (32, 32)).save(buffer, "JPEG2000", no_jp2=rng.random() < 0.3, num_resolutions=2)
    content = bytearray(buffer.getvalue())
    at = content.find(b"\xff\x4f\xff\x51")
    side = rng.choice([32, 1000, 13_000, 65_535, 1 << 31])
    how = rng.randrange(5)
    if how in (0, 1):
        content[at + 8 : at + 16] = struct.pack(">II", side, side)
        content[at + 24 : at + 32] = struct.pack(">II", *[rng.choice([1, 2, 64, side])] * 2)
    if how in (1, 2):
        content[at + 40 : at + 42] = struct.pack(">H", rng.choice([0, 1, 5, 255, 16_384, 65_535]))
    coding = content.find(b"\xff\x52", at)
    if how == 3:
        content[coding + 6 : coding + 8] = struct.pack(">H", rng.choice([0, 1, 65_535]))
    if how == 4:
        content[coding + 9 : coding + 12] = bytes(
            [rng.choice([0, 5, 32, 33, 255]), rng.choice([0, 4, 8]), rng.choice([0, 4, 8])]
        )
    return ".jp2", bytes(content)


def bmp_of_long_rows(rng: Random, size: tuple[int, int] | None = None) -> tuple[str, bytes]:
    """Return run lengths, which Python decodes: each end of a line fills the row byte by byte."""
    width, height = size or rng.choice([(300, 300), (600, 400), (65_500, 3000)])
    rows = b"\1\0\0\0" * min(height, 4000)
    head = struct.pack("<2sLHHL", b"BM", 54 + 1024 + len(rows), 0, 0, 54 + 1024)
    head += struct.pack("<LLLHHLLLLLL", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return ".bmp", head + bytes(range(256)) * 4 + rows


def ppm_in_words(rng: Random) -> tuple[str, bytes]:
    """Return a plain-text picture with comments, spaces, values that are too large, or wrong sizes."""
    size = rng.choice([b"9 9", b"9 # nine\n9", b"  9\t9", b"-9 9", b"9999999999 9", b"14000 14000", b"9.5 9", b"0 9"])
    top = rng.choice([b"255", b"65535", b"0", b"65536", b"100", b"1", b"-1", b"x"])
    body = rng.choice(
        [b"7 " * 400, b"7 # c\n" * 300, b"99999 " * 300, b"7" * 3000, b"\xff" * 900, b"nan " * 300, b"#" * 3000]
    )
    lead = rng.choice([b"\n", b" ", b"#" + b"x" * 5000 + b"\n", b" " * 70_000 + b"\n"])
    return ".ppm", rng.choice(
        [b"P1", b"P2", b"P3", b"P5", b"P6", b"Pf", b"P4", b"P7"]
    ) + lead + size + b"\n" + top + b"\n" + body


def no_picture(rng: Random) -> tuple[str, bytes]:
    """Return noise, an empty file or an unsupported format under the name of a supported one."""
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n"
    heads = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"RIFF\0\0\0\0WEBPVP8 "]
    body = rng.choice(
        [svg, script, b"%PDF-1.7\n", b"text\n" * 50, rng.randbytes(300), rng.choice(heads) + rng.randbytes(99), b"\0"]
    )
    return rng.choice(tuple(EXTENSIONS.values())), body


SPECIALS: tuple[Callable[[Random], tuple[str, bytes]], ...] = (
    png_of_text_bombs, png_of_many_chunks, png_bomb, apng_of_many_frames, gif_of_many_frames, gif_of_many_blocks,
    gif_with_a_frame_outside, tiff_cycle, tiff_of_many_directories, tiff_of_many_values, tiff_of_odd_types,
    tiff_of_large_tiles, bigtiff_of_many_tags, jpeg_of_many_scans, jpeg_of_many_segments, jp2_with_a_lying_codestream,
    jp2_with_a_lying_codestream, bmp_of_long_rows, ppm_in_words, ppm_in_words, no_picture,
)  # fmt: skip


# --- text: presets, manifests, records

KEYS = (
    "model", "strength", "num_inference_steps", "task", "extends", "lora", "embedding", "controlnets",
    "scheduler_config", "size", "prompt", "guidance_scale", "upscaler", "vae", "quantization", "seed", "image_size",
    "no_such_key", "",
)  # fmt: skip
YAML_VALUES = (
    "0.5", "no", "1e3", ".nan", ".inf", "-.inf", "~", "[]", "{}", "edit", "bundled", "none", "2001-01-01", "2001-99-99",
    "=", "<<", "0b_", "0x" + "f" * 5000, "9" * 5000, "190:20:30", "!!python/object/apply:os.system [x]", "!x y",
    "&a [*a]", "*a",
    '"\\ud800"', '"\\0"', '"a\\nb"', "'" + "x" * 300 + "'", "[" * 30 + "]" * 30, "[" * 3000, "{a: " * 25 + "}" * 25,
    "~nobody/x.yaml", "a" * 5000 + ".yaml", "../../../etc/passwd.yaml", "/dev/zero.yaml", "x.yaml", "colorize", "1x1",
    "99999x99999", "|\n  text", ">-\n  text", "? a\n: b", "%TAG ! x", "\t", "\ufeff", "\x00", "\x85", "!<tag:%0A> x",
    "sd-legacy/x", "./model", "weights.ckpt", "a:b:c", "x:nan", "-1", "1e400", "true", "'1'",
)  # fmt: skip


def make_preset(seed: int) -> tuple[str, bytes]:
    """Return a preset's name and content."""
    rng = Random(seed)
    lines = ["task: edit"] if rng.random() < 0.5 else []
    for _ in range(rng.randrange(1, 5)):
        value = (
            rng.choice(YAML_VALUES) if rng.random() < 0.8 else "".join(chr(rng.randrange(1, 0x250)) for _ in range(9))
        )
        lines.append(f"{rng.choice(KEYS)}: {value}" if rng.random() < 0.9 else value)
    content = rng.choice(["\n", "\n", "\r\n", "\n---\n"]).join(lines).encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        content = _turn_bits(rng, "PPM", content)
    if rng.random() < 0.05:
        content = content.decode("utf-8", "replace").encode("utf-16")
    return f"{seed:06}.yaml", content


CELLS = (
    "", "a.png", "../a.png", "/etc/passwd", "a\0b", "=", "<<", "[" * 2000, "{a: [", "!!int x", "2001-99-99", "0b_",
    "1e400", "nan", "&a [*a]", '"', '""', "a,b", "9" * 5000, "0x" + "f" * 5000, "~nobody/a.png", "x" * 140_000,
    "..", ".", "-1",
    "7", "\r", "colorize", "a\\b", "*.png", "con", "\u202e.png",
)  # fmt: skip
COLUMNS = (
    "input", "output", "preset", "mask", "style", "control_image", "seed", "strength", "prompt", "num_inference_steps",
    "lora", "nope", "", "a\nb", "scheduler_config",
)  # fmt: skip
JSON_VALUES = (
    '"a.png"', '"\\ud800"', '"\\u0000"', "null", "true", "1e999", "-1", "7", "[]", "{}", '[["a"]]', "NaN", "9" * 5000,
    "[" * 3000, '"' + "x" * 5000 + '"', '"../a"', '"a\\nb"', "4294967296", '{"a": 1}', "0.5", "Infinity",
)  # fmt: skip


def make_manifest(seed: int) -> tuple[str, bytes]:
    """Return a manifest's name and content."""
    rng = Random(seed)
    columns = [rng.choice(COLUMNS) for _ in range(rng.randrange(1, 4))]
    if rng.random() < 0.7:
        columns[0] = "input"
    if rng.random() < 0.5:
        rows = [",".join(columns)]
        for _ in range(rng.randrange(1, 4)):
            cells = [rng.choice(CELLS) for _ in columns]
            if rng.random() < 0.6:
                cells = ['"' + cell.replace('"', '""') + '"' for cell in cells]
            rows.append(",".join(cells))
        name = f"{seed:06}.csv"
    else:
        rows = []
        for _ in range(rng.randrange(1, 4)):
            pairs = ", ".join(f"{json.dumps(c)}: {rng.choice(JSON_VALUES)}" for c in columns)
            rows.append("{" + pairs + "}" if rng.random() < 0.9 else rng.choice(JSON_VALUES))
        name = f"{seed:06}.jsonl"
    content = rng.choice(["\n", "\r\n", "\n\n"]).join(rows).encode("utf-8", "surrogatepass")
    return name, _turn_bits(rng, "PPM", content) if rng.random() < 0.15 else content


FOREIGN = ("parameters", "prompt", "workflow", "invokeai_metadata", "sd-metadata", "Dream", "Comment")


def make_metadata(seed: int) -> tuple[str, bytes]:
    """Return a picture whose record of how it was made is hostile."""
    rng = Random(seed)
    record: dict[str, object] = {
        "version": "0",
        "input": "a.png",
        "preset": rng.choice(["edit", "edit", "nope", "~nobody/x.yaml", "a" * 5000 + ".yaml", "\ud800", 7]),
        "seed": rng.choice([1, -1, "x", None, 1e300]),
        "parameters": {"task": "edit", "prompt": "p"},
    }
    for _ in range(rng.randrange(3)):
        key = rng.choice([*record, "control_image", "mask", "fingerprint"])
        odd = {"task": "edit", "prompt": "p", "lora": ["x:y"], "strength": rng.choice(["high", 0.5])}
        tasks = [{"task": "edit"}, {"task": "x"}, {"prompt": []}, odd]
        record[key] = rng.choice([None, [], {}, "\ud800", "a\nb\x1b[2J", 1.5, *tasks])
    if rng.random() < 0.1:
        record.pop(rng.choice(list(record)))
    text = json.dumps(record)
    text = rng.choice(
        [text, text, text, text[:-2], "[" * 5000, "[]", "7", '"parameters"', "null", '{"seed": ' + "9" * 5000 + "}"]
    )
    kind = rng.choice(["PNG", "JPEG", "WEBP", "TIFF"])
    image, buffer = Image.new("RGB", (9, 9)), io.BytesIO()
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add(*_text_chunk(rng, rng.choice(["img2img", "img2img", *FOREIGN]), text), after_idat=rng.random() < 0.3)
        image.save(buffer, kind, pnginfo=info)
    else:
        exif = Image.Exif()
        exif[0x9213] = text
        exif.get_ifd(0x8769)[0x9286] = rng.choice(
            [b"UNICODE\0\xd8\0\0x", b"ASCII\0\0\0x", b"x", b"UNICODE\0\0" + b"\0x" * 9]
        )
        image.save(buffer, kind, exif=exif)
    content = buffer.getvalue()
    return f"{seed:06}{EXTENSIONS[kind]}", _turn_bits(rng, kind, content) if rng.random() < 0.3 else content


def _text_chunk(rng: Random, key: str, text: str) -> tuple[bytes, bytes]:
    content = text.encode()
    if rng.random() < 0.5:
        return b"tEXt", key.encode() + b"\0" + content
    if rng.random() < 0.5:
        return b"zTXt", key.encode() + b"\0\0" + zlib.compress(content)
    return b"iTXt", key.encode() + b"\0\0\0\0\0" + content
