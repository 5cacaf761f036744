"""Paint a picture with patches of another: its strokes and palette on this one's content, without a model.

Patches are chosen from coarse to fine and averaged where they overlap, while the content pulls each level towards
itself (after Elad and Milanfar 2017, "Style transfer via texture synthesis"). A patch of the style counts the less the
better it already serves another place, so that not a few flat ones paint everything (Granot et al. 2022, "Drop the
GAN"). The content first takes on the palette by the linear map that moves one covariance of colours onto the other with
the least change (Pitie and Kokaram 2007).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from img2img_cli.engines.looks.fields import Array, blur, luminance, to_array, to_picture
from img2img_cli.pictures.read import pad_image

PATCH = 7  # pixels on each side
STRIDES = (3, 2, 2)  # from one patch to the next at each level, the finest first
ROUNDS = (2, 3, 4)  # of choosing patches and averaging them
HOLDS = (0.25, 0.5, 1.2)  # how much the content counts beside what was painted so far
MOST_PIXELS, STYLE_SHARE = 240_000, 0.8  # of the picture that is painted, and how many the style has beside it
PATCHES, COMPONENTS = 12_000, 32  # of the style that a round chooses from, and the components that they are compared by
CHUNK = 1024  # places whose distances from all patches are in memory at once
RARITIES = (
    0.03,
    0.1,
    0.3,
)  # by how little a patch's nearest distance can be divided, beside the mean: less, more kinds
SHADE, DETAIL, FINEST = 0.4, 0.12, 0.4  # share of the content's light that is put back: broad, fine, and unpainted
BROAD = 3.5  # pixels from which on it is broad
SMALLEST = 32  # sides of what is painted


def paint_like(picture: Image.Image, style: Image.Image, seed: int) -> Image.Image:
    """Return a picture painted like another: 8-bit RGB of its own size.

    Args:
        picture: 8-bit RGB.
        style: 8-bit RGB of any size.
        seed: which patches of the style are looked at.
    """

    def paint(content: Image.Image) -> Image.Image:
        strokes = to_array(limit(style, STYLE_SHARE * content.width * content.height))
        wanted = take_palette(to_array(content), strokes)
        painted = _paint(wanted, strokes, torch.Generator().manual_seed(seed))
        light, broad = wanted @ _LUMA, blur(wanted @ _LUMA, BROAD)
        detail = DETAIL * (light - broad) * (0.4 + 1.2 * _find_edges(light))
        shade = SHADE * (broad - blur(painted @ _LUMA, BROAD))
        return to_picture(painted + (detail + shade)[..., None])

    return paint_small(picture, MOST_PIXELS, paint)


_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def paint_small(picture: Image.Image, pixels: float, paint: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Paint a picture at no more than so many pixels, and put back some of the light and shade that is finer.

    Args:
        paint: is given a picture with sides of at least `SMALLEST` and returns one of the same size.
    """
    canvas = pad_image(picture, (max(SMALLEST, picture.width), max(SMALLEST, picture.height)))
    content = limit(canvas, pixels)
    made = paint(content)
    if content.size != canvas.size:
        finer = luminance(canvas) - luminance(content.resize(canvas.size, Image.Resampling.BICUBIC))
        made = to_picture(to_array(made.resize(canvas.size, Image.Resampling.BICUBIC)) + FINEST * finer[..., None])
    return made.crop((0, 0, *picture.size))


def take_palette(content: Array, style: Array) -> Array:
    """Return the content with the mean and covariance of the style's colours; all float32 `(H, W, 3)` in 0..1."""
    own, other = content.reshape(-1, 3), style.reshape(-1, 3)
    tiny = 1e-4 * np.eye(3)
    root, inverse = _power(np.cov(own.T) + tiny, 0.5), _power(np.cov(own.T) + tiny, -0.5)
    change = inverse @ _power(root @ (np.cov(other.T) + tiny) @ root, 0.5) @ inverse
    moved = ((own - own.mean(0)) @ change.T + other.mean(0)).reshape(content.shape)
    return np.asarray(moved.clip(0, 1), np.float32)


def _power(matrix: Array, exponent: float) -> Array:
    """Return the power of a symmetric positive matrix."""
    values, vectors = np.linalg.eigh(matrix)
    powered: Array = (vectors * np.maximum(values, 1e-9) ** exponent) @ vectors.T
    return powered


def limit(picture: Image.Image, pixels: float) -> Image.Image:
    """Return a picture of about so many pixels at most, and with sides of at least `SMALLEST`."""
    picture = pad_image(picture, (max(SMALLEST, picture.width), max(SMALLEST, picture.height)))
    factor = min(1.0, math.sqrt(pixels / (picture.width * picture.height)))
    size = [max(SMALLEST, round(side * factor)) for side in picture.size]
    return picture if factor == 1 else picture.resize(size, Image.Resampling.LANCZOS)


