"""Read pictures: decode them under limits, apply the orientation, convert to sRGB, fit to a model's size."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError

from img2img_cli.errors import DamageError, InputError, OutOfMemoryError, ReadError, is_shortage
from img2img_cli.pictures.colour import check_wrapped, find_transparent, mend_transparency, split_alpha, to_srgb
from img2img_cli.pictures.files.decoders import FORMATS, JPEG_END, JPEG_HEAD, load_pixels, open_file, silence_libtiff
from img2img_cli.pictures.files.formats import Truncated
from img2img_cli.pictures.files.kinds import explain_refusal
from img2img_cli.pictures.files.legacy_formats import mend_alpha
from img2img_cli.pictures.files.limits import (
    DAMAGE,
    MAX_FRAMES,
    UnreadableError,
    check_structure,
    check_work,
    find_jp2_depth,
)
from img2img_cli.pictures.files.sixteen_bit import Deep, narrow, read_luminance
from img2img_cli.pictures.files.tiff import Tiff
from img2img_cli.presets.schema import MAX_PIXELS
from img2img_cli.system.source_files import MAX_BYTES, check_length, read_source
from img2img_cli.system.streams import STDIO

MIN_SIDE, MAX_SIDE = 8, 65_500
MAX_ASPECT = 40
PROBE_BYTES = 16 << 20
MAX_EXIF, MAX_PROFILE = 1 << 20, 8 << 20  # bytes; longer ones are dropped
XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|\s*>)\s*)[0-9]+")
OWN_TEXT = ("parameters", "img2img", "XML:com.adobe.xmp")  # written anew, or carried over as XMP
# Pillow stores a PNG's texts in `info` too, where it mistakes texts of these names for its own values.
INFO_TYPES: dict[str, type | tuple[type, ...]] = {
    "exif": bytes,
    "icc_profile": bytes,
    "xmp": bytes,
    "transparency": (int, bytes, tuple),
    "dpi": tuple,
    "bbox": tuple,
    "interlace": int,
    "default_image": bool,
}
ImageFile.LOAD_TRUNCATED_IMAGES = False
PngImagePlugin.MAX_TEXT_CHUNK = MAX_PROFILE  # the default of 1 MiB is too small for some profiles and workflows
logging.getLogger("PIL").addHandler(logging.NullHandler())  # otherwise Python prints Pillow's log to stderr
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # above twice this number, Pillow raises an error


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A decoded picture, upright. All its images have the same size.

    Attributes:
        name: the file's name for messages.
        rgb: 8-bit sRGB, the input of models.
        native: 8-bit RGB in the file's own colour space; `rgb` itself when that is sRGB.
        alpha: 8-bit `L`, or None.
        icc_profile: the RGB profile that `native` is in, or None for sRGB.
        exif, xmp, text: metadata to carry over; the orientation is already applied.
        dpi: horizontal and vertical resolution in pixels per inch, or None.
        format: Pillow's name of the file's format.
        frames: number of frames in the file; only the first is decoded.
        grey: whether the file has no colours.
        narrowed: whether channels of more than 8 bits were reduced to 8.
        damaged: whether pixels may be missing, because the file could not be decoded completely.
        luminance: 16-bit `(H, W)` in sRGB's encoding if the file has grey of more than 8 bits, else None.
    """

    name: str
    rgb: Image.Image
    native: Image.Image
    alpha: Image.Image | None = None
    icc_profile: bytes | None = None
    exif: Image.Exif = field(default_factory=Image.Exif)
    xmp: bytes | None = None
    text: dict[str, str] = field(default_factory=dict)
    dpi: tuple[float, float] | None = None
    format: str = "PNG"
    frames: int = 1
    grey: bool = False
    narrowed: bool = False
    damaged: bool = False
    luminance: Deep | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rgb.size


DESCRIPTIVE_TAGS = {
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
}


def read_bytes(name: str) -> bytes:
    """Return the content of a file, or of stdin for `-`.

    Raises:
        InputError: it cannot be read, is empty or is larger than `MAX_BYTES` (1 GiB).
    """
    if name != STDIO:
        return read_source(name)[0]
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "closed"
        raise ReadError(f"stdin: cannot be read ({reason}); check what is piped into it") from None
    check_length(label(name), data)
    return data


