"""Hundreds of small pictures, one for each way to store pixels, with what they must be read as.

`python tests/mode_grid.py` reads them all, compares tifffile's and imagecodecs' reading too, and prints a table.
"""

from __future__ import annotations

import io
import itertools
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import imagecodecs
import numpy as np
import tifffile
from skimage import color

WIDTH, HEIGHT = 19, 13


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file and what it shows.

    Attributes:
        group: the row of the table that it belongs to.
        rgb: `(H, W, 3)` in 0..255, or None where it must be refused.
        alpha: `(H, W)` in 0..255, or None.
        off: by how much a channel may differ.
        samples: what an independent reader must find, to show that the file is what it says.
    """

    name: str
    group: str
    data: bytes
    rgb: np.ndarray | None = None
    alpha: np.ndarray | None = None
    off: float = 1.0
    samples: np.ndarray | None = None


def ramps(channels: int) -> np.ndarray:
    """`(H, W, channels)` in 0..1 with both ends in each channel."""
    down, across = np.mgrid[0:HEIGHT, 0:WIDTH] / np.array([HEIGHT - 1, WIDTH - 1])[:, None, None]
    planes = [across, down, (across + 1 - down) / 2, 1 - across, (1 - across) * down, across * down]
    return np.stack(planes[:channels], axis=-1)


def store(values: np.ndarray, kind: str, bits: int) -> np.ndarray:
    """0..1 as a file's numbers."""
    if kind == "f":
        return values.astype(f"f{bits // 8}")
    if kind == "i":
        half = 1 << bits - 1
        return (np.round(values * (2 * half - 1)).astype(np.int64) - half).astype(f"i{bits // 8}")
    size = 1 if bits <= 8 else 2 if bits <= 16 else 4
    return np.round(values * (2**bits - 1)).astype(f"u{size}")


def restore(stored: np.ndarray, kind: str, bits: int) -> np.ndarray:
    """A file's numbers as 0..1."""
    low = -(1 << bits - 1) if kind == "i" else 0
    return stored.astype(float) if kind == "f" else (stored.astype(float) - low) / (2**bits - 1)


def write_tiff(
    planes: list[np.ndarray],
    bits: int,
    kind: str,
    *,
    order: str = "<",
    planar: int = 1,
    photometric: int = 1,
    extras: tuple[int, ...] = (),
    fill: int = 1,
    more: tuple = (),
    rows: int = HEIGHT,
) -> bytes:
    """An uncompressed TIFF of any number of bits; tifffile writes those of whole bytes alone."""
    blocks = [[plane] for plane in planes] if planar == 2 else [planes]
    strips = []
    for block in blocks:
        for top in range(0, HEIGHT, rows):
            lines = np.stack(block, axis=-1)[top : top + rows].reshape(-1, WIDTH * len(block))
            strips.append(b"".join(_pack(line, bits, kind, order) for line in lines))
    if fill == 2:
        table = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
        strips = [strip.translate(table) for strip in strips]
    formats = {"u": 1, "i": 2, "f": 3}
    starts = np.cumsum([8, *map(len, strips)]).tolist()
    tags = {
        256: (WIDTH,),
        257: (HEIGHT,),
        258: (bits,) * len(planes),
        259: (1,),
        262: (photometric,),
        266: (fill,),
        273: starts[:-1],
        277: (len(planes),),
        278: (rows,),
        279: tuple(map(len, strips)),
        284: (planar,),
        339: (formats[kind],) * len(planes),
    }
    if extras:
        tags[338] = extras
    tags.update(more)
    body, entries = b"".join(strips), b""
    for tag, numbers in sorted(tags.items()):
        letter, code = ("I", 4) if tag in (273, 279) else ("H", 3)
        content = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        if len(content) > 4:
            body += bytes(len(body) % 2)
            content, body = struct.pack(f"{order}I", 8 + len(body)), body + content
        entries += struct.pack(f"{order}HHI", tag, code, len(numbers)) + content.ljust(4, b"\0")
    body += bytes(len(body) % 2)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(body))
    return head + body + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def _pack(line: np.ndarray, bits: int, kind: str, order: str) -> bytes:
    if bits in (16, 32, 64):
        return line.astype(f"{order}{kind}{bits // 8}").tobytes()
    if bits == 24:
        return b"".join(int(value).to_bytes(3, "little" if order == "<" else "big") for value in line)
    text = "".join(f"{int(value) & (1 << bits) - 1:0{bits}b}" for value in line)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8))


