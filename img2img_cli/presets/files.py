"""Load preset files, shipped or the user's own, with the presets that they extend.

Loads no pydantic and validates no values, only keys.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from img2img_cli import PACKAGE
from img2img_cli.errors import PresetError
from img2img_cli.presets.strict_yaml import MAX_CHARACTERS, YamlError, parse_yaml

PRESET = "preset.yaml"  # in a folder that training has written
BESIDE = "./"  # how a reference to a model or file begins that is meant from the preset's folder
_REFERENCES = (
    "model",
    "vae",
    "controlnet",
    "refiner",
    "upscaler",
    "ip_adapter",
    "ip_adapter_image_encoder",
    "lora",
    "embedding",
)
MAX_GENERATIONS = 20  # of presets that extend each other
EXTENDS = "extends"
SCHEMA = "preset.schema.json"
_REVISIONS = {"model": "revision", "controlnet": "controlnet_revision"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """The file and line (1-based, or None) that a value comes from."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The values that a preset and its parents set, each with its source."""

    name: str
    values: Mapping[str, Any]
    sources: Mapping[str, Source]


def configs_dir() -> Path:
    """Return the folder of shipped presets: inside the package if installed from a wheel, beside it in a checkout."""
    package = Path(PACKAGE)
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


@cache
def list_presets() -> dict[str, Path]:
    """Return the shipped presets, name to file, sorted by name."""
    return {path.stem: path for path in sorted(configs_dir().rglob("*.yaml"), key=lambda p: p.stem)}


@cache
def list_keys() -> dict[str, Any]:
    """Return every preset key with its default (None if it has none), read from the schema file."""
    properties = json.loads((configs_dir() / SCHEMA).read_text(encoding="utf-8"))["properties"]
    return {key: facts.get("default") for key, facts in properties.items() if key != EXTENDS}


def list_cards() -> dict[str, SimpleNamespace]:
    """Return the shipped presets by name, each with all keys of `Parameters` as attributes, not validated."""
    return {name: SimpleNamespace(**{**list_keys(), **load_preset(name).values}) for name in list_presets()}


# What other tools, and this one's options, call a parameter.
OTHER_NAMES = {
    "steps": "num_inference_steps",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "denoise": "strength",
    "denoising_strength": "strength",
    "sampler": "scheduler",
    "sampler_name": "scheduler",
    "checkpoint": "model",
    "loras": "lora",
    "upscale": "scale",
    "factor": "scale",
    "resolution": "image_size",
    "width": "size",
    "height": "size",
    "control_strength": "controlnet_conditioning_scale",
    "control_weight": "controlnet_conditioning_scale",
    "style_strength": "ip_adapter_scale",
    "feather": "mask_feather",
}


def suggest(word: str, candidates: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` with up to three similar candidates, or an empty text if there are none."""
    known = list(candidates)
    meant = OTHER_NAMES.get(word.lower().replace("-", "_"))
    near = [meant] if meant in known else difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return "; did you mean " + " or ".join(f"'{name}'" for name in near) + "?" if near else ""


def load_preset(reference: str) -> Preset:
    """Load a shipped preset by name, or any preset by its file, or by the folder that holds it as `preset.yaml`.

    Raises:
        PresetError: there is no such preset, it extends itself, or a file is not a valid preset.
    """
    return _load(_find(reference, None), ())


def _find(reference: str, beside: Path | None) -> Path:
    if (inside := _find_in_folder(reference)) is not None:
        return inside
    if reference.endswith((".yaml", ".yml")) or "/" in reference:
        try:
            path = (beside.parent if beside else Path()) / Path(reference).expanduser()
            found = path.is_file()
        except (OSError, RuntimeError):  # the name is too long, or its ~user does not exist
            path, found = Path(reference), False
        if not found:
            raise PresetError(f"{path}: no such preset file; `img2img presets list` shows the names of all presets")
        return path
    names = list_presets()
    if reference not in names:
        hint = suggest(reference, names) or "; `img2img presets list` shows all"
        raise PresetError(f"unknown preset '{reference}'{hint}")
    return names[reference]


def _find_in_folder(reference: str) -> Path | None:
    """Return the preset of a folder that training has written. A shipped preset of the same name comes first."""
    if reference in list_presets():
        return None
    try:
        path = Path(reference).expanduser() / PRESET
        return path if path.is_file() else None
    except (OSError, RuntimeError):
        return None


def _load(path: Path, seen: tuple[Path, ...]) -> Preset:
    path = path.resolve()
    if path in seen:
        raise PresetError(f"{path}: extends itself by way of {', '.join(p.name for p in seen)}; break the cycle")
    if len(seen) > MAX_GENERATIONS:
        raise PresetError(f"{path}: more than {MAX_GENERATIONS} presets extend each other; merge some of them")
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MAX_CHARACTERS + 1)
        values, lines = parse_yaml(text)
    except YamlError as error:
        raise PresetError(f"{Source(file=str(path), line=error.line)}: {error}") from None
    except UnicodeDecodeError:
        raise PresetError(f"{path}: not UTF-8 text; save the preset as UTF-8") from None
    except OSError as error:
        raise PresetError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    values |= {key: _place(values[key], path.parent) for key in _REFERENCES if key in values}
    parent = values.pop(EXTENDS, None)
    sources = {key: Source(file=str(path), line=lines.get((key,))) for key in values}
    known = list_keys()
    for key in values:
        if key not in known:
            raise PresetError(f"{sources[key]}: unknown key '{key}'{suggest(key, (*known, EXTENDS))}")
    if parent is None:
        return Preset(name=path.stem, values=values, sources=sources)
    if not isinstance(parent, str):
        raise PresetError(f"{path}:{lines[(EXTENDS,)]}: extends must be a preset's name or file, not {parent!r}")
    base = _load(_find(parent, path), (*seen, path))
    values = replace_values(base.values, values)
    sources = {**base.sources, **sources}
    return Preset(name=path.stem, values=values, sources={key: sources[key] for key in values})


def _place(value: Any, folder: Path) -> Any:
    """Return a reference, or a list of them, with `./` replaced by the preset's folder."""
    if isinstance(value, list):
        return [_place(each, folder) for each in value]
    if isinstance(value, str) and value.startswith(BESIDE):
        return str(folder / value.removeprefix(BESIDE))
    return value


def replace_values(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` updated with `values`. If a model is replaced, the revision of the old one is dropped."""
    stale = {_REVISIONS[key] for key in _REVISIONS if key in values and values[key] != base.get(key)}
    return {key: value for key, value in base.items() if key not in stale} | dict(values)
