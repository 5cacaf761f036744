"""Train a diffusion model on pairs, one step at a time."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from img2img_cli.engines.device import Placement, explain_memory_errors
from img2img_cli.engines.diffusion.latents import LatentsPipeline
from img2img_cli.engines.diffusion.load import load_controlnet, load_pipeline
from img2img_cli.engines.diffusion.pipeline import DiffusionPipeline
from img2img_cli.engines.diffusion.whole_picture import WholePicturePipeline
from img2img_cli.engines.hub import check_downloads
from img2img_cli.engines.traits import find_traits, list_arguments
from img2img_cli.errors import ModelError
from img2img_cli.pictures.control_maps import make_control_image
from img2img_cli.presets.schema import Parameters
from img2img_cli.system.silence import silence_stdout
from img2img_cli.tasks.pieces import Piece
from img2img_cli.train.diffusion import methods
from img2img_cli.train.diffusion.capture import NOISY, Example, capture, find_denoiser, move, stack
from img2img_cli.train.diffusion.noising import Moment, Schedule
from img2img_cli.train.diffusion.settings import Settings
from img2img_cli.train.diffusion.store import Store
from img2img_cli.train.loop import autocast, average_in, set_rate
from img2img_cli.train.pairs.check import Checked
from img2img_cli.train.pairs.layouts import Pair
from img2img_cli.train.pairs.pictures import read_pair
from img2img_cli.train.pairs.sheets import Figures
from img2img_cli.train.pairs.trainer import DEFAULT_PROMPT, FEW_PAIRS, Losses, Shown, format_head

LEAST_SIDE = 64  # of a picture; some pipelines refuse smaller ones
EMA_DECAY = 0.99
WARMUP_STEPS = 20
CACHE = "cache"
Told = Callable[[int, int], None]


class DiffusionTrainer:
    """Everything that changes while a diffusion model is taught. Its state is enough to go on to the same weights.

    Args:
        parameters: those of the base preset.
        placement: where to train; on a CPU in float32.
        folder: takes the examples.
        progress: called with the number of pictures that were encoded and of all.

    Attributes:
        step: how many steps were made.

    Raises:
        ModelError: the base is missing, damaged or of a kind that cannot be taught.
        UsageError: the base cannot be taught by the method.
    """

    def __init__(
        self,
        settings: Settings,
        parameters: Parameters,
        pairs: Sequence[Pair],
        placement: Placement,
        folder: Path,
        progress: Told,
    ) -> None:
        self.settings, self.step, self._device = settings, 0, placement.device
        self._base = parameters
        with silence_stdout(), check_downloads(parameters):
            controlnet = load_controlnet(parameters, placement.dtype) if parameters.controlnet else None
            pipe = load_pipeline(parameters, placement.dtype, controlnet)
        self._taught = taught = _teach(pipe, settings)
        taught.pipe.set_progress_bar_config(disable=True)
        taught.pipe.to(placement.device)
        for name in ("unet", "vae", "controlnet"):
            part: Any = getattr(taught.pipe, name, None)
            if part is not None and all(parameter.ndim < 5 for parameter in part.parameters()):
                part.to(memory_format=torch.channels_last)
        self._parameters = parameters.model_copy(update=taught.keys)
        engine = LatentsPipeline if find_traits(taught.pipe).takes_latents else WholePicturePipeline
        self.pipeline: DiffusionPipeline = engine(taught.pipe, placement)
        self.pipeline.keeps_to_known_words = False  # it is taught those of the pairs
        if placement.device.type == "cuda":
            taught.module.enable_gradient_checkpointing()  # type: ignore[operator]
        self._averaged = [parameter.detach().clone() for parameter in taught.parameters]
        self._optimizer = _make_optimizer(taught.parameters, settings.learning_rate, placement.device)
        self._store = Store(folder / CACHE)
        self._keys = self._encode(pairs, progress)
        self._move_readers(torch.device("cpu"))
        self._groups = self._group()
        self._schedules: dict[Any, Schedule] = {}

    @property
    def batch_size(self) -> int:
        """Pairs in a step."""
        return self.settings.batch_size * self.settings.accumulate

    @property
    def longest(self) -> int:
        """The longer side at which pictures are shown."""
        return 2 * self.settings.size

    @property
    def has_adversary(self) -> bool:
        """Always false."""
        return False

    @property
    def made_of(self) -> dict[str, Any]:
        """The settings by name."""
        return asdict(self.settings)

    def _encode(self, pairs: Sequence[Pair], progress: Told) -> list[list[str]]:
        """Encode what is not on the disk yet; return the keys of each pair, one for each form that it is learnt in.

        The first half of a pair's keys have its caption, the others none.
        """
        mirrored = (False, True) if len(pairs) < FEW_PAIRS else (False,)
        captions = (True, False) if self.settings.caption_dropout else (True,)
        keys = []
        for number, pair in enumerate(pairs, 1):
            own = []
            files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (pair.input, pair.output)]
            for told in captions:
                for mirror in mirrored:
                    key = self._name(pair, files, mirror=mirror, told=told)
                    if not self._store.has(key):
                        self._store.put(key, self._capture(pair, mirror=mirror, told=told))
                    own.append(key)
            keys.append(own)
            progress(number, len(pairs))
        return keys

    def _move_readers(self, device: torch.device) -> None:
        """Move text encoders, which training does not need, off the device or back to it."""
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            encoder: Any = getattr(self._taught.pipe, name, None)
            if encoder is not None:
                encoder.to(device)

    def _name(self, pair: Pair, files: list[str], *, mirror: bool, told: bool) -> str:
        sides = [pair.input_side, pair.output_side, pair.caption if told else None]
        made_of = [*files, *sides, mirror, self.settings.size, self.settings.method, self._parameters.to_record()]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

    def _capture(self, pair: Pair, *, mirror: bool, told: bool) -> Example:
        source, target = self._fit(*read_pair(pair, 1 << 16))
        if mirror:
            source, target = ImageOps.mirror(source), ImageOps.mirror(target)
        return capture(self.pipeline, self._make_piece(source, pair.caption, told=told), target)

    def _make_piece(self, source: Image.Image, caption: str, *, told: bool) -> Piece:
        p = self._parameters
        update: dict[str, Any] = {"guidance_scale": 1.0, "true_cfg_scale": 1.0, "cache_interval": 1}
        # Models that are told of guidance in an argument are taught at the preset's.
        if "true_cfg_scale" in list_arguments(self._taught.pipe):
            del update["guidance_scale"]
        update["prompt"] = caption or p.prompt or DEFAULT_PROMPT
        if not told:
            update |= {"prompt": "", "prompt_template": "{prompt}"}
        control = None
        if self.pipeline.has_controlnet:
            control = make_control_image(source, p.control or "picture")
        return Piece(image=source, control=control, seed=0, parameters=p.model_copy(update=update))

    def _fit(self, source: Image.Image, target: Image.Image) -> tuple[Image.Image, Image.Image]:
        """Scale both pictures to about the training size, with sides that the model takes."""
        scale = self.settings.size / (target.width * target.height) ** 0.5
        multiple = self.pipeline.multiple
        least = -(-LEAST_SIDE // multiple) * multiple
        width, height = (max(least, round(side * scale / multiple) * multiple) for side in target.size)
        size = width, height
        return source.resize(size, Image.Resampling.LANCZOS), target.resize(size, Image.Resampling.LANCZOS)

    def _group(self) -> dict[Any, list[int]]:
        groups = defaultdict(list)
        for index, keys in enumerate(self._keys):
            groups[self._store.get(keys[0]).shape].append(index)
        return dict(groups)

    def _draw(self, batch: int) -> tuple[Example, torch.Generator]:
        """Return the examples of a batch, which seed and step decide, and a generator for its noise."""
        seed = [self.settings.seed, self.step, batch]
        rng = np.random.default_rng(seed)
        first = int(rng.integers(len(self._keys)))
        group = next(members for members in self._groups.values() if first in members)
        chosen = [first, *(int(index) for index in rng.choice(group, self.settings.batch_size - 1))]
        examples = []
        for index in chosen:
            keys = self._keys[index]
            forms = len(keys) // 2 if self.settings.caption_dropout else len(keys)
            place = int(rng.integers(forms))
            if self.settings.caption_dropout and rng.random() < self.settings.caption_dropout:
                place += forms
            examples.append(self._store.get(keys[place]))
        if any(each.shape != examples[0].shape for each in examples):  # without a caption, embeddings can be shorter
            examples = examples[:1]
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        return stack(examples), generator

    def advance(self, progress: float) -> Losses:
        """Make one step.

        Args:
            progress: the share of the run that is over, in 0..1; from the middle on, the learning rate falls to 0.

        Raises:
            ModelError: the loss is not a number.
            OutOfMemoryError: the device has too little memory.
        """
        with explain_memory_errors(self._device, "use a smaller --crop, or --batch-size 1 with --accumulate"):
            loss = self._advance(progress)
        self.step += 1
        return Losses(difference=loss)

    def _advance(self, progress: float) -> float:
        set_rate(self._optimizer, self.settings.learning_rate, self.step, progress, warmup=WARMUP_STEPS)
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for number in range(self.settings.accumulate):
            loss = self._compute_loss(*self._draw(number))
            if not torch.isfinite(loss):
                raise ModelError(f"step {self.step}: the loss is not a number; use a smaller --learning-rate")
            (loss / self.settings.accumulate).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) / self.settings.accumulate
        nn.utils.clip_grad_norm_(self._taught.parameters, 1.0)
        self._optimizer.step()
        average_in(self._averaged, self._taught.parameters, self.step, EMA_DECAY)
        return total

    def _compute_loss(self, example: Example, generator: torch.Generator) -> torch.Tensor:
        """Return the loss of a batch.

        A run that starts from the noised input at the step with signal `a` and noise `s` meets, on its way to the
        wanted picture, that picture under `noise + a / s * (input - wanted)`: so it is trained on that.
        """
        schedule = self._find_schedule(example)
        moment = schedule.draw(len(example.target), generator)
        noise = torch.randn(example.target.shape, generator=generator)
        if self._taught.starts_from_picture:
            noise = noise + schedule.start * (example.source - example.target)
        noisy, wanted = schedule.mix(example.target, noise, moment)
        if self.settings.method == "ip2p" and example.beside is not None:
            shown = torch.rand(len(noisy), 1, 1, 1, generator=generator) >= self.settings.caption_dropout
            example = replace(example, beside=example.beside * shown)
        noisy = noisy.contiguous(memory_format=torch.channels_last) if noisy.ndim == 4 else noisy
        with autocast(self._device):
            predicted = self._predict(noisy.to(self._device), moment, example)
        errors = ((predicted.float() - wanted.to(self._device)) ** 2).flatten(1).mean(1)
        return (errors * moment.weights.to(self._device)).mean()

    def _find_schedule(self, example: Example) -> Schedule:
        key = tuple(example.target.shape[1:])
        if key not in self._schedules:
            self._schedules[key] = Schedule(self._taught.pipe.scheduler, example.steps)
        return self._schedules[key]

    def _predict(self, noisy: torch.Tensor, moment: Moment, example: Example) -> torch.Tensor:
        pipe = self._taught.pipe
        denoiser: Any = find_denoiser(pipe)
        options = move(example.model, self._device)
        given = noisy.to(denoiser.dtype)
        timesteps = moment.timesteps.to(self._device)
        if example.controlnet is not None:
            down, middle = pipe.controlnet(
                sample=given, timestep=timesteps, **move(example.controlnet, self._device) | {"return_dict": False}
            )
            options |= {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        if example.beside is not None:
            given = torch.cat([given, example.beside.to(given)], dim=1)
        name = next(name for name in NOISY if name in inspect.signature(denoiser.forward).parameters)
        made = denoiser(**{name: given, "timestep": timesteps}, **options | {"return_dict": False})[0]
        predicted: torch.Tensor = made[:, : noisy.shape[1]]
        return predicted

    def state(self) -> dict[str, Any]:
        """Return everything that `restore` needs, in types that `torch.load(weights_only=True)` reads."""
        return {
            "step": self.step,
            "trained": [parameter.detach() for parameter in self._taught.parameters],
            "averaged": self._averaged,
            "optimizer": self._optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state.

        Raises:
            KeyError, RuntimeError: it is not one of these settings.
        """
        with torch.no_grad():
            for own, kept in zip(self._taught.parameters, state["trained"], strict=True):
                own.copy_(kept)
            for average, kept in zip(self._averaged, state["averaged"], strict=True):
                average.copy_(kept)
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])

    @contextmanager
    def _average(self) -> Iterator[None]:
        """Have the averaged weights in place within a context."""
        own = [parameter.detach().clone() for parameter in self._taught.parameters]
        with torch.no_grad():
            for parameter, average in zip(self._taught.parameters, self._averaged, strict=True):
                parameter.copy_(average)
        self._taught.module.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, kept in zip(self._taught.parameters, own, strict=True):
                    parameter.copy_(kept)

    def measure(self, shown: Shown) -> Figures:
        """Return what the averaged weights make of pairs with the preset's settings, beside what was wanted.

        Raises:
            ModelError: the pixels are not numbers.
        """
        rows = []
        self._move_readers(self._device)
        with self._average():
            for pair, source, target in shown:
                fitted, _ = self._fit(source, target)
                piece = self._make_piece(fitted, pair.caption, told=True)
                guided = {key: getattr(self._parameters, key) for key in ("guidance_scale", "true_cfg_scale")}
                parameters = piece.parameters.model_copy(update=guided)
                whole = Piece(image=piece.image, control=piece.control, seed=piece.seed, parameters=parameters)
                # On a GPU, what is trained is in float32 and the rest of the model in 16 bits.
                with torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"):
                    (made,) = self.pipeline.transform([whole])
                rows.append((pair.name, source, made.resize(target.size, Image.Resampling.LANCZOS), target))
        self._move_readers(torch.device("cpu"))
        return Figures(rows=rows)

    def save(self, folder: Path) -> None:
        """Write the averaged weights."""
        settings, pipe = self.settings, self._taught.pipe
        with self._average():
            if settings.method == "lora":
                methods.save_lora(pipe, folder, rank=settings.rank, alpha=settings.alpha)
            elif settings.method == "controlnet":
                methods.save_halved(pipe.controlnet, folder / methods.CONTROLNET_FOLDER)
            else:
                methods.save_halved(pipe, folder / methods.MODEL_FOLDER)

    def format_preset(self, name: str, checked: Checked) -> str:
        """Return the text of the preset: the base, and what was learnt beside it."""
        keys = methods.list_keys(self.settings.method, self._base.lora) | dict(self._taught.keys)
        keys |= {"num_inference_steps": self._parameters.num_inference_steps, "image_size": self.settings.size}
        lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items())
        return f"extends: {json.dumps(self.settings.base)}\n{format_head(name, checked)}{lines}"


def _teach(pipe: Any, settings: Settings) -> methods.Taught:
    if settings.method == "lora":
        return methods.teach_lora(pipe, rank=settings.rank, alpha=settings.alpha, seed=settings.seed)
    return methods.teach_controlnet(pipe) if settings.method == "controlnet" else methods.teach_ip2p(pipe)


def _make_optimizer(
    parameters: Sequence[nn.Parameter], learning_rate: float, device: torch.device
) -> torch.optim.Optimizer:
    """Return AdamW, with its state in 8 bits where bitsandbytes is there for the GPU."""
    if device.type == "cuda":
        try:
            import bitsandbytes  # type: ignore[import-not-found]
        except ImportError:
            pass
        else:
            eight: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(parameters, learning_rate, weight_decay=0.01)
            return eight
    return torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
