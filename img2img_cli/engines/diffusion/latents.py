"""The engine for pipelines that take latents: encode, denoise and decode, each on a whole batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from img2img_cli.engines.base import to_images
from img2img_cli.engines.device import explain_memory_errors, make_generators, send
from img2img_cli.engines.diffusion.ip_adapter import encode_style
from img2img_cli.engines.diffusion.offload import copy_alone
from img2img_cli.engines.diffusion.pipeline import DiffusionPipeline
from img2img_cli.engines.diffusion.prompts import call_in_turn, find_readers
from img2img_cli.errors import UsageError
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.pieces import Piece, Progress

CPU_LANES = 2


class LatentsPipeline(DiffusionPipeline):
    """A diffusers pipeline that takes a batch of latents: Stable Diffusion, with or without a ControlNet.

    Attributes:
        refiner: a second model for the last steps; None if there is none.
    """

    refiner: LatentsPipeline | None = None

    @torch.inference_mode()
    def encode(self, images: list[Image.Image], generators: list[torch.Generator]) -> torch.Tensor:
        """Encode RGB pictures of one size to scaled latents `(B, C, H/f, W/f)` in the model's dtype.

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
        """Noise latents `(B, C, H/f, W/f)` by `strength` and denoise them, each under its own prompt.

        Args:
            each: the parameters of each latent, which differ in prompts alone.
            controls: RGB control pictures of the working size, one a latent, for a ControlNet.
            style: an RGB picture, for an IP-Adapter.

        Returns:
            latents of the same shape.

        Raises:
            UsageError: the model has a ControlNet and there is no control picture.
            OutOfMemoryError: the batch does not fit into memory.
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

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Decode scaled latents to 8-bit RGB pictures, and once more in float32 if 16 bits overflow.

        Raises:
            ModelError: the result is not finite even in float32.
        """
        pixels = self._decode(latents)
        if not torch.isfinite(pixels).all() and self.pipe.vae.dtype != torch.float32 and torch.isfinite(latents).all():
            self._release()
            with explain_memory_errors(self.placement.device):
                vae = copy_alone(self.pipe.vae, self.placement.device, torch.float32)
            pixels = self._decode(latents, vae)
        return to_images(pixels.float().div(2).add(0.5))

    def _decode(self, latents: torch.Tensor, vae: Any = None) -> torch.Tensor:
        self._tile_vae((latents.shape[-1] * self.factor, latents.shape[-2] * self.factor))
        vae = vae or self.pipe.vae
        with explain_memory_errors(self.placement.device):
            decoded: torch.Tensor = vae.decode(
                (latents / vae.config.scaling_factor + self._shift).to(vae.dtype), return_dict=False
            )[0]
        return decoded

    def _edit(self, pieces: Sequence[Piece], progress: Progress | None) -> list[Image.Image]:
        windows = [0 if piece.reconstruct else self._count_windows(piece.parameters) for piece in pieces]
        if len(set(windows)) > 1:  # filled up to one length, a prompt would change with its neighbours
            made: dict[int, Image.Image] = {}
            for count in dict.fromkeys(windows):
                places = [index for index, number in enumerate(windows) if number == count]
                made |= zip(places, self._edit([pieces[index] for index in places], progress), strict=True)
            return [made[index] for index in range(len(pieces))]
        generators = make_generators([piece.seed for piece in pieces])
        latents = self.encode([piece.image for piece in pieces], generators)
        if pieces[0].reconstruct:
            return self.decode(latents)
        controls = [piece.control for piece in pieces if piece.control is not None]
        parameters = [piece.parameters for piece in pieces]
        style = pieces[0].style
        return self.decode(self.denoise(latents, generators, parameters, controls or None, progress, style))

    def make_lanes(self) -> list[LatentsPipeline]:
        """Return the lanes: pipelines that share these weights and can run at the same time.

        On a CPU, two pictures at once on half the threads each take less time than one after the other on all threads:
        small layers do not fill many threads, and no thread waits for others at the end of each layer. Elsewhere there
        is one lane.
        """
        if self.placement.device.type != "cpu" or torch.get_num_threads() < 2:
            return [self]
        return [self._share() for _ in range(CPU_LANES)]

    def _share(self) -> LatentsPipeline:
        """Return a copy with its own scheduler and settings of the VAE, which change while it works.

        A tokenizer changes too, within a call; to copy its vocabulary takes longer than to wait for another's call.
        """
        lane, lane.pipe = copy.copy(self), copy.copy(self.pipe)
        lane.pipe.scheduler = copy.deepcopy(self.pipe.scheduler)
        for tokenizer, _ in find_readers(self.pipe):
            call_in_turn(tokenizer)
        lane.pipe.vae = copy.copy(self.pipe.vae)
        lane.prompts, lane._net = self.prompts.share(lane.pipe), self._net and self._net.share()
        lane.refiner = self.refiner and self.refiner._share()
        return lane
