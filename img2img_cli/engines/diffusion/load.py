"""Model references to diffusers objects: safetensors only, no remote code, errors as one sentence."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import load_file
from transformers import dynamic_module_utils

from img2img_cli.engines.checkpoints.contents import check_embedding, check_widths, tell_contents
from img2img_cli.engines.checkpoints.lora import fuse_loras
from img2img_cli.engines.checkpoints.single_file import (
    check_clip_folder,
    check_whole,
    load_controlnet_file,
    load_single_file,
    load_vae_file,
)
from img2img_cli.engines.diffusion.ip_adapter import load_ip_adapter
from img2img_cli.engines.diffusion.prompts import find_readers, reads_with_clip
from img2img_cli.engines.diffusion.qwen import load_processor
from img2img_cli.engines.explain import explain_model_errors
from img2img_cli.engines.hub import fetch_file
from img2img_cli.engines.traits import find_traits
from img2img_cli.errors import ModelError, PresetError
from img2img_cli.presets.files import suggest
from img2img_cli.presets.references import BUNDLED, Kind, locate_model, parse_file, parse_lora
from img2img_cli.presets.schema import Parameters
from img2img_cli.presets.weight_files import check_folder, check_weights, read_shapes

# transformers would ask on the terminal, or on a stdin that a picture comes through, whether to run a model's code.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
_NAMELESS = ("emb_params", "*", "string_to_param.*", "clip_l", "clip_g", "t5xxl")  # what tools call every embedding


@dataclass(frozen=True)
class Told:
    """What loading has to say beside the pipeline.

    Attributes:
        notes: sentences for the user.
        words: the words that each embedding has taught the text encoders, in lower case.
    """

    notes: list[str] = field(default_factory=list)
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)


def load_pipeline(parameters: Parameters, dtype: torch.dtype, controlnet: Any, told: Told | None = None) -> Any:
    """The stock img2img pipeline of the preset's model, on the CPU, with the preset's scheduler.

    Args:
        told: takes what is to be told of the weights.

    Raises:
        ModelError: missing, refused, damaged or out of reach.
    """
    told = Told() if told is None else told
    kind, reference = locate_model(parameters.model)
    if parameters.model != BUNDLED:
        _check_files(kind, reference)
    if kind == "net":
        raise ModelError(f"{reference}: a network from picture to picture; it works as a preset's model alone")
    given = {} if controlnet is None else {"controlnet": controlnet}
    if parameters.vae:
        given["vae"] = _load_vae(parameters, dtype)
    with explain_model_errors(parameters.model):
        if kind == "file":
            if parameters.quantization != "none":
                raise ModelError(f"{reference}: only diffusers folders and hub ids can be quantized; leave it out")
            pipe = load_single_file(Path(reference), dtype, given, parameters.variant, told.notes)
        else:
            options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, **given}
            if kind == "hub":
                options |= {"revision": parameters.revision, "variant": parameters.variant}
            config = diffusers.DiffusionPipeline.load_config(reference, revision=options.get("revision"))
            _check_components(reference, config)
            if "safety_checker" in config:  # it works on whole pictures; ours stop at latents and never call it
                options |= {"safety_checker": None, "requires_safety_checker": False}
            if controlnet is not None and not find_traits(config["_class_name"]).is_automatic:
                raise ModelError(f"{reference}: a {config['_class_name']} takes no ControlNet; leave --control out")
            if "Qwen2VLProcessor" in config.get("processor", ()):
                options["processor"] = load_processor(reference, options.get("revision"))
            if parameters.quantization != "none":
                options["quantization_config"] = _quantize_parts(config)
            pipe = _pipeline_class(config, controlnet).from_pretrained(reference, **options)
            for name, part in pipe.components.items():
                if isinstance(part, torch.nn.Module):
                    check_whole(parameters.model, name, part)
                if kind == "folder" and type(part).__name__.startswith("CLIPText"):
                    check_clip_folder(Path(reference), name, part)
    if parameters.lora:
        told.notes.extend(_fuse_loras(pipe, parameters.lora))
    for text in parameters.embedding:
        told.words[text] = _load_embedding(pipe, text)
    if parameters.ip_adapter:
        with explain_model_errors(parameters.ip_adapter):
            load_ip_adapter(pipe, parameters, dtype)
    if parameters.scheduler or parameters.scheduler_config:
        pipe.scheduler = _make_scheduler(pipe.scheduler, parameters)
    return pipe


def _pipeline_class(config: dict[str, Any], controlnet: Any) -> Any:
    """Return the class that edits pictures: the index's own if it takes a picture, or what diffusers pairs with it.

    Args:
        controlnet: one in place of the model's own, which diffusers would have beside it.
    """
    name = config["_class_name"]
    if controlnet is not None and "ControlNet" in name:
        return getattr(diffusers, name.replace("ControlNetPipeline", "ControlNetImg2ImgPipeline"))
    return diffusers.AutoPipelineForImage2Image if find_traits(name).is_automatic else getattr(diffusers, name)


def _quantize_parts(config: dict[str, Any]) -> Any:
    """8-bit weights for what is large and made of matrix products: the denoiser and the language models."""
    if importlib.util.find_spec("torchao") is None:
        raise ModelError("quantization int8 needs the package torchao; run `pip install 'img2img-cli[quantize]'`")
    from torchao.quantization import Int8WeightOnlyConfig

    kinds = {"diffusers": diffusers.TorchAoConfig, "transformers": transformers.TorchAoConfig}
    names = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
    mapping = {name: kinds[config[name][0]](Int8WeightOnlyConfig()) for name in names if config.get(name, [None])[0]}
    return diffusers.PipelineQuantizationConfig(quant_mapping=mapping)


def _load_vae(parameters: Parameters, dtype: torch.dtype) -> Any:
    assert parameters.vae is not None
    kind, place = locate_model(parameters.vae, index="config.json")
    _check_files(kind, place)
    with explain_model_errors(parameters.vae, "check that it is a VAE of the model's family"):
        if kind == "file":
            return load_vae_file(Path(place), dtype, parameters.model, parameters.revision)
        vae = diffusers.AutoModel.from_pretrained(place, dtype=dtype, use_safetensors=True)
        if not hasattr(vae, "encode"):
            raise ModelError(
                f"{parameters.vae}: {_name_class(type(vae).__name__)}, not a VAE; give a folder with a VAE's weights"
            )
        check_whole(parameters.vae, "VAE", vae)
        return vae


def _name_class(name: str) -> str:
    return f"{'an' if name.startswith('A') else 'a'} {name}"


def _fuse_loras(pipe: Any, references: Sequence[str]) -> list[str]:
    """Add LoRAs to the weights themselves; what to tell of them."""
    found = []
    for text in references:
        with explain_model_errors(f"lora {text}", "get the file again"):
            if not hasattr(pipe, "load_lora_weights"):
                raise ModelError(f"lora {text}: a {type(pipe).__name__} takes no LoRA; leave it out")
            reference = parse_lora(text)
            found.append((text, fetch_file(reference, "lora"), reference.scale))
    with explain_model_errors(f"lora {' '.join(references)}", "get the files again"):
        return fuse_loras(pipe, found)


def _load_embedding(pipe: Any, text: str) -> tuple[str, ...]:
    """Teach the text encoders an embedding and return its words: its own name and its file's. XL has two parts."""
    with explain_model_errors(f"embedding {text}", "get the file again"):
        if not hasattr(pipe, "load_textual_inversion") or not reads_with_clip(pipe):
            raise ModelError(f"embedding {text}: a {type(pipe).__name__} takes no embeddings; leave it out")
        file = fetch_file(parse_file("embedding", text), "embedding")
        check_embedding(text, tell_contents(read_shapes(file)))
        vectors, readers = load_file(file), find_readers(pipe)
        parts = [vectors[key] for key in ("clip_l", "clip_g") if key in vectors] or list(vectors.values())
        check_widths(
            text,
            [part.shape[-1] for part in parts],
            [encoder.get_input_embeddings().weight.shape[-1] for _, encoder in readers],
        )
        known = readers[0][0].get_vocab()
        # CLIP reads lower case alone.
        own = [key.lower() for key in vectors if len(vectors) == 1 and key not in _NAMELESS]
        stem = file.stem.lower()
        names = [name for name in own if name not in known]
        # A file's name is a second word, if it is no word of the language.
        if stem not in known and not (names and f"{stem}</w>" in known):
            names.append(stem)
        if not names:
            raise ModelError(f"embedding {text}: the model has a word '{file.stem}' already; rename the file")
        names = list(dict.fromkeys(names))
        for name in names:
            for part, (tokenizer, encoder) in zip(parts, readers, strict=True):
                pipe.load_textual_inversion({name: part}, tokenizer=tokenizer, text_encoder=encoder)
        return tuple(names)


