"""Pictures and files for several tests, the same on each run."""

from __future__ import annotations

import functools
import io
import math
import struct
import zlib
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms
from skimage import color, data

KINDS = ("gradient", "noise", "primaries", "near_black", "near_white", "astronaut", "coffee", "chelsea")
ORIENTATION = ExifTags.Base.Orientation
EXIF, GPS = ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo
# Colorants of Adobe RGB (1998), adapted to D50.
WIDE_PRIMARIES = {
    b"rXYZ": (0.60974, 0.31111, 0.01947),
    b"gXYZ": (0.20528, 0.62567, 0.06087),
    b"bXYZ": (0.14919, 0.06322, 0.74457),
}


@functools.cache
def _pixels(kind: str, width: int, height: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, len(kind), width, height])
    if kind == "gradient":
        across, down = np.linspace(0, 255, width)[None, :], np.linspace(0, 255, height)[:, None]
        planes = np.broadcast_arrays(across, down, (across + 255 - down) / 2)
        return np.stack(planes, -1).round().astype(np.uint8)
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "primaries":
        blocks = rng.integers(0, 2, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8) * 255
        return blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    if kind == "near_black":
        return rng.integers(0, 6, (height, width, 3), dtype=np.uint8)
    if kind == "near_white":
        return rng.integers(250, 256, (height, width, 3), dtype=np.uint8)
    photo = Image.fromarray(getattr(data, kind)())
    return np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS))


def make_picture(kind: str, size: tuple[int, int] = (96, 72), seed: int = 0) -> Image.Image:
    """Return an RGB picture of one of `KINDS`."""
    return Image.fromarray(_pixels(kind, *size, seed).copy())


def random_chroma(size: tuple[int, int], seed: int = 0, blocks: int = 6) -> Image.Image:
    """Return patches of fully saturated colours, like the output of a broken model."""
    rng = np.random.default_rng(seed)
    hue = rng.uniform(0, 1, (blocks, blocks))
    hsv = np.stack([hue, np.ones_like(hue), rng.uniform(0.3, 1, hue.shape)], -1)
    patches = Image.fromarray((color.hsv2rgb(hsv) * 255).astype(np.uint8))
    return patches.resize(size, Image.Resampling.NEAREST)


def lightness(image: Image.Image) -> np.ndarray:
    """Return L* by scikit-image, which shares no code with ours."""
    return color.rgb2lab(np.asarray(image.convert("RGB")))[..., 0]


def psnr(image: Image.Image, other: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two 8-bit pictures in dB."""
    error = np.mean((np.asarray(image, float) - np.asarray(other, float)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def encode(image: Image.Image, format_: str, **options: Any) -> bytes:
    """Return a picture as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def decode(content: bytes) -> Image.Image:
    """Decode a file completely."""
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def camera_exif(orientation: int | None = None) -> Image.Exif:
    """Return EXIF as written by a camera with a GPS receiver."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Lumen"
    if orientation is not None:
        exif[ORIENTATION] = orientation
    exif.get_ifd(EXIF)[ExifTags.Base.DateTimeOriginal] = "1998:07:04 12:30:00"
    exif.get_ifd(GPS)[ExifTags.GPS.GPSLatitudeRef] = "N"
    exif.get_ifd(GPS)[ExifTags.GPS.GPSLatitude] = (52.0, 31.0, 12.0)
    return exif


@functools.cache
def wide_profile() -> bytes:
    """Return an ICC profile with Adobe RGB's primaries: sRGB's, with the three colorant tags replaced."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", profile, 128)
    for index in range(count):
        tag, offset, _ = struct.unpack_from(">4sII", profile, 132 + 12 * index)
        if tag in WIDE_PRIMARIES:
            struct.pack_into(">3i", profile, offset + 8, *(round(v * 65536) for v in WIDE_PRIMARIES[tag]))
    profile[84:100] = bytes(16)  # the checksum of what was there before
    return bytes(profile)


def scanner_profile() -> bytes:
    """Return an RGB profile with only a lookup table to CIELAB, as scanners have, which cannot convert back."""
    to_lab = struct.pack(">4s4xBBBx9i", b"mft1", 3, 3, 2, 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    straight = bytes(range(256)) * 3
    corners = [Image.new("RGB", (1, 1), tuple(255 * (i >> s & 1) for s in (2, 1, 0))) for i in range(8)]
    lab = [color.rgb2lab(np.asarray(corner))[0, 0] for corner in corners]
    grid = bytes(int(v) for cell in lab for v in (cell[0] * 2.55, *(cell[1:] + 128).clip(0, 255)))
    table = to_lab + straight + grid + straight
    text = struct.pack(">4s4xI", b"desc", 5) + b"scan\0" + bytes(78)
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    tags, body, offset = b"", b"", 128 + 4 + 12 * 3
    for name, content in ((b"A2B0", table), (b"desc", text), (b"wtpt", white)):
        content += bytes(-len(content) % 4)
        tags += struct.pack(">4sII", name, offset + len(body), len(content))
        body += content
    kinds = (b"scnr", b"RGB ", b"Lab ", b"acsp")
    header = struct.pack(">I4xI4s4s4s12x4s", offset + len(body), 0x02400000, *kinds).ljust(68, b"\0")
    header = header + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", 3) + tags + body


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """Return a PNG of a few bytes that declares billions of pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
