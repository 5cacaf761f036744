"""`--truncated keep`: what can be decoded of truncated or damaged pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pictures import ORIENTATION, bomb, encode, make_picture
from PIL import Image

from img2img_cli.errors import DamageError, InputError
from img2img_cli.pictures.read import load_image

SIZE = (96, 72)
PHOTO = make_picture("coffee", SIZE)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return exif


def strips(codec: str, pixels: np.ndarray | None = None, **options: object) -> bytes:
    """Return a TIFF of nine strips, of which the last four are damaged."""
    stream = io.BytesIO()
    pixels = np.asarray(PHOTO) if pixels is None else pixels
    tifffile.imwrite(stream, pixels, photometric="rgb", compression=codec, rowsperstrip=8, **options)
    content = bytearray(stream.getvalue())
    stream.seek(0)
    with tifffile.TiffFile(stream) as file:
        page = file.pages.first
        for start, length in list(zip(page.dataoffsets, page.databytecounts, strict=True))[5:]:
            content[start : start + length] = b"\xff" * length
    return bytes(content)


def cut(content: bytes) -> bytes:
    return content[: len(content) * 3 // 5]


# A damaged file, the whole one's pixels, and the share of them that is there at least.
DAMAGED: dict[str, tuple[Callable[[], bytes], float]] = {
    "JPEG": (lambda: cut(encode(PHOTO, "JPEG")), 0.4),
    "JPEG without its last 20 bytes": (lambda: encode(PHOTO, "JPEG")[:-20], 0.95),
    "turned JPEG": (lambda: cut(encode(PHOTO, "JPEG", exif=turned())), 0.4),
    "PNG": (lambda: cut(encode(PHOTO, "PNG")), 0.5),
    "PNG of a palette": (lambda: cut(encode(PHOTO.quantize(64), "PNG")), 0.5),
    "GIF": (lambda: cut(encode(PHOTO.quantize(64), "GIF")), 0.5),
    "BMP": (lambda: cut(encode(PHOTO, "BMP")), 0.5),
    "PPM": (lambda: cut(encode(PHOTO, "PPM")), 0.5),
    "TGA": (lambda: cut(encode(PHOTO, "TGA")), 0.5),
    "PCX": (lambda: cut(encode(PHOTO, "PCX")), 0.5),
    "TIFF, LZW": (lambda: strips("lzw"), 0.55),
    "TIFF, deflate": (lambda: strips("deflate"), 0.55),
    "turned TIFF": (lambda: strips("lzw", extratags=[(274, 3, 1, 6, True)]), 0.55),
    "float TIFF": (lambda: strips("deflate", np.asarray(PHOTO).astype(np.float32) / 255), 0.55),
}


def whole_of(name: str) -> np.ndarray:
    """Return the picture that the undamaged file would give."""
    image = PHOTO
    if "JPEG" in name:
        options = {"exif": turned()} if "turned" in name else {}
        return np.asarray(load_image("x", encode(PHOTO, "JPEG", **options)).rgb)
    if "palette" in name or name == "GIF":
        image = PHOTO.quantize(64).convert("RGB")
    return np.rot90(np.asarray(image), -1) if "turned" in name else np.asarray(image)


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_there_of_a_damaged_picture_can_be_kept(name: str) -> None:
    make, least = DAMAGED[name]
    content, whole = make(), whole_of(name)
    with pytest.raises(DamageError) as error:
        load_image("photo.x", content)
    assert "--truncated" not in str(error.value), "masks and the like have no such option"
    with pytest.raises(DamageError, match="or use --truncated keep to take what is there"):
        load_image("photo.x", content, truncated="refuse")
    picture = load_image("photo.x", content, truncated="keep")
    assert picture.damaged
    assert picture.size == whole.shape[1::-1]
    assert (np.asarray(picture.rgb) == whole).all(axis=-1).mean() > least


@pytest.mark.parametrize(
    "content",
    [
        cut(encode(PHOTO, "WEBP")),
        cut(encode(PHOTO, "JPEG2000")),
        encode(PHOTO, "PNG")[:200],
        encode(PHOTO, "JPEG").partition(b"\xff\xda")[0],
        b"no picture at all" * 9,
    ],
    ids=["WebP", "JPEG 2000", "PNG's header", "JPEG's header", "text"],
)
def test_where_nothing_can_be_kept_the_option_is_not_offered(content: bytes) -> None:
    with pytest.raises(InputError) as refused:
        load_image("photo.x", content, truncated="refuse")
    with pytest.raises(InputError) as kept:
        load_image("photo.x", content, truncated="keep")
    assert str(kept.value) == str(refused.value)
    assert "--truncated" not in str(kept.value)


def test_a_whole_picture_is_the_same_with_the_option() -> None:
    content = encode(PHOTO, "PNG")
    assert not load_image("x", content, truncated="keep").damaged
    assert load_image("x", content, truncated="keep").rgb.tobytes() == load_image("x", content).rgb.tobytes()


def test_limits_hold_with_the_option() -> None:
    with pytest.raises(InputError, match="million pixels"):
        load_image("x", bomb()[:-20], truncated="keep")


def test_a_wrong_value_is_refused(here, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(PHOTO, "PNG"))
    done = here("restore", tmp_path / "a.png", "--truncated", "kep", "--dry-run")
    assert done.code == 2
    assert "--truncated kep: must be one of refuse, keep; did you mean 'keep'?" in done.err
