"""Write PNG and TIFF with three channels of 16 bits, which Pillow can read but not write.

Pillow writes the file with its metadata and other pixels; the functions here replace the pixels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

from img2img_cli.pictures.files.sixteen_bit import Deep

PNG_SIGNATURE_BYTES = 8
IMAGE_WIDTH, BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLES_PER_PIXEL, SAMPLE_FORMAT = 256, 258, 262, 277, 339
SHORT, LONG, RGB = 3, 4, 2
BAND_PIXELS = 1 << 21


def deepen_png(data: bytes, pixels: Deep) -> bytes:
    """Replace the pixels of an encoded 8-bit RGB PNG by 16-bit pixels `(H, W, 3)`."""
    parts, place, is_written = [data[:PNG_SIGNATURE_BYTES]], PNG_SIGNATURE_BYTES, False
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        content = data[place + 8 : place + 8 + length]
        place += 12 + length
        if kind == b"IHDR":
            content = content[:8] + bytes([16]) + content[9:]
        if kind != b"IDAT":
            parts.append(_chunk(kind, content))
        elif not is_written:
            parts += [_chunk(b"IDAT", band) for band in _compress(pixels)]
            is_written = True
    return b"".join(parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _compress(pixels: Deep) -> Iterator[bytes]:
    """Yield the zlib stream of the pixels in parts. Each row is its difference from the one above (PNG's filter 2)."""
    height, width = pixels.shape[:2]
    squeeze, above = zlib.compressobj(6), np.zeros((1, width * 6), np.uint8)
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, rows):
        band = pixels[top : top + rows].astype(">u2").view(np.uint8).reshape(-1, width * 6)
        filtered = np.full((len(band), 1 + width * 6), 2, np.uint8)
        filtered[:, 1:] = band - np.concatenate([above, band[:-1]])
        above = band[-1:]
        if part := squeeze.compress(filtered.tobytes()):
            yield part
    yield squeeze.flush()


def deepen_tiff(data: bytes, width: int) -> bytes:
    """Turn an uncompressed TIFF of 16-bit grey, `3 * width` pixels wide, into RGB, `width` pixels wide.

    A new directory is written at the end; the data that the old one refers to does not move.
    """
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    entries = {}
    for index in range(count):
        entry = data[start + 2 + 12 * index : start + 14 + 12 * index]
        entries[struct.unpack_from(f"{order}H", entry)[0]] = entry
    entries.pop(SAMPLE_FORMAT, None)
    data += bytes(len(data) % 2) + struct.pack(f"{order}3H", 16, 16, 16)
    entries[IMAGE_WIDTH] = struct.pack(f"{order}HHII", IMAGE_WIDTH, LONG, 1, width)
    entries[BITS_PER_SAMPLE] = struct.pack(f"{order}HHII", BITS_PER_SAMPLE, SHORT, 3, len(data) - 6)
    entries[PHOTOMETRIC] = struct.pack(f"{order}HHIHH", PHOTOMETRIC, SHORT, 1, RGB, 0)
    entries[SAMPLES_PER_PIXEL] = struct.pack(f"{order}HHIHH", SAMPLES_PER_PIXEL, SHORT, 1, 3, 0)
    head = data[:4] + struct.pack(f"{order}I", len(data))
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries))
    return head + data[8:] + directory + bytes(4)
