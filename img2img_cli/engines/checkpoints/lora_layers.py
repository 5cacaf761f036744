"""Where the layers of a LoRA lie in a pipeline, whatever tool has named them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from img2img_cli.engines.checkpoints.contents import LayerShapes, split_layers

MAX_SIDE = 1 << 20  # rows or columns of a layer: far beyond any model's
_DENOISERS = ("unet", "transformer")
_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
# Where names begin, and the part of the pipeline that they then lie in; the denoiser's are tried last.
_STARTS = (
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te3_", "text_encoder_3"),
    ("lora_te_", "text_encoder"),
    *((f"{encoder}.", encoder) for encoder in _ENCODERS),
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2"),
    ("text_encoders.t5xxl.transformer.", "T5"),
)
_DENOISER_STARTS = ("lora_unet_", "lora_transformer_", "lycoris_", "unet.", "transformer.", "diffusion_model.")
# What diffusers' converters raise at names that they do not know.
_CONVERTER_ERRORS = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, AssertionError)
# Names for a layer's down, up and alpha, given whether the model has a UNet.
Spelling = Callable[[str, LayerShapes, bool], dict[str, str]]


@dataclass(frozen=True)
class Place:
    """Where a layer's change goes.

    Attributes:
        module: with the weight.
        rows: which of the change's rows; None for all. A fused layer of another tool has several places.
        path: the pipeline's component and the module's name in it.
    """

    module: torch.nn.Module
    rows: torch.Tensor | None
    path: tuple[str, str]


class Places:
    """Finds the modules of a pipeline that the layers of LoRAs are for."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._modules: dict[str, dict[str, tuple[str, torch.nn.Module]]] = {}
        for component in (*_DENOISERS, *_ENCODERS):
            root = getattr(pipe, component, None)
            if isinstance(root, torch.nn.Module):
                self._modules[component] = dict(_list_modules(root))
        self._denoiser = next((name for name in _DENOISERS if name in self._modules), "")
        t5 = [name for name in _ENCODERS if type(getattr(pipe, name, None)).__name__.startswith("T5")]
        self._t5 = t5[0] if t5 else ""

    def find(self, layers: Mapping[str, LayerShapes]) -> dict[str, list[Place]]:
        """Places by layer's name; none where the model has no such layer."""
        found = {name: [place] for name in layers if (place := self._look_up(name)) is not None}
        for spelling in (_spell_as_it_is, _spell_as_kohya, _spell_as_peft):
            open_layers = {name: layer for name, layer in layers.items() if name not in found}
            if not open_layers or not hasattr(self._pipe, "lora_state_dict"):
                break
            found |= self._ask_converter(open_layers, spelling)
        return found

    def _look_up(self, name: str, rows: torch.Tensor | None = None) -> Place | None:
        name = name.removeprefix("base_model.model.")
        component = self._denoiser
        for start, part in _STARTS:
            if name.startswith(start):
                name, component = name.removeprefix(start), self._t5 if part == "T5" else part
                break
        else:
            start = next((start for start in _DENOISER_STARTS if name.startswith(start)), "")
            name = name.removeprefix(start)
        modules = self._modules.get(component, {})
        for flat in _flatten(name):
            if flat in modules:
                return Place(modules[flat][1], rows, (component, modules[flat][0]))
        return None

    def _ask_converter(self, layers: Mapping[str, LayerShapes], spelling: Spelling) -> dict[str, list[Place]]:
        """Let diffusers convert small stand-ins, whose numbers tell which layer and rows have come where."""
        try:
            return self._convert(layers, spelling)
        except _CONVERTER_ERRORS:  # at one of the names: ask for each alone
            found: dict[str, list[Place]] = {}
            for name, layer in layers.items():
                try:
                    found |= self._convert({name: layer}, spelling)
                except _CONVERTER_ERRORS:
                    continue
            return found

    def _convert(self, layers: Mapping[str, LayerShapes], spelling: Spelling) -> dict[str, list[Place]]:
        names = list(layers)
        given: dict[str, torch.Tensor] = {}
        for number, name in enumerate(names, start=1):
            size = layers[name].measure()
            if size is None or max(size) > MAX_SIDE:
                continue
            keys = spelling(name, layers[name], "unet" in self._modules)
            given[keys["down"]] = torch.full((1, size[1]), float(number))
            given[keys["up"]] = torch.arange(size[0], dtype=torch.float32)[:, None]
            if "alpha" in keys:
                given[keys["alpha"]] = torch.tensor(1.0)
        options = {"unet_config": self._pipe.unet.config} if "unet" in self._modules else {}
        made = self._pipe.lora_state_dict(given, **options) if given else {}
        converted = made[0] if isinstance(made, tuple) else made
        found = defaultdict(list)
        layers_made, _ = split_layers({key: tuple(tensor.shape) for key, tensor in converted.items()})
        for target, layer in layers_made.items():
            if layer.format != "LoRA":
                continue
            name = names[round(float(converted[layer.keys["down"]].flatten()[0])) - 1]
            rows = converted[layer.keys["up"]][:, 0].round().long()
            whole = torch.equal(rows, torch.arange((layers[name].measure() or (0,))[0]))
            if (place := self._look_up(target, None if whole else rows)) is not None:
                found[name].append(place)
        return dict(found)


def _list_modules(root: torch.nn.Module) -> Iterator[tuple[str, tuple[str, torch.nn.Module]]]:
    """Modules with a weight, by their name with underscores; CLIP's also with the name of its wrapper."""
    for name, module in root.named_modules():
        if isinstance(getattr(module, "weight", None), torch.Tensor):
            flat = name.replace(".", "_")
            yield flat, (name, module)
            if not flat.startswith("text_model_"):
                yield f"text_model_{flat}", (name, module)


def _flatten(name: str) -> Iterator[str]:
    """The underscored names that a layer may have in the model: its own, and that of diffusers' older spelling."""
    flat = re.sub(r"_lora\d*$", "", name.replace(".processor", "")).replace(".", "_")
    yield flat
    yield f"{flat}_0"
    yield re.sub(r"_to_(q|k|v|out)$", r"_\1_proj", flat)


def _spell_as_it_is(name: str, layer: LayerShapes, has_unet: bool) -> dict[str, str]:
    if layer.format != "LoRA":
        return _spell_as_kohya(name, layer, has_unet)
    return {factor: key for factor, key in layer.keys.items() if factor in ("down", "up", "alpha")}


def _spell_as_kohya(name: str, layer: LayerShapes, has_unet: bool) -> dict[str, str]:
    if has_unet:  # whose converter knows no other names
        name = "lora_unet_" + name.removeprefix("diffusion_model.").replace(".", "_").removeprefix("lora_unet_")
    name = re.sub(r"^lycoris_", "lora_unet_", name)
    return {"down": f"{name}.lora_down.weight", "up": f"{name}.lora_up.weight", "alpha": f"{name}.alpha"}


def _spell_as_peft(name: str, layer: LayerShapes, has_unet: bool) -> dict[str, str]:
    return {"down": f"{name}.lora_A.weight", "up": f"{name}.lora_B.weight"}
