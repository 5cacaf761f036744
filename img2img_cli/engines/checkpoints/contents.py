"""What a .safetensors file holds: model, part, LoRA or embedding, and its family, told from names and shapes alone."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from img2img_cli.engines.traits import TEXT_WIDTHS, Family
from img2img_cli.errors import ModelError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Kind = Literal[
    "checkpoint", "transformer", "UNet", "VAE", "text encoder", "ControlNet", "LoRA", "embedding", "IP-Adapter", "other"
]

FAMILY_NAMES: dict[Family, str] = {
    "sd1": "Stable Diffusion 1",
    "sd2": "Stable Diffusion 2",
    "sdxl": "Stable Diffusion XL",
    "sdxl-refiner": "Stable Diffusion XL's refiner",
    "sd3": "Stable Diffusion 3",
    "flux1": "FLUX.1",
    "flux2": "FLUX.2",
    "qwen": "Qwen-Image",
    "wan": "Wan",
    "z-image": "Z-Image",
}
# A preset of each family, for advice.
FAMILY_PRESETS: dict[Family, str] = {
    "sd1": "sd15-edit",
    "sd2": "sd-turbo",
    "sdxl": "sdxl-edit",
    "sdxl-refiner": "sdxl-refined",
    "sd3": "sd35-medium",
    "flux1": "flux-dev",
    "flux2": "flux2-klein",
    "qwen": "qwen-edit",
}

APPLIED_FORMATS = ("LoRA", "DoRA", "LoHa", "LoKr")

# A LoRA's tensors: the layer's name, then which of its factors this is.
_FACTOR = re.compile(
    r"(?P<layer>.+?)\.(?:"
    r"(?P<down>(?:lora_down|lora\.down|lora_linear_layer\.down|down|lora_A(?:\.\w+)?)\.weight)"
    r"|(?P<up>(?:lora_up|lora\.up|lora_linear_layer\.up|up|lora_B(?:\.\w+)?)\.weight)"
    r"|(?P<mid>lora_mid\.weight)"
    r"|(?P<bias>lora_B(?:\.\w+)?\.bias|diff_b|b_norm)"
    r"|(?P<diff>diff|w_norm)"
    r"|(?P<magnitude>lora_magnitude_vector(?:\.\w+)*)"
    r"|(?P<own>alpha|dora_scale|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)"
    r")"
)
# Other ways to change a model, which neither diffusers nor this tool applies to it.
_FOREIGN: tuple[tuple[str, str], ...] = (
    (r"\.oft_(blocks|diag|R)(\.|$)|\.boft_", "OFT"),
    (r"\.on_input$", "IA3"),
    (r"\.[ab][12]\.weight$", "GLoRA"),
    (r"\.vera_lambda_[bd]", "VeRA"),
    (r"(^|\.)hypernetwork|^(320|640|768|1280)\.\d", "hypernetwork"),
    (r"(^|\.)lora_controlnet$|^control_model\..*\.(up|down)$", "ControlLoRA"),
)
_EMBEDDING = re.compile(r"emb_params|clip_[lg]|t5xxl|\*|string_to_param\.\*|<[^>]*>|[\w -]{1,80}")

_CONTROLNET = ("control_model.", "controlnet_cond_embedding.", "controlnet_down_blocks.", "input_hint_block.")
_VAE = ("first_stage_model.", "vae.")
_TEXT_ENCODERS = ("cond_stage_model.", "conditioner.", "text_encoders.")
_DENOISER = "model.diffusion_model."


@dataclass(frozen=True)
class Contents:
    """What a file of weights is.

    Attributes:
        family: the family of models that it belongs to; None when it does not tell.
        format: of a LoRA, such as LoRA, DoRA, LoHa, LoKr.
        parts: what a checkpoint holds, of unet, vae and text_encoder.
    """

    kind: Kind
    family: Family | None = None
    format: str | None = None
    parts: frozenset[str] = frozenset()

    @property
    def title(self) -> str:
        """With its article, such as `a LoRA` or `an embedding`."""
        name = self.format if self.kind == "LoRA" and self.format else self.kind
        if self.kind == "other":
            return "no weights of a known kind"
        return f"{'an' if name[0] in 'aeioIO' else 'a'} {name}"


@dataclass(frozen=True)
class LayerShapes:
    """The tensors of one layer of a LoRA.

    Attributes:
        keys: name in the file by factor: down, up, mid, bias, diff, magnitude, alpha, dora_scale, hada_*, lokr_*.
        shapes: shape by factor.
    """

    keys: dict[str, str]
    shapes: dict[str, Shape]

    @property
    def format(self) -> str | None:
        """LoRA, LoHa, LoKr or full; None when a factor is missing."""
        has = self.shapes.keys()
        if {"down", "up"} <= has:
            return "LoRA"
        if {f"hada_w{n}_{part}" for n in (1, 2) for part in "ab"} <= has and ("hada_t1" in has) == ("hada_t2" in has):
            return "LoHa"
        if all(f"lokr_w{n}" in has or {f"lokr_w{n}_a", f"lokr_w{n}_b"} <= has for n in (1, 2)):
            return "LoKr"
        return "full" if "diff" in has or has == {"bias"} else None

    def measure(self) -> Shape | None:
        """Rows and columns of the weight that it changes, a convolution's kernel being columns; None if it has none."""
        s = self.shapes
        plain = ("alpha", "bias", "diff", "magnitude", "dora_scale")
        if any(len(shape) < 2 for key, shape in s.items() if key not in plain) or any(
            0 in shape for shape in s.values()
        ):
            return None
        match self.format:
            case "LoRA" if "mid" not in s and s["up"][1] != s["down"][0]:
                return None
            case "LoRA":
                return s["up"][0], math.prod(s["down"][1:]) * math.prod(s.get("mid", ())[2:])
            case "LoHa" if "hada_t1" in s:
                return s["hada_w1_a"][1], s["hada_w1_b"][1] * math.prod(s["hada_t1"][2:])
            case "LoHa":
                return s["hada_w1_a"][0], s["hada_w1_b"][1]
            case "LoKr":
                left, right = (self._measure_half(n) for n in (1, 2))
                return left[0] * right[0], left[1] * right[1]
            case "full" if "diff" in s:
                return (s["diff"] or (1,))[0], math.prod(s["diff"][1:])
        return None

    def _measure_half(self, number: int) -> Shape:
        s, name = self.shapes, f"lokr_w{number}"
        if name in s:
            return s[name][0], math.prod(s[name][1:])
        if number == 2 and "lokr_t2" in s:
            return s["lokr_w2_a"][1], s["lokr_w2_b"][1] * math.prod(s["lokr_t2"][2:])
        return s[f"{name}_a"][0], s[f"{name}_b"][1]


