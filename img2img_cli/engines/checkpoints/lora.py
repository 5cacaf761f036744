"""LoRAs and their kin (DoRA, LoHa, LoKr, full differences) fused into a model's weights.

A file's layers are located in the model, each layer's change is computed from its factors in float32, and the weight is
rounded once, after all LoRAs. diffusers' converters tell the places of names in other tools' spellings.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import load_file

from img2img_cli.engines.checkpoints.contents import LayerShapes, check_lora, split_layers, tell_contents
from img2img_cli.engines.checkpoints.lora_layers import Place, Places
from img2img_cli.engines.traits import tell_families
from img2img_cli.errors import ModelError
from img2img_cli.presets.weight_files import read_metadata, read_shapes


@dataclass(frozen=True)
class Layer:
    """One layer of a LoRA: its factors, as `contents.LayerShapes` names them, its format, and peft's settings."""

    factors: Mapping[str, torch.Tensor]
    format: str

    settings: Mapping[str, Any]

    @property
    def rank(self) -> int | None:
        """What alpha is divided by; None where the factors do not show it: a LoKr of two whole ones."""
        names = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
        return next((self.factors[name].shape[0] for name in names if name in self.factors), None)

    def find_factor(self, path: tuple[str, str]) -> float:
        """Alpha by rank, by the file's own tensor or else by peft's settings; 1 where neither tells."""
        if self.format == "full":
            return 1.0
        if "alpha" in self.factors:
            return float(self.factors["alpha"]) / self.rank if self.rank else 1.0
        component, name = path
        own = {key.removeprefix(f"{component}."): value for key, value in self.settings.items()}
        patterns = _as_dict(own.get("alpha_pattern"))
        found = [alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({re.escape(key)})$", name)]
        alpha = [*found, own.get("lora_alpha"), own.get("alpha")]
        given = next((value for value in alpha if isinstance(value, int | float)), None)
        rank = self.rank or own.get("r")
        if given is None or not isinstance(rank, int) or rank < 1:
            return 1.0
        return given / (math.sqrt(rank) if own.get("use_rslora") else rank)

    def compute_change(self) -> torch.Tensor:
        """What it adds to its weight, before alpha: `(rows, columns)` in float32."""
        f = {key: tensor.float() for key, tensor in self.factors.items()}
        match self.format:
            case "LoRA":
                change = _multiply_lora(f)
            case "LoHa":
                change = _build(f, "hada_w1", "hada_t1") * _build(f, "hada_w2", "hada_t2")
            case "LoKr":
                left, right = _build(f, "lokr_w1"), _build(f, "lokr_w2", "lokr_t2")
                change = torch.kron(left.flatten(1).contiguous(), right.flatten(1).contiguous())
            case _:
                change = f["diff"] if f["diff"].ndim > 1 else f["diff"][:, None]
        return change.flatten(1)

    def change_weight(self, weight: torch.Tensor, place: Place, scale: float) -> torch.Tensor:
        """The changed weight, in float32. A DoRA's strength is how far it goes from the weight to its own."""
        change = self.compute_change() * self.find_factor(place.path)
        if place.rows is not None:
            change = change[place.rows]
        changed = weight + change.reshape(weight.shape)
        if (size := self.factors.get("dora_scale", self.factors.get("magnitude"))) is not None:
            by_column = "dora_scale" in self.factors and size.shape[0] != self.measure_rows()
            size = size.float().flatten() if by_column or place.rows is None else size.float().flatten()[place.rows]
            changed = _set_lengths(changed, size, by_column)
        return weight + scale * (changed - weight)

    def measure_rows(self) -> int:
        """The rows of its change."""
        size = LayerShapes({}, {key: tuple(tensor.shape) for key, tensor in self.factors.items()}).measure()
        assert size is not None
        return size[0]


def fuse_loras(pipe: Any, loras: Sequence[tuple[str, Path, float]]) -> list[str]:
    """Add LoRAs to a pipeline's weights, so that they cost nothing when the model runs.

    Args:
        loras: how the user spells it, its file, and its scale; applied in this order.

    Returns:
        A sentence for each of which some layers have no place in the model.

    Raises:
        ModelError: made for another family, in a format that is not supported, or for none of this model's layers.
    """
    places = Places(pipe)
    changes: dict[torch.nn.Module, list[tuple[Layer, Place, float]]] = defaultdict(list)
    notes = []
    for text, path, scale in loras:
        shapes = read_shapes(path)
        contents, family = tell_contents(shapes), tell_families(pipe)
        check_lora(text, contents, family)
        layers, rest = split_layers(shapes)
        found = {name: spots for name, spots in places.find(layers).items() if spots}
        if not found:
            _refuse_names(text, layers, is_own=contents.family in family)
        _check_sizes(text, layers, found)
        if (note := _tell_counts(text, layers, rest, found)) is not None:
            notes.append(note)
        tensors, settings = load_file(path), _read_settings(path)
        for name, spots in found.items():
            factors = {factor: tensors[key] for factor, key in layers[name].keys.items()}
            layer = Layer(factors, str(layers[name].format), settings)
            for place in spots:
                changes[place.module].append((layer, place, scale))
    with torch.no_grad():
        for module, steps in changes.items():
            _change_module(module, steps)
    return notes


def _refuse_names(text: str, layers: Mapping[str, LayerShapes], *, is_own: bool) -> NoReturn:
    """Of a LoRA of which no layer is known in the model, which may yet be of its family."""
    first = next(iter(layers))[:100]
    if is_own:
        raise ModelError(
            f"lora {text}: its {len(layers)} layers have names that are not known, such as {first}; "
            "get it in diffusers' or kohya's format"
        )
    raise ModelError(
        f"lora {text}: no layer of its {len(layers)} is one of this model's, such as {first}; "
        "it was made for another family, so choose a preset of that"
    )


def _tell_counts(
    text: str, layers: Mapping[str, LayerShapes], rest: Sequence[str], found: Mapping[str, object]
) -> str | None:
    total = len(layers) + len({name.rpartition(".")[0] for name in rest})
    if len(found) == total:
        return None
    missing = next((name for name in layers if name not in found), None) or rest[0]
    return (
        f"lora {text}: {len(found)} of {total} layers apply; "
        f"the model has no place for the others, such as {missing[:100]}"
    )


def _check_sizes(text: str, layers: Mapping[str, LayerShapes], found: Mapping[str, Sequence[Place]]) -> None:
    wrong = [name for name, places in found.items() if not all(_fits(layers[name], place) for place in places)]
    if wrong:
        raise ModelError(
            f"lora {text}: {len(wrong)} of {len(layers)} layers have other sizes than the model's, such as "
            f"{wrong[0][:100]}; it was made for another family or model, so choose a preset of that"
        )


def _fits(layer: LayerShapes, place: Place) -> bool:
    weight, bias = place.module.weight, getattr(place.module, "bias", None)
    assert isinstance(weight, torch.Tensor)
    if "bias" in layer.shapes and (bias is None or place.rows is not None or layer.shapes["bias"] != tuple(bias.shape)):
        return False
    size = layer.measure()
    if size is None:
        return layer.format == "full" and "diff" not in layer.shapes
    rows = size[0] if place.rows is None else len(place.rows)
    if rows != weight.shape[0] or rows * size[1] != weight.numel():
        return False
    lengths = math.prod(layer.shapes.get("dora_scale", layer.shapes.get("magnitude", ())))
    by_column = "dora_scale" in layer.shapes and layer.shapes["dora_scale"][0] != size[0]
    if by_column:
        return place.rows is None and weight.ndim > 1 and lengths == weight.shape[1]
    return lengths == size[0] or not {"dora_scale", "magnitude"} & layer.shapes.keys()


def _change_module(module: Any, steps: Iterable[tuple[Layer, Place, float]]) -> None:
    weight, bias = module.weight.float(), None if module.bias is None else module.bias.float()
    for layer, place, scale in steps:
        if layer.format != "full" or "diff" in layer.factors:
            weight = layer.change_weight(weight, place, scale)
        if bias is not None and "bias" in layer.factors:
            bias = bias + scale * layer.find_factor(place.path) * layer.factors["bias"].float()
    module.weight.copy_(weight)
    if bias is not None:
        module.bias.copy_(bias)


def _multiply_lora(f: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """`(out, in * kernel)` of a linear layer's or convolution's two factors, or three with one for the kernel alone."""
    if "mid" in f:
        return torch.einsum("oi,ijkl,jn->onkl", f["up"].flatten(1), f["mid"], f["down"].flatten(1))
    return f["up"].flatten(1) @ f["down"].flatten(1)


def _build(f: Mapping[str, torch.Tensor], name: str, core: str = "") -> torch.Tensor:
    """A factor that may itself be factored: whole, as two matrices, or as two around a core for the kernel."""
    if name in f:
        return f[name]
    if core in f:
        made: torch.Tensor = torch.einsum("ijkl,jr,ip->prkl", f[core], f[f"{name}_b"], f[f"{name}_a"])
        return made
    return f[f"{name}_a"] @ f[f"{name}_b"]


def _set_lengths(weight: torch.Tensor, lengths: torch.Tensor, by_column: bool) -> torch.Tensor:
    """Each row, or each column with its kernel, scaled to a length."""
    turned = weight.transpose(0, 1) if by_column else weight
    flat = turned.flatten(1)
    norms = torch.linalg.vector_norm(flat, dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    scaled: torch.Tensor = (flat * (lengths / norms)[:, None]).reshape(turned.shape)
    return scaled.transpose(0, 1) if by_column else scaled


def _read_settings(path: Path) -> dict[str, Any]:
    """A LoRA's settings as peft writes them, by component: in the file's own header, or in a file beside it."""
    try:
        text = read_metadata(path).get("lora_adapter_metadata")
        if text is not None:
            return _as_dict(json.loads(text))
        if path.name == "adapter_model.safetensors" and (beside := path.with_name("adapter_config.json")).is_file():
            return _as_dict(json.loads(beside.read_bytes()))
    except (OSError, ValueError, RecursionError):
        raise ModelError(f"lora {path}: its settings are no JSON; get the file again") from None
    return {}


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