def _reduce(values: Array, level: int) -> torch.Tensor:
    """Return `(H, W, 3)` at one of the levels, each half as large as the one before: `(3, h, w)`."""
    whole = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))
    size = [max(SMALLEST // 2, side >> level) for side in whole.shape[1:]]
    return functional.interpolate(whole[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


@torch.inference_mode()
def _paint(wanted: Array, style: Array, generator: torch.Generator) -> Array:
    """Return the content `(H, W, 3)`, which has the palette already, painted with patches of the style."""
    painted: torch.Tensor | None = None
    for level in range(len(STRIDES) - 1, -1, -1):
        content, strokes = _reduce(wanted, level), _reduce(style, level)
        edges = torch.from_numpy(_find_edges(np.tensordot(_LUMA, content.numpy(), 1)).astype(np.float32))
        if painted is None:
            painted = content
        else:
            size = content.shape[1:]
            painted = functional.interpolate(painted[None], size, mode="bilinear", align_corners=False)[0]
        hold = HOLDS[level] * (0.3 + 1.4 * edges)
        for _ in range(ROUNDS[level]):
            target = (painted + hold * content) / (1 + hold)
            painted = _repaint(target, strokes, level, generator)
    assert painted is not None
    return painted.permute(1, 2, 0).numpy()


def _repaint(target: torch.Tensor, strokes: torch.Tensor, level: int, generator: torch.Generator) -> torch.Tensor:
    """Return a picture like the target `(3, H, W)` from patches of the strokes `(3, h, w)`."""
    (height, width), stride = target.shape[1:], STRIDES[level]
    filled = functional.pad(target[None], (0, -(width - PATCH) % stride, 0, -(height - PATCH) % stride), "replicate")
    places = functional.unfold(filled, PATCH, stride=stride)[0].T
    patches = _draw_patches(strokes, generator)
    chosen = _choose(places, patches, RARITIES[level])
    error = (chosen - places).square().mean(1)
    weight = (-error / (2 * error.median() + 1e-6)).exp().clamp_min(1e-3)
    size = filled.shape[2:]
    total = functional.fold((chosen * weight[:, None]).T[None], size, PATCH, stride=stride)[0]
    weights = functional.fold(weight.expand(1, PATCH * PATCH, -1), size, PATCH, stride=stride)[0]
    return (total / weights)[:, :height, :width]


def _draw_patches(strokes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return up to `PATCHES` patches of a picture and of its mirror image, `(N, 3 * PATCH * PATCH)`."""
    views = strokes.unfold(1, PATCH, 1).unfold(2, PATCH, 1)
    rows, columns = views.shape[1:3]
    drawn = torch.randperm(rows * columns, generator=generator)[:PATCHES]
    patches = views[:, drawn // columns, drawn % columns].transpose(0, 1)
    mirrored = torch.rand(len(patches), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], patches.flip(-1), patches).flatten(1)


def _choose(places: torch.Tensor, patches: torch.Tensor, rarity: float) -> torch.Tensor:
    """Return the patch for each place, `(P, D)`: near it, and not already nearer to another place."""
    precise = patches.double()  # so that how many threads add up does not show
    mean = precise.mean(0)
    _, axes = torch.linalg.eigh((precise - mean).T @ (precise - mean))
    mean, axes = mean.float(), axes[:, -COMPONENTS:].float()
    keys, queries = (patches - mean) @ axes, (places - mean) @ axes
    # A distance is one product: |q|^2 - 2 q k + |k|^2 = (q, |q|^2, 1) (-2 k, 1, |k|^2).
    squares = keys.square().sum(1, keepdim=True)
    keys = torch.cat([-2 * keys, torch.ones_like(squares), squares], 1)
    lengths = queries.square().sum(1, keepdim=True)
    queries = torch.cat([queries, lengths, torch.ones_like(lengths)], 1)
    nearest = torch.full((len(keys),), math.inf)
    for distances in _multiply(queries, keys):
        torch.minimum(nearest, distances.amin(0), out=nearest)
    keys = keys / (rarity * squares.mean() + nearest.clamp_min(0) + 1e-9)[:, None]
    return patches[torch.cat([distances.argmin(1) for distances in _multiply(queries, keys)])]


def _multiply(queries: torch.Tensor, keys: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the products of queries `(P, D)` and keys `(N, D)`, some queries at a time, in the same memory."""
    room = torch.empty(CHUNK, len(keys))
    for start in range(0, len(queries), CHUNK):
        some = queries[start : start + CHUNK]
        yield torch.mm(some, keys.T, out=room[: len(some)])


def _find_edges(light: Array) -> Array:
    """Return where there is much to see: 0..1 `(H, W)`, a half where edges are as strong as in the mean."""
    down, right = np.gradient(light)
    strength = blur(np.hypot(down, right).astype(np.float32), 2.5)
    found: Array = strength / (strength + strength.mean() + 1e-4)
    return found
