"""Model references to diffusers objects: safetensors only, no remote code, errors as one sentence."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import img2img_cli.environment  # noqa: F401 - settings for what follows

import diffusers
import torch
import transformers
from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from huggingface_hub import errors as hub
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import CLIPTokenizer, dynamic_module_utils

from img2img_cli.errors import ModelError, PresetError
from img2img_cli.hub import fetch_file
from img2img_cli.ip_adapter import load_ip_adapter
from img2img_cli.modelref import BUNDLED, Kind, locate_model, parse_file, parse_lora
from img2img_cli.parameters import Parameters
from img2img_cli.preset import suggest
from img2img_cli.prompts import find_readers, reads_with_clip
from img2img_cli.qwen import load_processor
from img2img_cli.weights import check_folder, check_weights

# Pipelines that are built around a picture and that diffusers' automatic choice does not know.
OWN_CLASSES = (
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionXLInstructPix2PixPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLInpaintPipeline",
    "FluxFillPipeline",
    "StableDiffusionUpscalePipeline",
    "StableDiffusionLatentUpscalePipeline",
    "QwenImageEditPlusPipeline",
)
# transformers would ask on the terminal, or on a stdin that a picture comes through, whether to run a model's code.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
_NAMELESS = ("emb_params", "*")  # what other tools call every embedding
_ARCHITECTURES = Path(__file__).parent / "architectures"


def load_pipeline(parameters: Parameters, dtype: torch.dtype, controlnet: Any) -> Any:
    """The stock img2img pipeline of the preset's model, on the CPU, with the preset's scheduler.

    Raises:
        ModelError: missing, refused, damaged or out of reach.
    """
    kind, reference = locate_model(parameters.model)
    if parameters.model != BUNDLED:
        _check_files(kind, reference)
    given = {} if controlnet is None else {"controlnet": controlnet}
    if parameters.vae:
        given["vae"] = _load_vae(parameters.vae, dtype)
    with explain_model_errors(parameters.model):
        if kind == "file":
            if parameters.quantization != "none":
                raise ModelError(f"{reference}: only diffusers folders and hub ids can be quantized; leave it out")
            pipe = _load_single_file(reference, dtype, given)
        else:
            options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, **given}
            if kind == "hub":
                options |= {"revision": parameters.revision, "variant": parameters.variant}
            config = diffusers.DiffusionPipeline.load_config(reference, revision=options.get("revision"))
            _check_components(reference, config)
            if "safety_checker" in config:  # it works on whole pictures; ours stop at latents and never call it
                options |= {"safety_checker": None, "requires_safety_checker": False}
            if controlnet is not None and config.get("_class_name") in OWN_CLASSES:
                raise ModelError(f"{reference}: a {config['_class_name']} takes no ControlNet; leave --control out")
            if "Qwen2VLProcessor" in config.get("processor", ()):
                options["processor"] = load_processor(reference, options.get("revision"))
            if parameters.quantization != "none":
                options["quantization_config"] = _quantize_parts(config)
            pipe = _pipeline_class(config).from_pretrained(reference, **options)
    if parameters.lora:
        _fuse_loras(pipe, parameters.lora)
    for text in parameters.embedding:
        _load_embedding(pipe, text)
    if parameters.ip_adapter:
        with explain_model_errors(parameters.ip_adapter):
            load_ip_adapter(pipe, parameters, dtype)
    if parameters.scheduler or parameters.scheduler_config:
        pipe.scheduler = _make_scheduler(pipe.scheduler, parameters)
    return pipe


def _pipeline_class(config: dict[str, Any]) -> Any:
    """The class that edits pictures: the index's own if that takes a picture, else what diffusers pairs with it."""
    name = config.get("_class_name")
    if isinstance(name, str) and name in OWN_CLASSES:
        return getattr(diffusers, name)
    return diffusers.AutoPipelineForImage2Image


