"""Check local weights files before a library reads them: headers, layer numbers, indexes and adapters."""

from __future__ import annotations

import fnmatch
import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from img2img_cli.errors import ModelError

MAX_HEADER_BYTES = 16 << 20  # headers of the largest models take a few hundred kilobytes
MAX_EMPTY_SIDE = 1 << 16
_LENGTH = struct.Struct("<Q")


def check_weights(path: Path) -> None:
    """Check the header of a .safetensors file: its length, and the shape of each tensor.

    The safetensors library itself refuses other errors, such as overlapping tensors.

    Raises:
        ModelError: the file is damaged or cannot be read; the message names it.
    """
    for name, told in _read_header(path).items():
        shape = told.get("shape") if isinstance(told, dict) else None
        if name == "__metadata__":
            continue
        if not isinstance(shape, list) or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise _damaged(path, f"tensor '{name[:80]}' has no shape")
        # The tensor takes no space in the file, but the library would allocate a layer of this size.
        if 0 in shape and max(shape) > MAX_EMPTY_SIDE:
            raise _damaged(path, f"tensor '{name[:80]}' is empty and claims {max(shape)} rows")


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a .safetensors file, by the tensor's name.

    Raises:
        ModelError: as in `check_weights`.
    """
    check_weights(path)
    return {name: tuple(told["shape"]) for name, told in _read_header(path).items() if name != "__metadata__"}


def read_metadata(path: Path) -> dict[str, str]:
    """Return the text entries of the `__metadata__` in a .safetensors file's header.

    Raises:
        ModelError: the header is damaged or cannot be read; the message names the file.
    """
    found = _read_header(path).get("__metadata__")
    return {key: text for key, text in found.items() if isinstance(text, str)} if isinstance(found, dict) else {}


def check_sequences(path: Path, names: Iterable[str]) -> None:
    """Refuse tensor names with layer numbers far above the number of tensors.

    A library builds as many layers as the names claim.

    Raises:
        ModelError: a number is too high; the message names the file.
    """
    known = list(names)
    most = 8 * len(known) + 64
    for name in known:
        for part in name.split("."):
            if part.isdecimal() and (len(part) > 9 or int(part) > most):
                raise _damaged(path, f"'{name[:80]}' counts further than its {len(known)} tensors")


def check_folder(folder: Path) -> None:
    """Check the weights of a diffusers folder; refuse adapters and weights that are outside it or pickles.

    Raises:
        ModelError: a file is refused or damaged; the message names it.
    """
    for path in sorted(folder.rglob("*.json")):
        if path.name == "adapter_config.json":
            raise ModelError(f"{path}: an adapter inside a model is refused; remove it, and give it with --lora")
        if fnmatch.fnmatch(path.name, "*.safetensors.index*.json"):
            _check_index(path)
    for path in sorted(folder.rglob("*.safetensors")):
        check_weights(path)


def _check_index(path: Path) -> None:
    """Check that an index of split weights names only .safetensors files in its own folder."""
    try:
        shards = set(json.loads(path.read_bytes())["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _damaged(path, "not an index of weights") from None
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelError(
                f"{path}: names {str(shard)[:80]!r}; only .safetensors files beside it are loaded, "
                "so get the model from its source again"
            )


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            start = file.read(_LENGTH.size)
            if len(start) < _LENGTH.size:
                raise _damaged(path, "too short")
            (length,) = _LENGTH.unpack(start)
            if length > MAX_HEADER_BYTES or length + _LENGTH.size > path.stat().st_size:
                raise _damaged(path, f"its header would have {length} bytes")
            header = json.loads(file.read(length))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, RecursionError):
        raise _damaged(path, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    return header


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(f"{path}: a weights file is damaged or not a safetensors file ({why}); get the model again")
