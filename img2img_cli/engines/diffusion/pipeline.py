"""What all engines around a diffusers pipeline share: its arguments, prompts, VAE, an upscaling net, and memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

from img2img_cli.engines.base import BasePipeline
from img2img_cli.engines.device import Placement
from img2img_cli.engines.diffusion.compiling import Plan
from img2img_cli.engines.diffusion.feature_cache import cache_features
from img2img_cli.engines.diffusion.guidance import GUIDED_TENSORS, find_limits, make_callback
from img2img_cli.engines.diffusion.offload import apply_offload
from img2img_cli.engines.diffusion.prompts import Prompts
from img2img_cli.engines.feed_forward import UpscalingNet, enlarge_pieces
from img2img_cli.engines.traits import find_multiple, find_traits, list_arguments
from img2img_cli.presets.schema import Offload, Parameters
from img2img_cli.presets.words import keep_known_words, tell_unknown_words
from img2img_cli.tasks.pieces import Piece, Progress

VAE_TILING_PIXELS = 1280 * 1280  # a VAE's activations take more than the model's from about here on

for _library in (diffusers, transformers):  # `explain_model_errors` says in one line what they would print
    _library.utils.logging.set_verbosity(logging.CRITICAL)
    _library.utils.logging.disable_progress_bar()


class DiffusionPipeline(BasePipeline):
    """A diffusers img2img pipeline, with or without an upscaling net that enlarges first.

    Attributes:
        pipe: the diffusers pipeline.
        traits: those of its family.
        factor: pixels a latent, usually 8.
        prompts: encodes what the pipeline's own encoder would cut off or take literally.
        plan: how many calls of the model will follow, for `--compile auto`.
        keeps_to_known_words: whether words that a model was not taught are left out, if there is a list of them.
    """

    keeps_to_known_words: bool = True

    def __init__(
        self, pipe: Any, placement: Placement, offload: Offload = "none", net: UpscalingNet | None = None
    ) -> None:
        super().__init__(placement, offload)
        self.pipe, self.traits, self.prompts, self.plan = pipe, find_traits(pipe), Prompts(pipe), Plan()
        self._net = net
        factor = net.scale if net else self.traits.enlargement
        self.enlargements = () if factor is None else (factor,)
        self.refines = self.traits.enlargement is None
        self.factor: int = getattr(pipe, "vae_scale_factor", 1)
        self.multiple = find_multiple(pipe)
        self._accepted = list_arguments(pipe)
        self.takes_mask = "mask_image" in self._accepted
        self.has_controlnet = getattr(pipe, "controlnet", None) is not None
        self._tiling_pixels = VAE_TILING_PIXELS

    @torch.inference_mode()
    def _run(self, pieces: Sequence[Piece], progress: Progress | None) -> list[Image.Image]:
        if not pieces[0].enlarge:
            return self._edit(pieces, progress)
        if self._net is not None:
            return enlarge_pieces(self._net, pieces)
        return self._enlarge(pieces, progress)

    def _edit(self, pieces: Sequence[Piece], progress: Progress | None) -> list[Image.Image]:
        raise NotImplementedError

    def _enlarge(self, pieces: Sequence[Piece], progress: Progress | None) -> list[Image.Image]:
        raise NotImplementedError

    def _call(self, parameters: Parameters, **arguments: Any) -> Any:
        """Call the pipeline and return its images; its UNet keeps features if the preset asks for it."""
        with cache_features(self.pipe, parameters.cache_interval):
            return self.pipe(**arguments).images

    def _make_arguments(
        self, each: Sequence[Parameters], generators: list[torch.Generator], progress: Progress | None
    ) -> dict[str, Any]:
        """Return the arguments that the pipeline's class takes, for parameters that differ in prompts alone."""
        p = each[0]
        read = [self._read_texts(q) for q in each]
        prompts, negatives = [text for text, _ in read], [text for _, text in read if text is not None] or None
        if self.tells_cuts:
            self.prompts.note_cuts([*prompts, *(negatives or ())])
            self.prompts.note_unused(read)
            self.prompts.note(self._find_limits(p))
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
        """Return the prompt and, if guidance is on, the negative one; in lower case, as CLIP reads, with embeddings."""
        guided = (p.true_cfg_scale if "true_cfg_scale" in self._accepted else p.guidance_scale) > 1
        prompt = keep_known_words(p.prompt, p) if self.keeps_to_known_words else p.prompt
        texts = p.fill_template(prompt), p.negative_prompt if guided else None
        return (texts[0].lower(), texts[1] and texts[1].lower()) if p.embedding else texts

    def _count_windows(self, p: Parameters) -> int:
        return self.prompts.count_windows(*self._read_texts(p))

    def _find_limits(self, p: Parameters) -> list[str]:
        unknown = tell_unknown_words(p.prompt, p)
        return [*find_limits(self.pipe, p), *([f"prompt: {unknown}"] if unknown else [])]

    def find_cuts(self, each: Sequence[Parameters]) -> list[str]:
        """Return messages about prompts that are not read in full, about the weights, and what the model cannot do."""
        pairs = [self._read_texts(p) for p in each]
        texts = dict.fromkeys(text for pair in pairs for text in pair if text is not None)
        unused = self.prompts.find_unused(pairs).values()
        limits = dict.fromkeys(text for p in each for text in self._find_limits(p))
        return [*self.load_notes, *self.prompts.find_cuts(list(texts)), *unused, *limits]

    @property
    def notes(self) -> list[str]:
        """Messages for the user. The code that shows them removes them from the list."""
        return self.prompts.notes

    def expect(self, calls: int) -> None:
        """Announce how many calls of the model will follow."""
        self.plan.calls += calls

    def serve(self) -> None:
        """Prepare for several clients: expect calls without end, and leave notes about prompts to `find_cuts`."""
        super().serve()
        self.plan.is_open = True

    def save_memory(self) -> str | None:
        """Enable the next measure that saves memory and return its name; return None if there are no more."""
        self._release()
        if self._tiling_pixels and self._can_tile_vae:
            self._tiling_pixels = 0
            return "the VAE in tiles"
        if self.placement.device.type == "cuda" and self.offload in ("none", "model"):
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
        """Have the VAE take large pictures in overlapping tiles, and others whole: tiles differ a little in tone."""
        if self._can_tile_vae:
            vae = self.pipe.vae
            (vae.enable_tiling if size[0] * size[1] > self._tiling_pixels else vae.disable_tiling)()
