"""Shared parts of the grid of modes: the pixels of its pictures, and their expected appearance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 19, 13

# name: photometric, channels of colour

INKS = {"grey": (1, 1), "white is zero": (0, 1), "RGB": (2, 3), "CMYK": (5, 4)}

TYPES = [("u", bits) for bits in (1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32)]

TYPES += [("i", 8), ("i", 16), ("i", 32), ("f", 16), ("f", 32), ("f", 64)]

ALPHAS = {"": (), " + alpha": (2,), " + premultiplied alpha": (1,), " + extra": (0,), " + extra + alpha": (0, 2)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file and the picture that it must show.

    Attributes:
        group: the row of the table that it belongs to.
        rgb: `(H, W, 3)` in 0..255, or None if the file must be refused.
        alpha: `(H, W)` in 0..255, or None.
        off: tolerance of a channel.
        samples: what an independent reader must find, to show that the file is what it claims.
    """

    name: str
    group: str
    data: bytes
    rgb: np.ndarray | None = None
    alpha: np.ndarray | None = None
    off: float = 1.0
    samples: np.ndarray | None = None


def ramps(channels: int) -> np.ndarray:
    """Return `(H, W, channels)` in 0..1, with 0 and 1 in each channel."""
    down, across = np.mgrid[0:HEIGHT, 0:WIDTH] / np.array([HEIGHT - 1, WIDTH - 1])[:, None, None]
    planes = [across, down, (across + 1 - down) / 2, 1 - across, (1 - across) * down, across * down]
    return np.stack(planes[:channels], axis=-1)


def store(values: np.ndarray, kind: str, bits: int) -> np.ndarray:
    """Convert 0..1 to a file's numbers."""
    if kind == "f":
        return values.astype(f"f{bits // 8}")
    if kind == "i":
        half = 1 << bits - 1
        return (np.round(values * (2 * half - 1)).astype(np.int64) - half).astype(f"i{bits // 8}")
    size = 1 if bits <= 8 else 2 if bits <= 16 else 4
    return np.round(values * (2**bits - 1)).astype(f"u{size}")


def restore(stored: np.ndarray, kind: str, bits: int) -> np.ndarray:
    """Convert a file's numbers to 0..1."""
    low = -(1 << bits - 1) if kind == "i" else 0
    return stored.astype(float) if kind == "f" else (stored.astype(float) - low) / (2**bits - 1)


def pack_line(line: np.ndarray, bits: int, kind: str, order: str) -> bytes:
    """Return a row's numbers as the bytes of a TIFF or PNG."""
    if bits in (16, 32, 64):
        return line.astype(f"{order}{kind}{bits // 8}").tobytes()
    if bits == 24:
        return b"".join(int(value).to_bytes(3, "little" if order == "<" else "big") for value in line)
    text = "".join(f"{int(value) & (1 << bits) - 1:0{bits}b}" for value in line)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8))


def expect(ink: str, values: np.ndarray, extras: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None, float]:
    """Return the expected colour, alpha and tolerance of channels in 0..1."""
    colours = INKS[ink][1]
    colour, alpha, off = values[..., :colours], None, 1.0
    for index, extra in enumerate(extras):
        if extra in (1, 2):
            alpha = values[..., colours + index]
            if extra == 1:
                colour, off = np.where(alpha[..., None] > 0.3, colour / np.maximum(alpha[..., None], 0.01), -1), 5.0
    if ink == "white is zero":
        colour = 1 - colour
    if ink == "CMYK":
        colour, off = (1 - colour[..., :3]) * (1 - colour[..., 3:]), 2.0  # four roundings
    known = (colour >= 0).all(axis=-1, keepdims=True)
    colour = np.where(known, colour.clip(0, 1) * 255, np.nan)
    return np.broadcast_to(colour, (HEIGHT, WIDTH, 3)), None if alpha is None else alpha * 255, off