# name: photometric, channels of colour
INKS = {"grey": (1, 1), "white is zero": (0, 1), "RGB": (2, 3), "CMYK": (5, 4)}
TYPES = [("u", bits) for bits in (1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32)]
TYPES += [("i", 8), ("i", 16), ("i", 32), ("f", 16), ("f", 32), ("f", 64)]
ALPHAS = {"": (), " + alpha": (2,), " + premultiplied alpha": (1,), " + extra": (0,), " + extra + alpha": (0, 2)}


def expect(ink: str, values: np.ndarray, extras: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None, float]:
    """What channels in 0..1 look like: colour, alpha and the tolerance."""
    colours = INKS[ink][1]
    colour, alpha, off = values[..., :colours], None, 1.0
    for index, extra in enumerate(extras):
        if extra in (1, 2):
            alpha = values[..., colours + index]
            if extra == 1:
                colour, off = np.where(alpha[..., None] > 0.3, colour / np.maximum(alpha[..., None], 0.01), -1), 5.0
    if ink == "white is zero":
        colour = 1 - colour
    if ink == "CMYK":
        colour, off = (1 - colour[..., :3]) * (1 - colour[..., 3:]), 2.0  # four roundings
    known = (colour >= 0).all(axis=-1, keepdims=True)
    colour = np.where(known, colour.clip(0, 1) * 255, np.nan)
    return np.broadcast_to(colour, (HEIGHT, WIDTH, 3)), None if alpha is None else alpha * 255, off


def plain_tiffs() -> Iterator[Case]:
    """Uncompressed: ink x extra channels x type x planes x byte order x strips."""
    for ink, (extra, extras), (kind, bits), planar, order, rows in itertools.product(
        INKS, ALPHAS.items(), TYPES, (1, 2), "<>", (HEIGHT, 5)
    ):
        photometric, colours = INKS[ink]
        channels = colours + len(extras)
        if planar == 2 and channels == 1:
            continue
        values = ramps(channels)
        if 1 in extras:
            values = np.concatenate([values[..., :colours] * values[..., -1:], values[..., colours:]], axis=-1)
            if ink in ("white is zero", "CMYK") or bits < 8:
                continue  # nobody knows what that would be
        stored = store(values, kind, bits)
        planes = [stored[..., index] for index in range(channels)]
        data = write_tiff(
            planes, bits, kind, order=order, planar=planar, photometric=photometric, extras=extras, rows=rows
        )
        rgb, alpha, off = expect(ink, restore(stored, kind, bits), extras)
        name = f"{ink}{extra}, {kind}{bits}, {'planar' if planar == 2 else 'chunky'}, {order}, {rows} rows"
        known = stored if kind != "f" and bits in (8, 16, 32) else None
        yield Case(name=name, group=f"TIFF {ink}{extra}", data=data, rgb=rgb, alpha=alpha, off=off, samples=known)


