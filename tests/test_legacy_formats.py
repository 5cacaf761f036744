"""Damaged, huge or slow TGA, PCX, ICO, PSD and DDS. `test_grid.py` reads good ones."""

from __future__ import annotations

import struct
from pathlib import Path

import mode_grid
import numpy as np
import pytest
from grid_formats import write_png
from grid_legacy import head_dds
from pictures import encode, make_picture
from PIL import Image
from test_hostile import refuse

from img2img_cli.errors import InputError
from img2img_cli.pictures.read import load_image

# One of each, with its pixels well inside.
GOOD = {
    case.group + case.name.split(",")[0]: case.data
    for case in mode_grid.legacy()
    if case.rgb is not None and case.name.split(",")[0] in ("TGA RGBA", "PCX RGB", "ICO RGB", "PSD RGB", "DDS BGRA")
}


def test_every_legacy_format_has_a_good_file() -> None:
    assert len(GOOD) == 5
    for content in GOOD.values():
        assert load_image("x", content).size == (mode_grid.WIDTH, mode_grid.HEIGHT)


@pytest.mark.parametrize("name", GOOD)
def test_a_truncated_file_of_a_legacy_format_is_refused(name: str) -> None:
    content = GOOD[name]
    whole = load_image("whole", content).rgb.tobytes()
    for length in sorted({1, 10, *np.linspace(17, len(content) - 1, 30).astype(int)}):
        try:
            loaded = load_image("photo.x", content[:length])
        except InputError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert loaded.rgb.tobytes() == whole, f"{length} of {len(content)} bytes passed for the whole"


@pytest.mark.parametrize("name", GOOD)
def test_a_scrambled_file_of_a_legacy_format_gives_a_picture_or_a_refusal(name: str) -> None:
    rng = np.random.default_rng(9)
    for _ in range(150):
        bad = bytearray(GOOD[name])
        for place in rng.integers(0, min(len(bad), 200), rng.integers(1, 6)):
            bad[place] = rng.integers(0, 256)
        try:
            loaded = load_image("photo.x", bytes(bad))
        except InputError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert loaded.rgb.mode == "RGB"


def header_tga(width: int, height: int) -> bytes:
    return struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, width, height, 24, 0x20) + bytes(1000)


def header_psd(width: int, height: int, resources: bytes = b"") -> bytes:
    head = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, height, width, 8, 3) + bytes(4)
    return head + struct.pack(">I", len(resources)) + resources + bytes(4) + struct.pack(">H", 0) + bytes(1000)


def header_icon(width: int, height: int, *, compression: int = 0, count: int = 1) -> bytes:
    content = struct.pack("<IiiHHIIiiII", 40, width, 2 * height, 1, 24, compression, *[0] * 5) + bytes(1000)
    return struct.pack("<HHHBBBBHHII", 0, 1, count, 0, 0, 0, 0, 1, 24, len(content), 22) + content


def header_dds(width: int, height: int, **pixels: object) -> bytes:
    head = bytearray(head_dds(4, fourcc=b"DXT1") if not pixels else head_dds(0x40, **pixels))
    struct.pack_into("<II", head, 12, height, width)
    return bytes(head) + bytes(1000)


def icon_of_png(content: bytes) -> bytes:
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(content), 22) + content


EMPTY_RESOURCE = b"8BIM" + bytes(8)
ODD_MASKS = {"bits": 16, "masks": (0xF800, 0x7E0, 0x1F, 0)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header_tga(60_000, 60_000), "million pixels"),
        (header_tga(10_000, 10_000), "cannot hold"),
        (header_psd(30_000, 30_000), "million pixels"),
        (header_psd(9_000, 9_000), "cannot hold"),
        (header_psd(2**31, 1), "damaged"),
        (header_psd(16, 16, EMPTY_RESOURCE * 300_000), "too many resources"),
        (header_icon(900, 900), "cut short"),
        (header_icon(30_000, 30_000), "damaged"),
        (header_icon(16, 16, compression=1), "cannot be read"),
        (header_icon(16, 16, count=60_000), "60000 pictures"),
        (icon_of_png(write_png(np.zeros((13, 19, 1), int), 8, 0) + bytes(20)), None),
        (icon_of_png(encode(Image.new("1", (16_000, 14_000)), "PNG")), "million pixels"),
        (header_dds(60_000, 60_000), "million pixels"),
        (header_dds(9_000, 9_000), "cannot hold"),
        (header_dds(1_500, 1_500, **ODD_MASKS) + bytes(4_500_000), "slow encoding"),
    ],
)
def test_headers_of_legacy_formats_are_held_to_the_limits(content: bytes, reason: str | None, tmp_path: Path) -> None:
    if reason is None:
        assert load_image("x", content).size == (19, 13)
    else:
        refuse((".x", content), reason, tmp_path)


@pytest.mark.parametrize(
    "content", [b"# Notes\n\nOf a picture.\n" * 20, b"\0\0\2\0" + bytes(300), b"\0" * 400, bytes(range(256)) * 3]
)
def test_what_is_no_tga_is_not_taken_for_one(content: bytes, tmp_path: Path) -> None:
    refuse((".tga", content), "not a picture", tmp_path)


def test_metadata_of_a_psd_goes_on(tmp_path: Path) -> None:
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    resources = struct.pack(">4sHxxI", b"8BIM", 1060, len(xmp)) + xmp + bytes(len(xmp) % 2)
    picture = load_image("x", header_psd(16, 16, resources))
    assert picture.xmp == xmp


def test_a_tgas_picture_is_written_as_png(here, tmp_path: Path) -> None:
    (tmp_path / "a.tga").write_bytes(encode(make_picture("coffee"), "TGA"))
    done = here("restore", tmp_path / "a.tga", "--dry-run")
    assert "a-restore.png" in done.out.decode(), done.err
