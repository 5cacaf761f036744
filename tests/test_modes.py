"""The result for each mode and depth of pixels equals the table in docs/picture-modes.md, bit for bit."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pictures import encode, make_picture
from PIL import Image
from skimage import color

from img2img_cli.pictures.files.sixteen_bit_colour import deepen_png
from img2img_cli.pictures.read import Picture, load_image

QUICK = ["--set", "num_inference_steps=2", "--set", "num_samples=1", "--set", "image_size=64", "--seed", "1"]
SIZE = (96, 72)


def grey_ramp() -> np.ndarray:
    """Return 16-bit grey `(72, 96)` with more levels than 8 bits have, smooth and with an edge."""
    down, across = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    values = 6000 + 37 * across + 111 * down + 30000 * (across > 60)
    return values.astype(np.uint16)


def palette(colours: int, transparency: int | None = None) -> bytes:
    image = make_picture("coffee", SIZE).quantize(colours)
    return encode(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


def keyed() -> bytes:
    image = make_picture("primaries", SIZE)
    return encode(image, "PNG", transparency=(255, 0, 0))


def with_alpha(mode: str) -> Image.Image:
    image = make_picture("coffee", SIZE).convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(SIZE))
    return image


def deep_colour() -> bytes:
    """Return a PNG with 16 bits per channel, of which the upper 8 are the photograph."""
    high = np.asarray(make_picture("coffee", SIZE), np.uint16) << 8
    return deepen_png(encode(Image.new("RGB", SIZE), "PNG"), high | 77)


PHOTO = make_picture("coffee", SIZE)
RAMP = grey_ramp()
# name: file, 8-bit colour that models see, whether it is grey, has alpha, has more than 8 bits
CASES: dict[str, tuple[bytes, Image.Image, bool, bool, bool]] = {
    "1": (encode(PHOTO.convert("1"), "PNG"), PHOTO.convert("1").convert("RGB"), True, False, False),
    "L": (encode(PHOTO.convert("L"), "PNG"), PHOTO.convert("L").convert("RGB"), True, False, False),
    "LA": (encode(with_alpha("L"), "PNG"), PHOTO.convert("L").convert("RGB"), True, True, False),
    "P": (palette(64), PHOTO.quantize(64).convert("RGB"), False, False, False),
    "P, transparent": (palette(64, 3), PHOTO.quantize(64).convert("RGB"), False, True, False),
    "RGB": (encode(PHOTO, "PNG"), PHOTO, False, False, False),
    "RGB, transparent": (keyed(), make_picture("primaries", SIZE), False, True, False),
    "RGBA": (encode(with_alpha("RGB"), "PNG"), PHOTO, False, True, False),
    "CMYK": (encode(PHOTO.convert("CMYK"), "TIFF"), PHOTO.convert("CMYK").convert("RGB"), False, False, False),
    "I;16": (
        encode(Image.fromarray(RAMP), "PNG"),
        Image.fromarray(((RAMP.astype(int) + 128) // 257).astype(np.uint8)).convert("RGB"),
        True,
        False,
        True,
    ),
    "F": (
        encode(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"),
        Image.fromarray(((RAMP.astype(int) + 128) // 257).astype(np.uint8)).convert("RGB"),
        True,
        False,
        True,
    ),
    "RGB of 16 bits": (deep_colour(), PHOTO, False, False, False),
}


def load(name: str) -> Picture:
    return load_image(name, CASES[name][0])


@pytest.mark.parametrize("name", CASES)
def test_models_see_what_the_file_holds(name: str) -> None:
    _, seen, grey, alpha, deep = CASES[name]
    picture = load(name)
    assert picture.rgb.tobytes() == seen.tobytes()
    assert (picture.grey, picture.alpha is not None, picture.luminance is not None) == (grey, alpha, deep)
    assert picture.narrowed == (name == "RGB of 16 bits")
    if deep:
        assert (picture.luminance == RAMP).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != "CMYK"])
def test_what_a_mask_leaves_alone_is_the_inputs_own(here, tmp_path: Path, name: str) -> None:
    suffix = ".tif" if name == "F" else ".png"
    source, mask, output = tmp_path / f"in{suffix}", tmp_path / "mask.png", tmp_path / f"out{suffix}"
    source.write_bytes(CASES[name][0])
    white = Image.new("L", SIZE)
    white.paste(255, (30, 20, 60, 50))
    white.save(mask)
    options = ["-p", "fog", "--mask", mask, "--set", "image_size=64", "--steps", "4", "--seed", "1"]
    done = here("edit", source, output, *options)
    assert done.code == 0, done.err
    before, after, black = (
        load_image("in", source.read_bytes()),
        load_image("out", output.read_bytes()),
        ~np.asarray(white, bool),
    )
    if before.luminance is None:
        assert (np.asarray(after.rgb)[black] == np.asarray(before.rgb)[black]).all()
    else:
        assert (read_deep(output)[black] == before.luminance[black][:, None]).all()
    assert (np.asarray(after.rgb)[~black] != np.asarray(before.rgb)[~black]).any()
    if before.alpha is not None:
        assert after.alpha is not None
        assert after.alpha.tobytes() == before.alpha.tobytes()


def read_deep(path: Path) -> np.ndarray:
    """Read 16-bit pixels without our own code: with tifffile, or by PNG's rules for rows of filter 2."""
    data = path.read_bytes()
    if path.suffix == ".tif":
        return tifffile.imread(io.BytesIO(data))
    with Image.open(path) as image:
        size = image.size
    place, packed = 8, b""
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        packed += data[place + 8 : place + 8 + length] if data[place + 4 : place + 8] == b"IDAT" else b""
        place += 12 + length
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(size[1], -1)
    assert set(rows[:, 0]) == {2}
    return np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8).view(">u2").reshape(size[1], size[0], 3).astype(np.uint16)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("metadata", [True, False])