def _quantize_parts(config: dict[str, Any]) -> Any:
    """8-bit weights for what is large and made of matrix products: the denoiser and the language models."""
    if importlib.util.find_spec("torchao") is None:
        raise ModelError("quantization int8 needs the package torchao; run `pip install 'img2img-cli[quantize]'`")
    from torchao.quantization import Int8WeightOnlyConfig

    kinds = {"diffusers": diffusers.TorchAoConfig, "transformers": transformers.TorchAoConfig}
    names = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
    mapping = {name: kinds[config[name][0]](Int8WeightOnlyConfig()) for name in names if config.get(name, [None])[0]}
    return diffusers.PipelineQuantizationConfig(quant_mapping=mapping)


def _load_vae(reference: str, dtype: torch.dtype) -> Any:
    kind, place = locate_model(reference, index="config.json")
    _check_files(kind, place)
    with explain_model_errors(reference):
        if kind == "file":
            return diffusers.AutoencoderKL.from_single_file(place, dtype=dtype)
        return diffusers.AutoModel.from_pretrained(place, dtype=dtype, use_safetensors=True)


def _fuse_loras(pipe: Any, references: Sequence[str]) -> None:
    """Add LoRAs to the weights themselves, so that they cost nothing when the model runs."""
    names, scales = [], []
    for index, text in enumerate(references):
        with explain_model_errors(f"lora {text}"):
            if not hasattr(pipe, "load_lora_weights"):
                raise ModelError(f"lora {text}: a {type(pipe).__name__} takes no LoRA; leave it out")
            file = fetch_file(parse_lora(text), "lora")
            pipe.load_lora_weights(
                str(file.parent), weight_name=file.name, adapter_name=f"lora_{index}", use_safetensors=True
            )
            if f"lora_{index}" not in {name for names in pipe.get_list_adapters().values() for name in names}:
                raise ModelError(f"lora {text}: none of its weights fit this model; it was made for another family")
        names.append(f"lora_{index}")
        scales.append(parse_lora(text).scale)
    pipe.set_adapters(names, scales)
    pipe.fuse_lora(adapter_names=names)
    pipe.unload_lora_weights()


def _load_embedding(pipe: Any, text: str) -> None:
    """Teach the text encoders a word: the embedding's own name, or its file's where it has none. XL has two parts."""
    with explain_model_errors(f"embedding {text}"):
        if not hasattr(pipe, "load_textual_inversion") or not reads_with_clip(pipe):
            raise ModelError(f"embedding {text}: a {type(pipe).__name__} takes no embeddings; leave it out")
        file = fetch_file(parse_file("embedding", text), "embedding")
        vectors, readers = load_file(file), find_readers(pipe)
        parts = [vectors[key] for key in ("clip_l", "clip_g") if key in vectors] or list(vectors.values())
        widths = [encoder.get_input_embeddings().weight.shape[-1] for _, encoder in readers]
        if [part.shape[-1] for part in parts] != widths:
            raise ModelError(f"embedding {text}: does not fit this model; it was made for another family")
        known = readers[0][0].get_vocab()
        # CLIP reads lower case alone.
        own = [name for name in vectors if len(vectors) == 1 and name not in _NAMELESS]
        name = next((name for name in map(str.lower, [*own, file.stem]) if name not in known), None)
        if name is None:
            raise ModelError(f"embedding {text}: the model has a word '{file.stem}' already; rename the file")
        for part, (tokenizer, encoder) in zip(parts, readers, strict=True):
            pipe.load_textual_inversion({name: part}, tokenizer=tokenizer, text_encoder=encoder)


def load_controlnet(parameters: Parameters, dtype: torch.dtype) -> Any:
    """The preset's separate ControlNet.

    Raises:
        ModelError: as `load_pipeline`.
    """
    assert parameters.controlnet is not None
    kind, reference = locate_model(parameters.controlnet, index="config.json")
    _check_files(kind, reference)
    with explain_model_errors(parameters.controlnet):
        if kind == "file":
            return diffusers.ControlNetModel.from_single_file(reference, dtype=dtype)
        revision = parameters.controlnet_revision if kind == "hub" else None
        return diffusers.ControlNetModel.from_pretrained(
            reference, revision=revision, dtype=dtype, use_safetensors=True
        )


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


