"""Pictures out: encode with metadata, and put in place without ever leaving half a file."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from PIL import AvifImagePlugin, ExifTags, Image, PngImagePlugin

from img2img_cli.errors import DISK_ERRORS, OutputError, is_shortage
from img2img_cli.pictures.files.carried import fit_exif, fit_xmp
from img2img_cli.pictures.files.formats import EXTENSIONS, Format
from img2img_cli.pictures.files.limits import DAMAGE
from img2img_cli.pictures.files.sixteen_bit import Deep
from img2img_cli.pictures.files.sixteen_bit_colour import deepen_png, deepen_tiff
from img2img_cli.pictures.read import Picture
from img2img_cli.system.streams import STDIO, explain_stdout

IMAGE_HISTORY = 0x9213  # TIFF/EP: a record of what was done to the image
BATCH_TAG = "batch-"
DEEP_FORMATS = ("png", "tiff")  # which hold 16 bits a channel
QUALITY = {"jpeg": 95, "webp": 92, "avif": 85}
MAX_DPI = 65_535
MAX_SEGMENT = 65_533 - 29  # bytes that a JPEG's EXIF or XMP may have


def choose_format(asked: Format, output: str, source_format: str) -> str:
    """The format of the result: asked for, by the output's extension, or the input's own."""
    if asked != "keep":
        return asked
    if output != STDIO and (known := EXTENSIONS.get(Path(output).suffix.lower())):
        return known
    own = {"MPO": "jpeg"}.get(source_format, source_format.lower())
    return own if own in EXTENSIONS.values() else "png"


def encode_image(
    image: Image.Image,
    source: Picture,
    format_: str,
    *,
    quality: int | None,
    record: dict[str, Any] | None,
    text: str,
    deep: Deep | None = None,
) -> bytes:
    """Encode a picture, grey or RGB, with or without alpha, with the source's metadata.

    Args:
        record: our own JSON, or None to write no metadata at all except the colour profile.
        text: A1111-style parameters.
        deep: the picture in 16 bits, `(H, W)` or `(H, W, 3)`, for one of `DEEP_FORMATS`.
    """
    if image.has_transparency_data and format_ in ("jpeg", "bmp"):
        image = _flatten(image)
    size = image.size
    if deep is not None and (deep.ndim == 2 or format_ == "tiff"):
        image = Image.fromarray(deep.reshape(deep.shape[0], -1))
    image = image.copy()
    image.info.clear()  # Pillow's encoders write what they find there, such as the input's comment
    options: dict[str, Any] = {}
    if source.icc_profile and format_ != "bmp":
        options["icc_profile"] = source.icc_profile
    if record is not None:
        if source.dpi and all(0 < value < MAX_DPI for value in source.dpi):
            options["dpi"] = source.dpi
        if format_ == "png":
            options["pnginfo"] = _png_text(source, size, record, text)
            if len(source.exif):
                options["exif"] = fit_exif(source.exif, size, format_).tobytes()
        elif format_ != "bmp":
            options["exif"] = _record_exif(fit_exif(source.exif, size, format_), record, text)
            if format_ == "jpeg" and len(options["exif"]) > MAX_SEGMENT:
                options["exif"] = _record_exif(Image.Exif(), record, text)
            room = MAX_SEGMENT if format_ == "jpeg" else math.inf
            xmp = fit_xmp(source.xmp, size) if source.xmp else b""
            if 0 < len(xmp) <= room and format_ in ("jpeg", "webp", "avif"):
                options["xmp"] = xmp
    options |= _codec_options(format_, quality)
    if format_ == "tiff" and (record is not None or deep is not None):
        options["compression"] = "raw"  # libtiff, which compresses, cannot write EXIF
    if format_ == "png" and deep is not None and deep.ndim == 3:
        options["compress_level"] = 1  # these pixels are exchanged
    buffer = io.BytesIO()
    try:
        image.save(buffer, format_, **options)
    except DAMAGE as error:
        # Options are checked before, so a codec that takes none of ours has no memory for its state.
        if is_shortage(error) or "configuration error" in str(error):
            raise MemoryError from None
        raise OutputError(
            f"cannot encode {size[0]} x {size[1]} pixels as {format_} ({error}); use --format png"
        ) from None
    if deep is None or deep.ndim == 2:
        return buffer.getvalue()
    return deepen_png(buffer.getvalue(), deep) if format_ == "png" else deepen_tiff(buffer.getvalue(), size[0])


def _codec_options(format_: str, quality: int | None) -> dict[str, Any]:
    if format_ == "jpeg":
        return {"quality": quality or QUALITY["jpeg"], "subsampling": 0, "optimize": True}
    if format_ == "webp":
        return {"lossless": True} if quality == 100 else {"quality": quality or QUALITY["webp"], "method": 5}
    if format_ == "avif":
        exact = {"advanced": {"alpha:cq-level": "0"}} if AvifImagePlugin.get_codec_version("aom") else {}
        return {"quality": quality or QUALITY["avif"], **exact}
    return {"compression": "tiff_deflate"} if format_ == "tiff" else {}


def _flatten(image: Image.Image) -> Image.Image:
    """On white, as viewers show transparency on paper."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("L" if image.mode == "LA" else "RGB")


