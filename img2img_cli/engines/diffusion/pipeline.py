"""A diffusers pipeline and its three stages on batches: encode, denoise, decode."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

import img2img_cli.system.environment  # noqa: F401 - settings for what follows
from img2img_cli.engines.device import (
    Placement,
    explain_memory_errors,
    make_generators,
    measure_free_bytes,
    send,
    share_threads,
)
from img2img_cli.engines.diffusion.compiling import Plan
from img2img_cli.engines.diffusion.feature_cache import cache_features
from img2img_cli.engines.diffusion.guidance import GUIDED_TENSORS, find_limits, make_callback
from img2img_cli.engines.diffusion.ip_adapter import encode_style
from img2img_cli.engines.diffusion.offload import apply_offload, copy_alone
from img2img_cli.engines.diffusion.prompts import READERS, Prompts
from img2img_cli.engines.diffusion.qwen import show_whole
from img2img_cli.engines.diffusion.traits import find_enlargement, find_multiple, list_arguments
from img2img_cli.engines.feed_forward import UpscalingNet
from img2img_cli.errors import ModelError, UsageError
from img2img_cli.presets.schema import Offload, Parameters
from img2img_cli.tasks.pieces import Piece, Progress

CPU_LANES = 2
PIXELS_PER_BATCH = 2 * 512 * 512
FILL = 0.9  # of the free memory, as a measured batch is not always the largest of its kind
BYTES_PER_PIXEL = 6_000  # of a guided Stable Diffusion pass in 16 bits, with room to spare
VAE_TILING_PIXELS = 1280 * 1280  # a VAE's activations take more than the model's from about here on

for _library in (diffusers, transformers):  # whatever they have to say, `explain_model_errors` says in one line
    _library.utils.logging.set_verbosity(logging.CRITICAL)
    _library.utils.logging.disable_progress_bar()


class ImagePipeline:
    """A diffusers img2img pipeline, with or without a ControlNet or upscaling net, driven batch by batch.

    Args:
        pipe: None for a net alone.

    Attributes:
        factor: pixels a latent, usually 8.
        multiple: both sides of a working picture must be divisible by this.
        takes_mask: whether the model itself repaints where a mask is white.
        enlargement: the factor of its net, or of a model made for upscaling; None when it enlarges nothing itself.
        refiner: a second model for the last steps.
        refines: whether the model works over a picture that was enlarged before.
        offload: where its parts lie while they wait.
        prompts: encodes what the pipeline's own encoder would cut off or take literally.
        plan: how many calls of the model are to come, for `--compile auto`.
        tells_cuts: whether prompts that are cut off come into `notes`, once each; else ask `find_cuts`.
        load_notes: what there is to tell of the weights, a sentence each.
    """

    def __init__(
        self, pipe: Any, placement: Placement, offload: Offload = "none", net: UpscalingNet | None = None
    ) -> None:
        self.pipe, self.placement, self.offload, self.prompts = pipe, placement, offload, Prompts(pipe)
        name = type(pipe).__name__
        self._net = net
        self.refiner: ImagePipeline | None = None
        self.tells_cuts = True
        self.load_notes: list[str] = []
        self.plan = Plan()
        own = find_enlargement(pipe)
        self.enlargement: int | None = net.scale if net else own
        self.refines = pipe is not None and own is None
        self.factor: int = getattr(pipe, "vae_scale_factor", 1)
        self.multiple: int = find_multiple(pipe)
        self._accepted = list_arguments(pipe)
        self.takes_mask = "mask_image" in self._accepted
        self._takes_latents = name.startswith("StableDiffusion") and name.endswith("Img2ImgPipeline")
        self.has_controlnet = getattr(pipe, "controlnet", None) is not None
        self._tiling_pixels = VAE_TILING_PIXELS
        self._bytes_per_pixel: float = BYTES_PER_PIXEL

    @torch.inference_mode()
    def encode(self, images: list[Image.Image], generators: list[torch.Generator]) -> torch.Tensor:
        """RGB pictures of one size to scaled latents `(B, C, H/f, W/f)` in the model's dtype.

        A VAE with a distribution is sampled with each picture's own generator, before the noise is drawn from
        it, as the stock pipelines do.
        """
        vae = self.pipe.vae
        self._tile_vae(images[0].size)
        # Several samples of one picture share its encoding.
        distinct = {id(image): image for image in images}
        order = list(distinct)
        places = [order.index(id(image)) for image in images]
        pixels = self.pipe.image_processor.preprocess(list(distinct.values()))
        with explain_memory_errors(self.placement.device):
            encoded = vae.encode(send(pixels, self.placement.device, vae.dtype))
        if hasattr(encoded, "latents"):
            latents = encoded.latents[places]
        else:
            mean, std = encoded.latent_dist.mean[places], encoded.latent_dist.std[places]
            noise = [
                torch.randn(m[None].shape, generator=g, dtype=m.dtype) for m, g in zip(mean, generators, strict=True)
            ]
            latents = mean + std * torch.cat(noise).to(mean)
        scaled: torch.Tensor = (latents - self._shift) * vae.config.scaling_factor
        return scaled.to(self.placement.dtype)

    @property
    def _shift(self) -> float:
        return getattr(self.pipe.vae.config, "shift_factor", None) or 0.0

    @torch.inference_mode()
    def denoise(
        self,
        latents: torch.Tensor,
        generators: list[torch.Generator],
        each: Sequence[Parameters],
        controls: list[Image.Image] | None,
        progress: Progress | None = None,
        style: Image.Image | None = None,
    ) -> torch.Tensor:
        """Noise latents by `strength` and denoise them, each under its own prompt; same shape out as in.

        Args:
            each: one a latent; they differ in prompts alone.
            style: for a model with an IP-Adapter.
        """
        parameters = each[0]
        arguments = self._make_arguments(each, generators, progress) | {"image": latents, "output_type": "latent"}
        if self.has_controlnet:
            if controls is None:
                raise UsageError("this model has a ControlNet; set control to grey, softedge, canny or picture")
            arguments |= {
                "control_image": controls,
                "controlnet_conditioning_scale": parameters.controlnet_conditioning_scale,
                "control_guidance_start": parameters.control_guidance_start,
                "control_guidance_end": parameters.control_guidance_end,
            }
        with explain_memory_errors(self.placement.device):
            if style is not None:
                guided = parameters.guidance_scale > 1
                embeds = encode_style(self.pipe, style, self.placement.device, guided=guided)
                arguments["ip_adapter_image_embeds"] = [embeds]
            result: torch.Tensor = self._call(parameters, **arguments)
        if self.refiner is not None:
            again = [q.model_copy(update={"strength": q.refiner_strength}) for q in each]
            result = self.refiner.denoise(result, generators, again, None, progress)
        return result

    def _call(self, parameters: Parameters, **arguments: Any) -> Any:
        """What the pipeline makes; its UNet keeps features if the preset asks for it."""
        with cache_features(self.pipe, parameters.cache_interval):
            return self.pipe(**arguments).images

    def _make_arguments(
        self, each: Sequence[Parameters], generators: list[torch.Generator], progress: Progress | None
    ) -> dict[str, Any]:
        """What the pipeline's class takes of the parameters."""
        p = each[0]
        read = [self._read_texts(q) for q in each]
        prompts, negatives = [text for text, _ in read], [text for _, text in read if text is not None] or None
        if self.tells_cuts:
            self.prompts.note_cuts([*prompts, *(negatives or ())])
            self.prompts.note_unused(read)
            self.prompts.note(find_limits(self.pipe, p))
        texts: dict[str, Any] = {"prompt": prompts, "negative_prompt": negatives}
        if any(map(self._count_windows, each)):
            texts = dict(self.prompts.embed(prompts, negatives))
        wanted = {
            **texts,
            "strength": p.strength,
            "num_inference_steps": p.num_inference_steps,
            "guidance_scale": p.guidance_scale,
            "true_cfg_scale": p.true_cfg_scale,
            "image_guidance_scale": p.image_guidance_scale,
            "noise_level": p.noise_level,
        }
        callback = make_callback(self.pipe, p, progress)
        if callback is not None:
            names = [name for name in GUIDED_TENSORS if name in getattr(self.pipe, "_callback_tensor_inputs", ())]
            wanted |= {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents", *names]}
        return {"generator": generators} | {key: value for key, value in wanted.items() if key in self._accepted}

    def _read_texts(self, p: Parameters) -> tuple[str, str | None]:
        """The prompt and, if guidance is on, the negative one. CLIP reads lower case, and so are embeddings named."""
        guided = (p.true_cfg_scale if "true_cfg_scale" in self._accepted else p.guidance_scale) > 1
        texts = p.full_prompt, p.negative_prompt if guided else None
        return (texts[0].lower(), texts[1] and texts[1].lower()) if p.embedding else texts

    def find_cuts(self, each: Sequence[Parameters]) -> list[str]:
        """Sentences: prompts that are not read in full, notes on the weights, and what the model cannot do."""
        pairs = [self._read_texts(p) for p in each]
        texts = dict.fromkeys(text for pair in pairs for text in pair if text is not None)
        unused = self.prompts.find_unused(pairs).values()
        limits = [text for p in each[:1] for text in find_limits(self.pipe, p)]
        return [*self.load_notes, *self.prompts.find_cuts(list(texts)), *unused, *limits]

    def _count_windows(self, p: Parameters) -> int:
        return self.prompts.count_windows(*self._read_texts(p))

    @torch.inference_mode()
    def edit_whole(self, piece: Piece, progress: Progress | None = None) -> Image.Image:
        """One picture through a pipeline that encodes and decodes itself; the result has the picture's size.

        Some of these read a list of pictures as several references for one result, so it is one picture a call.
        """
        width, height = piece.image.size
        self._tile_vae(piece.image.size)
        arguments = self._make_arguments([piece.parameters], make_generators([piece.seed]), progress)
        # Kontext would go to the nearest of its training sizes, which stretches the picture.
        size = {"width": width, "height": height, "max_area": width * height, "_auto_resize": False}
        arguments |= {key: value for key, value in size.items() if key in self._accepted}
        arguments |= {"image": piece.image, "output_type": "pt"}
        if self.takes_mask:
            if piece.mask is None:
                raise UsageError("this model repaints the white part of a mask; give one with --mask")
            arguments["mask_image"] = piece.mask
        with explain_memory_errors(self.placement.device), show_whole(self.pipe, width * height):
            made = _to_images(self._call(piece.parameters, **arguments))[0]
        return made if made.size == piece.image.size else made.resize(piece.image.size, Image.Resampling.LANCZOS)

    @torch.inference_mode()
    def enlarge(self, pieces: Sequence[Piece], progress: Progress | None = None) -> list[Image.Image]:
        """Pieces of one size `enlargement` times larger, by the net or else by the model."""
        with explain_memory_errors(self.placement.device):
            if self._net is not None:
                return _to_images(
                    self._net.enlarge([piece.image for piece in pieces], [piece.seed for piece in pieces])
                )
            self._tile_vae((pieces[0].image.width * self.factor, pieces[0].image.height * self.factor))
            generators = make_generators([piece.seed for piece in pieces])
            arguments = self._make_arguments([piece.parameters for piece in pieces], generators, progress)
            arguments |= {"image": [piece.image for piece in pieces], "output_type": "pt"}
            return _to_images(self._call(pieces[0].parameters, **arguments))

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Scaled latents to 8-bit RGB pictures; once more in float32 when 16 bits overflow.

        Raises:
            ModelError: the result is not finite even in float32.
        """
        pixels = self._decode(latents)
        if not torch.isfinite(pixels).all() and self.pipe.vae.dtype != torch.float32 and torch.isfinite(latents).all():
            self._release()
            with explain_memory_errors(self.placement.device):
                vae = copy_alone(self.pipe.vae, self.placement.device, torch.float32)
            pixels = self._decode(latents, vae)
        return _to_images(pixels.float().div(2).add(0.5))

    def _decode(self, latents: torch.Tensor, vae: Any = None) -> torch.Tensor:
        self._tile_vae((latents.shape[-1] * self.factor, latents.shape[-2] * self.factor))
        vae = vae or self.pipe.vae
        with explain_memory_errors(self.placement.device):
            decoded: torch.Tensor = vae.decode(
                (latents / vae.config.scaling_factor + self._shift).to(vae.dtype), return_dict=False
            )[0]
        return decoded

    def transform(self, pieces: Sequence[Piece], progress: Progress | None = None) -> list[Image.Image]:
        """All three stages on a batch of pieces of one group; sides are multiples of `multiple`."""
        with explain_memory_errors(self.placement.device):  # also of what is between the stages
            if self.placement.device.type != "cuda":
                return self._transform(pieces, progress)
            torch.cuda.reset_peak_memory_stats(self.placement.device)
            before = torch.cuda.memory_allocated(self.placement.device)
            made = self._transform(pieces, progress)
            # What a batch has taken is a better guess for the next one than any rule.
            taken = torch.cuda.max_memory_allocated(self.placement.device) - before
            self._bytes_per_pixel = taken / sum(piece.pixels for piece in pieces)
            return made

    def _transform(self, pieces: Sequence[Piece], progress: Progress | None) -> list[Image.Image]:
        if pieces[0].enlarge:
            return self.enlarge(pieces, progress)
        if not self._takes_latents:
            if pieces[0].reconstruct:
                raise UsageError(f"keep_detail needs a Stable Diffusion model, not a {type(self.pipe).__name__}")
            return [self.edit_whole(piece, progress) for piece in pieces]
        windows = [0 if piece.reconstruct else self._count_windows(piece.parameters) for piece in pieces]
        if len(set(windows)) > 1:  # filled up to one length, a prompt would change with its neighbours
            made: dict[int, Image.Image] = {}
            for count in dict.fromkeys(windows):
                places = [index for index, number in enumerate(windows) if number == count]
                made |= zip(places, self._transform([pieces[index] for index in places], progress), strict=True)
            return [made[index] for index in range(len(pieces))]
        generators = make_generators([piece.seed for piece in pieces])
        latents = self.encode([piece.image for piece in pieces], generators)
        if pieces[0].reconstruct:
            return self.decode(latents)
        controls = [piece.control for piece in pieces if piece.control is not None]
        parameters = [piece.parameters for piece in pieces]
        style = pieces[0].style
        return self.decode(self.denoise(latents, generators, parameters, controls or None, progress, style))

    @property
    def batch_pixels(self) -> int:
        """How many pixels a batch may have in all: by free memory on a GPU, by cache on a CPU."""
        if self.placement.device.type != "cuda":
            return PIXELS_PER_BATCH
        return max(PIXELS_PER_BATCH, int(measure_free_bytes(self.placement.device) * FILL / self._bytes_per_pixel))

    @property
    def gains_from_batches(self) -> bool:
        """Whether pictures in one batch are done sooner than one by one; on a CPU it is lanes that gain."""
        return self.placement.device.type != "cpu"

    @property
    def device_name(self) -> str:
        """Where it works, such as `cuda:0`."""
        return str(self.placement.device)

    @property
    def notes(self) -> list[str]:
        """What to tell its user; whoever shows them takes them out."""
        return self.prompts.notes

    def expect(self, calls: int) -> None:
        """So many calls of the model are to come."""
        self.plan.calls += calls

    def share_threads(self, lanes: int) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """While as many lanes work at once: yields what each one's thread calls first."""
        return share_threads(lanes)

    def make_lanes(self) -> list[ImagePipeline]:
        """Pipelines that share these weights and may work at the same time, each with its share of the threads.

        On a CPU two pictures at once, on half the threads each, are done sooner than one after the other on all: small
        layers do not fill many threads, and no thread waits for others at the end of each. Elsewhere there is one lane.
        """
        if self.placement.device.type != "cpu" or not self._takes_latents or torch.get_num_threads() < 2:
            return [self]
        return [self._share() for _ in range(CPU_LANES)]

    def _share(self) -> ImagePipeline:
        """A copy with a scheduler, tokenizers and a VAE's settings of its own, which change while it works."""
        lane, lane.pipe = copy.copy(self), copy.copy(self.pipe)
        # A tokenizer keeps the last call's padding and truncation, which another thread's call would go by.
        for name in ("scheduler", *(tokenizer for tokenizer, _ in READERS)):
            if getattr(self.pipe, name, None) is not None:
                setattr(lane.pipe, name, copy.deepcopy(getattr(self.pipe, name)))
        lane.pipe.vae = copy.copy(self.pipe.vae)
        lane.prompts, lane._net = self.prompts.share(lane.pipe), self._net and self._net.share()
        lane.refiner = self.refiner and self.refiner._share()
        return lane

    def save_memory(self) -> str | None:
        """Switch on the next measure against running out of memory and name it; None when there is none left."""
        self._release()
        if self._tiling_pixels and self._can_tile_vae:
            self._tiling_pixels = 0
            return "the VAE in tiles"
        if self.placement.device.type == "cuda" and self.pipe is not None and self.offload in ("none", "model"):
            self.offload = "model" if self.offload == "none" else "group"
            self.plan.is_off = True
            apply_offload(self.pipe, self.offload, self.placement.device)
            return "the model's " + ("parts" if self.offload == "model" else "layers") + " moved to the device in turn"
        return None

    @property
    def _can_tile_vae(self) -> bool:
        # AutoencoderTiny is small anyway, and its tiling assumes a factor of 8.
        vae = getattr(self.pipe, "vae", None)
        return hasattr(vae, "enable_tiling") and not isinstance(vae, diffusers.AutoencoderTiny)

    def _tile_vae(self, size: tuple[int, int]) -> None:
        """The VAE in overlapping tiles for large pictures, whole for others: tiles differ a little in tone."""
        if self._can_tile_vae:
            vae = self.pipe.vae
            (vae.enable_tiling if size[0] * size[1] > self._tiling_pixels else vae.disable_tiling)()

    def _release(self) -> None:
        gc.collect()
        if self.placement.device.type == "cuda":
            torch.cuda.empty_cache()


def _to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """`(B, 3, H, W)` in 0..1 to 8-bit RGB.

    Raises:
        ModelError: not finite.
    """
    if not torch.isfinite(pixels).all():
        raise ModelError("the model produced pixels that are not numbers; try --dtype float32")
    array = pixels.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return [Image.fromarray(image) for image in array.permute(0, 2, 3, 1).cpu().numpy()]
