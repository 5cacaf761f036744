"""What a run needs of a method: one step at a time, a state to go on from, and a preset at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from img2img_cli.train.pairs.check import Checked
from img2img_cli.train.pairs.layouts import Pair
from img2img_cli.train.pairs.sheets import Figures

FEW_PAIRS = 500  # below, a method guards against learning them by heart
DEFAULT_PROMPT = "as in the pairs"
Shown = Sequence[tuple[Pair, Image.Image, Image.Image]]


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The losses of a step: mean difference, and of an adversary its own and the scores of real and made pictures."""

    difference: float
    discriminator: float = 0.0
    real: float = 0.0
    made: float = 0.0


def format_head(name: str, checked: Checked) -> str:
    """Return the lines of a preset that any method writes: what it was learnt from, and the prompt of the pairs."""
    captions = sorted({pair.caption for pair in checked.training if pair.caption})
    prompt = captions[0] if len(captions) == 1 else DEFAULT_PROMPT
    description = f"Learnt from {len(checked.training)} pairs ({name})"
    return f"description: {json.dumps(description)}\nprompt: {json.dumps(prompt, ensure_ascii=False)}\n"


class PairTrainer(Protocol):
    """A method.

    Attributes:
        step: how many steps were made.
        batch_size: pairs in a step.
        longest: the longer side at which validation pictures are shown, at most.
        has_adversary: whether `Losses` tell of an adversary.
        made_of: the settings by name, for the card and to tell whether a run can be resumed.
    """

    step: int

    @property
    def batch_size(self) -> int: ...
    @property
    def longest(self) -> int: ...
    @property
    def has_adversary(self) -> bool: ...
    @property
    def made_of(self) -> dict[str, Any]: ...

    def advance(self, progress: float) -> Losses:
        """Make one step.

        Args:
            progress: the share of the run that is over, in 0..1.

        Raises:
            ModelError: the loss is not a number.
            OutOfMemoryError: the device has too little memory.
            InputError: a picture can no longer be read.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Return everything that `restore` needs, in types that `torch.load(weights_only=True)` reads."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state.

        Raises:
            KeyError, RuntimeError: it is not one of these settings.
        """
        ...

    def measure(self, shown: Shown) -> Figures:
        """Return what the averaged weights make of pairs, and how near it is to what was wanted.

        Raises:
            ModelError: the pixels are not numbers.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the averaged weights.

        Raises:
            OutputError: they cannot be written.
        """
        ...

    def format_preset(self, name: str, checked: Checked) -> str:
        """Return the text of the preset that uses what `save` has written, in the same folder."""
        ...
