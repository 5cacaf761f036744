"""TIFFs in the grid of modes."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator

import numpy as np
import tifffile
from grid_common import ALPHAS, HEIGHT, INKS, TYPES, WIDTH, Case, expect, pack_line, ramps, restore, store
from skimage import color


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
    """Return an uncompressed TIFF of any number of bits; tifffile writes only whole bytes."""
    blocks = [[plane] for plane in planes] if planar == 2 else [planes]
    strips = []
    for block in blocks:
        for top in range(0, HEIGHT, rows):
            lines = np.stack(block, axis=-1)[top : top + rows].reshape(-1, WIDTH * len(block))
            strips.append(b"".join(pack_line(line, bits, kind, order) for line in lines))
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


def plain_tiffs(every: int = 1) -> Iterator[Case]:
    """Yield every n-th uncompressed TIFF of ink x extra channels x type x planes x byte order x strips."""
    ways = itertools.product(INKS, ALPHAS.items(), TYPES, (1, 2), "<>", (HEIGHT, 5))
    for ink, (extra, extras), (kind, bits), planar, order, rows in itertools.islice(ways, 0, None, every):
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


def packed_tiffs(every: int = 1) -> Iterator[Case]:
    """Yield every n-th TIFF by tifffile of type x compression x predictor x tiles x BigTIFF x byte order x planes."""
    ways = itertools.product(
        [("grey", ""), ("RGB", ""), ("RGB", " + alpha"), ("CMYK", ""), ("CMYK", " + extra")],
        [("u", 8), ("u", 16), ("u", 32), ("i", 16), ("f", 16), ("f", 32), ("f", 64)],
        [None, "lzw", "deflate", "packbits", "zstd", "lzma"],
        (False, True),
        (None, (16, 16)),
        (False, True),
        "<>",
        ("contig", "separate"),
    )
    for (ink, extra), (kind, bits), codec, predictor, tile, big, order, planar in itertools.islice(
        ways, 0, None, every
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
    """Yield TIFFs with reversed bits, palettes, Lab or subsampled chroma, and some that must be refused."""
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
