"""Read TIFFs of every kind: with Pillow's reader where it is correct, else with `tiff_samples`."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

from img2img_cli.pictures.files.limits import UnreadableError, check_pixels
from img2img_cli.pictures.files.sixteen_bit import Deep, narrow, scale_floats
from img2img_cli.pictures.files.tiff_samples import (
    CIELAB,
    CMYK,
    FLOAT,
    GREY,
    ICCLAB,
    INT,
    PALETTE,
    RGB,
    UINT,
    UNPACKED,
    WHITE_IS_ZERO,
    YCBCR,
    Layout,
    Samples,
    check_layout,
    read_layout,
    read_samples,
)

TOP = 65535
MIN_BIG_TYPE = 16  # LONG8, SLONG8 and IFD8 of BigTIFF
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_SUB_IFDS = (330, 34665, 34853, 40965)
# Turn stored pixels upright, by the value of the orientation tag.
_TURNS: dict[int, Callable[[Samples], Samples]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


class Tiff(TiffImagePlugin.TiffImageFile):
    """The first picture of a TIFF of any kind.

    Attributes:
        layout: how the pixels are stored; None if Pillow reads them.
        alpha: separate alpha of a picture whose mode has none, upright; set by `load`.
        luminance: grey of more than 8 bits as 16-bit `(H, W)`, upright; set by `load`.
        narrowed: whether the channels have more than 8 bits.
        keep: whether `load` leaves missing pixels blank instead of raising an error.
        orientation: the tag's value, not validated.
    """

    layout: Layout | None = None
    alpha: Image.Image | None = None
    luminance: Deep | None = None
    narrowed = False
    keep = False
    orientation: Any = None

    def _setup(self) -> None:
        layout, self.orientation = read_layout(self.tag_v2), self.tag_v2.get(ExifTags.Base.Orientation)
        if is_read_by_pillow(layout):
            try:
                super()._setup()
            except (SyntaxError, KeyError):
                raise UnreadableError(f"a {layout.describe()}") from None
            if layout.photometric == YCBCR and not self.use_load_libtiff:
                self._read_by_libtiff()
            return
        check_layout(layout)
        self.layout = layout
        self._mode = "RGB"
        turned = self.orientation in (5, 6, 7, 8)
        self._tile_size = (layout.width, layout.height)
        self._size = (layout.height, layout.width) if turned else self._tile_size
        self.tile, self.use_load_libtiff, self.palette = [], False, None
        self.narrowed = layout.bits > 8
        if TiffImagePlugin.ICCPROFILE in self.tag_v2:
            self.info["icc_profile"] = self.tag_v2[TiffImagePlugin.ICCPROFILE]
        across, down = (self.tag_v2.get(tag) for tag in (TiffImagePlugin.X_RESOLUTION, TiffImagePlugin.Y_RESOLUTION))
        unit = {2: 1, 3: 2.54}.get(self.tag_v2.get(TiffImagePlugin.RESOLUTION_UNIT, 2))
        if across and down and unit:
            self.info["dpi"] = (across * unit, down * unit)

    def _read_by_libtiff(self) -> None:
        """Let libtiff decode the pixels, because Pillow's raw decoder does not support subsampled chroma."""
        self.use_load_libtiff, self._mode = True, "RGB"
        extents = (0, 0, *self._tile_size)
        self.tile = [ImageFile._Tile("libtiff", extents, 0, ("RGBX", False, self.tag_v2.offset))]

    def load_kept(self) -> None:
        """Decode the file again strip by strip after Pillow has failed, if possible, to keep the intact strips."""
        layout = read_layout(self.tag_v2)
        try:
            check_layout(layout)
        except UnreadableError:
            return
        turned, whole = self._im, (self._mode, self._size)
        self.layout, self._im = layout, None
        try:
            self.load()
        except (ValueError, LookupError, OSError, struct.error):
            self.layout, self._im, (self._mode, self._size) = None, turned, whole

    def load(self) -> Any:
        if self.layout is None or self._im is not None:
            return super().load()
        assert self.fp is not None
        self.fp.seek(0)
        data = self.fp.getvalue() if isinstance(self.fp, io.BytesIO) else self.fp.read()
        colour, alpha = read_samples(self.layout, data, keep=self.keep)
        self.getexif().pop(ExifTags.Base.Orientation, None)
        self.tag_v2.pop(ExifTags.Base.Orientation, None)
        turn = _TURNS.get(self.orientation, np.asarray) if isinstance(self.orientation, int) else np.asarray
        image, self.alpha, self.luminance = to_picture(
            self.layout, turn(colour), None if alpha is None else turn(alpha), self.tag_v2.get(TiffImagePlugin.COLORMAP)
        )
        self._mode, self._size, self.im = image.mode, image.size, image.im
        return self.im.pixel_access(self.readonly)


