"""The formats of results and their file name extensions."""

from __future__ import annotations

from typing import Literal

Format = Literal["keep", "png", "jpeg", "webp", "tiff", "bmp", "avif"]
# How to treat a truncated or damaged input.
Truncated = Literal["refuse", "keep"]
EXTENSIONS: dict[str, str] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".jpe": "jpeg",
    ".jfif": "jpeg",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".bmp": "bmp",
    ".avif": "avif",
}
