"""Measure the bundled model on photographs it has never seen; prints a Markdown table for its card."""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from img2img_cli.device import choose_placement, make_generators
from img2img_cli.lab import rgb_to_lab
from img2img_cli.pipeline import ImagePipeline, build_pipeline
from img2img_cli.preset import load_preset, resolve
from img2img_cli.runner import colorize_image
from img2img_cli.training.data import read_shard
from img2img_cli.upscaler import upscale_image

SIDE = 256


def crop_square(pixels: np.ndarray) -> Image.Image:
    """The middle square at 256 pixels, so that x2 and x4 divide it."""
    image = Image.fromarray(pixels)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def psnr(result: Image.Image, truth: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB."""
    error = np.mean((np.asarray(result, float) - np.asarray(truth, float)) ** 2)
    return float(10 * np.log10(255**2 / error))


def detail(image: Image.Image) -> float:
    """Mean absolute difference between neighbouring grey values."""
    grey = np.asarray(image.convert("L"), float)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


def chroma(image: Image.Image) -> np.ndarray:
    """a* and b*, `(H, W, 2)`."""
    return rgb_to_lab(np.asarray(image))[..., 1:]


def measure(truth: Image.Image, pipelines: dict[str, ImagePipeline]) -> Iterator[tuple[str, float]]:
    """Named figures of one photograph."""
    (decoded,) = pipelines["upscale"].decode(pipelines["upscale"].encode([truth], make_generators([0])))
    yield "autoencoder PSNR, dB", psnr(decoded, truth)
    began = time.monotonic()
    parameters = resolve(load_preset("colorize"), {}).parameters
    coloured = colorize_image(truth.convert("L").convert("RGB"), parameters, 0, pipelines["colorize"], None)
    yield "colorize, s", time.monotonic() - began
    wanted, found = chroma(truth), chroma(coloured)
    yield "colorize: chroma error", float(np.hypot(*np.moveaxis(found - wanted, -1, 0)).mean())
    yield "grey: chroma error", float(np.hypot(*np.moveaxis(wanted, -1, 0)).mean())
    yield "colorize: mean chroma", float(np.hypot(*np.moveaxis(found, -1, 0)).mean())
    for scale in (2, 4):
        small = truth.resize((SIDE // scale, SIDE // scale), Image.Resampling.BICUBIC)
        bicubic = small.resize(truth.size, Image.Resampling.BICUBIC)
        parameters = resolve(load_preset("upscale"), {"scale": float(scale)}).parameters
        began = time.monotonic()
        large = upscale_image(small, parameters, 0, pipelines["upscale"], None)
        yield f"upscale x{scale}, s", time.monotonic() - began
        yield f"upscale x{scale}: PSNR, dB", psnr(large, truth)
        yield f"bicubic x{scale}: PSNR, dB", psnr(bicubic, truth)
        yield f"upscale x{scale}: detail beside bicubic's", detail(large) / detail(bicubic)


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shard", type=Path, help="tar of photographs that were not trained on")
    parser.add_argument("--count", type=int, default=24, help="how many of them, spread evenly")
    arguments = parser.parse_args()
    sets = {"scikit-image": [crop_square(pixels) for pixels in (data.astronaut(), data.coffee(), data.chelsea())]}
    if arguments.shard:
        photographs = read_shard(arguments.shard)
        step = max(1, len(photographs) // arguments.count)
        sets["held out"] = [crop_square(p.pixels) for p in photographs[::step][: arguments.count]]
    placement = choose_placement("cpu", "auto")
    pipelines = {
        name: build_pipeline(resolve(load_preset(name), {}).parameters, placement) for name in ("colorize", "upscale")
    }
    columns: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, images in sets.items():
        for image in images:
            for key, value in measure(image, pipelines):
                columns[key][name].append(value)
    print("| mean of | " + " | ".join(f"{name} ({len(images)})" for name, images in sets.items()) + " |")
    print("| --- |" + " --- |" * len(sets))
    for key, row in columns.items():
        print(f"| {key} | " + " | ".join(f"{np.mean(row[name]):.2f}" for name in sets) + " |")


if __name__ == "__main__":
    main()