def packed_tiffs() -> Iterator[Case]:
    """By tifffile: type x compression x predictor x tiles x BigTIFF x byte order x planes."""
    codecs = [None, "lzw", "deflate", "packbits", "zstd", "lzma"]
    for (ink, extra), (kind, bits), codec, predictor, tile, big, order, planar in itertools.product(
        [("grey", ""), ("RGB", ""), ("RGB", " + alpha"), ("CMYK", ""), ("CMYK", " + extra")],
        [("u", 8), ("u", 16), ("u", 32), ("i", 16), ("f", 16), ("f", 32), ("f", 64)],
        codecs,
        (False, True),
        (None, (16, 16)),
        (False, True),
        "<>",
        ("contig", "separate"),
    ):
        photometric, colours = INKS[ink]
        channels = colours + len(ALPHAS[extra])
        if (predictor and codec in (None, "packbits")) or (channels == 1 and planar == "separate"):
            continue
        stored = store(ramps(channels), kind, bits)
        stream = io.BytesIO()
        pixels = stored[..., 0] if channels == 1 else stored if planar == "contig" else np.moveaxis(stored, -1, 0)
        tifffile.imwrite(
            stream,
            np.ascontiguousarray(pixels),
            photometric=photometric,
            compression=codec,
            predictor=predictor,
            tile=tile,
            bigtiff=big,
            byteorder=order,
            metadata=None,
            planarconfig=None if channels == 1 else planar,
            extrasamples=ALPHAS[extra] or None,
            rowsperstrip=None if tile else 5,
        )
        rgb, alpha, off = expect(ink, restore(stored, kind, bits), ALPHAS[extra])
        name = f"{ink}{extra}, {kind}{bits}, {codec}, predictor {predictor}, {tile}, big {big}, {order}, {planar}"
        yield Case(
            name=name,
            group=f"TIFF {codec or 'raw'}",
            data=stream.getvalue(),
            rgb=rgb,
            alpha=alpha,
            off=off,
            samples=np.squeeze(pixels),
        )


def odd_tiffs() -> Iterator[Case]:
    """Reversed bits, palettes, Lab, subsampled chroma, what nobody reads."""
    for ink, kind, bits, order in itertools.product(("grey", "white is zero", "RGB"), "u", (1, 2, 4, 8, 12, 16), "<>"):
        stored = store(ramps(INKS[ink][1]), kind, bits)
        planes = [stored[..., index] for index in range(INKS[ink][1])]
        data = write_tiff(planes, bits, kind, order=order, photometric=INKS[ink][0], fill=2)
        rgb, _, off = expect(ink, restore(stored, kind, bits), ())
        yield Case(
            name=f"{ink}, u{bits}, {order}, reversed bits", group="TIFF reversed bits", data=data, rgb=rgb, off=off
        )
    for bits, order, extras in itertools.product((1, 2, 4, 8, 16), "<>", ((), (2,), (0,))):
        table = np.random.default_rng(bits).integers(0, 256, (3, 1 << bits)) * 257
        index = np.random.default_rng(9).integers(0, 1 << bits, (HEIGHT, WIDTH))
        second = store(ramps(1)[..., 0], "u", bits)
        data = write_tiff(
            [index, *[second] * len(extras)],
            bits,
            "u",
            order=order,
            photometric=3,
            extras=extras,
            more=((320, tuple(table.ravel().tolist())),),
        )
        alpha = restore(second, "u", bits) * 255 if extras == (2,) else None
        yield Case(
            name=f"palette, u{bits}, {order}, extras {extras}",
            group="TIFF palette",
            data=data,
            rgb=np.moveaxis(table[:, index] / 257, 0, -1),
            alpha=alpha,
        )
    lab = np.stack([ramps(1)[..., 0] * 100, ramps(2)[..., 1] * 40 - 20, 15 - ramps(1)[..., 0] * 30], axis=-1)
    seen = color.lab2rgb(lab) * 255
    for bits, photometric, order, planar in itertools.product((8, 16), (8, 9), "<>", (1, 2)):
        scale, top = 1 << bits - 8, 2**bits - 1
        ab = np.round(lab[..., 1:] * scale).astype(int)
        stored = [
            np.round(lab[..., 0] / 100 * top),
            *(np.moveaxis(ab, -1, 0) + (0 if photometric == 8 else 128 * scale)),
        ]
        planes = [(np.asarray(plane).astype(int) & top).astype(f"u{bits // 8}") for plane in stored]
        data = write_tiff(planes, bits, "u", order=order, planar=planar, photometric=photometric)
        yield Case(
            name=f"Lab {photometric}, u{bits}, {order}, planar {planar}", group="TIFF Lab", data=data, rgb=seen, off=7
        )
    plane = store(ramps(1)[..., 0], "u", 8)
    for name, options in {
        "transparency mask": {"photometric": 4},
        "ITU Lab": {"photometric": 10},
        "raw sensor": {"photometric": 32803},
        "JPEG XL": {"more": ((259, (50002,)),)},
        "LERC": {"more": ((259, (34887,)),)},
        "unknown compression": {"more": ((259, (777,)),)},
        "complex": {"more": ((339, (6,)),)},
    }.items():
        yield Case(name=name, group="TIFF refused", data=write_tiff([plane], 8, "u", **options))
    mixed = write_tiff([plane] * 3, 8, "u", photometric=2, more=((258, (8, 8, 16)),))
    yield Case(name="mixed depths", group="TIFF refused", data=mixed)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_png(stored: np.ndarray, bits: int, colour: int, before: bytes = b"") -> bytes:
    """A PNG of `(H, W, C)` numbers."""
    lines = stored.reshape(HEIGHT, -1)
    rows = b"".join(b"\0" + _pack(line, bits, "u", ">") for line in lines)
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def pngs() -> Iterator[Case]:
    """Colour types x bits x tRNS."""
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
    """PFM, PNM, JPEG 2000, AVIF and WebP."""
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


