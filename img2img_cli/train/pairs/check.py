"""Look at every pair before training: what is there, what does not fit together, and a sheet to see it on."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from img2img_cli.errors import Img2ImgError
from img2img_cli.train.pairs.layouts import Found, Pair
from img2img_cli.train.pairs.pictures import divide_pairs, read_pair

LOOKED_AT = 256  # pixels of the longer side at which pairs are compared
FEW_PIXELS = 1.5  # a shift of the original pictures above this is told
CLEAR = 0.08  # height of the correlation's peak above which a shift is believed
SAME = 0.75  # mean difference in grey levels below which input and output are the same picture
SHOWN = 5  # names in a line
SHEET_PAIRS, SHEET_SIDE = 8, 192


@dataclass(kw_only=True)
class Checked:
    """What was found.

    Attributes:
        layout: the layout in words.
        training, validation: the pairs that can be read and fit together.
        lines: what to tell, in order.
        likeness: the mean correlation of inputs with their outputs, in -1..1.
        difference: the mean difference of inputs from their outputs, in 0..1.
        largest: the longer side of the largest output.
    """

    layout: str
    training: list[Pair] = field(default_factory=list)
    validation: list[Pair] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    likeness: float = 0.0
    difference: float = 0.0
    largest: int = 0


def check_pairs(found: Found, progress: Callable[[int, int], None] | None = None) -> Checked:
    """Read every pair once and say what is there.

    Args:
        progress: called with the number of pairs looked at and of all.
    """
    sound, faults, seen = [], list(found.problems), []
    for number, pair in enumerate(found.pairs, 1):
        try:
            look = _look_at(pair)
        except Img2ImgError as error:
            faults.append(str(error))
        else:
            sound.append(pair)
            seen.append(look)
        if progress is not None:
            progress(number, len(found.pairs))
    training, validation = divide_pairs(sound)
    result = Checked(layout=found.layout, training=training, validation=validation)
    result.lines.append(
        f"{found.layout}: {len(training)} pairs to train on, {len(validation)} to validate with"
        + (" (as the data says)" if any(pair.split == "test" for pair in sound) else "")
    )
    if seen:
        result.likeness = float(np.mean([look.likeness for look in seen]))
        result.difference = float(np.mean([look.difference for look in seen])) / 255
        result.largest = max(max(look.size) for look in seen)
        sizes = Counter(look.size for look in seen).most_common()
        smallest, largest = (pick(sizes, key=lambda entry: entry[0][0] * entry[0][1])[0] for pick in (min, max))
        result.lines.append(
            f"sizes: {smallest[0]} x {smallest[1]}"
            + (f" to {largest[0]} x {largest[1]}" if smallest != largest else " all")
        )
    result.lines += _describe(found, sound, seen, faults, validation)
    return result


@dataclass(frozen=True, kw_only=True)
class _Look:
    size: tuple[int, int]
    likeness: float
    difference: float
    shift: tuple[int, int] | None
    digest: str


def _look_at(pair: Pair) -> _Look:
    source, target = read_pair(pair, 1 << 16)
    size = target.size
    scale = max(1.0, max(size) / LOOKED_AT)
    small = max(8, round(size[0] / scale)), max(8, round(size[1] / scale))
    views = [image.resize(small, Image.Resampling.BOX) for image in (source, target)]
    first, second = (np.asarray(view.convert("L"), np.float32) for view in views)
    difference = float(np.abs(np.asarray(views[0], np.float32) - np.asarray(views[1], np.float32)).mean())
    likeness = float(np.corrcoef(first.ravel(), second.ravel())[0, 1]) if min(first.std(), second.std()) > 1 else 0.0
    shift = find_shift(first, second)
    moved = None
    if shift is not None and max(abs(shift[0]), abs(shift[1])) * scale > FEW_PIXELS:
        moved = round(shift[0] * scale), round(shift[1] * scale)
    thumb = np.asarray(source.convert("L").resize((16, 16), Image.Resampling.BOX)) // 8
    return _Look(
        size=size,
        likeness=likeness,
        difference=difference,
        shift=moved,
        digest=hashlib.sha256(thumb.tobytes()).hexdigest(),
    )


def find_shift(first: np.ndarray, second: np.ndarray) -> tuple[int, int] | None:
    """Return by how many pixels the second picture lies right of and below the first; None if nothing says so.

    Phase correlation (Kuglin and Hines 1975) of two float `(H, W)` pictures under a Hann window.
    """
    window = np.hanning(first.shape[0])[:, None] * np.hanning(first.shape[1])[None, :]
    spectra = [np.fft.rfft2((picture - picture.mean()) * window) for picture in (first, second)]
    product = spectra[1] * spectra[0].conj()
    surface = np.fft.irfft2(product / (np.abs(product) + 1e-6), first.shape)
    row, column = np.unravel_index(int(surface.argmax()), surface.shape)
    if surface.max() < CLEAR:
        return None
    down, right = (
        int(a) - (size if a > size // 2 else 0) for a, size in zip((row, column), surface.shape, strict=True)
    )
    return right, down


def _describe(
    found: Found, sound: Sequence[Pair], seen: Sequence[_Look], faults: Sequence[str], validation: Sequence[Pair]
) -> Iterator[str]:
    if found.unpaired:
        yield f"{len(found.unpaired)} without a partner: {_list(found.unpaired)}"
    moved = [(pair, look.shift) for pair, look in zip(sound, seen, strict=True) if look.shift is not None]
    if moved:
        told = [f"{pair.name} by {shift[0]}, {shift[1]}" for pair, shift in moved]
        yield f"{len(moved)} not aligned (pixels right, down): {_list(told)}; align them, or the results will be soft"
    same = [pair.name for pair, look in zip(sound, seen, strict=True) if look.difference < SAME]
    if same:
        yield f"{len(same)} with the same picture on both sides: {_list(same)}"
    held = {id(pair) for pair in validation}
    by_digest = defaultdict(list)
    for pair, look in zip(sound, seen, strict=True):
        by_digest[look.digest].append(pair)
    doubles = [group for group in by_digest.values() if len(group) > 1]
    if doubles:
        count = sum(map(len, doubles)) - len(doubles)
        yield f"{count} inputs come more than once: {_list([group[1].name for group in doubles])}"
    across = [group[0].name for group in doubles if 0 < sum(id(pair) in held for pair in group) < len(group)]
    if across:
        yield f"{len(across)} of them in training and in validation: {_list(across)}; the figures will be too good"
    if faults:
        yield f"{len(faults)} left out:"
        yield from (f"  {fault}" for fault in faults[: 2 * SHOWN])
        if len(faults) > 2 * SHOWN:
            yield f"  and {len(faults) - 2 * SHOWN} more"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def draw_pairs(pairs: Sequence[Pair]) -> Image.Image:
    """Draw a contact sheet of up to eight pairs, spread over the list: input and output side by side, two in a row."""
    shown = pairs[:: max(1, len(pairs) // SHEET_PAIRS)][:SHEET_PAIRS]
    sheet = Image.new("RGB", (4 * SHEET_SIDE, -(-len(shown) // 2) * SHEET_SIDE), "white")
    for index, pair in enumerate(shown):
        for side, image in enumerate(read_pair(pair, SHEET_SIDE)):
            sheet.paste(image, ((2 * (index % 2) + side) * SHEET_SIDE, index // 2 * SHEET_SIDE))
    return sheet
