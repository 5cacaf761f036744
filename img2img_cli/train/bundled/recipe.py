"""Train the bundled model from a folder of tar shards and write a diffusers folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import diffusers
import torch
import transformers
from torch.utils.data import DataLoader, IterableDataset
from transformers import CLIPTokenizer

from img2img_cli.train.bundled import autoencoder as ae
from img2img_cli.train.bundled import diffusion
from img2img_cli.train.bundled.captions import HUES, TASKS, clean_caption
from img2img_cli.train.bundled.samples import make_drawer
from img2img_cli.train.bundled.styles import STYLES
from img2img_cli.train.bundled.tokenizer import train_tokenizer
from img2img_cli.train.data import Photograph, list_shards, read_shard
from img2img_cli.train.loop import Batch, run_stage

AUTOENCODER_SHARE, DECODER_SHARE = 0.2, 0.12
STYLED_SHARE = 0.5
CROP, BATCH_SIZE = 128, 16


class _Stream(IterableDataset[Batch]):
    """An endless data set that calls `make` with a different seed in each worker of a loader."""

    def __init__(self, make: Callable[[int], Iterator[Batch]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Batch]:
        return self._make(torch.initial_seed() % 2**31)


def _load(make: Callable[[int], Iterator[Batch]]) -> Iterator[Batch]:
    workers = max(1, (os.cpu_count() or 1) - 2)
    return iter(DataLoader(_Stream(make), batch_size=None, num_workers=workers, prefetch_factor=4))


def train_bundled(
    *,
    data: Path,
    out: Path,
    minutes: float,
    most_steps: int | None = None,
    device: torch.device,
    start: Path | None,
    resume: bool,
    seed: int,
    say: Callable[[str], None],
) -> Path:
    """Train tokenizer, autoencoder and diffusion networks within `minutes`.

    Args:
        data: the folder of tar shards.
        out: the folder for checkpoints, logs and the result.
        start: a diffusers folder to continue from; None to start from scratch. Its tokenizer and encoder are kept,
            because its other networks depend on them.
        most_steps: the number of steps after which each stage stops earlier; None for no such limit.
        resume: continue each stage from its checkpoint in `out`. The budget includes the minutes of earlier runs.
        say: takes progress messages.

    Returns:
        the diffusers folder, `out / "bundled"`.

    Raises:
        UsageError: `data` holds no shard.
    """
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    shards, held_out = list_shards(data)
    photographs = [photograph for shard in shards for photograph in read_shard(shard)]
    say(f"{len(photographs)} photographs from {len(shards)} shards on {device}")
    strangers = read_shard(held_out) if held_out is not None else []
    run = partial(run_stage, most_steps=most_steps, folder=out, device=device, resume=resume, seed=seed)

    def load_crops(styled: float) -> Iterator[Batch]:
        return _load(
            lambda worker_seed: ae.draw_crops(
                photographs, size=CROP, batch_size=BATCH_SIZE, seed=worker_seed, styled=styled
            )
        )

    share = 0.0
    if start is not None:
        networks = diffusion.load_networks(start)
    else:
        share = AUTOENCODER_SHARE
        vae = ae.build_autoencoder().to(device)
        run(ae.make_stage(vae, device), lambda: load_crops(0.0), minutes=minutes * share)
        deviation, _ = ae.measure_latents(vae, load_crops(0.0))
        vae.register_to_config(scaling_factor=round(1 / deviation, 5))
        networks = diffusion.build_networks(vae, _train_tokenizer(photographs, out, resume))
    networks.vae.to(device)
    run(ae.make_decoder_stage(networks.vae, device), lambda: load_crops(STYLED_SHARE), minutes=minutes * DECODER_SHARE)
    if strangers:
        crops = ae.draw_crops(strangers, size=CROP, batch_size=BATCH_SIZE, seed=1)
        enough = min(16, -(-4 * len(strangers) // BATCH_SIZE))  # batches; a few photographs have few different crops
        _, ratio = ae.measure_latents(networks.vae, crops, enough)
        say(f"autoencoder: {ratio:.2f} dB on photographs it was not trained on")
    for module in (networks.text_encoder, networks.unet, networks.controlnet):
        module.to(device)
    draw_samples = make_drawer(networks, strangers[:: max(1, len(strangers) // 2)], device)
    run(
        diffusion.make_stage(networks, device, draw_samples),
        lambda: _load(lambda worker_seed: diffusion.draw_examples(photographs, networks.tokenizer, worker_seed)),
        minutes=minutes * (1 - share - DECODER_SHARE),
    )
    folder = out / "bundled"
    diffusion.save_networks(networks, folder)
    say(f"wrote {folder}")
    return folder


def _train_tokenizer(photographs: Sequence[Photograph], out: Path, resume: bool) -> CLIPTokenizer:
    folder = out / "tokenizer"
    if resume and (folder / "tokenizer.json").exists():
        return CLIPTokenizer.from_pretrained(folder)
    vocabulary = [", ".join(words) for words in (TASKS, (*HUES, "black and white", "grey", "brown"), STYLES)]
    return train_tokenizer([clean_caption(p.caption) for p in photographs] + vocabulary * 20, folder)
