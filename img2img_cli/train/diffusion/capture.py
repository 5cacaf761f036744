"""What a pipeline gives its model for a picture, taken from a real call and kept on the disk.

Training shows a model what it will be shown: prompt embeddings, control pictures, latents of the input beside the noise
or behind it, sizes, positions, guidance. Every family has its own way of putting these together, and its pipeline
knows it. So the pipeline is called as for a result, and stopped where it first calls the model.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from img2img_cli.engines.device import make_generators
from img2img_cli.engines.diffusion.latents import LatentsPipeline
from img2img_cli.engines.diffusion.pipeline import DiffusionPipeline
from img2img_cli.tasks.pieces import Piece
from img2img_cli.train.diffusion.noising import Steps, read_steps

NOISY = ("sample", "hidden_states")  # what models call the latents that they are given
_RESULTS = ("down_block_additional_residuals", "mid_block_additional_residual")  # of a ControlNet, computed anew


@dataclass(frozen=True, kw_only=True)
class Example:
    """One pair as a model sees it.

    Attributes:
        target, source: latents of the wanted picture and of the input, as the model gets them: float32 `(1, C, H, W)`
            or, in tokens, `(1, N, C)`.
        beside: what the model is given beside the noisy latents, channels or tokens; None if nothing.
        model, controlnet: the other arguments of the model's call, and of the ControlNet's, if there is one.
        steps: those of the preset, which may depend on the picture's size.
    """

    target: torch.Tensor
    source: torch.Tensor
    beside: torch.Tensor | None
    model: Mapping[str, Any]
    controlnet: Mapping[str, Any] | None
    steps: Steps

    @property
    def shape(self) -> tuple[Any, ...]:
        """A key that is equal for examples that can share a batch."""
        return tuple(_list_shapes([self.target, self.beside, self.model, self.controlnet]))


class _StoppedError(Exception):
    """The model was called; nothing more is needed of the pipeline."""


def find_denoiser(pipe: Any) -> torch.nn.Module:
    """Return the UNet or the transformer."""
    found: torch.nn.Module = pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer
    return found


@contextlib.contextmanager
def _answer(module: Any, answer: Callable[[dict[str, Any]], Any]) -> Iterator[None]:
    """Have calls of a module answered from their arguments by name, within a context."""
    names = inspect.signature(module.forward)
    module.forward = lambda *arguments, **options: answer(dict(names.bind(*arguments, **options).arguments))
    try:
        yield
    finally:
        del module.forward


def capture(pipeline: DiffusionPipeline, piece: Piece, target: Image.Image) -> Example:
    """Return what the model is given for a piece.

    Args:
        piece: with guidance off, as that doubles the batch.
        target: the wanted picture, RGB of the piece's size.
    """
    pipe: Any = pipeline.pipe
    calls: list[dict[str, Any]] = []
    helped: list[dict[str, Any]] = []

    def stop(call: dict[str, Any]) -> None:
        calls.append(call)
        raise _StoppedError

    def help_(call: dict[str, Any]) -> tuple[tuple[()], None]:
        helped.append(call)
        return (), None

    source = encode(pipe, piece.image)
    with contextlib.ExitStack() as answers, contextlib.suppress(_StoppedError):
        if pipeline.has_controlnet:
            answers.enter_context(_answer(pipe.controlnet, help_))
        answers.enter_context(_answer(find_denoiser(pipe), stop))
        if isinstance(pipeline, LatentsPipeline):  # which would encode the picture once more
            controls = None if piece.control is None else [piece.control]
            pipeline.denoise(source.to(pipeline.placement.dtype), make_generators([0]), [piece.parameters], controls)
        else:
            pipeline.transform([piece])
    (call,) = calls
    given = call.pop(next(name for name in NOISY if name in call))
    told = float(torch.as_tensor(call.pop("timestep")).flatten()[0])
    latents = encode(pipe, target)
    beside = given[:, latents.shape[1] :]
    cpu = torch.device("cpu")
    own = (*NOISY, "timestep", *_RESULTS)
    return Example(
        target=move(latents.float(), cpu),
        source=move(source.float(), cpu),
        beside=move(beside, cpu) if beside.shape[1] else None,
        model=move({key: value for key, value in call.items() if key not in own}, cpu),
        controlnet=move({k: v for k, v in helped[0].items() if k not in own}, cpu) if helped else None,
        steps=read_steps(pipe.scheduler, told),
    )


@torch.inference_mode()
def encode(pipe: Any, image: Image.Image) -> torch.Tensor:
    """Return the latents of an RGB picture in the form in which the pipeline's model denoises them.

    Returns:
        `(1, C, H, W)`, or `(1, N, C)` for models that work on tokens.
    """
    vae = pipe.vae
    pixels = pipe.image_processor.preprocess(image).to(vae.device, vae.dtype)
    if hasattr(pipe, "_encode_vae_image"):
        if any(parameter.ndim == 5 for parameter in vae.parameters()):
            pixels = pixels.unsqueeze(2)
        latents = pipe._encode_vae_image(image=pixels, generator=torch.Generator(vae.device).manual_seed(0))
        return _pack(pipe, latents)
    encoded = vae.encode(pixels)
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    scaled: torch.Tensor = (latents - shift) * vae.config.scaling_factor
    return scaled


def _pack(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    height, width = latents.shape[-2:]
    if len(inspect.signature(pipe._pack_latents).parameters) == 1:
        packed: torch.Tensor = pipe._pack_latents(latents)
    else:
        packed = pipe._pack_latents(latents, len(latents), latents.shape[1], height, width)
    return packed


def stack(examples: Sequence[Example]) -> Example:
    """Return examples of one shape as a batch."""
    if len(examples) == 1:
        return examples[0]
    parts = [[each.target, each.source, each.beside, each.model, each.controlnet] for each in examples]
    target, source, beside, model, controlnet = _stack(parts)
    return Example(
        target=target, source=source, beside=beside, model=model, controlnet=controlnet, steps=examples[0].steps
    )


def _stack(values: list[Any]) -> Any:
    """Join tensors of one row, and lists of one entry; of all else, which does not differ, take the first."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(values) if first.ndim and first.shape[0] == 1 else first
    if isinstance(first, Mapping):
        return {key: _stack([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        if len(first) == 1 and not isinstance(first[0], torch.Tensor):
            return [entry for value in values for entry in value]
        return [_stack(list(each)) for each in zip(*values, strict=True)]
    return first


def _list_shapes(value: Any) -> Iterator[Any]:
    if isinstance(value, torch.Tensor):
        yield tuple(value.shape)
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield key
            yield from _list_shapes(value[key])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _list_shapes(each)
    else:
        yield value


def move(value: Any, device: torch.device) -> Any:
    """Return tensors, and those within dicts and lists, on a device; all else as it is."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().to(device)  # out of inference mode, so that it can take part in training
    if isinstance(value, Mapping):
        return {key: move(each, device) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(move(each, device) for each in value)
    return value
