"""The formats that results can have, and the extensions that stand for them."""

from __future__ import annotations

from typing import Literal

Format = Literal["keep", "png", "jpeg", "webp", "tiff", "bmp", "avif"]
# What becomes of an input that is cut short or damaged.
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