def peek_size(name: str) -> tuple[int, int]:
    """Return the upright width and height from a file's header, or `(0, 0)` if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Path(name).open("rb") as content:
                check_structure(content)
                with open_file(content) as file:
                    width, height = file.size
                    # getexif would decode a PNG without EXIF. A TIFF's size is upright already.
                    small = 0 < len(file.info.get("exif", b"")) <= MAX_EXIF
                    turned = small and file.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
                    return (height, width) if turned else (width, height)
    except (*DAMAGE, Image.DecompressionBombError, MemoryError):
        return 0, 0


def label(name: str) -> str:
    """Return the name of a file for messages: `stdin` for `-`."""
    return "stdin" if name == STDIO else name


def load_image(name: str, data: bytes | None = None, *, truncated: Truncated | None = None) -> Picture:
    """Decode a file, or its content `data`.

    The cost is limited before anything is decoded: the number of bytes here, everything else in `files.limits`.

    Args:
        truncated: how to treat a damaged file. "keep" returns what can be decoded; "refuse" raises an error that
            mentions `--truncated keep`; None raises an error that does not, for files without that option.

    Raises:
        InputError: the file cannot be read, is not a picture, is damaged or exceeds the limits. The message names the
            file and the remedy.
        OutOfMemoryError: there is too little memory for the pixels.
    """
    data = read_bytes(name) if data is None else data
    try:
        return _decode(name, data)
    except DamageError:
        # Some decoders report a lack of memory as damage. Check that there is memory, then decode once more.
        try:
            bytearray(PROBE_BYTES)
        except MemoryError:
            raise _short_of_memory(name) from None
    try:
        return _decode(name, data)
    except DamageError as error:
        if truncated is None:
            raise
        refusal = str(error)
    try:
        picture = _decode(name, data + JPEG_END if data.startswith(JPEG_HEAD) else data, keep=True)
    except InputError:
        raise DamageError(refusal) from None
    if truncated == "refuse":
        raise DamageError(f"{refusal}, or use --truncated keep to take what is there")
    return picture


def _decode(name: str, data: bytes, *, keep: bool = False) -> Picture:
    with open_picture(name, data) as (file, frames):
        check_size(label(name), file.size)
        bits = find_jp2_depth(data) if file.format == "JPEG2000" else 8
        return _normalise(name, file, frames, bits, keep=keep)


@contextlib.contextmanager
def open_picture(name: str, data: bytes) -> Iterator[tuple[ImageFile.ImageFile, int]]:
    """Open a picture and yield it with its number of frames, at most `MAX_FRAMES`. Decoding it has a limited cost.

    Raises:
        InputError, OutOfMemoryError: as in `load_image`, also for errors of Pillow's within the block.
    """
    stream = io.BytesIO(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            counted = check_structure(stream)
            with open_file(stream) as file:
                check_work(file, data)
                if file.format == "TIFF":
                    silence_libtiff()
                yield file, counted or min(getattr(file, "n_frames", 1), MAX_FRAMES)
        except UnreadableError as error:
            raise InputError(f"{label(name)}: {error} cannot be read; convert it first") from None
        except UnidentifiedImageError:
            raise InputError(f"{label(name)}: {explain_refusal(data, FORMATS)}") from None
        except Image.DecompressionBombError:
            raise InputError(_too_large(label(name))) from None
        except (*DAMAGE, ImageCms.PyCMSError) as error:
            if is_shortage(error):
                raise _short_of_memory(name) from None
            if "MAX_TEXT" in str(error):
                limit = f"a text or profile of more than {MAX_PROFILE >> 20} MiB"
                raise InputError(f"{label(name)}: contains {limit}; remove it first") from None
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise DamageError(f"{label(name)}: the picture is damaged ({reason}); get a good copy") from None
        except MemoryError:
            raise _short_of_memory(name) from None


def _short_of_memory(name: str) -> OutOfMemoryError:
    return OutOfMemoryError(f"{label(name)}: too little memory to decode it; make it smaller first")


def _too_large(name: str) -> str:
    return f"{name}: more than {MAX_PIXELS // 1_000_000} million pixels; make it smaller first"


def check_size(name: str, size: tuple[int, int]) -> None:
    """Check that both sides, their ratio and the number of pixels are within the limits.

    Raises:
        InputError: they are not; the message names the picture.
    """
    width, height = size
    if min(size) < MIN_SIDE:
        raise InputError(f"{name}: only {width} x {height} pixels; both sides must be at least {MIN_SIDE}")
    if width * height > MAX_PIXELS:
        raise InputError(_too_large(name))
    if max(size) > MAX_SIDE:
        raise InputError(f"{name}: {width} x {height} pixels; no side may be over {MAX_SIDE}; make it smaller first")
    if max(size) > MAX_ASPECT * min(size):
        raise InputError(
            f"{name}: {width} x {height} pixels; one side may be at most {MAX_ASPECT} times the other; cut it up first"
        )


def _normalise(name: str, file: ImageFile.ImageFile, frames: int, bits: int, *, keep: bool) -> Picture:
    if isinstance(file.info.get("bbox"), str):
        file.tile = [tile._replace(extents=(0, 0, *file.size)) for tile in file.tile]
    narrowed = bits > 8 or (file.mode not in ("1", "L", "P") and any(";16" in str(tile.args) for tile in file.tile))
    _drop_impostors(file)
    mend_transparency(file)
    load_pixels(file, keep=keep)
    _drop_impostors(file)  # those that followed the pixels in the file
    format_, dpi, text = file.format or "PNG", _read_dpi(file), dict(getattr(file, "text", {}))
    image, exif = _upright(file)
    if isinstance(file, Tiff) and file.layout:
        alpha, flat, luminance, narrowed = file.alpha, image, file.luminance, file.narrowed
    elif image.mode.startswith(("I", "F")):
        luminance = read_luminance(image)
        alpha, flat = find_transparent(luminance, image.info.get("transparency")), narrow(luminance)
        narrowed, luminance = alpha is not None, luminance if alpha is None else None
    else:
        check_wrapped(image, bits)
        luminance, (alpha, flat) = None, mend_alpha(file, *split_alpha(image))
    profile = _read_blob(image, "icc_profile")
    native, rgb, kept_profile = to_srgb(flat, profile)
    return Picture(
        name=name,
        rgb=rgb,
        native=native,
        alpha=alpha,
        icc_profile=kept_profile,
        exif=exif,
        xmp=_set_upright(_read_blob(image, "xmp")),
        text={key: str(value) for key, value in text.items() if _is_carried(key)},
        dpi=dpi,
        format=format_,
        frames=frames,
        grey=flat.mode == "L" or image.mode in ("1", "L", "LA", "La"),
        narrowed=narrowed and luminance is None,
        damaged=keep,
        # Profiles are applied to 8 bits only, so drop 16-bit luminance if the profile changes any pixel.
        luminance=luminance if not profile or flat.convert("RGB").tobytes() == rgb.tobytes() else None,
    )


def _drop_impostors(file: ImageFile.ImageFile) -> None:
    """Drop metadata of the wrong type. A TIFF's tags can have any type, and a PNG's texts any name."""
    for key, types in INFO_TYPES.items():
        if key in file.info and not isinstance(file.info[key], types):
            del file.info[key]


def _is_carried(key: str) -> bool:
    """Return whether to carry a text over to the result: not img2img's own, nor names that Pillow uses itself."""
    return key not in OWN_TEXT and key not in INFO_TYPES and not key.startswith("Raw profile type")