def load_controlnet(parameters: Parameters, dtype: torch.dtype) -> Any:
    """The preset's separate ControlNet.

    Raises:
        ModelError: as `load_pipeline`.
    """
    assert parameters.controlnet is not None
    kind, reference = locate_model(parameters.controlnet, index="config.json")
    _check_files(kind, reference)
    with explain_model_errors(parameters.controlnet, "check that it is a ControlNet of the model's family"):
        if kind == "file":
            return load_controlnet_file(Path(reference), dtype, parameters.model, parameters.revision)
        revision = parameters.controlnet_revision if kind == "hub" else None
        name = diffusers.ControlNetModel.load_config(reference, revision=revision).get("_class_name")
        if name not in (None, "ControlNetModel"):
            raise ModelError(
                f"{parameters.controlnet}: {_name_class(name)}, not a ControlNet of Stable Diffusion 1, 2 or XL; "
                "give one of those"
            )
        net = diffusers.ControlNetModel.from_pretrained(reference, revision=revision, dtype=dtype, use_safetensors=True)
        check_whole(parameters.controlnet, "ControlNet", net)
        return net


def _check_files(kind: Kind, place: str) -> None:
    """Refuse weights on the disk that are not what their names say."""
    if kind == "file":
        check_weights(Path(place))
    elif kind == "folder":
        check_folder(Path(place))


