"""Read parameters hidden in the lowest bits of pixels: the stealth PNG info of the web UI and of NovelAI."""

from __future__ import annotations

import zlib

import numpy as np
from PIL import Image

from img2img_cli.tasks.foreign.fields import MAX_TEXT

# The bits run down the columns, from left to right: a name of 15 bytes, the length in bits as 32 bits, the content.
NAME_BYTES = 15
HEAD_BYTES = NAME_BYTES + 4
NAMES = {
    "A": {b"stealth_pnginfo": False, b"stealth_pngcomp": True},
    "RGB": {b"stealth_rgbinfo": False, b"stealth_rgbcomp": True},
}


def read_stealth(image: Image.Image) -> str | None:
    """Return the hidden text of a decoded picture, or None if there is none."""
    for bands, names in NAMES.items():
        if not set(bands) <= set(image.getbands()):
            continue
        head = _read_bytes(image, bands, HEAD_BYTES)
        if (packed := names.get(head[:NAME_BYTES])) is None:
            continue
        length = int.from_bytes(head[NAME_BYTES:]) // 8
        if 0 < length <= min(MAX_TEXT, image.width * image.height * len(bands) // 8 - HEAD_BYTES):
            content = _read_bytes(image, bands, HEAD_BYTES + length)[HEAD_BYTES:]
            return _unpack(content) if packed else content.decode("utf-8", "replace")
    return None


def _read_bytes(image: Image.Image, bands: str, count: int) -> bytes:
    """Return the first `count` bytes in the lowest bits of these bands, or fewer if the picture is too small."""
    columns = min(image.width, -(-count * 8 // (image.height * len(bands))))
    strip = image.crop((0, 0, columns, image.height))
    bits = np.stack([np.asarray(strip.getchannel(band)) & 1 for band in bands], -1)
    return np.packbits(bits.transpose(1, 0, 2).ravel()[: count * 8]).tobytes()


def _unpack(content: bytes) -> str | None:
    """Return the text of gzip data; None if the data is damaged or unpacks to more than `MAX_TEXT` bytes."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        text = unpacker.decompress(content, MAX_TEXT)
    except zlib.error:
        return None
    return text.decode("utf-8", "replace") if unpacker.eof else None