def legacy() -> Iterator[Case]:
    """TGA, PCX, ICO, PSD and DDS."""
    yield from tgas()
    yield from pcxs()
    yield from icons()
    yield from psds()
    yield from ddss()


def tgas() -> Iterator[Case]:
    """Kinds x run lengths x orientations."""
    values = store(ramps(4), "u", 8)
    rgb, alpha, _ = expect("RGB", ramps(4), (2,))
    grey = np.repeat(values[..., :1], 3, axis=-1)
    table = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    kinds = {
        "grey": (3, 8, values[..., :1], grey, None),
        "RGB": (2, 24, values[..., 2::-1], rgb, None),
        "RGBA": (2, 32, values[..., [2, 1, 0, 3]], rgb, alpha),
        "RGBA of no alpha": (2, 32, values[..., [2, 1, 0, 3]] * np.array([1, 1, 1, 0], np.uint8), rgb, None),
        "palette": (1, 8, values[..., :1], table[values[..., 0]], None),
    }
    for (name, (kind, bits, stored, seen, opacity)), packed, turned in itertools.product(
        kinds.items(), (False, True), (0x00, 0x10, 0x20, 0x30)
    ):
        has_map = kind == 1
        lines = stored if turned & 0x20 else stored[::-1]
        lines = lines[:, ::-1] if turned & 0x10 else lines
        size = (0, 256, 24) if has_map else (0, 0, 0)
        head = struct.pack(
            "<BBBHHBHHHHBB", 0, has_map, kind + 8 * packed, *size, 0, 0, WIDTH, HEIGHT, bits, turned | 8 * (bits == 32)
        )
        body = table[:, ::-1].tobytes() if has_map else b""
        for pixel in lines.reshape(-1, bits // 8):
            body += (b"\x80" if packed else b"") + pixel.tobytes()
        yield Case(name=f"TGA {name}, {packed}, {turned}", group="TGA", data=head + body, rgb=seen, alpha=opacity)


def pcxs() -> Iterator[Case]:
    """Bits x planes."""
    table = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    values = store(ramps(3), "u", 8)
    bit = values[..., :1] > 127
    for name, bits, stored, seen in (
        ("1 bit", 1, bit.astype(np.uint8), np.repeat(bit * 255, 3, axis=-1)),
        ("RGB", 8, values, values),
        ("palette", 8, values[..., :1], table[values[..., 0]]),
        ("2 x 4 bits", 4, values[..., :1] >> 4, None),
    ):
        planes = stored.shape[-1]
        stride = -(-WIDTH * bits // 8)
        stride += stride % 2
        head = struct.pack("<BBBB6H", 10, 5, 1, bits, 0, 0, WIDTH - 1, HEIGHT - 1, 72, 72)
        head = (head + bytes(48) + struct.pack("<BBHH", 0, planes, stride, 1)).ljust(128, b"\0")
        body = b""
        for line in stored:
            for plane in range(planes):
                for byte in _pack(line[:, plane], bits, "u", ">").ljust(stride, b"\0"):
                    body += bytes([0xC1, byte])
        data = head + body + (b"\x0c" + table.tobytes() if name == "palette" else b"")
        yield Case(name=f"PCX {name}", group="PCX", data=data, rgb=seen)


def icons() -> Iterator[Case]:
    """Bitmaps and PNG; the largest picture, and of those the one of most bits, is behind the others."""
    values = store(ramps(4), "u", 8)
    rgb, alpha, _ = expect("RGB", ramps(4), (2,))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:4] = 1  # transparent
    and_mask = b"".join(_pack(line, 1, "u", ">").ljust(4, b"\0") for line in mask[::-1])
    for name, bits, stored in (("RGB", 24, values[..., 2::-1]), ("RGBA", 32, values[..., [2, 1, 0, 3]])):
        rows = b"".join(
            line.tobytes().ljust(-(-WIDTH * bits // 32) * 4, b"\0") for line in np.ascontiguousarray(stored[::-1])
        )
        content = struct.pack("<IiiHHIIiiII", 40, WIDTH, 2 * HEIGHT, 1, bits, *[0] * 6) + rows + and_mask
        seen = alpha if bits == 32 else np.where(mask, 0, 255)
        yield Case(name=f"ICO {name}", group="ICO", data=_pack_icon(content, bits), rgb=rgb, alpha=seen)
    content = write_png(values, 8, 6)
    yield Case(name="ICO of a PNG", group="ICO", data=_pack_icon(content, 32), rgb=rgb, alpha=alpha)


def _pack_icon(content: bytes, bits: int) -> bytes:
    small = struct.pack("<IiiHHIIiiII", 40, 8, 16, 1, 24, *[0] * 6) + bytes(8 * 24 + 32)
    poor = struct.pack("<IiiHHIIiiII", 40, WIDTH, 2 * HEIGHT, 1, 1, *[0] * 6) + bytes(8 + 8 * HEIGHT)
    sizes = [(8, 8, 24, small), (WIDTH, HEIGHT, 1, poor), (WIDTH, HEIGHT, bits, content)]
    head, body, start = struct.pack("<HHH", 0, 1, 3), b"", 6 + 16 * 3
    for width, height, depth, part in sizes:
        head += struct.pack("<BBBBHHII", width, height, 0, 0, 1, depth, len(part), start + len(body))
        body += part
    return head + body


def psds() -> Iterator[Case]:
    """Modes x extra channels x run lengths."""
    rgb = ramps(3)
    for (mode, colours, ink), extra, packed in itertools.product(
        ((1, 1, "grey"), (3, 3, "RGB"), (4, 4, "CMYK")), ("", "extra", "two extras", "transparency"), (False, True)
    ):
        channels = {"": 0, "extra": 1, "two extras": 2, "transparency": 1}[extra] + colours
        values = ramps(channels)
        stored = values
        if ink == "CMYK":
            stored = np.concatenate([1 - values[..., :4], values[..., 4:]], axis=-1)
        if extra == "transparency":
            alpha = values[..., colours:]
            stored = np.concatenate([values[..., :colours] * alpha + 1 - alpha, alpha], axis=-1)
        seen, opacity, off = expect(ink, values, (2,) if extra == "transparency" else ())
        if extra == "transparency":
            seen = np.where(opacity[..., None] > 70, seen, np.nan)
            off = 4.0
        data = write_psd(store(stored, "u", 8), mode, layers=-1 if extra == "transparency" else 1, packed=packed)
        refused = extra == "transparency" and ink != "RGB"
        yield Case(
            name=f"PSD {ink}, {extra or 'plain'}, {packed}",
            group="PSD",
            data=data,
            rgb=None if refused else seen,
            alpha=None if refused else opacity,
            off=off,
        )
    bit = rgb[..., :1] > 0.5
    yield Case(
        name="PSD bitmap", group="PSD", data=write_psd(bit, 0, bits=1), rgb=np.repeat(np.where(bit, 0, 255), 3, axis=-1)
    )
    yield Case(name="PSD of 16 bits", group="PSD", data=write_psd(store(rgb, "u", 16), 3, bits=16))
    yield Case(name="PSB", group="PSD", data=write_psd(store(rgb, "u", 8), 3, version=2))
    yield Case(name="PSD of layers alone", group="PSD", data=write_psd(store(rgb, "u", 8), 3, merged=False))


def write_psd(
    stored: np.ndarray,
    mode: int,
    *,
    bits: int = 8,
    layers: int = 1,
    packed: bool = False,
    version: int = 1,
    merged: bool = True,
) -> bytes:
    """A PSD of `(H, W, C)` numbers in its flat picture."""
    channels = stored.shape[-1]
    head = struct.pack(">4sH6xHIIHH", b"8BPS", version, channels, HEIGHT, WIDTH, bits, mode)
    resource = struct.pack(">4sHxxIIBIIIx", b"8BIM", 1057, 17, 1, merged, 0, 0, 1)
    empty = struct.pack(">4iH4s4sBBBBIII4x", *[0] * 5, b"8BIM", b"norm", 255, 0, 0, 0, 12, 0, 0)
    info = struct.pack(">Ih", 2 + len(empty), layers) + empty + bytes(4)
    body = struct.pack(">II", 0, len(resource)) + resource + struct.pack(">I", len(info)) + info
    lines = [_pack(line, bits, "u", ">") for plane in np.moveaxis(stored, -1, 0) for line in plane]
    if packed:
        lines = [b"".join(bytes([0, byte]) for byte in line) for line in lines]
        sizes = struct.pack(f">{len(lines)}H", *map(len, lines))
        return head + body + struct.pack(">H", 1) + sizes + b"".join(lines)
    return head + body + struct.pack(">H", 0) + b"".join(lines)


def ddss() -> Iterator[Case]:
    """Uncompressed, and in blocks as imagecodecs unpacks them."""
    values = store(ramps(4), "u", 8)
    rgb, alpha, _ = expect("RGB", ramps(4), (2,))
    reds, blues = (0xFF, 0xFF00, 0xFF0000), (0xFF0000, 0xFF00, 0xFF)
    for name, bits, masks, opaque, stored in (
        ("BGR", 24, blues, 0, values[..., 2::-1]),
        ("RGB", 24, reds, 0, values[..., :3]),
        ("BGRX", 32, blues, 0, values[..., [2, 1, 0, 3]]),
        ("BGRA", 32, blues, 0xFF000000, values[..., [2, 1, 0, 3]]),
        ("RGBA", 32, reds, 0xFF000000, values),
        ("ABGR", 32, (0xFF000000, 0xFF0000, 0xFF00), 0xFF, values[..., ::-1]),
    ):
        data = _head_dds(0x41 if opaque else 0x40, bits=bits, masks=(*masks, opaque)) + stored.tobytes()
        yield Case(name=f"DDS {name}", group="DDS", data=data, rgb=rgb, alpha=alpha if opaque else None)
    blocks = -(-WIDTH // 4) * -(-HEIGHT // 4)
    for fourcc, number, size, opaque in ((b"DXT1", 1, 8, False), (b"DXT3", 2, 16, True), (b"DXT5", 3, 16, True)):
        content = np.random.default_rng(number).integers(0, 256, (blocks, size), dtype=np.uint8)
        if not opaque:
            content[:, 1], content[:, 3] = 255, 0  # the first colour is larger: four colours, none transparent
        wide = (-(-HEIGHT // 4) * 4, -(-WIDTH // 4) * 4, 4)
        seen = imagecodecs.bcn_decode(content.tobytes(), number, shape=wide)[:HEIGHT, :WIDTH]
        data = _head_dds(4, fourcc=fourcc) + content.tobytes()
        yield Case(
            name=f"DDS {fourcc.decode()}",
            group="DDS",
            data=data,
            rgb=seen[..., :3],
            alpha=seen[..., 3] if opaque else None,
            off=9,
        )
    yield Case(name="DDS BC5", group="DDS", data=_head_dds(4, fourcc=b"ATI2") + bytes(16 * blocks))
    yield Case(name="DDS unknown", group="DDS", data=_head_dds(4, fourcc=b"ETC2") + bytes(16 * blocks))


def _head_dds(flags: int, *, bits: int = 0, masks: tuple[int, ...] = (0, 0, 0, 0), fourcc: bytes = bytes(4)) -> bytes:
    head = struct.pack("<4s4I", b"DDS ", 124, 0x1007, HEIGHT, WIDTH).ljust(76, b"\0")
    return (head + struct.pack("<II4sI4I", 32, flags, fourcc, bits, *masks)).ljust(128, b"\0")


MAKERS = (plain_tiffs, packed_tiffs, odd_tiffs, pngs, others, legacy)


def make_grid() -> Iterator[Case]:
    """All of them."""
    for make in MAKERS:
        yield from make()


def judge(case: Case) -> str | None:
    """What is wrong with our reading of a case, or None."""
    from img2img_cli.errors import InputError
    from img2img_cli.images import load_image

    try:
        picture = load_image(case.name, case.data)
    except InputError as error:
        text = str(error).removeprefix(f"{case.name}: ")
        good = case.rgb is None and "cannot be read; convert it first" in text and "damaged" not in text
        return None if good else f"refused: {text}"
    if case.rgb is None:
        return "read, where nothing is known"
    if picture.size != (WIDTH, HEIGHT):
        return f"its size is {picture.size}"
    if (picture.alpha is None) != (case.alpha is None):
        return "alpha is lost" if picture.alpha is None else "alpha is invented"
    off = np.nanmax(np.abs(np.asarray(picture.rgb, float) - case.rgb))
    if off > case.off + 1e-6:
        return f"colour is off by {off:.1f}"
    if case.alpha is not None and (off := np.abs(np.asarray(picture.alpha, float) - case.alpha).max()) > case.off:
        return f"alpha is off by {off:.1f}"
    return None


def compare_independently(case: Case) -> str | None:
    """Whether tifffile or imagecodecs finds other samples than were stored."""
    if case.samples is None:
        return None
    read = imagecodecs.png_decode(case.data) if case.data[:4] == b"\x89PNG" else tifffile.imread(io.BytesIO(case.data))
    return (
        None
        if (read.squeeze().ravel() == case.samples.ravel()).all()
        or (np.moveaxis(read, 0, -1).ravel() == case.samples.ravel()).all()
        else "the independent reader differs"
    )


def main() -> int:
    """Print each group's counts and each fault; the exit code says whether there are any."""
    good, bad, faults = Counter[str](), Counter[str](), 0
    for case in make_grid():
        wrong = judge(case) or compare_independently(case)
        (bad if wrong else good)[case.group] += 1
        if wrong:
            faults += 1
            print(f"{case.name}: {wrong}")
    for group in sorted({*good, *bad}):
        print(f"{group:40} {good[group]:5} right {bad[group]:5} wrong")
    print(f"{sum(good.values())} right, {faults} wrong")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