def _check_components(reference: str, config: dict[str, Any]) -> None:
    """Refuse an index that names anything but classes of diffusers and transformers: it would be imported.

    Neither may it leave the choice of a class to a part of its own, as `Auto...` does and a pipeline in a pipeline.
    """
    if not isinstance(config.get("_class_name"), str):
        raise ModelError(f"{reference}: its model_index.json names no class of diffusers; code of its own is never run")
    for name, value in config.items():
        if name.startswith("_") or not isinstance(value, list | tuple):
            continue
        known = len(value) == 2 and all(part is None or isinstance(part, str) for part in value)
        if known and value[1] is not None and re.match(r"Auto[A-Z]|.*Pipeline$", value[1]):
            known = False
        if not known or value[0] not in (None, "diffusers", "transformers", "stable_diffusion"):
            raise ModelError(
                f"{reference}: its model_index.json names {json.dumps(value)} as {name}; "
                "only classes of diffusers and transformers are loaded, so get the model from its source again"
            )


def _make_scheduler(own: Any, parameters: Parameters) -> Any:
    kind = _scheduler_class(parameters.scheduler) if parameters.scheduler else type(own)
    if hasattr(own, "scale_noise") != hasattr(kind, "scale_noise"):  # flow matching, or not
        raise PresetError(
            f"scheduler: a {kind.__name__} cannot take the place of this model's {type(own).__name__}; leave it out"
        )
    unknown = set(parameters.scheduler_config) - set(inspect.signature(kind.__init__).parameters)
    if unknown:
        known = list(inspect.signature(kind.__init__).parameters)[1:]
        key = min(unknown)
        raise PresetError(f"scheduler_config.{key}: a {kind.__name__} has no such setting{suggest(key, known)}")
    return kind.from_config(own.config, **parameters.scheduler_config)


def _scheduler_class(name: str) -> Any:
    known = [n for n in dir(diffusers) if n.endswith("Scheduler") and n != "SchedulerMixin"]
    if name not in known:
        raise PresetError(f"scheduler: no such class in diffusers: '{name}'{suggest(name, known)}")
    return getattr(diffusers, name)
