"""Take things out of a picture: fill what is masked with patches of what is around it.

The fill is that of Wexler et al. (2007, "Space-time completion of video") from coarse to fine, with the patches found
by PatchMatch (Barnes et al. 2009), and its light fitted to the border by a membrane (Pérez et al. 2003).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from img2img_cli.engines.looks.fields import Array, to_array, to_picture
from img2img_cli.errors import InputError
from img2img_cli.pictures.masks import harden_mask

RADIUS = 3  # patches have 7 x 7 pixels
MOST_PIXELS, MOST_HOLE = 300_000, 25_000  # patches are looked for at this size; their copies have full resolution
COARSEST = 10  # shorter side of the hole's box at the coarsest level, in pixels
ROUNDS, LAST_ROUNDS = 8, 2  # of finding patches and filling, at the coarsest level and at the finest
TRUST = 1.3  # by how much pixels one further from the border count less
DEEPEST = 24  # beyond so many pixels it stays the same
LEAST_MARGIN = 64  # pixels around a hole that are looked at
BLOCKS = 48  # of the longer side, in which marks belong together
FEWEST_PATCHES = 24
Mask = NDArray[np.bool_]
Places = NDArray[np.int64]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Level:
    """A picture at one size.

    Attributes:
        pixels: float32 `(H, W, 3)` in 0..1; what they are in the hole does not matter.
        hole: what is to be filled, `(H, W)`.
    """

    pixels: Array
    hole: Mask

    @functools.cached_property
    def sources(self) -> Mask:
        """Where patches lie wholly in the picture and outside the hole."""
        inner = np.zeros_like(self.hole)
        inner[RADIUS:-RADIUS, RADIUS:-RADIUS] = True
        return inner & ~_grow(self.hole, RADIUS)

    @functools.cached_property
    def trust(self) -> Array:
        """How much each pixel counts: 1 outside the hole, and less the deeper it lies in it; float32 `(H, W)`."""
        trust, left, deep = np.ones(self.hole.shape, np.float32), self.hole, 0
        while left.any() and deep < DEEPEST:
            deep += 1
            trust[left] = TRUST**-deep
            left = ~_grow(~left, 1)
        return trust

    @functools.cached_property
    def places(self) -> tuple[Places, Places]:
        """Rows and columns of the places whose patches overlap the hole."""
        rows, columns = np.nonzero(_grow(self.hole, RADIUS))
        return rows, columns

    def paste(self, filled: Array) -> Array:
        """Return the pixels with the hole taken from another picture of this size."""
        return np.where(self.hole[..., None], filled, self.pixels)

    def reduce(self, height: int, width: int) -> Level:
        """Return the level at another size; what touches the hole belongs to it."""
        if (height, width) == self.hole.shape:
            return self
        known = (~self.hole).astype(np.float32)
        sums = _resize(self.pixels * known[..., None], (width, height), Image.Resampling.BOX)
        shares = _resize(known[..., None], (width, height), Image.Resampling.BOX)
        return Level(sums / np.maximum(shares, 1e-6), shares[..., 0] < 0.999)


@dataclass
class Matches:
    """The patch chosen for each place whose own patch overlaps the hole.

    Attributes:
        y, x: the places, `(N,)` each.
        from_y, from_x: the middle of the patch chosen for each.
        distance: how far the two patches differ, a mean of squares.
    """

    y: Places
    x: Places
    from_y: Places
    from_x: Places
    distance: Array


def erase(picture: Image.Image, mask: Image.Image, seed: int) -> Image.Image:
    """Return a picture whose masked part is filled with patches of the rest; every other pixel is the picture's own.

    Args:
        picture: 8-bit RGB.
        mask: `L` of its size; all that is not nearly black is filled.
        seed: of the random search.

    Raises:
        InputError: too little lies outside the mask to fill it from.
    """
    hole = np.asarray(harden_mask(mask)) > 0
    result, rng = picture.copy(), np.random.default_rng(seed)
    for box in choose_boxes(hole):
        inside = hole[box[1] : box[3], box[0] : box[2]]
        filled = _fill(to_array(picture.crop(box)), inside, rng)
        result.paste(to_picture(filled), box[:2], Image.fromarray(inside))
    return result


def choose_boxes(hole: Mask) -> list[Box]:
    """Return boxes that do not overlap and hold all of a hole: its parts, each with as much again to each side.

    So two specks far apart are looked at one by one, in full resolution and little memory.

    Returns:
        left, top, right and bottom of each.
    """
    block = -(-max(hole.shape) // BLOCKS)
    height, width = (-(-side // block) * block for side in hole.shape)
    filled = np.zeros((height, width), bool)
    filled[: hole.shape[0], : hole.shape[1]] = hole
    marked = filled.reshape(height // block, block, width // block, block).any((1, 3))
    parts: dict[Box, Box] = {}  # each with the box around it
    for place in np.argwhere(marked):
        part = _measure_part(filled, place, block)
        while True:
            box = _widen(part, hole.shape)
            near = [other for other, around in parts.items() if _do_overlap(box, around)]
            if not near:
                break
            for other in near:
                del parts[other]
                part = min(part[0], other[0]), min(part[1], other[1]), max(part[2], other[2]), max(part[3], other[3])
        parts[part] = box
    return list(parts.values())


def _measure_part(hole: Mask, place: Places, block: int) -> Box:
    """Return the box of what is marked within a block, which is `block` pixels wide and at the given row and column."""
    top, left = (int(index) * block for index in place)
    inside = hole[top : top + block, left : left + block]
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return int(left + columns[0]), int(top + rows[0]), int(left + columns[-1] + 1), int(top + rows[-1] + 1)


def _widen(part: Box, size: tuple[int, ...]) -> Box:
    """Return the box of a part and what is around it, in a picture of so many rows and columns."""
    left, top, right, bottom = part
    margin = max(LEAST_MARGIN, right - left, bottom - top)
    return max(0, left - margin), max(0, top - margin), min(size[1], right + margin), min(size[0], bottom + margin)


def _do_overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _fill(pixels: Array, hole: Mask, rng: np.random.Generator) -> Array:
    """Return pixels `(H, W, 3)` in 0..1 with the hole filled."""
    whole = Level(pixels, hole)
    factor = min(1.0, math.sqrt(MOST_PIXELS / hole.size), math.sqrt(MOST_HOLE / hole.sum()))
    levels = [whole.reduce(*(max(1, round(side * factor)) for side in hole.shape))]
    while _shorter_side(levels[-1].hole) >= 2 * COARSEST and min(levels[-1].hole.shape) >= 8 * RADIUS:
        levels.append(levels[-1].reduce(*(side // 2 for side in levels[-1].hole.shape)))
    levels = [level for level in levels if level.sources.sum() >= FEWEST_PATCHES]
    if not levels:
        raise InputError("mask: too little lies outside it to fill it from; mark less")
    matches: Matches | None = None
    for left, level in reversed(list(enumerate(levels))):
        if matches is None:
            matches, current = _draw_matches(level, rng), _interpolate(level.pixels, ~level.hole)
        else:
            matches = _enlarge(matches, levels[left + 1], level, rng)
            current = level.paste(_vote(level, matches))
        for _ in range(LAST_ROUNDS + round((ROUNDS - LAST_ROUNDS) * left / max(1, len(levels) - 1))):
            _search(current, level, matches, rng)
            current = level.paste(_vote(level, matches))
    assert matches is not None
    if levels[0].hole.shape != hole.shape:
        matches = _enlarge(matches, levels[0], whole, rng)
    return _fit_light(_vote(whole, matches), whole)


def _shorter_side(hole: Mask) -> int:
    return int(min(np.ptp(np.flatnonzero(hole.any(axis))) + 1 for axis in (0, 1)))


def _resize(values: Array, size: tuple[int, int], resample: Image.Resampling) -> Array:
    """Return float32 `(H, W, C)` at another size, width first."""
    channels = np.moveaxis(np.asarray(values, np.float32), -1, 0)
    return np.stack([np.asarray(Image.fromarray(channel).resize(size, resample)) for channel in channels], -1)


def _grow(hole: Mask, radius: int) -> Mask:
    """Return the hole and all within a square of `radius` pixels of it."""
    drawn = Image.fromarray(hole.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * radius + 1))
    grown: Mask = np.asarray(drawn) > 0
    return grown


def _draw_matches(level: Level, rng: np.random.Generator) -> Matches:
    """Return random matches."""
    y, x = level.places
    sources = np.argwhere(level.sources)
    chosen = sources[rng.integers(len(sources), size=len(y))]
    return Matches(y, x, chosen[:, 0], chosen[:, 1], np.full(len(y), np.inf, np.float32))


def _enlarge(coarser: Matches, small: Level, large: Level, rng: np.random.Generator) -> Matches:
    """Return matches for a larger level from those of a smaller one; random ones for what would overlap the hole."""
    (height, width), (rows, columns) = large.hole.shape, small.hole.shape
    scale_y, scale_x = height / rows, width / columns
    lookup = np.full(small.hole.shape, -1, np.int64)
    lookup[coarser.y, coarser.x] = np.arange(len(coarser.y))
    matches = _draw_matches(large, rng)
    y, x = matches.y, matches.x
    near_y = (y / scale_y).astype(np.int64).clip(0, rows - 1)
    near_x = (x / scale_x).astype(np.int64).clip(0, columns - 1)
    at = lookup[near_y, near_x]
    missing = np.flatnonzero(at < 0)  # the larger hole's border can lie a pixel beside the smaller one's
    for start in range(0, len(missing), 512):
        some = missing[start : start + 512]
        distances = np.abs(near_y[some, None] - coarser.y) + np.abs(near_x[some, None] - coarser.x)
        at[some] = distances.argmin(1)
    from_y = (y + (coarser.from_y - coarser.y)[at] * scale_y).round().astype(np.int64).clip(0, height - 1)
    from_x = (x + (coarser.from_x - coarser.x)[at] * scale_x).round().astype(np.int64).clip(0, width - 1)
    right = large.sources[from_y, from_x]
    matches.from_y, matches.from_x = np.where(right, from_y, matches.from_y), np.where(right, from_x, matches.from_x)
    matches.distance = np.where(right, coarser.distance[at], np.float32(1))
    return matches


def _search(current: Array, level: Level, matches: Matches, rng: np.random.Generator) -> None:
    """Improve matches in place: by those of neighbours, nearer and nearer, and by a random search around the best."""
    height, width = level.hole.shape
    padded = np.pad(current, ((RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0)), mode="edge")
    patches = np.lib.stride_tricks.sliding_window_view(padded, (2 * RADIUS + 1, 2 * RADIUS + 1), axis=(0, 1))
    targets = patches[matches.y, matches.x]
    trust = np.pad(level.trust, RADIUS, mode="edge")
    weights = np.lib.stride_tricks.sliding_window_view(trust, (2 * RADIUS + 1, 2 * RADIUS + 1))[matches.y, matches.x]
    weights = (weights / weights.sum((1, 2), keepdims=True))[:, None]

    def measure(rows: Places, columns: Places, which: Places) -> Array:
        difference = patches[rows, columns] - targets[which]
        found: Array = (difference * difference * weights[which]).sum((1, 2, 3))
        return found

    everyone = np.arange(len(matches.y))
    matches.distance = measure(matches.from_y, matches.from_x, everyone)

    def try_out(rows: Places, columns: Places, which: Places) -> None:
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        rows, columns, which = rows[inside], columns[inside], which[inside]
        good = level.sources[rows, columns]
        rows, columns, which = rows[good], columns[good], which[good]
        distances = measure(rows, columns, which)
        better = distances < matches.distance[which]
        chosen = which[better]
        matches.distance[chosen] = distances[better]
        matches.from_y[chosen], matches.from_x[chosen] = rows[better], columns[better]

    lookup = np.full(level.hole.shape, -1, np.int64)
    lookup[matches.y, matches.x] = everyone
    for jump in (8, 4, 2, 1, 1):
        for step_y, step_x in ((0, jump), (jump, 0), (0, -jump), (-jump, 0)):
            rows, columns = matches.y + step_y, matches.x + step_x
            inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
            neighbour = np.where(inside, lookup[rows.clip(0, height - 1), columns.clip(0, width - 1)], -1)
            which = np.flatnonzero(neighbour >= 0)
            other = neighbour[which]
            try_out(matches.from_y[other] - step_y, matches.from_x[other] - step_x, which)
    reach = float(max(height, width))
    while reach >= 1:
        shift = rng.uniform(-reach, reach, (2, len(everyone)))
        rows = (matches.from_y + shift[0]).round().astype(np.int64)
        columns = (matches.from_x + shift[1]).round().astype(np.int64)
        try_out(rows, columns, everyone)
        reach /= 2.5


def _vote(level: Level, matches: Matches) -> Array:
    """Return the mean of the patches that cover each pixel, by how good they are; where none does, the pixel."""
    height, width = level.hole.shape
    spread = float(np.quantile(matches.distance[np.isfinite(matches.distance)], 0.75)) if len(matches.y) else 0.0
    trust = level.trust[matches.y, matches.x]
    weight = np.exp(-np.minimum(matches.distance / (2 * spread + 1e-8), 30)).astype(np.float32) * trust + 1e-8
    total, weights = np.zeros((height, width, 3), np.float32), np.zeros((height, width, 1), np.float32)
    for step_y in range(-RADIUS, RADIUS + 1):
        for step_x in range(-RADIUS, RADIUS + 1):
            rows, columns = matches.y + step_y, matches.x + step_x
            inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
            rows, columns, own = rows[inside], columns[inside], weight[inside, None]
            total[rows, columns] += own * level.pixels[matches.from_y[inside] + step_y, matches.from_x[inside] + step_x]
            weights[rows, columns] += own
    return np.where(weights > 0, total / np.maximum(weights, 1e-12), level.pixels).astype(np.float32)


def _fit_light(voted: Array, level: Level) -> Array:
    """Return the pixels with the hole filled as voted, its light and colour shifted smoothly to meet the border."""
    ring = _grow(level.hole, 2) & ~level.hole
    return level.paste(voted + _interpolate(np.where(ring[..., None], level.pixels - voted, np.float32(0)), ring))


def _interpolate(values: Array, known: Mask) -> Array:
    """Return values `(H, W, 3)` with what is not known interpolated smoothly, from coarse to fine."""
    height, width = known.shape
    if known.all() or min(height, width) <= 1:
        mean = values[known].mean(0) if known.any() else np.zeros(3, np.float32)
        return np.where(known[..., None], values, mean)
    rows, columns = max(1, height // 2), max(1, width // 2)
    shares = _resize(known[..., None].astype(np.float32), (columns, rows), Image.Resampling.BOX)[..., 0]
    coarse = _interpolate(Level(values, ~known).reduce(rows, columns).pixels, shares > 1e-3)
    filled = np.where(known[..., None], values, _resize(coarse, (width, height), Image.Resampling.BILINEAR))
    for _ in range(4):
        padded = np.pad(filled, ((1, 1), (1, 1), (0, 0)), mode="edge")
        mean = (padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2]) / 4
        filled = np.where(known[..., None], values, mean)
    return filled
