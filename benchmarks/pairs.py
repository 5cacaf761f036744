"""Train on pairs and measure what comes out: a look, a restoration, a style, or something that must be invented.

    python benchmarks/pairs.py look --data FOLDER --minutes 20
    python benchmarks/pairs.py jpeg --data FOLDER --minutes 60
    python benchmarks/pairs.py edges --data FOLDER --minutes 60 [-- --adversarial 0]
    python benchmarks/pairs.py style --data FOLDER --minutes 60 -- --base bundled
    python benchmarks/pairs.py kills --data FOLDER --kills 50

FOLDER holds shards of photographs, as `img2img train bundled` reads them. The pairs are made from them with fixed
seeds, and `img2img train pairs` trains on them as a user would. `kills` ends a short run at random moments by
SIGKILL, SIGTERM or SIGINT, resumes it each time, and compares the weights with those of an undisturbed run. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from safetensors.torch import load_file

from img2img_cli.train.bundled.degrade import compress
from img2img_cli.train.data import Photograph, list_shards, read_shard
from img2img_cli.train.metrics import measure_detail, measure_psnr

TRAINING, TESTS = 60, 20
Make = Callable[[Image.Image, np.random.Generator], tuple[Image.Image, Image.Image]]


def make_look(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Return a grainy picture, and it without grain under a curve for each channel, split toning and a vignette."""
    pixels = np.asarray(image, np.float32) / 255
    grain = rng.normal(0, 0.02, (*pixels.shape[:2], 1)).astype(np.float32)
    before = (pixels + grain).clip(0, 1)
    curve = np.stack([pixels[..., c] ** power for c, power in enumerate((0.85, 0.95, 1.15))], -1)
    curve = curve + 0.08 * np.sin(2 * np.pi * (curve - 0.5))
    light = pixels.mean(2, keepdims=True)
    toned = curve + 0.06 * (1 - light) * np.float32([-0.5, 0, 1]) + 0.06 * light * np.float32([1, 0.4, -0.6])
    rows, columns = (np.linspace(-1, 1, side, dtype=np.float32) for side in pixels.shape[:2])
    fall = 1 - 0.35 * ((rows[:, None] ** 2 + columns[None, :] ** 2) / 2) ** 1.5
    after = (toned * fall[..., None]).clip(0, 1)
    return _to_image(before), _to_image(after)


