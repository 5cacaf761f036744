"""Read the samples of a TIFF of any depth, byte order and layout into NumPy arrays.

Pillow parses the tags and reads the common kinds of pixels; this module reads the others, described by a `Layout`.
zlib, lzma and, for LZW, PackBits and Zstandard, libtiff decompress the strips, never into more bytes than their pixels
need.
"""

from __future__ import annotations

import io
import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from img2img_cli.pictures.files.limits import UnreadableError

Samples = NDArray[Any]
UINT, INT, FLOAT = 1, 2, 3
MAX_DECODED = 3 << 30  # bytes of all strips or tiles
MAX_KEPT = 12 * 200_000_000  # bytes of colour and alpha: 200 million pixels of three floats
LZMA_MEMORY = 256 << 20
RAW, LZW, DEFLATE, PACKBITS, OLD_DEFLATE, LZMA, ZSTD = 1, 5, 8, 32773, 32946, 34925, 50000
UNPACKED = (RAW, LZW, DEFLATE, PACKBITS, OLD_DEFLATE, LZMA, ZSTD)
CODECS = {
    1: "no compression", 2: "CCITT", 3: "CCITT", 4: "CCITT", LZW: "LZW", 6: "old JPEG", 7: "JPEG", 8: "deflate",
    PACKBITS: "PackBits", OLD_DEFLATE: "deflate", 34676: "SGI Log", 34677: "SGI Log", 34712: "JPEG 2000",
    34887: "LERC", LZMA: "LZMA", ZSTD: "Zstandard", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
WHITE_IS_ZERO, GREY, RGB, PALETTE, CMYK, YCBCR, CIELAB, ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
COLOURS = {WHITE_IS_ZERO: 1, GREY: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, CIELAB: 3, ICCLAB: 3}
PHOTOMETRICS = {
    0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIE Lab", 9: "ICC Lab",
    10: "ITU Lab", 32803: "raw sensor", 32844: "LogL", 32845: "LogLuv", 34892: "linear raw sensor",
}  # fmt: skip
_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1).ravel()


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a TIFF's pixels are stored.

    Attributes:
        bits: bits of a sample.
        kind: `UINT`, `INT`, `FLOAT` or another value of the SampleFormat tag.
        samples: number of channels in the file.
        colours: how many of them are colour; 0 if the photometric interpretation is unknown.
        alpha: index of the alpha channel, or None.
        associated: whether colours are multiplied by alpha.
        planar: whether each channel is stored separately.
        reversed: whether the bits of each byte are in reverse order.
        order: byte order as in `struct`, `<` or `>`.
        rows, columns: size of a strip or tile in pixels.
        offsets, counts: offset and length in bytes of each strip or tile.
    """

    width: int
    height: int
    bits: int
    kind: int
    samples: int
    colours: int
    alpha: int | None
    associated: bool
    photometric: int
    planar: bool
    compression: int
    predictor: int
    reversed: bool
    order: str
    rows: int
    columns: int
    offsets: tuple[int, ...]
    counts: tuple[int, ...]

    def describe(self) -> str:
        """Return a description for messages, such as `TIFF of 3 x 16-bit float RGB, LZW`."""
        kind = {INT: "signed ", FLOAT: "float ", 5: "complex ", 6: "complex "}.get(self.kind, "")
        planes = " in separate planes" if self.planar and self.samples > 1 else ""
        photometric = PHOTOMETRICS.get(self.photometric, f"photometric {self.photometric}")
        codec = CODECS.get(self.compression, f"compression {self.compression}")
        return f"TIFF of {self.samples} x {self.bits}-bit {kind}{photometric}{planes}, {codec}"


def read_layout(tags: TiffImagePlugin.ImageFileDirectory_v2) -> Layout:
    """Return the layout that the tags describe.

    Raises:
        UnreadableError: channels have different kinds or depths.
        ValueError, LookupError, TypeError: tags are damaged.
    """

    def number(tag: int, default: int | None = None) -> int:
        value = tags.get(tag, default)
        value = value[0] if isinstance(value, tuple) else value
        if not isinstance(value, int) or value < 0:
            raise ValueError(f"its tag {tag} is not a number")
        return value

    def several(tag: int) -> tuple[int, ...]:
        value = tags.get(tag, ())
        return tuple(int(part) for part in value) if isinstance(value, tuple) else (int(value),)

    width, height, samples = number(256), number(257), number(277, 1)
    photometric, compression = number(262, 0), number(259, 1)
    bits, kinds = set(several(258)[:samples]) or {1}, set(several(339)[:samples]) or {UINT}
    if len(bits) > 1 or len(kinds) > 1:
        raise UnreadableError(f"a TIFF whose channels differ: {sorted(bits)} bits, sample formats {sorted(kinds)}")
    kind = kinds.pop()
    tiled = 324 in tags
    colours = COLOURS.get(photometric, 0)
    extras = several(338)
    if not extras and photometric == RGB and samples == 4:
        extras = (2,)  # unassociated alpha, as Pillow and most readers assume
    alpha = next((colours + index for index, extra in enumerate(extras) if extra in (1, 2)), None)
    return Layout(
        width=width,
        height=height,
        bits=bits.pop(),
        kind=UINT if kind == 4 else kind,
        samples=samples,
        colours=colours,
        alpha=alpha if colours and alpha is not None and alpha < samples else None,
        associated=alpha is not None and extras[alpha - colours] == 1,
        photometric=photometric,
        planar=number(284, 1) == 2 and samples > 1,
        compression=compression,
        predictor=number(317, 1),
        reversed=number(266, 1) == 2,
        order=">" if tags.prefix == b"MM" else "<",
        rows=number(323) if tiled else max(1, min(number(278, height), height)),
        columns=number(322) if tiled else width,
        offsets=several(324 if tiled else 273),
        counts=several(325 if tiled else 279),
    )


def check_layout(layout: Layout) -> None:
    """Check that `read_samples` supports a layout and that its memory is limited.

    Raises:
        UnreadableError: the layout is not supported or takes too much memory.
        ValueError: the layout is not valid.
    """
    widths = {UINT: range(1, 33), INT: (8, 16, 32), FLOAT: (16, 32, 64)}.get(layout.kind, ())
    if (
        not layout.colours
        or layout.photometric == YCBCR
        or layout.bits not in widths
        or layout.compression not in UNPACKED
        or layout.predictor not in (1, 2, 3)
        or (layout.predictor == 2 and layout.bits not in (8, 16, 32, 64))
        or (layout.predictor == 3 and layout.kind != FLOAT)
        or (layout.photometric == PALETTE and (layout.kind != UINT or layout.bits > 16))
        or (layout.photometric in (CIELAB, ICCLAB) and (layout.kind == FLOAT or layout.bits not in (8, 16)))
    ):
        raise UnreadableError(f"a {layout.describe()}")
    if layout.samples < layout.colours:
        raise ValueError(f"{layout.samples} channels for {PHOTOMETRICS[layout.photometric]}")
    if not (layout.width and layout.height and layout.rows and layout.columns):
        raise ValueError("it has no pixels")
    kept = layout.colours + (layout.alpha is not None)
    total = _count_segments(layout) * _segment_bytes(layout)
    if total > MAX_DECODED or layout.width * layout.height * kept * max(1, layout.bits // 8) > MAX_KEPT:
        raise UnreadableError(f"a {layout.describe()}, {layout.width} x {layout.height} pixels (too large)")


def read_samples(layout: Layout, data: bytes, *, keep: bool = False) -> tuple[Samples, Samples | None]:
    """Return colour `(H, W, colours)` and alpha `(H, W)`, or None without alpha, in the file's own numbers.

    The dtype is an integer of 8, 16 or 32 bits, signed if the file's numbers are, or a float of 32 or 64 bits.

    Args:
        data: the whole file.
        keep: whether to leave missing pixels zero instead of raising an error.

    Raises:
        ValueError, zlib.error, lzma.LZMAError, OSError, EOFError, IndexError: strips are missing or damaged.
    """
    wanted = [*range(layout.colours), *([layout.alpha] if layout.alpha is not None else [])]
    plane = np.zeros((layout.height, layout.width, len(wanted)), _unpacked_type(layout))
    for index, top, left, channels in _list_segments(layout):
        places = [wanted.index(channel) for channel in channels if channel in wanted]
        if not places:
            continue
        rows = layout.rows if _is_tiled(layout) else min(layout.rows, layout.height - top)
        size = rows * _row_bytes(layout)
        try:
            content = _unpack_segment(layout, data, index, size)
        except (ValueError, zlib.error, lzma.LZMAError, OSError, EOFError, IndexError):
            if not keep:
                raise
            content = b""
        if len(content) < size:
            if not keep:
                raise ValueError(f"strip or tile {index} is cut short")
            content = content.ljust(size, b"\0")
        part = _arrange(layout, content, rows, len(channels))
        room = plane[top : top + rows, left : left + layout.columns]
        picked = [channels.index(channel) for channel in channels if channel in wanted]
        room[..., places] = part[: room.shape[0], : room.shape[1], picked]
    return plane[..., : layout.colours], plane[..., -1] if layout.alpha is not None else None


def _is_tiled(layout: Layout) -> bool:
    return layout.columns != layout.width or layout.rows > layout.height


def _grid(layout: Layout) -> tuple[int, int]:
    return -(-layout.height // layout.rows), -(-layout.width // layout.columns)


def _count_segments(layout: Layout) -> int:
    down, across = _grid(layout)
    return down * across * (layout.samples if layout.planar else 1)


def _list_segments(layout: Layout) -> Iterator[tuple[int, int, int, list[int]]]:
    """Yield index, top row, left column and channels of each strip or tile."""
    down, across = _grid(layout)
    for index in range(_count_segments(layout)):
        plane, place = divmod(index, down * across)
        channels = [plane] if layout.planar else list(range(layout.samples))
        yield index, place // across * layout.rows, place % across * layout.columns, channels


def _row_bytes(layout: Layout) -> int:
    return -(-layout.columns * (1 if layout.planar else layout.samples) * layout.bits // 8)


def _segment_bytes(layout: Layout) -> int:
    return layout.rows * _row_bytes(layout)


def _unpack_segment(layout: Layout, data: bytes, index: int, size: int) -> bytes:
    start = layout.offsets[index]
    packed = data[start : start + (size if layout.compression == RAW else layout.counts[index])]
    if layout.reversed:
        packed = _REVERSED[np.frombuffer(packed, np.uint8)].tobytes()
    if layout.compression == RAW:
        return packed
    if layout.compression in (DEFLATE, OLD_DEFLATE):
        return zlib.decompressobj().decompress(packed, size)
    if layout.compression == LZMA:
        return lzma.LZMADecompressor(memlimit=LZMA_MEMORY).decompress(packed, size)
    return _unpack_by_libtiff(packed, layout.compression, size, _row_bytes(layout))


def _unpack_by_libtiff(packed: bytes, compression: int, size: int, row: int) -> bytes:
    """Decompress a strip with libtiff, declared as 8-bit grey so that its bytes are not changed."""
    tags = {256: row, 257: size // row, 258: 8, 259: compression, 262: 1, 277: 1, 278: size // row, 279: len(packed)}
    tags[273] = start = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    assert len(head) == start
    with TiffImagePlugin.TiffImageFile(io.BytesIO(head + packed)) as file:
        return file.tobytes()


def _unpacked_type(layout: Layout) -> np.dtype[Any]:
    if layout.kind == FLOAT:
        return np.dtype(f"f{max(4, layout.bits // 8)}")
    size = 1 if layout.bits <= 8 else 2 if layout.bits <= 16 else 4
    return np.dtype(f"{'i' if layout.kind == INT else 'u'}{size}")


def _arrange(layout: Layout, content: bytes, rows: int, channels: int) -> Samples:
    """Return the bytes of a strip or tile as an array `(rows, columns, channels)`."""
    shape, bits = (rows, layout.columns, channels), layout.bits
    lines = np.frombuffer(content, np.uint8).reshape(rows, -1)
    if layout.predictor == 3:
        width = bits // 8
        summed = np.cumsum(lines.reshape(rows, -1, channels), axis=1, dtype=np.uint8).reshape(rows, width, -1)
        values: Samples = np.ascontiguousarray(summed.transpose(0, 2, 1)).view(f">f{width}")
        return values.reshape(shape).astype(_unpacked_type(layout))
    if bits in (8, 16, 32, 64):
        letter = {UINT: "u", INT: "i", FLOAT: "f"}[layout.kind]
        if layout.predictor == 2:
            raw = lines.view(f"{layout.order}u{bits // 8}").astype(f"u{bits // 8}").reshape(shape)
            values = np.cumsum(raw, axis=1, dtype=raw.dtype).view(f"{letter}{bits // 8}")
        else:
            values = lines.view(f"{layout.order}{letter}{bits // 8}").reshape(shape)
        return values.astype(_unpacked_type(layout))
    if bits == 24:
        high, middle, low = (lines[:, place::3] for place in ((0, 1, 2) if layout.order == ">" else (2, 1, 0)))
        return (high.astype(np.uint32) << 16 | middle.astype(np.uint32) << 8 | low).reshape(shape)
    return _unpack_bits(lines, layout.columns * channels, bits).astype(_unpacked_type(layout)).reshape(shape)


def _unpack_bits(lines: NDArray[np.uint8], count: int, bits: int) -> Samples:
    """Unpack `count` numbers of `bits` bits from each line, from the first byte's upper bits on."""
    values = np.zeros((len(lines), count), np.uint32)
    for top in range(0, len(lines), 64):
        flags = np.unpackbits(lines[top : top + 64], axis=1, count=count * bits)
        for place in range(bits):
            values[top : top + 64] = values[top : top + 64] << 1 | flags[:, place::bits]
    return values
