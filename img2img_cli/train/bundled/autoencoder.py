"""Stage one: the autoencoder, which reduces each side by 4 and has 4 latent channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from torch.nn import functional

from img2img_cli.train.bundled.styles import STYLES
from img2img_cli.train.data import BalancedDraw, Photograph, cut_view
from img2img_cli.train.loop import Batch, Stage

CHANNELS = 64
# No block at full resolution. Measured on 2 cores, 64 channels then train as fast (34 crops of 128 px per second) as
# 48 channels with one block at full resolution (30 crops per second), and have twice the parameters.
ENCODER_BLOCKS = (0, 3, 6)
LATENT_NOISE = 0.05


def build_autoencoder() -> AutoencoderTiny:
    """Build an untrained `AutoencoderTiny` that encodes `(B, 3, H, W)` in -1..1 to latents `(B, 4, H/4, W/4)`."""
    return AutoencoderTiny(
        encoder_block_out_channels=(CHANNELS,) * 3,
        decoder_block_out_channels=(CHANNELS,) * 3,
        num_encoder_blocks=ENCODER_BLOCKS,
        num_decoder_blocks=ENCODER_BLOCKS[::-1],
    ).to(memory_format=torch.channels_last)


def stack_pictures(pictures: list[Image.Image]) -> torch.Tensor:
    """Stack 8-bit RGB pictures of equal size into a float32 tensor `(B, 3, H, W)` in -1..1, channels last in memory."""
    array = np.stack([np.asarray(picture) for picture in pictures])
    pixels = torch.from_numpy(array).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    return pixels.contiguous(memory_format=torch.channels_last)


def draw_crops(
    photographs: Sequence[Photograph], *, size: int, batch_size: int, seed: int, styled: float = 0.0
) -> Iterator[Batch]:
    """Yield batches of views, of which 75 % are detail crops and 25 % whole views.

    Args:
        size: the side of a view in pixels.
        styled: the share of views that get a random style, in 0..1.

    Yields:
        `pixels` as float32 `(batch_size, 3, size, size)` in -1..1.
    """
    rng, draw, styles = np.random.default_rng(seed), BalancedDraw(photographs), list(STYLES.values())
    while True:
        views = [cut_view(draw(rng), size, rng, whole=rng.random() < 0.25) for _ in range(batch_size)]
        for index in np.flatnonzero(rng.random(batch_size) < styled):
            views[index] = styles[rng.integers(len(styles))](views[index], rng)
        yield {"pixels": stack_pictures(views)}


def _gradients(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return image[..., 1:, :] - image[..., :-1, :], image[..., 1:] - image[..., :-1]


def reconstruction_loss(result: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the L1 loss of pixels plus half that of their differences, which keeps edges sharp without a GAN loss.

    Args:
        result, target: `(B, C, H, W)`.
    """
    loss = functional.l1_loss(result, target)
    for a, b in zip(_gradients(result), _gradients(target), strict=True):
        loss = loss + 0.5 * functional.l1_loss(a, b)
    return loss


def make_stage(autoencoder: AutoencoderTiny, device: torch.device) -> Stage:
    """Make the stage that trains the whole autoencoder.

    Besides reconstruction, the loss has two terms for latents that suit diffusion. One drives each channel to zero
    mean and unit variance. The other requires that halved latents decode to the halved picture (the scale equivariance
    of EQ-VAE, Kouzelis et al. 2025), which keeps the latents smooth.
    """

    def compute_loss(batch: Batch, step: int) -> torch.Tensor:
        pixels = batch["pixels"].to(device, non_blocking=True)
        latents = autoencoder.encode(pixels).latents
        noisy = latents + LATENT_NOISE * torch.randn_like(latents)
        loss: torch.Tensor = reconstruction_loss(autoencoder.decode(noisy).sample.float(), pixels)
        flat = latents.float().transpose(0, 1).flatten(1)
        loss = loss + 0.02 * (flat.mean(1).square().mean() + (flat.std(1) - 1).square().mean())
        if step % 4 == 0:
            small = autoencoder.decode(functional.avg_pool2d(latents, 2)).sample.float()
            loss = loss + 0.25 * reconstruction_loss(small, functional.avg_pool2d(pixels, 2))
        return loss

    return Stage(
        name="autoencoder", modules={"vae": autoencoder}, compute_loss=compute_loss, learning_rate=1e-3, ema_decay=0.998
    )


def make_decoder_stage(autoencoder: AutoencoderTiny, device: torch.device) -> Stage:
    """Make the stage that trains only the decoder.

    The encoder stays frozen, so networks trained on its latents remain valid. In this stage the decoder learns the
    hard lines of drawn styles, and noise on the latents teaches it to tolerate the small errors of a diffusion model.
    """
    autoencoder.encoder.requires_grad_(False)

    def compute_loss(batch: Batch, step: int) -> torch.Tensor:
        pixels = batch["pixels"].to(device, non_blocking=True)
        with torch.no_grad():
            latents = autoencoder.encode(pixels).latents
            latents = latents + 0.12 * torch.rand(len(latents), 1, 1, 1, device=device) * torch.randn_like(latents)
        return reconstruction_loss(autoencoder.decode(latents).sample.float(), pixels)

    return Stage(
        name="decoder",
        modules={"decoder": autoencoder.decoder},
        compute_loss=compute_loss,
        learning_rate=5e-4,
        ema_decay=0.998,
    )


@torch.inference_mode()
def measure_latents(autoencoder: AutoencoderTiny, batches: Iterator[Batch], count: int = 16) -> tuple[float, float]:
    """Return the standard deviation of the latents and the PSNR of the reconstruction in dB, over `count` batches."""
    latents, errors = [], []
    for _ in range(count):
        pixels = next(batches)["pixels"].to(autoencoder.device)
        encoded = autoencoder.encode(pixels).latents
        latents.append(encoded.float().cpu())
        errors.append((autoencoder.decode(encoded).sample.clamp(-1, 1) - pixels).square().mean().item() / 4)
    return float(torch.cat(latents).std()), float(-10 * np.log10(np.mean(errors)))
