"""References to models: `bundled`, a local folder, a single file or a hub id. Checked before torch is loaded."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from img2img_cli import PACKAGE
from img2img_cli.errors import ModelError

BUNDLED = "bundled"
BUNDLED_NETS = ("bundled-colorize", "bundled-restore", "bundled-upscale")
NET_CONFIG = "net.json"  # what a folder of one of our own networks holds beside its weights
MAX_CONFIG_BYTES = 1 << 16  # of that file
STYLE_NETWORK = "StyleNet"  # its architecture if the network takes the style of a picture
NO_MODEL = "none"  # for an upscaling net without a diffusion model
Kind = Literal["folder", "net", "file", "hub", "none"]
INDEX = "model_index.json"  # what a diffusers folder holds
PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle")
_WEIGHTS = ".safetensors"
MAX_WORDS = 64  # in longer texts, file names with spaces are not recognized
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def bundled_dir(name: str = BUNDLED) -> Path:
    """Return the folder of a model that is shipped inside the package: a diffusers folder, or that of a network."""
    return Path(PACKAGE) / "models" / name


def is_bundled(reference: str) -> bool:
    """Return whether a reference names a model that is shipped inside the package."""
    return reference == BUNDLED or reference in BUNDLED_NETS


def is_network(reference: str) -> bool:
    """Return whether a reference names a network of one pass, bundled or in a folder, rather than a diffusion model."""
    return reference in BUNDLED_NETS or (_to_path(reference) / NET_CONFIG).is_file()


def is_style_network(reference: str) -> bool:
    """Return whether a reference names the folder of a network that takes the style of a picture."""
    try:
        with (_to_path(reference) / NET_CONFIG).open("rb") as file:
            told = json.loads(file.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(told, dict) and told.get("architecture") == STYLE_NETWORK


def _to_path(reference: str) -> Path:
    """Return a reference as a path, or a path that cannot exist if the system rejects it (too long, unknown user)."""
    try:
        path = Path(reference).expanduser()
        path.exists()
    except (OSError, RuntimeError):
        return Path("\0")
    return path


def locate_model(reference: str, *, index: str = INDEX) -> tuple[Kind, str]:
    """Return what kind of model a reference names, and its path or hub id. A `net` is a folder with `NET_CONFIG`.

    Args:
        index: the file that a model folder must contain; `config.json` for a VAE or ControlNet.

    Raises:
        ModelError: the reference is a pickle, a folder without the index, a missing file or no valid hub id.
    """
    if reference == BUNDLED:
        return "folder", str(bundled_dir())
    if reference in BUNDLED_NETS:
        return "net", str(bundled_dir(reference))
    if reference == NO_MODEL:
        return "none", reference
    path = _to_path(reference)
    if path.suffix.lower() in PICKLES:
        raise ModelError(
            f"{reference}: pickle files can run code when they are opened and are refused; "
            "use the model's .safetensors file or convert it to one"
        )
    if path.is_dir():
        if index == INDEX and (path / NET_CONFIG).is_file():
            return "net", str(path)
        if not (path / index).is_file():
            raise ModelError(f"{reference}: the folder has no {index}, so it is not a diffusers model; check the path")
        return "folder", str(path)
    if path.suffix == ".safetensors":  # case-sensitive, as in the libraries, which read any other file as a pickle
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


def make_absolute(reference: str) -> str:
    """Make the path of a local reference absolute, keeping a LoRA's scale; return other references unchanged."""
    if is_bundled(reference) or reference == NO_MODEL:
        return reference
    name, colon, scale = reference.rpartition(":")
    for path, rest in ((reference, ""), (name, colon + scale)):
        if path and (found := _to_path(path)).exists():
            return str(found.absolute()) + rest
    return reference


@dataclass(frozen=True)
class FileReference:
    """A weights file, such as a LoRA or an embedding, and its location.

    Attributes:
        repository: hub id, or local folder.
        file: the .safetensors file in it; None for the only one of a hub repository.
        on_hub: whether `repository` is a hub id.
    """

    repository: str
    file: str | None
    on_hub: bool


@dataclass(frozen=True)
class LoraReference(FileReference):
    """A LoRA's file and the scale at which to apply it."""

    scale: float


def parse_lora(text: str) -> LoraReference:
    """Read `REF` or `REF:SCALE`; REF is a local .safetensors file, a hub id, or `owner/name/FILE.safetensors`.

    Raises:
        ModelError: the scale is not a finite number, or REF is a pickle, a missing file or no valid hub id.
    """
    reference, number = _split_scale(text)
    try:
        scale = float(number)
    except ValueError:
        scale = math.nan
    if not reference or not math.isfinite(scale):
        raise ModelError(
            f"lora {text}: '{number}' is not a scale; write REF or REF:SCALE, such as {reference or 'REF'}:0.8"
        )
    found = _find_file("lora", reference)
    return LoraReference(found.repository, found.file, found.on_hub, scale)


def _split_scale(text: str) -> tuple[str, str]:
    """Split a LoRA's reference from its scale, `1` if it has none. File names may contain colons."""
    reference, colon, number = text.rpartition(":")
    return (reference, number) if colon and not text.endswith(_WEIGHTS) else (text, "1")


