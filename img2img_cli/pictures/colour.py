"""Colour and transparency of decoded pixels: separate alpha, and convert colour to sRGB and back."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms, ImageFile

from img2img_cli.pictures.files.limits import DAMAGE, UnreadableError
from img2img_cli.pictures.files.sixteen_bit import Deep

GREY_STEPS = {"L;2": 85, "L;4": 17}


def split_alpha(image: Image.Image) -> tuple[Image.Image | None, Image.Image]:
    """Return alpha as `L` (None without transparency), and colour in one of the modes L, RGB, CMYK or LAB."""
    if image.mode == "La":
        image = image.convert("LA")  # Pillow cannot convert La to RGBA directly
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return rgba.getchannel("A"), rgba.convert("RGB")
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return None, image
    return None, image.convert("L" if image.mode == "1" else "RGB")


def mend_transparency(file: ImageFile.ImageFile) -> None:
    """Scale a PNG's transparent grey or colour to the range of the decoded pixels. Call it before decoding.

    Pillow scales 2-bit and 4-bit grey up to 8 bits and 16-bit RGB down, but not the transparent value. After that, all
    colours with the same upper bytes as the transparent one are transparent.
    """
    value = file.info.get("transparency")
    stored = str(file.tile[0].args) if file.tile else ""
    if isinstance(value, int) and stored in GREY_STEPS:
        file.info["transparency"] = value * GREY_STEPS[stored]
    if isinstance(value, tuple) and stored.startswith("RGB;16"):
        file.info["transparency"] = tuple(part >> 8 for part in value)


def check_wrapped(image: Image.Image, bits: int) -> None:
    """Refuse a JPEG 2000 with several channels of more than 8 bits in which white may have become black.

    Pillow rounds such channels to 8 bits, and the brightest values to 256, which overflows to 0.

    Args:
        bits: depth of the file's channels.

    Raises:
        UnreadableError: a channel contains 0, which may be black or white.
    """
    bands = image.getbands()
    if bits > 8 and len(bands) > 1 and any(low == 0 for low, _ in np.reshape(image.getextrema(), (-1, 2)).tolist()):
        raise UnreadableError(f"a JPEG 2000 of {len(bands)} x {bits} bits with white or black in it")


def find_transparent(luminance: Deep, value: object) -> Image.Image | None:
    """Return the alpha (`L`, 0 or 255) of 16-bit grey with one transparent value; None if `value` is not an int."""
    if not isinstance(value, int):
        return None
    return Image.fromarray(np.where(luminance == value, 0, 255).astype(np.uint8))


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, Image.Image, bytes | None]:
    """Convert a picture to sRGB.

    Args:
        profile: ICC profile of the file, or None for sRGB. A damaged or unsuitable one is ignored.

    Returns:
        The picture in its own RGB space, the picture in sRGB, and the profile of the first; None if that is sRGB.
    """
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if source.profile.xcolor_space.strip() == {"RGB": "RGB", "CMYK": "CMYK", "L": "GRAY"}[image.mode]:
                rgb = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
                assert rgb is not None
                # Scanner profiles cannot convert from sRGB, so results stay in sRGB.
                kept = image.mode == "RGB" and source.profile.is_intent_supported(
                    ImageCms.Intent.PERCEPTUAL, ImageCms.Direction.OUTPUT
                )
                return (image, rgb, profile) if kept else (rgb, rgb, None)
        except (*DAMAGE, ImageCms.PyCMSError):
            pass  # Ignore a damaged profile, as viewers do; the pixels may still be good.
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return rgb, rgb, None


def from_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an sRGB result to the colour space of an RGB profile; None means sRGB."""
    if profile is None:
        return image
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    result = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), target, outputMode="RGB")
    assert result is not None
    return result