def is_read_by_pillow(layout: Layout) -> bool:
    """Return whether Pillow reads these pixels correctly, or `tiff_samples` cannot read them at all."""
    if layout.compression not in UNPACKED or layout.photometric == YCBCR:
        return True
    if layout.kind != UINT or layout.planar or layout.reversed or layout.predictor == 3:
        return False
    if layout.bits in (1, 8) and layout.photometric in (WHITE_IS_ZERO, GREY) and layout.samples == 1:
        return True
    if layout.bits in (1, 2, 4, 8) and layout.photometric == PALETTE and layout.samples == 1:
        return True
    if layout.photometric == RGB and layout.samples in (3, 4) and not layout.associated:
        return layout.bits in (8, 16)
    return layout.bits == 8 and layout.photometric in (CMYK, CIELAB) and layout.samples == layout.colours


def to_picture(
    layout: Layout, colour: Samples, alpha: Samples | None, table: tuple[int, ...] | None
) -> tuple[Image.Image, Image.Image | None, Deep | None]:
    """Convert samples to a picture.

    Args:
        colour: `(H, W, colours)` in the file's numbers; `alpha` is `(H, W)`.
        table: a palette's reds, greens and blues.

    Returns:
        The picture in a mode L, RGB, CMYK or LAB, its alpha (`L` or None), and 16-bit luminance `(H, W)` if it is grey
        of more than 8 bits without alpha, else None.

    Raises:
        ValueError: floats are not finite, or the palette is missing or too short.
    """
    opacity = None if alpha is None else scale_samples(alpha, layout)
    mask = None if opacity is None else _to_bytes_image(opacity[..., None], "L")
    if layout.photometric == PALETTE:
        return _look_up(colour[..., 0], table, layout.bits), mask, None
    if layout.photometric in (CIELAB, ICCLAB):
        return _to_lab(colour, layout), mask, None
    levels = scale_samples(colour, layout)
    top = np.iinfo(levels.dtype).max
    if layout.photometric == WHITE_IS_ZERO:
        levels = top - levels
    if layout.associated and opacity is not None:
        levels = _divide(levels, opacity[..., None], top)
    if layout.photometric == CMYK:
        return _to_bytes_image(levels, "CMYK"), mask, None
    if layout.colours == 1:
        grey = _to_bytes_image(levels, "L")
        return grey, mask, np.ascontiguousarray(levels[..., 0]) if layout.bits > 8 and mask is None else None
    return _to_bytes_image(levels, "RGB"), mask, None