def make_jpeg(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Return a picture as JPEG of quality 10 to 40, and as it is."""
    return compress(image, int(rng.integers(10, 41))), image


def make_edges(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Return the edges of a picture, dark on white, and the picture."""
    del rng
    grey = image.convert("L").filter(ImageFilter.GaussianBlur(1.2))
    dy, dx = np.gradient(np.asarray(grey, np.float32))
    lines = 255 - (np.hypot(dx, dy) * 14).clip(0, 255)
    return Image.fromarray(lines.astype(np.uint8)).convert("RGB"), image


def make_style(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Return a picture, and a blueprint of it: four washes of blue on paper, with pale lines along the edges."""
    del rng
    soft = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(1.5)), np.float32) / 255
    washes = np.float32([[14, 34, 84], [32, 68, 138], [84, 128, 186], [176, 204, 226]]) / 255
    place = (soft * 3.999).clip(0, 3.999)
    lower = place.astype(int)
    share = ((place - lower - 0.4) / 0.2).clip(0, 1)[..., None]
    tones = washes[lower] + share * (washes[np.minimum(lower + 1, 3)] - washes[lower])
    dy, dx = np.gradient(soft)
    lines = ((np.hypot(dx, dy) - 0.02) * 12).clip(0, 1)[..., None]
    return image, _to_image(tones + lines * (np.float32([0.94, 0.96, 0.98]) - tones))


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


JOBS: dict[str, tuple[Make, Callable[[Photograph], bool], int]] = {
    "look": (make_look, lambda photo: photo.source.startswith("hires_"), TRAINING),
    "jpeg": (make_jpeg, lambda photo: True, 2000),
    "style": (make_style, lambda photo: True, 300),
    "edges": (make_edges, lambda photo: "flower" in photo.source, 1200),
}


def write_pairs(folder: Path, split: str, photographs: Sequence[Photograph], make: Make, seed: int) -> None:
    """Write pairs as `trainA/ trainB/` or `testA/ testB/`."""
    rng = np.random.default_rng(seed)
    for side in "AB":
        (folder / f"{split}{side}").mkdir(parents=True, exist_ok=True)
    for index, photograph in enumerate(photographs):
        image = Image.fromarray(photograph.pixels)
        image = image.resize((round(image.width / 1.5), round(image.height / 1.5)), Image.Resampling.LANCZOS)
        for side, picture in zip("AB", make(image, rng), strict=True):
            picture.save(folder / f"{split}{side}" / f"{index:05}.png")


def run(*arguments: object) -> None:
    """Run `img2img` and end if it fails."""
    subprocess.run([sys.executable, "-m", "img2img_cli", *map(str, arguments)], check=True)


def kill_and_resume(root: Path, kills: int) -> dict[str, int]:
    """Train with and without interruptions and return how many there were and how many weights differ."""
    common = [sys.executable, "-m", "img2img_cli", "train", "pairs", root / "pairs", "--crop", 64, "--batch-size", 2]
    common += ["--steps", 40 * kills]
    rng = random.Random(0)
    whole, parts = root / "whole", root / "parts"
    subprocess.run([*map(str, common), "-o", str(whole)], check=True, stderr=subprocess.DEVNULL)
    done = 0
    while True:
        resume = ["--resume"] if any((parts / "checkpoints").glob("step-*")) else []
        process = subprocess.Popen([*map(str, common), "-o", str(parts), *resume], stderr=subprocess.DEVNULL)
        try:
            if done < kills:
                process.wait(rng.uniform(1, 12))
            elif process.wait():
                raise SystemExit(f"the last run ended with {process.returncode}")
            break
        except subprocess.TimeoutExpired:
            process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
            process.wait()
            done += 1
    ends = [load_file(folder / "model.safetensors") for folder in (whole, parts)]
    return {"kills": done, "different": sum(not torch.equal(ends[0][key], ends[1][key]) for key in ends[0])}


def main() -> None:
    """Make the pairs, train, transform the test pictures with the preset that came out, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=[*JOBS, "kills"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/pairs"))
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--kills", type=int, default=50)
    parser.epilog = "Options after -- go to `train pairs`."
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, rest = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    make, wanted, most = JOBS["look" if options.job == "kills" else options.job]
    shards, held_out = list_shards(options.data)
    photographs = [photo for shard in shards for photo in read_shard(shard) if wanted(photo)]
    chosen = photographs[:: max(1, len(photographs) // (most + TESTS))][: most + TESTS]
    tests = chosen[most:]
    if options.job == "jpeg" and held_out is not None:
        tests = read_shard(held_out)[:TESTS]
    root = options.out / options.job
    write_pairs(root / "pairs", "train", chosen[:most], make, 1)
    write_pairs(root / "pairs", "test", tests, make, 2)
    if options.job == "kills":
        print(json.dumps({"job": "kills", **kill_and_resume(root, options.kills)}))
        return
    began = time.monotonic()
    run("train", "pairs", root / "pairs", "-o", root / "run", "--minutes", options.minutes, *rest)
    seconds = time.monotonic() - began
    run("batch", root / "pairs" / "testA", "-o", root / "made", "--preset", root / "run", "--force")
    figures: dict[str, float] = {"minutes": round(seconds / 60, 1)}
    rows = []
    for path in sorted((root / "pairs" / "testA").iterdir()):
        before, after, made = (
            Image.open(place / path.name).convert("RGB")
            for place in (path.parent, root / "pairs" / "testB", root / "made")
        )
        rows.append(
            {
                "psnr": measure_psnr(made, after),
                "input_psnr": measure_psnr(before, after),
                "detail": measure_detail(made) / measure_detail(after),
            }
        )
    figures |= {key: round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0]}
    print(json.dumps({"job": options.job, **figures}))


if __name__ == "__main__":
    main()
