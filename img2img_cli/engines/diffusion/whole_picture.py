"""The engine for pipelines that encode and decode the picture themselves, and for models made for upscaling."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from img2img_cli.engines.base import to_images
from img2img_cli.engines.device import explain_memory_errors, make_generators
from img2img_cli.engines.diffusion.pipeline import DiffusionPipeline
from img2img_cli.engines.diffusion.qwen import show_whole
from img2img_cli.errors import UsageError
from img2img_cli.tasks.pieces import Piece, Progress


class WholePicturePipeline(DiffusionPipeline):
    """A diffusers pipeline that takes pictures: InstructPix2Pix, inpainting, FLUX, Qwen, the x4 upscaler and others."""

    def _edit(self, pieces: Sequence[Piece], progress: Progress | None) -> list[Image.Image]:
        """Edit pictures one by one: some pipelines read a list as several references for one result."""
        if pieces[0].reconstruct:
            raise UsageError(f"keep_detail needs a Stable Diffusion model, not a {type(self.pipe).__name__}")
        return [self._edit_one(piece, progress) for piece in pieces]

    def _edit_one(self, piece: Piece, progress: Progress | None) -> Image.Image:
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
            made = to_images(self._call(piece.parameters, **arguments))[0]
        return made if made.size == piece.image.size else made.resize(piece.image.size, Image.Resampling.LANCZOS)

    def _enlarge(self, pieces: Sequence[Piece], progress: Progress | None) -> list[Image.Image]:
        """Enlarge pictures of one size with a model made for it."""
        self._tile_vae((pieces[0].image.width * self.factor, pieces[0].image.height * self.factor))
        generators = make_generators([piece.seed for piece in pieces])
        arguments = self._make_arguments([piece.parameters for piece in pieces], generators, progress)
        arguments |= {"image": [piece.image for piece in pieces], "output_type": "pt"}
        return to_images(self._call(pieces[0].parameters, **arguments))