def _read_dpi(file: ImageFile.ImageFile) -> tuple[float, float] | None:
    try:
        across, down = file.info["dpi"]
        return float(across), float(down)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None


def _read_blob(image: Image.Image, key: str) -> bytes | None:
    """Return metadata bytes, or None if there are more than `MAX_PROFILE`."""
    value = image.info.get(key)
    return value if isinstance(value, bytes) and len(value) <= MAX_PROFILE else None


def _set_upright(xmp: bytes | None) -> bytes | None:
    """Set the orientation in XMP to upright, because the pixels already are."""
    return xmp and XMP_ORIENTATION.sub(rb"\g<1>1", xmp)


def _upright(file: ImageFile.ImageFile) -> tuple[Image.Image, Image.Exif]:
    """Return an upright copy and its EXIF. If the EXIF is damaged or too long, drop it and do not turn the picture."""
    if len(file.info.get("exif", b"")) > MAX_EXIF:
        return file.copy(), Image.Exif()
    try:
        exif = _read_exif(file)
        image = ImageOps.exif_transpose(file)
        exif.pop(ExifTags.Base.Orientation, None)
        exif.tobytes()
    except DAMAGE:
        return file.copy(), Image.Exif()
    return image, exif


def _read_exif(file: ImageFile.ImageFile) -> Image.Exif:
    """Return the file's EXIF; of a TIFF, only tags that describe the picture, not how its pixels are stored."""
    found, exif = file.getexif(), Image.Exif()
    parts = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
    for tag, value in found.items():
        if tag in DESCRIPTIVE_TAGS or (file.format != "TIFF" and tag not in parts):
            exif[tag] = value
    for ifd in parts:
        if part := dict(found.get_ifd(ifd)):
            if part.pop(ExifTags.IFD.Interop, None) and (interop := found.get_ifd(ExifTags.IFD.Interop)):
                part[ExifTags.IFD.Interop] = dict(interop)  # its content, instead of its offset in the old file
            exif.get_ifd(ifd).update(part)
    return exif


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How to fit a picture on a model's canvas: scale it to `content`, then pad it right and below to `canvas`.

    Both are width and height in pixels.
    """

    content: tuple[int, int]
    canvas: tuple[int, int]


def plan_fit(size: tuple[int, int], image_size: int, multiple: int) -> Fit:
    """Plan a fit that keeps the aspect ratio, has about `image_size`² pixels, and pads both sides to a `multiple`."""
    width, height = size
    factor = image_size / math.sqrt(width * height)
    content = max(1, round(width * factor)), max(1, round(height * factor))
    canvas = tuple(-(-side // multiple) * multiple for side in content)
    return Fit(content=content, canvas=(canvas[0], canvas[1]))


def pad_image(image: Image.Image, canvas: tuple[int, int]) -> Image.Image:
    """Enlarge a picture (`L` or RGB) to the right and below by repeating its border pixels."""
    if image.size == canvas:
        return image
    right, below = canvas[0] - image.width, canvas[1] - image.height
    pixels = np.pad(np.asarray(image), ((0, below), (0, right), (0, 0))[: 3 if image.mode != "L" else 2], mode="edge")
    return Image.fromarray(pixels)


def fit_image(image: Image.Image, fit: Fit) -> Image.Image:
    """Scale and pad a picture onto the model's canvas."""
    if image.size != fit.content:
        image = image.resize(fit.content, Image.Resampling.LANCZOS)
    return pad_image(image, fit.canvas)