def test_colorize_keeps_luminance_of_16_bits(here, tmp_path: Path, suffix: str, metadata: bool) -> None:
    source, output = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    Image.fromarray(RAMP).save(source)
    done = here("colorize", source, output, *QUICK, *([] if metadata else ["--no-metadata"]))
    assert done.code == 0, done.err
    made = read_deep(output)
    assert made.dtype == np.uint16
    wanted = color.rgb2lab(np.repeat(RAMP[..., None] / 65535, 3, -1))[..., 0]
    drift = np.abs(color.rgb2lab(made / 65535)[..., 0] - wanted)
    assert drift.max() < 0.02, "8 bits would drift by 0.2"
    assert np.ptp(made.astype(int), axis=-1).max() > 500, "it has colour"
    assert here("info", output).code == (0 if metadata else 3)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_upscale_keeps_luminance_of_16_bits(here, tmp_path: Path, suffix: str) -> None:
    source, output = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    Image.fromarray(RAMP).save(source)
    done = here("upscale", source, output, "--scale", "2", *QUICK[2:])
    assert done.code == 0, done.err
    with Image.open(output) as image:
        assert (image.mode, image.size) == ("I;16", (192, 144))
        made = np.asarray(image).astype(np.float32)
    small = np.asarray(Image.fromarray(made).resize(SIZE, Image.Resampling.BICUBIC))
    inner = np.s_[4:-4, 4:-4]
    error = np.sqrt(np.mean((small[inner] - RAMP[inner].astype(float)) ** 2))
    assert error < 20, "the step from one 8-bit value to the next is 257"
    assert len(np.unique(made)) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("task", ["upscale", "restore"])
@pytest.mark.parametrize(("name", "mode"), [("L", "L"), ("1", "L"), ("LA", "LA"), ("RGB", "RGB"), ("RGBA", "RGBA")])
def test_grey_stays_grey(here, tmp_path: Path, task: str, name: str, mode: str) -> None:
    (tmp_path / "in.png").write_bytes(CASES[name][0])
    done = here(task, tmp_path / "in.png", tmp_path / "out.png", *QUICK[2:])
    assert done.code == 0, done.err
    with Image.open(tmp_path / "out.png") as image:
        assert image.mode == mode


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp", ".avif", ".tif"])
@pytest.mark.parametrize("name", ["LA", "I;16"])
def test_grey_is_written_in_every_format(here, tmp_path: Path, suffix: str, name: str) -> None:
    (tmp_path / "in.png").write_bytes(CASES[name][0])
    for task in ("restore", "colorize"):
        output = tmp_path / f"{task}{suffix}"
        done = here(task, tmp_path / "in.png", output, *QUICK[2 if task == "restore" else 0 :])
        assert done.code == 0, done.err
        assert load_image("out", output.read_bytes()).size == SIZE


@pytest.mark.slow
def test_a_damaged_picture_is_used_as_far_as_it_goes_and_that_is_told(here, tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(encode(make_picture("coffee", SIZE), "JPEG")[:-20])
    refused = here("restore", tmp_path / "cut.jpg", tmp_path / "out.png", *QUICK[2:])
    assert (refused.code, (tmp_path / "out.png").exists()) == (3, False)
    assert "or use --truncated keep" in refused.err
    kept = here("restore", tmp_path / "cut.jpg", tmp_path / "out.png", "--truncated", "keep", *QUICK[2:])
    assert kept.code == 0, kept.err
    assert ", of an input that is cut short or damaged" in kept.err
    batch = ["batch", tmp_path / "cut.jpg", "--preset", "restore", "-o", tmp_path / "results", *QUICK[2:]]
    failed = here(*batch)
    assert (failed.code, "--truncated keep" in failed.err) == (3, True)
    done = here(*batch, "--truncated", "keep")
    assert done.code == 0, done.err
    assert "cut short or damaged; what could be decoded is used" in done.err
    assert (tmp_path / "results" / "cut.jpg").exists()
