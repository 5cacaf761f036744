"""Write pictures: encode them with metadata, and replace the output file atomically."""

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

IMAGE_HISTORY = 0x9213  # the TIFF/EP tag for a record of processing steps
BATCH_TAG = "batch-"
DEEP_FORMATS = ("png", "tiff")  # formats with 16 bits a channel
QUALITY = {"jpeg": 95, "webp": 92, "avif": 85}
MAX_DPI = 65_535
MAX_SEGMENT = 65_533 - 29  # the most bytes of EXIF or XMP in a JPEG


def choose_format(asked: Format, output: str, source_format: str) -> str:
    """Return the format of the result: as asked, else by the output's extension, else the input's or PNG."""
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
        format_: a format of `EXTENSIONS`.
        quality: 1 to 100 for JPEG, WebP and AVIF, or None for the default; 100 is lossless for WebP.
        record: img2img's own record, or None to write no metadata except the colour profile.
        text: parameters in the web UI's format.
        deep: the picture in 16 bits, `(H, W)` or `(H, W, 3)`, for one of `DEEP_FORMATS`.

    Raises:
        OutputError: the format cannot hold the picture.
        MemoryError: the encoder ran out of memory.
    """
    if image.has_transparency_data and format_ in ("jpeg", "bmp"):
        image = _flatten(image)
    size = image.size
    if deep is not None and (deep.ndim == 2 or format_ == "tiff"):
        image = Image.fromarray(deep.reshape(deep.shape[0], -1))
    image = image.copy()
    image.info.clear()  # Pillow's encoders would write its contents, such as the input's comment
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
        options["compression"] = "raw"  # libtiff, which Pillow uses for compression, cannot write EXIF
    if format_ == "png" and deep is not None and deep.ndim == 3:
        options["compress_level"] = 1  # these pixels are replaced below
    buffer = io.BytesIO()
    try:
        image.save(buffer, format_, **options)
    except DAMAGE as error:
        # Options were checked before, so a codec that rejects its configuration has run out of memory.
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
    """Composite a picture on white."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("L" if image.mode == "LA" else "RGB")


def _record_exif(exif: Image.Exif, record: dict[str, Any], text: str) -> bytes:
    exif[IMAGE_HISTORY] = json.dumps(record, separators=(",", ":"))
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + text.encode("utf-16-be")
    return exif.tobytes()


def _png_text(source: Picture, size: tuple[int, int], record: dict[str, Any], text: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for key, value in source.text.items():
        if not key.startswith("Thumb::"):  # these describe the original of a thumbnail
            info.add_itxt(key, value)
    if source.xmp:
        info.add_itxt("XML:com.adobe.xmp", fit_xmp(source.xmp, size).decode("utf-8", "replace"))
    info.add_text("parameters", text) if text.isascii() else info.add_itxt("parameters", text)
    info.add_itxt("img2img", json.dumps(record, separators=(",", ":"), ensure_ascii=False))
    return info


def is_temporary(name: str, tag: str) -> bool:
    """Return whether a name is that of a temporary file of `write_output` with this tag, left by a killed run."""
    return name.startswith(f".img2img-{tag}") and name.endswith(".tmp")


def write_output(data: bytes, output: str, *, replace: bool, tag: str = "") -> None:
    """Write an encoded picture to `output` atomically, or to stdout for `-`.

    A file is read back and decoded before it takes the output's name.

    Args:
        replace: whether to replace an existing file.
        tag: part of the temporary file's name, by which a later run can find and remove it.

    Raises:
        OutputError: the file cannot be written, or exists and must not be replaced.
        MemoryError: there is too little memory to decode the file again.
    """
    if output == STDIO:
        write_stdout(data)
        return
    _place(data, output, replace=replace, tag=tag, verify=True)


def write_output_bytes(data: bytes, output: str) -> None:
    """Write a file that is not a picture atomically, replacing an existing one.

    Raises:
        OutputError: the file cannot be written.
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
                keep_owner(target.stat(), temporary)
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


def keep_owner(before: os.stat_result, path: Path) -> None:
    """Give a file the owner, group and mode of the one that it replaces, as far as the system allows it."""
    if hasattr(os, "chown"):
        for owner, group in ((before.st_uid, -1), (-1, before.st_gid)):
            with contextlib.suppress(PermissionError):
                os.chown(path, owner, group)
    os.chmod(path, before.st_mode & 0o7777)


def _place_new(temporary: Path, target: Path) -> None:
    """Rename a file, but raise FileExistsError if another process has created the target in the meantime."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError as error:  # the file system has no hard links
        if error.errno in DISK_ERRORS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        os.replace(temporary, target)


def _verify(path: Path) -> None:
    """Decode the file on the disk, and raise an error if it is damaged."""
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
    """Create a folder and its parents if they do not exist.

    Raises:
        OutputError: the folder cannot be created.
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
    """Write all bytes to stdout and flush it.

    Raises:
        OutputError: the reader has closed the pipe, stdout is closed, or the disk is full.
    """
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise explain_stdout(error) from None
