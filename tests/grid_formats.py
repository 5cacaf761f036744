"""PNG, PFM, PNM, JPEG 2000, AVIF and WebP in the grid of modes."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator

import imagecodecs
import numpy as np
from grid_common import HEIGHT, WIDTH, Case, expect, pack_line, ramps, restore, store


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_png(stored: np.ndarray, bits: int, colour: int, before: bytes = b"") -> bytes:
    """Return a PNG of the numbers `(H, W, C)`."""
    lines = stored.reshape(HEIGHT, -1)
    rows = b"".join(b"\0" + pack_line(line, bits, "u", ">") for line in lines)
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def pngs() -> Iterator[Case]:
    """Yield PNGs: colour types x bits x tRNS."""
    for colour, bits, keyed in itertools.product((0, 2, 4, 6), (1, 2, 4, 8, 16), (False, True)):
        if (colour and bits < 8) or (keyed and colour > 3):
            continue
        stored = store(ramps({0: 1, 2: 3, 4: 2, 6: 4}[colour]), "u", bits)
        values = restore(stored, "u", bits)
        rgb, alpha, _ = expect("RGB" if colour & 2 else "grey", values, (2,) if colour & 4 else ())
        before = b""
        if keyed:
            key = stored[6, 4]
            before = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key.tolist()))
            alpha = np.where((stored == key).all(axis=-1), 0, 255)
        data = write_png(stored, bits, colour, before)
        name = f"PNG colour type {colour}, {bits} bits{', one transparent' if keyed else ''}"
        yield Case(
            name=name, group="PNG", data=data, rgb=rgb, alpha=alpha, samples=stored if bits >= 8 and not keyed else None
        )
    for bits, keyed in itertools.product((1, 2, 4, 8), (False, True)):
        table = np.random.default_rng(bits).integers(0, 256, (1 << bits, 3))
        index = np.random.default_rng(9).integers(0, 1 << bits, (HEIGHT, WIDTH))
        opacity = np.full(1 << bits, 255)
        opacity[:2] = (9, 100)
        before = chunk(b"PLTE", table.astype(np.uint8).tobytes())
        before += chunk(b"tRNS", bytes([9, 100])) if keyed else b""
        yield Case(
            name=f"PNG palette, {bits} bits, {keyed}",
            group="PNG",
            data=write_png(index[..., None], bits, 3, before),
            rgb=table[index],
            alpha=opacity[index] if keyed else None,
        )


def others() -> Iterator[Case]:
    """Yield PFM, PNM, JPEG 2000, AVIF and WebP."""
    grey, rgb = ramps(1)[..., 0], ramps(3)
    for order, sign, top in itertools.product("<>", "-", (1, 1.004, 1.6, 255, 257)):
        data = b"Pf\n%d %d\n%s1.0\n" % (WIDTH, HEIGHT, b"-" if order == "<" else b"")
        data += (grey[::-1] * top).astype(f"{order}f4").tobytes()
        seen = np.repeat((grey * top / (1 if top < 2 else 255)).clip(0, 1)[..., None] * 255, 3, axis=-1)
        yield Case(name=f"PFM {order}, up to {top}{sign}", group="PFM", data=data, rgb=seen)
    for kind, bits in itertools.product((5, 6), (1, 4, 8, 10, 16)):
        values = store(rgb if kind == 6 else grey[..., None], "u", bits)
        data = (
            b"P%d\n%d %d\n%d\n" % (kind, WIDTH, HEIGHT, 2**bits - 1)
            + values.astype(">u2" if bits > 8 else "u1").tobytes()
        )
        seen, _, _ = expect("RGB" if kind == 6 else "grey", restore(values, "u", bits), ())
        yield Case(name=f"P{kind}, {bits} bits", group="PNM", data=data, rgb=seen)
    for channels, bits in itertools.product((1, 2, 3, 4), (8, 12, 16)):
        stored = store(ramps(channels), "u", bits)
        if bits > 8 and channels > 1:
            stored = np.clip(stored, 1 << bits - 8, 250 << bits - 8)  # see the next
        data = imagecodecs.jpeg2k_encode(stored.squeeze(), bitspersample=bits, level=0, reversible=True)
        seen, alpha, _ = expect(
            "RGB" if channels > 2 else "grey", restore(stored, "u", bits), () if channels % 2 else (2,)
        )
        yield Case(name=f"JPEG 2000, {channels} x {bits}", group="JPEG 2000", data=data, rgb=seen, alpha=alpha, off=1.5)
    for bits in (12, 16):
        white = np.full((HEIGHT, WIDTH, 3), 2**bits - 1, np.uint16)
        data = imagecodecs.jpeg2k_encode(white, bitspersample=bits, level=0, reversible=True)
        yield Case(name=f"JPEG 2000, white, 3 x {bits}", group="JPEG 2000", data=data)
    for channels, bits in itertools.product((3, 4), (8, 10, 12)):
        stored = store(ramps(channels), "u", bits)
        data = imagecodecs.avif_encode(stored, level=100, bitspersample=bits, pixelformat="444", speed=6)
        seen, alpha, _ = expect("RGB", restore(stored, "u", bits), () if channels == 3 else (2,))
        yield Case(name=f"AVIF, {channels} x {bits}", group="AVIF", data=data, rgb=seen, alpha=alpha, off=2)
    for channels in (3, 4):
        stored = store(ramps(channels), "u", 8)
        data = imagecodecs.webp_encode(stored, lossless=True)
        seen, alpha, _ = expect("RGB", restore(stored, "u", 8), () if channels == 3 else (2,))
        shown = seen if alpha is None else np.where(alpha[..., None] > 0, seen, np.nan)
        yield Case(name=f"WebP, {channels}", group="WebP", data=data, rgb=shown, alpha=alpha)
