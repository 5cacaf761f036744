"""Colour and transparency of decoded pixels: alpha apart, colour to sRGB and back."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms, ImageFile

from img2img_cli.pictures.files.limits import DAMAGE, UnreadableError
from img2img_cli.pictures.files.sixteen_bit import Deep

GREY_STEPS = {"L;2": 85, "L;4": 17}


def split_alpha(image: Image.Image) -> tuple[Image.Image | None, Image.Image]:
    """Alpha apart from colour, and colour in one of the modes L, RGB, CMYK, LAB."""
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no way from there to RGBA
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return rgba.getchannel("A"), rgba.convert("RGB")
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return None, image
    return None, image.convert("L" if image.mode == "1" else "RGB")


def mend_transparency(file: ImageFile.ImageFile) -> None:
    """A PNG's one transparent grey or colour in the numbers that its pixels get, before they are decoded.

    Pillow scales pixels of 2 and 4 bits up and those of three channels of 16 bits down, but not this. At 8 bits, all
    colours whose upper bytes are those of the transparent one are transparent.
    """
    value = file.info.get("transparency")
    stored = str(file.tile[0].args) if file.tile else ""
    if isinstance(value, int) and stored in GREY_STEPS:
        file.info["transparency"] = value * GREY_STEPS[stored]
    if isinstance(value, tuple) and stored.startswith("RGB;16"):
        file.info["transparency"] = tuple(part >> 8 for part in value)


def check_wrapped(image: Image.Image, bits: int) -> None:
    """Refuse a JPEG 2000 of several channels of more than 8 bits in which white may have become black.

    Pillow rounds such channels to 8 bits, and the brightest half step of them to 256, which is 0 then.

    Raises:
        UnreadableError: it has zeros, of which nobody knows what they were.
    """
    bands = image.getbands()
    if bits > 8 and len(bands) > 1 and any(low == 0 for low, _ in np.reshape(image.getextrema(), (-1, 2)).tolist()):
        raise UnreadableError(f"a JPEG 2000 of {len(bands)} x {bits} bits with white or black in it")


def find_transparent(luminance: Deep, value: object) -> Image.Image | None:
    """The alpha of grey of 16 bits of which one is transparent."""
    if not isinstance(value, int):
        return None
    return Image.fromarray(np.where(luminance == value, 0, 255).astype(np.uint8))


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, Image.Image, bytes | None]:
    """Return the picture in its own RGB space, in sRGB, and the profile worth keeping."""
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if source.profile.xcolor_space.strip() == {"RGB": "RGB", "CMYK": "CMYK", "L": "GRAY"}[image.mode]:
                rgb = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
                assert rgb is not None
                # Scanners' profiles lead only out of their space; results stay in sRGB then.
                kept = image.mode == "RGB" and source.profile.is_intent_supported(
                    ImageCms.Intent.PERCEPTUAL, ImageCms.Direction.OUTPUT
                )
                return (image, rgb, profile) if kept else (rgb, rgb, None)
        except (*DAMAGE, ImageCms.PyCMSError):
            pass  # A broken profile says nothing about the pixels; other viewers ignore it too.
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return rgb, rgb, None


def from_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Bring an sRGB result into the colour space of the input's profile."""
    if profile is None:
        return image
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    result = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), target, outputMode="RGB")
    assert result is not None
    return result