def split_layers(shapes: Shapes) -> tuple[dict[str, LayerShapes], list[str]]:
    """The layers of a LoRA by name, and the names of tensors that belong to none."""
    layers: dict[str, LayerShapes] = {}
    rest = []
    for key, shape in shapes.items():
        if (match := _FACTOR.fullmatch(key)) is None:
            rest.append(key)
            continue
        layer = layers.setdefault(match["layer"], LayerShapes({}, {}))
        factor = match["own"] or str(match.lastgroup)
        layer.keys[factor], layer.shapes[factor] = key, shape
    for name in [name for name, layer in layers.items() if layer.format is None]:
        rest += layers.pop(name).keys.values()
    return layers, rest


def tell_contents(shapes: Shapes) -> Contents:
    """Classify a file by the names and shapes of its tensors."""
    names = shapes.keys()
    layers, rest = split_layers(shapes)
    if len(layers) > len(rest):
        return Contents("LoRA", _tell_lora_family(layers), _tell_format(layers))
    if _any(names, "image_proj.", "ip_adapter."):
        return Contents("IP-Adapter")
    for pattern, name in _FOREIGN:
        if any(re.search(pattern, key) for key in names):
            return Contents("LoRA", None, name)
    if layers and len(layers) * 8 > len(rest):
        return Contents("LoRA", _tell_lora_family(layers), _tell_format(layers))
    if _any(names, *_CONTROLNET):
        return Contents("ControlNet", _tell_unet_family(shapes, "control_model.", ""))
    if _any(names, _DENOISER, *_TEXT_ENCODERS, "first_stage_model."):
        return _tell_checkpoint(shapes)
    if _any(names, "double_blocks.", "single_blocks.", "joint_blocks.", "transformer_blocks.", "layers."):
        return Contents("transformer", _tell_transformer_family(names))
    if _any(names, "input_blocks.", "down_blocks."):
        return Contents("UNet", _tell_unet_family(shapes, "", ""))
    if _any(names, "encoder.down", "decoder.up", "vae.", "encoder.conv_in", "decoder.conv_in"):
        return Contents("VAE")
    if _any(names, "text_model.", "embeddings.token_embedding", "encoder.block.", "shared.weight"):
        return Contents("text encoder")
    flat = all(len(shape) in (1, 2) for shape in shapes.values())
    if 0 < len(shapes) <= 4 and flat and all(_EMBEDDING.fullmatch(key) for key in names):
        return Contents("embedding")
    return Contents("other")


