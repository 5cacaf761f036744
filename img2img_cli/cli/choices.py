"""Options that take one of a few words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, get_args

from img2img_cli.errors import UsageError
from img2img_cli.pictures.files.formats import Format, Truncated
from img2img_cli.presets.files import suggest
from img2img_cli.presets.schema import Offload

FORMATS: tuple[Format, ...] = get_args(Format)
TRUNCATED: tuple[Truncated, ...] = get_args(Truncated)
OFFLOADS: tuple[Offload, ...] = get_args(Offload)
Choice = TypeVar("Choice", bound=str)


def check_format(name: str) -> Format:
    """The value of --format.

    Raises:
        UsageError: no such format.
    """
    return _check_choice("--format", name, FORMATS)


def check_offload(name: str) -> Offload:
    """The value of --offload.

    Raises:
        UsageError: no such way.
    """
    return _check_choice("--offload", name, OFFLOADS)


def check_truncated(name: str) -> Truncated:
    """The value of --truncated.

    Raises:
        UsageError: no such choice.
    """
    return _check_choice("--truncated", name, TRUNCATED)


def _check_choice(option: str, name: str, known: Sequence[Choice]) -> Choice:
    for choice in known:
        if name == choice:
            return choice
    raise UsageError(f"{option} {name}: must be one of {', '.join(known)}{suggest(name, known)}")