def _record_exif(exif: Image.Exif, record: dict[str, Any], text: str) -> bytes:
    exif[IMAGE_HISTORY] = json.dumps(record, separators=(",", ":"))
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + text.encode("utf-16-be")
    return exif.tobytes()


def _png_text(source: Picture, size: tuple[int, int], record: dict[str, Any], text: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for key, value in source.text.items():
        if not key.startswith("Thumb::"):  # of the picture that a thumbnail was of
            info.add_itxt(key, value)
    if source.xmp:
        info.add_itxt("XML:com.adobe.xmp", fit_xmp(source.xmp, size).decode("utf-8", "replace"))
    info.add_text("parameters", text) if text.isascii() else info.add_itxt("parameters", text)
    info.add_itxt("img2img", json.dumps(record, separators=(",", ":"), ensure_ascii=False))
    return info


def is_temporary(name: str, tag: str) -> bool:
    """Whether a file is one that a killed run of `write_output` with this tag has left."""
    return name.startswith(f".img2img-{tag}") and name.endswith(".tmp")


def write_output(data: bytes, output: str, *, replace: bool, tag: str = "") -> None:
    """Put encoded bytes at `output` all at once, or on stdout.

    Args:
        tag: marks the temporary file, so that whoever holds the folder can clear what a killed run left.

    Raises:
        OutputError: the disk, the permissions, or a file that is there already and may not be replaced.
    """
    if output == STDIO:
        write_stdout(data)
        return
    _place(data, output, replace=replace, tag=tag, verify=True)


def write_output_bytes(data: bytes, output: str) -> None:
    """Put a file that is no picture in place all at once; what was there is replaced.

    Raises:
        OutputError: the disk or the permissions.
    """
    _place(data, output, replace=True, tag="", verify=False)


def _place(data: bytes, output: str, *, replace: bool, tag: str, verify: bool) -> None:
    target = Path(os.path.realpath(output)) if replace else Path(output)
    temporary = target.with_name(f".img2img-{tag}{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if verify:
            _verify(temporary)
        if replace:
            if target.exists():
                os.chmod(temporary, target.stat().st_mode & 0o7777)
            os.replace(temporary, target)
        else:
            _place_new(temporary, target)
        _sync_folder(target.parent)
    except FileExistsError:
        raise OutputError(f"{output}: exists already; use --force to replace it, or name another OUTPUT") from None
    except OSError as error:
        raise OutputError(
            f"{output}: cannot be written ({error.strerror or error}); free space or choose another place"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _place_new(temporary: Path, target: Path) -> None:
    """Rename that fails, instead of replacing, when another process made the target meanwhile."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError as error:  # a file system without hard links
        if error.errno in DISK_ERRORS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        os.replace(temporary, target)


def _verify(path: Path) -> None:
    """Decode what lies on the disk before it may take the output's name."""
    try:
        with Image.open(path) as image:
            image.load()
    except DAMAGE as error:
        if is_shortage(error):
            raise MemoryError from None
        if isinstance(error, OSError) and error.errno:
            raise
        raise OSError(f"the file read back is damaged: {error}") from None


def make_folder(folder: str) -> None:
    """Make a folder and those above it, unless they are there.

    Raises:
        OutputError: the disk or the permissions.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: the folder cannot be made ({error.strerror}); free space or choose another place"
        ) from None


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems refuse to sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_stdout(data: bytes) -> None:
    """All of the bytes.

    Raises:
        OutputError: the reader has left, or there is no room.
    """
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise explain_stdout(error) from None