def _any(names: Collection[str], *starts: str) -> bool:
    return any(name.startswith(starts) for name in names)


def _tell_format(layers: Mapping[str, LayerShapes]) -> str:
    formats = {layer.format for layer in layers.values()} - {"full"}
    if formats == {"LoRA"} and any({"dora_scale", "magnitude"} & layer.shapes.keys() for layer in layers.values()):
        return "DoRA"
    return str(formats.pop()) if len(formats) == 1 else "LoRA"


def _tell_checkpoint(shapes: Shapes) -> Contents:
    starts = {"unet": (_DENOISER,), "vae": _VAE, "text_encoder": _TEXT_ENCODERS}
    parts = frozenset(part for part, names in starts.items() if _any(shapes, *names))
    names = [name.removeprefix(_DENOISER) for name in shapes]
    if "unet" not in parts:
        only = "VAE" if parts == {"vae"} else "text encoder"
        return Contents("checkpoint" if len(parts) > 1 else only, None, None, parts)  # type: ignore[arg-type]
    if _any(names, "input_blocks."):
        return Contents("checkpoint", _tell_unet_family(shapes, _DENOISER, ""), None, parts)
    return Contents("checkpoint", _tell_transformer_family(names), None, parts)


def _tell_unet_family(shapes: Shapes, *starts: str) -> Family | None:
    """By the width of the text that its second attention reads, or by XL's embedding of sizes."""
    for key, shape in shapes.items():
        if key.startswith(starts) and key.endswith("attn2.to_k.weight") and shape[1:2] and shape[1] in TEXT_WIDTHS:
            return TEXT_WIDTHS[shape[1]]
    return "sdxl" if any("label_emb." in key or "add_embedding." in key for key in shapes) else None


def _tell_transformer_family(names: Collection[str]) -> Family | None:
    text = " ".join(names)
    if re.search(r"joint_blocks", text):
        return "sd3"
    if re.search(r"(double|single)_stream_modulation|to_qkv_mlp_proj|\bff(_context)?[._]linear_in", text):
        return "flux2"
    if re.search(r"img_mod[._](1|lin)|txt_mlp[._]net|img_mlp[._]net", text) and not re.search(r"double_blocks", text):
        return "qwen"
    if re.search(r"single_transformer_blocks|double_blocks", text):
        # FLUX.2 has none of these; without them a file may be of either.
        own = r"img_mod|txt_mod|modulation_lin|proj_mlp|norm1(_context)?[._]linear|ff(_context)?[._]net"
        return "flux1" if re.search(own, text) else None
    if re.search(r"\bblocks[._]\d+[._](self|cross)_attn", text):
        return "wan"
    if re.search(r"\blayers[._]\d+[._]attention|context_refiner|noise_refiner", text):
        return "z-image"
    return None


def _tell_lora_family(layers: Mapping[str, LayerShapes]) -> Family | None:
    text = " ".join(layers)
    if re.search(r"double_blocks|single_blocks|joint_blocks|single_transformer_blocks", text):
        return _tell_transformer_family(layers)
    if re.search(r"(down|up|mid|input|output|middle)_block", text):
        return _tell_unet_lora_family(layers, text)
    if found := _tell_transformer_family([re.sub(r"^(lora_unet_|lycoris_|diffusion_model\.)", "", n) for n in layers]):
        return found
    widths = {layer.measure() for name, layer in layers.items() if re.search(r"^(lora_te_|text_encoder\.)", name)}
    hidden = {size[0] for size in widths if size is not None}
    return "sd1" if 768 in hidden else "sd2" if 1024 in hidden else None


