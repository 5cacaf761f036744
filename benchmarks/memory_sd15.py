"""Measure the peak memory of commands on a full-size Stable Diffusion 1.5 with random weights, at 512 pixels.

python benchmarks/make_random_sd15.py FOLDER/folder
python benchmarks/memory_sd15.py FOLDER
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel
from PIL import Image

LAUNCH = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)
sys.exit(done.returncode)
"""


def make_controlnet(folder: Path) -> None:
    """Write a ControlNet for Stable Diffusion 1.5 with random weights, in bfloat16, unless it exists."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        ControlNetModel(cross_attention_dim=768).to(torch.bfloat16).save_pretrained(folder)


def measure(command: list[str]) -> int:
    """Run a command and return its peak memory in MiB."""
    launch = [sys.executable, "-c", LAUNCH, sys.executable, "-m", "img2img_cli", *command]
    done = subprocess.run(launch, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stdout.split()[-1])


def main() -> None:
    """Measure each command and print a row for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where make_random_sd15.py wrote the model")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--offload", default="auto")
    arguments = parser.parse_args()
    model, controlnet = arguments.folder / "folder", arguments.folder / "controlnet"
    make_controlnet(controlnet)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        rng = np.random.default_rng(0)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        for name, side in (("in", arguments.side), ("half", arguments.side // 2)):
            coarse.resize((side, side), Image.Resampling.BICUBIC).save(work / f"{name}.png")
        mask = Image.new("L", (arguments.side,) * 2)
        mask.paste(255, (100, 100, 300, 300))
        mask.save(work / "mask.png")
        few = ["--set", "num_inference_steps=2", "--set", "strength=1.0", "--set", f"image_size={arguments.side}"]
        few += ["--model", str(model), "--offload", arguments.offload, "--seed", "1", "--force"]
        control = ["--controlnet", str(controlnet)]
        edit = ["edit", str(work / "in.png"), str(work / "out.png"), "-p", "fog"]
        commands = {
            "edit": edit,
            "edit --mask": [*edit, "--mask", str(work / "mask.png")],
            "edit --control canny": [*edit, "--control", "canny", *control],
            "colorize": ["colorize", str(work / "in.png"), str(work / "out.png"), *control],
            "upscale": ["upscale", str(work / "half.png"), str(work / "out.png"), *control],
        }
        for name, command in commands.items():
            print(f"{name:22} {measure([*command, *few]) / 1024:5.1f} GiB", flush=True)


if __name__ == "__main__":
    main()