def load_clip_tokenizer() -> CLIPTokenizer:
    """OpenAI CLIP's tokenizer, as Stable Diffusion 1.x uses it, from the merges that are shipped."""
    lines = (_ARCHITECTURES / "sd15" / "tokenizer" / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    alphabet = list(_byte_alphabet())
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(line.split()) for line in lines)]
    vocab = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    merges = [tuple(line.split()) for line in lines]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def _byte_alphabet() -> Iterator[str]:
    """Printable characters that stand for the 256 bytes, in the order of CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    yield from map(chr, printable)
    yield from (chr(256 + index) for index in range(256 - len(printable)))


def _load_single_file(path: str, dtype: torch.dtype, given: dict[str, Any]) -> Any:
    """A checkpoint in one file. Stable Diffusion 1.x needs nothing else; others take their config from the hub."""
    with safe_open(path, "pt") as file:  # names and shapes only, which takes no time even for gigabytes
        shapes = {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()}  # noqa: SIM118 - not a dict
    family = infer_diffusers_model_type(shapes)
    options: dict[str, Any] = {"dtype": dtype, **given}
    if family == "v1":
        options |= {
            "config": str(_ARCHITECTURES / "sd15"),
            "tokenizer": load_clip_tokenizer(),
            "safety_checker": None,
            "requires_safety_checker": False,
        }
    names = {
        "v1": "StableDiffusion",
        "v2": "StableDiffusion",
        "xl_base": "StableDiffusionXL",
        "sd3": "StableDiffusion3",
    }
    if family not in names:
        raise ModelError(
            f"{path}: a checkpoint of kind '{family}', which cannot be loaded from one file; use a diffusers folder"
        )
    middle = "ControlNet" if "controlnet" in given else ""
    pipeline_class = getattr(diffusers, f"{names[family]}{middle}Img2ImgPipeline")
    return pipeline_class.from_single_file(path, **options)


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


_TRANSPORT_ERRORS: tuple[type[Exception], ...] = tuple(
    importlib.import_module(name).HTTPError for name in ("httpx2", "httpx") if importlib.util.find_spec(name)
)  # huggingface_hub lets them through when a download breaks off
_LOADING_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    *_TRANSPORT_ERRORS,
)
_STATUS_SENTENCES = {
    401: "the hub does not accept the token, or wants one; run `hf auth login`",
    429: "the hub asks for fewer requests (429); try again later",
}
_HUB_SENTENCES: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((hub.GatedRepoError,), "the model is gated; accept its licence on its hub page, then run `hf auth login`"),
    ((hub.RepositoryNotFoundError,), "not on the hub, or private; check the name, or run `hf auth login`"),
    (_TRANSPORT_ERRORS, "the connection to the hub broke off; run it again, files that are complete are kept"),
    ((hub.RevisionNotFoundError,), "the hub has no such revision; check --set revision"),
    (
        (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, hub.HfHubHTTPError, ConnectionError, TimeoutError),
        "not in the cache and the hub cannot be reached; connect to the internet once, or give a folder with --model; "
        "the presets edit, colorize and upscale need neither",
    ),
)


@contextlib.contextmanager
def explain_model_errors(reference: str) -> Iterator[None]:
    """Turn what loading raises into one sentence with a remedy. The reference is named, never a token."""
    try:
        yield
    except SafetensorError as error:
        raise ModelError(f"{reference}: a weights file is damaged ({error}); get the model again") from None
    except _LOADING_ERRORS as error:
        # diffusers wraps the hub's errors in its own, which say less.
        if (sentence := _explain_hub_error(list(_causes(error)))) is not None:
            raise ModelError(f"{reference}: {sentence}") from None
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, RuntimeError) and "out of memory" in reason.lower():
            raise
        raise ModelError(
            f"{reference}: cannot be loaded ({reason}); check that it is a whole diffusers model"
        ) from None


def _explain_hub_error(causes: Sequence[BaseException]) -> str | None:
    for cause in causes:
        for kinds, sentence in _HUB_SENTENCES[:2]:
            if isinstance(cause, kinds):
                return sentence
        if isinstance(cause, hub.HfHubHTTPError) and cause.response.status_code in _STATUS_SENTENCES:
            return _STATUS_SENTENCES[cause.response.status_code]
    for cause in causes:
        for kinds, sentence in _HUB_SENTENCES:
            if isinstance(cause, kinds):
                return sentence
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