def split_references(text: str) -> tuple[str, ...]:
    """Split a text into references separated by spaces. A name with spaces is recognized if its file exists."""
    words = text.split()
    if len(words) > MAX_WORDS:
        return tuple(words)
    found, place = [], 0
    while place < len(words):
        ends = [end for end in range(place + 1, len(words) + 1) if _split_scale(words[end - 1])[0].endswith(_WEIGHTS)]
        joined = {end: " ".join(words[place:end]) for end in ends}
        files = [end for end, name in joined.items() if _to_path(_split_scale(name)[0]).is_file()]
        # Without an existing file: up to the first word that ends in .safetensors, unless the first word is a hub id.
        is_hub_id = _HUB_ID.fullmatch(_split_scale(words[place])[0]) is not None
        end = max(files, default=place + 1 if is_hub_id or not ends else ends[0])
        found.append(" ".join(words[place:end]))
        place = end
    whole = _to_path(_split_scale(text)[0])
    return (text,) if whole.suffix == _WEIGHTS and whole.is_file() else tuple(found)


def parse_file(role: str, reference: str) -> FileReference:
    """Read a local .safetensors file, a hub id, or `owner/name/FILE.safetensors`.

    Args:
        role: the use of the file, for messages. For `lora`, the reference may end in a scale, as in `parse_lora`.

    Raises:
        ModelError: the reference is a pickle, a missing file or no valid hub id.
    """
    return parse_lora(reference) if role == "lora" else _find_file(role, reference)


def _find_file(role: str, reference: str) -> FileReference:
    path = _to_path(reference)
    if path.suffix.lower() in PICKLES:
        raise ModelError(f"{role} {reference}: pickle files can run code and are refused; use its .safetensors file")
    if path.is_file() and path.suffix == ".safetensors":
        return FileReference(str(path.parent), path.name, on_hub=False)
    owner, _, rest = reference.partition("/")
    name, _, file = rest.partition("/")
    if not _HUB_ID.fullmatch(f"{owner}/{name}") or (file and not file.endswith(".safetensors")) or ".." in file:
        raise ModelError(
            f"{role} {reference}: no such file; give a .safetensors file, a hub id, or owner/name/FILE.safetensors"
        )
    return FileReference(f"{owner}/{name}", file or None, on_hub=True)


def list_files(parameters: Any) -> list[tuple[str, str]]:
    """Return role and reference of each LoRA, embedding, upscaler and IP-Adapter, as `parse_file` takes them.

    Args:
        parameters: `Parameters`, or a card of `files.list_cards` with the same attributes.
    """
    p = parameters
    several = [("lora", text) for text in p.lora] + [("embedding", text) for text in p.embedding]
    single = (("upscaler", p.upscaler), ("ip_adapter", p.ip_adapter))
    return several + [(role, text) for role, text in single if text is not None]


def split_folder(reference: str) -> tuple[str, str]:
    """Return a local folder and an empty text, or a hub id and the folder within that repository.

    Raises:
        ModelError: the reference is neither.
    """
    if (path := _to_path(reference)).is_dir():
        return str(path), ""
    owner, _, rest = reference.partition("/")
    name, _, folder = rest.partition("/")
    if not _HUB_ID.fullmatch(f"{owner}/{name}") or ".." in folder:
        raise ModelError(f"{reference}: no such folder; give a folder, or owner/name/FOLDER of the hub")
    return f"{owner}/{name}", folder


@functools.cache
def identify_model(reference: str) -> str:
    """Return a text that changes when the weights of a local model change; for a hub model, its id.

    It holds a hash of the files' names, sizes and times. The bundled model is hashed by content, so that its
    identity is the same wherever it is installed. Cached for the life of the process.

    Raises:
        ModelError: as in `locate_model`.
    """
    return read_identity(reference)


def read_identity(reference: str) -> str:
    """Return the same as `identify_model`, but read the files anew."""
    if is_bundled(reference):
        return _hash_bundled(reference)
    kind, place = locate_model(reference, index="config.json" if Path(reference, "config.json").is_file() else INDEX)
    if kind in ("hub", "none"):
        return place
    digest = hashlib.sha256()
    for file, told in _list_weights(Path(place)):
        digest.update(told + str(file.stat().st_mtime_ns).encode())
    return f"{place} {digest.hexdigest()[:16]}"


@functools.cache
def _hash_bundled(name: str) -> str:
    digest = hashlib.sha256()
    for file, told in _list_weights(bundled_dir(name)):
        digest.update(told + file.read_bytes())
    return f"{name} {digest.hexdigest()[:16]}"


def _list_weights(root: Path) -> list[tuple[Path, bytes]]:
    """Return a model's weights files, each with its name and size as bytes for the hash."""
    files = sorted(root.rglob("*.safetensors")) if root.is_dir() else [root]
    return [(file, f"{file.relative_to(root)} {file.stat().st_size} ".encode()) for file in files]


@functools.cache
def identify_file(role: str, reference: str) -> str:
    """Return the same as `identify_model` for a single file such as a LoRA. Cached for the life of the process."""
    return read_file_identity(role, reference)


def read_file_identity(role: str, reference: str) -> str:
    """Return the same as `identify_file`, but read the file anew."""
    found = parse_file(role, reference)
    return reference if found.on_hub else read_identity(str(Path(found.repository, str(found.file))))
