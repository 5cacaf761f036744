"""TGA, PCX, ICO, PSD and DDS in the grid of modes."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

import imagecodecs
import numpy as np
from grid_common import HEIGHT, WIDTH, Case, expect, pack_line, ramps, store
from grid_formats import write_png


def legacy() -> Iterator[Case]:
    """Yield TGA, PCX, ICO, PSD and DDS."""
    yield from tgas()
    yield from pcxs()
    yield from icons()
    yield from psds()
    yield from ddss()


def tgas() -> Iterator[Case]:
    """Yield TGAs: kinds x run lengths x orientations."""
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
    """Yield PCXs: bits x planes."""
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
                for byte in pack_line(line[:, plane], bits, "u", ">").ljust(stride, b"\0"):
                    body += bytes([0xC1, byte])
        data = head + body + (b"\x0c" + table.tobytes() if name == "palette" else b"")
        yield Case(name=f"PCX {name}", group="PCX", data=data, rgb=seen)


def icons() -> Iterator[Case]:
    """Yield icons of bitmaps and PNG, in which the largest picture with the most bits comes last."""
    values = store(ramps(4), "u", 8)
    rgb, alpha, _ = expect("RGB", ramps(4), (2,))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:4] = 1  # transparent
    and_mask = b"".join(pack_line(line, 1, "u", ">").ljust(4, b"\0") for line in mask[::-1])
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
    """Yield PSDs: modes x extra channels x run lengths."""
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
    """Return a PSD whose flat picture has the numbers `(H, W, C)`."""
    channels = stored.shape[-1]
    head = struct.pack(">4sH6xHIIHH", b"8BPS", version, channels, HEIGHT, WIDTH, bits, mode)
    resource = struct.pack(">4sHxxIIBIIIx", b"8BIM", 1057, 17, 1, merged, 0, 0, 1)
    empty = struct.pack(">4iH4s4sBBBBIII4x", *[0] * 5, b"8BIM", b"norm", 255, 0, 0, 0, 12, 0, 0)
    info = struct.pack(">Ih", 2 + len(empty), layers) + empty + bytes(4)
    body = struct.pack(">II", 0, len(resource)) + resource + struct.pack(">I", len(info)) + info
    lines = [pack_line(line, bits, "u", ">") for plane in np.moveaxis(stored, -1, 0) for line in plane]
    if packed:
        lines = [b"".join(bytes([0, byte]) for byte in line) for line in lines]
        sizes = struct.pack(f">{len(lines)}H", *map(len, lines))
        return head + body + struct.pack(">H", 1) + sizes + b"".join(lines)
    return head + body + struct.pack(">H", 0) + b"".join(lines)


def ddss() -> Iterator[Case]:
    """Yield DDSs, uncompressed and in blocks as imagecodecs decodes them."""
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
        data = head_dds(0x41 if opaque else 0x40, bits=bits, masks=(*masks, opaque)) + stored.tobytes()
        yield Case(name=f"DDS {name}", group="DDS", data=data, rgb=rgb, alpha=alpha if opaque else None)
    blocks = -(-WIDTH // 4) * -(-HEIGHT // 4)
    for fourcc, number, size, opaque in ((b"DXT1", 1, 8, False), (b"DXT3", 2, 16, True), (b"DXT5", 3, 16, True)):
        content = np.random.default_rng(number).integers(0, 256, (blocks, size), dtype=np.uint8)
        if not opaque:
            content[:, 1], content[:, 3] = 255, 0  # the first colour is larger: four colours, none transparent
        wide = (-(-HEIGHT // 4) * 4, -(-WIDTH // 4) * 4, 4)
        seen = imagecodecs.bcn_decode(content.tobytes(), number, shape=wide)[:HEIGHT, :WIDTH]
        data = head_dds(4, fourcc=fourcc) + content.tobytes()
        yield Case(
            name=f"DDS {fourcc.decode()}",
            group="DDS",
            data=data,
            rgb=seen[..., :3],
            alpha=seen[..., 3] if opaque else None,
            off=9,
        )
    yield Case(name="DDS BC5", group="DDS", data=head_dds(4, fourcc=b"ATI2") + bytes(16 * blocks))
    yield Case(name="DDS unknown", group="DDS", data=head_dds(4, fourcc=b"ETC2") + bytes(16 * blocks))


def head_dds(flags: int, *, bits: int = 0, masks: tuple[int, ...] = (0, 0, 0, 0), fourcc: bytes = bytes(4)) -> bytes:
    """Return the 128 bytes before a DDS's pixels."""
    head = struct.pack("<4s4I", b"DDS ", 124, 0x1007, HEIGHT, WIDTH).ljust(76, b"\0")
    return (head + struct.pack("<II4sI4I", 32, flags, fourcc, bits, *masks)).ljust(128, b"\0")
