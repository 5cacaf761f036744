"""References to models: bundled, a local folder, a single file, or a hub id. Checked before torch is loaded."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path
from typing import Literal

from img2img_cli.errors import ModelError

BUNDLED = "bundled"
Kind = Literal["folder", "file", "hub"]
PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle")
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def bundled_dir() -> Path:
    """The diffusers folder of the model that is shipped inside the package."""
    return Path(__file__).parent / "models" / BUNDLED


def locate_model(reference: str, *, index: str = "model_index.json") -> tuple[Kind, str]:
    """Tell what a reference means, and its path or hub id.

    Args:
        index: the file that makes a folder a model's: `config.json` for a ControlNet.

    Raises:
        ModelError: a pickle, a folder without an index, a missing file, or nothing that could be a hub id.
    """
    if reference == BUNDLED:
        return "folder", str(bundled_dir())
    path = Path(reference).expanduser()
    if path.suffix.lower() in PICKLES:
        raise ModelError(
            f"{reference}: pickle files can run code when they are opened and are refused; "
            "use the model's .safetensors file or convert it to one"
        )
    if path.is_dir():
        if not (path / index).is_file():
            raise ModelError(f"{reference}: the folder has no {index}, so it is not a diffusers model; check the path")
        return "folder", str(path)
    if path.suffix.lower() == ".safetensors":
        if not path.is_file():
            raise ModelError(f"{reference}: no such file; check the path")
        return "file", str(path)
    if path.exists():
        raise ModelError(f"{reference}: neither a diffusers folder nor a .safetensors file; convert it to one of them")
    if not _HUB_ID.fullmatch(reference):
        raise ModelError(
            f"{reference}: no such model; give '{BUNDLED}', a folder, a .safetensors file or a hub id like owner/name"
        )
    return "hub", reference


@functools.cache
def identify_model(reference: str) -> str:
    """A text that changes when a model's weights do: of files a hash of names, sizes and times; of the hub its id.

    The bundled model is hashed by content, so that it is the same wherever it is installed.
    """
    kind, place = locate_model(
        reference, index="config.json" if Path(reference, "config.json").is_file() else "model_index.json"
    )
    if kind == "hub":
        return place
    root = Path(place)
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.safetensors")) if kind == "folder" else [root]:
        status = file.stat()
        digest.update(f"{file.relative_to(root)} {status.st_size} ".encode())
        digest.update(file.read_bytes() if reference == BUNDLED else str(status.st_mtime_ns).encode())
    return f"{BUNDLED if reference == BUNDLED else place} {digest.hexdigest()[:16]}"