def _tell_unet_lora_family(layers: Mapping[str, LayerShapes], text: str) -> Family | None:
    for name, layer in layers.items():
        size = layer.measure()
        if size is not None and re.search(r"attn2.*to_[kv](_lora)?$", name) and size[1] in TEXT_WIDTHS:
            return TEXT_WIDTHS[size[1]]
    if re.search(r"lora_te2_|text_encoder_2\.|transformer_blocks[._][1-9]", text):
        return "sdxl"
    # Of the original names only XL's are in use, and its attention begins at the fourth block.
    blocks = {int(number) for number in re.findall(r"input_blocks[._](\d+)[._]1[._]", text)}
    if re.search(r"(input|output)_blocks|middle_block", text) and blocks <= {4, 5, 7, 8}:
        return "sdxl"
    return None


def advise_preset(family: Family) -> str:
    """What to do with weights of another family than the model's."""
    if family in FAMILY_PRESETS:
        return f"choose a preset of that family, such as {FAMILY_PRESETS[family]}"
    return "no preset is of that family; give a model of it with --model"


# Where each kind of file is given.
_OPTIONS: dict[Kind, str] = {
    "checkpoint": "--model",
    "LoRA": "--lora",
    "embedding": "--embedding",
    "VAE": "--vae",
    "ControlNet": "--controlnet",
    "IP-Adapter": "--set ip_adapter=FILE",
}


def advise_option(contents: Contents) -> str:
    """Where to give a file of this kind instead."""
    return f"give it with {_OPTIONS[contents.kind]}" if contents.kind in _OPTIONS else "give another file"


def check_lora(text: str, contents: Contents, model: frozenset[Family]) -> None:
    """Refuse what is no LoRA, or of a format or family that cannot be applied.

    Args:
        model: the families that the model may be of; empty when it is of none that is known.

    Raises:
        ModelError: naming it.
    """
    if contents.kind != "LoRA":
        raise ModelError(f"lora {text}: {contents.title}, not a LoRA; {advise_option(contents)}")
    if contents.format not in APPLIED_FORMATS:
        raise ModelError(
            f"lora {text}: {contents.title}, a format that is not supported; get it as LoRA, DoRA, LoHa or LoKr"
        )
    if contents.family is not None and model and contents.family not in model:
        names = " or ".join(FAMILY_NAMES[family] for family in sorted(model)).replace(" or Stable Diffusion", " or")
        raise ModelError(
            f"lora {text}: made for {FAMILY_NAMES[contents.family]}, and the model is {names}; "
            f"{advise_preset(contents.family)}"
        )


def check_embedding(text: str, contents: Contents) -> None:
    """Refuse what is no embedding.

    Raises:
        ModelError: naming it.
    """
    if contents.kind not in ("embedding", "other"):
        raise ModelError(f"embedding {text}: {contents.title}, not an embedding; {advise_option(contents)}")


def check_widths(text: str, widths: list[int], wanted: list[int]) -> None:
    """Refuse an embedding whose vectors are not as wide as the words of the model's text encoders.

    Raises:
        ModelError: naming it and its family.
    """
    if widths == wanted:
        return
    families: dict[tuple[int, ...], Family] = {(768,): "sd1", (1024,): "sd2", (768, 1280): "sdxl"}
    family = families.get(tuple(widths), "sdxl" if len(widths) == 2 else None)
    told, asked = (" and ".join(map(str, numbers)) for numbers in (widths, wanted))
    sizes = f"it has {told} numbers a word, the model reads {asked}"
    if family is None:
        raise ModelError(f"embedding {text}: made for another family ({sizes}); choose a preset of that family")
    raise ModelError(
        f"embedding {text}: made for another family, {FAMILY_NAMES[family]} ({sizes}); {advise_preset(family)}"
    )