def scale_samples(values: Samples, layout: Layout) -> Samples:
    """Scale a file's numbers to 0..255 if it has at most 8 bits, else to 0..65535.

    The range of unsigned numbers is that of their bits, or of 16 bits if there are more but no number is over 65535.
    The range of signed numbers starts at their type's minimum, or at 0 if none is negative. For floats, see
    `sixteen_bit.scale_floats`.

    Raises:
        ValueError: floats are not finite.
    """
    if layout.kind == FLOAT:
        return scale_floats(values)
    bits, low = layout.bits, 0
    if layout.kind == INT:
        bits, low = (bits, 1 << bits - 1) if values.min(initial=0) < 0 else (bits - 1, 0)
    if layout.bits > 16 and not low and values.max(initial=0) <= TOP:
        bits = 16
    most, top = (1 << bits) - 1, 255 if layout.bits <= 8 else TOP
    if most == top and not low:
        return np.asarray(values, np.uint8 if top == 255 else np.uint16)
    scaled = np.empty(values.shape, np.uint8 if top == 255 else np.uint16)
    for row in range(len(values)):
        scaled[row] = ((values[row].astype(np.int64) + low) * top + most // 2) // most
    return scaled


def _divide(levels: Samples, opacity: Samples, top: int) -> Samples:
    """Undo the multiplication of colours by alpha."""
    wide = levels.astype(np.uint64) * top // np.maximum(opacity, 1)
    return np.minimum(wide, top).astype(levels.dtype)


def _to_bytes_image(levels: Samples, mode: str) -> Image.Image:
    """Convert `(H, W, C)` of 8 or 16 bits to an 8-bit image."""
    if levels.dtype == np.uint16:
        levels = np.stack([np.asarray(narrow(levels[..., index])) for index in range(levels.shape[-1])], axis=-1)
    flat = np.ascontiguousarray(levels)
    return Image.frombytes(mode, (flat.shape[1], flat.shape[0]), flat.tobytes())


def _to_lab(colour: Samples, layout: Layout) -> Image.Image:
    """Convert CIE Lab, with signed a* and b*, or ICC Lab to Pillow's mode LAB, which adds 128 as ICC Lab does."""
    shift = layout.bits - 8
    planes = colour.astype(np.int64)
    if layout.photometric == CIELAB:
        planes[..., 1:] = (planes[..., 1:] + (1 << layout.bits - 1)) % (1 << layout.bits)
    if shift:
        planes[..., 0] = (planes[..., 0] * 255 + TOP // 2) // TOP
        planes[..., 1:] = ((planes[..., 1:] + 128) >> 8).clip(0, 255)
    return Image.merge("LAB", [Image.fromarray(planes[..., index].astype(np.uint8)) for index in range(3)])


def _look_up(indices: Samples, table: tuple[int, ...] | None, bits: int) -> Image.Image:
    if not isinstance(table, tuple) or len(table) < 3 << bits:
        raise ValueError("its palette is too short")
    colours: Samples = np.asarray(table[: 3 << bits], np.uint32).reshape(3, -1)
    if colours.max() > 255:
        colours = colours >> 8
    return Image.fromarray(np.ascontiguousarray(colours.T.astype(np.uint8)[indices]))


def make_classic(data: bytes) -> bytes:
    """Convert a big-endian BigTIFF, which Pillow cannot open, to a classic TIFF.

    The new directory is at the end of the file. EXIF and other subdirectories are dropped.

    Raises:
        ValueError: a tag is cut short.
        struct.error: the directory is damaged.
    """
    (start,) = struct.unpack_from(">Q", data, 8)
    (count,) = struct.unpack_from(">Q", data, start)
    tail, entries = bytearray(len(data) % 2), []
    for index in range(count):
        tag, type_, amount, value = struct.unpack_from(">HHQ8s", data, start + 8 + 20 * index)
        if type_ not in _SIZES or tag in _SUB_IFDS:
            continue
        size = _SIZES[type_] * amount
        place = int.from_bytes(value)
        content = value[:size] if size <= 8 else data[place : place + size]
        if len(content) < size:
            raise ValueError(f"its tag {tag} is cut short")
        if type_ >= MIN_BIG_TYPE:
            type_, content = 4, struct.pack(f">{amount}I", *struct.unpack(f">{amount}Q", content))
        if len(content) > 4:
            where = len(data) + len(tail)
            tail += content + bytes(len(content) % 2)
            content = struct.pack(">I", where)
        entries.append(struct.pack(">HHI", tag, type_, amount) + content.ljust(4, b"\0"))
    directory = struct.pack(">H", len(entries)) + b"".join(entries) + bytes(4)
    return b"MM\0*" + struct.pack(">I", len(data) + len(tail)) + data[8:] + tail + directory


def open_tiff(stream: IO[bytes]) -> Tiff:
    """Open a TIFF and read its header. The stream must be at its beginning.

    Raises:
        UnreadableError: this kind of TIFF is not supported.
        SyntaxError, ValueError, DecompressionBombError, struct.error: the file is damaged or has too many pixels.
    """
    head = stream.read(4)
    stream.seek(0)
    file = Tiff(io.BytesIO(make_classic(stream.read())) if head == b"MM\0\x2b" else stream)
    check_pixels(*file.size)
    return file
