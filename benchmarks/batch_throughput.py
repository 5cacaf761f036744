"""Compare the throughput of `batch` with a loop over the same loaded pipeline, and record the peak memory of `batch`.

The pictures have mixed sizes.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from img2img_cli.batch.journal import hold_folder
from img2img_cli.batch.run import run_entries
from img2img_cli.batch.session import Limits, Session, Tally
from img2img_cli.engines.device import choose_placement
from img2img_cli.engines.diffusion.latents import LatentsPipeline
from img2img_cli.engines.open import open_pipeline
from img2img_cli.pictures.read import load_image
from img2img_cli.presets.strict_yaml import parse_scalar
from img2img_cli.tasks.inputs import find_items
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.plan import BatchChoices, plan_batch
from img2img_cli.tasks.run import run_jobs

# Typical sizes of photographs, from a thumbnail to 12 megapixels.
SIZES = ((320, 240), (640, 480), (768, 1024), (1600, 1200), (1200, 1600), (2048, 1536), (3000, 2000), (4000, 3000))


def make_pictures(folder: Path, count: int, longest: int) -> None:
    """Write smooth random pictures of mixed sizes as JPEG, PNG and WebP, with sides of at most `longest` pixels."""
    folder.mkdir()
    for index in range(count):
        rng = np.random.default_rng(index)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        width, height = SIZES[index % len(SIZES)]
        factor = min(1.0, longest / max(width, height))
        picture = coarse.resize((round(width * factor), round(height * factor)), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:05}{('.jpg', '.png', '.webp')[index % 3]}")


def run_loop(jobs: list[Job], pipeline: LatentsPipeline) -> float:
    """Run the jobs one after the other and return the seconds they took."""
    began = time.monotonic()
    for job in jobs:
        for _ in run_jobs([job], pipeline):
            pass
    return time.monotonic() - began


def run_batch(jobs: list[Job], folder: Path, pipeline: LatentsPipeline) -> tuple[float, list[int]]:
    """Run the jobs as a batch; return the seconds it took and the peak memory in MiB after each result."""
    memory: list[int] = []

    def note(event: dict[str, Any]) -> None:
        if event["event"] == "failed":
            raise SystemExit(event["reason"])
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)

    began = time.monotonic()
    with hold_folder(folder) as journal:
        session = Session(
            journal=journal, limits=Limits(), emit=note, tally=Tally(inputs=len(jobs)), load=lambda job: pipeline
        )
        run_entries(session, session.sort_out(jobs))
    return time.monotonic() - began, memory


def main() -> None:
    """Run both in one process, the loop before and after the batch, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="colorize")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--no-loop", action="store_true", help="only the batch, to look at its memory")
    parser.add_argument("--longest", type=int, default=4000, help="scale larger pictures down to this side")
    arguments = parser.parse_args()
    overrides = {key: parse_scalar(value) for key, value in (text.split("=", 1) for text in arguments.set)}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_pictures(root / "in", arguments.count, arguments.longest)
        plans = {}
        for run in ("warm", "before", "batch", "after"):
            choices = BatchChoices(folder=root / run, preset=arguments.preset, overrides=overrides)
            plans[run] = plan_batch(find_items([str(root / "in")]), choices)
            (root / run).mkdir()
        pipeline = open_pipeline(plans["warm"][0].parameters, choose_placement("auto", "auto"))
        load_image(plans["warm"][0].input)
        run_loop(plans["warm"][: len(SIZES)], pipeline)
        before = 0.0 if arguments.no_loop else run_loop(plans["before"], pipeline)
        seconds, memory = run_batch(plans["batch"], root / "batch", pipeline)
        print(f"batch: {arguments.count / seconds:.2f} pictures a second")
        if not arguments.no_loop:
            after = run_loop(plans["after"], pipeline)
            print(f"loop before and after: {arguments.count / before:.2f} and {arguments.count / after:.2f}")
            print(f"batch beside loop: {(before + after) / 2 / seconds:.2f} times the throughput")
        tenth = max(1, len(memory) // 10)
        print(f"peak memory after a tenth {memory[tenth - 1]} MiB, at the end {memory[-1]} MiB")


if __name__ == "__main__":
    main()
