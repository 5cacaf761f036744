"""The short script that a user would write with diffusers alone, for comparison by `parity_with_script.py`."""

from __future__ import annotations

import argparse

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionImg2ImgPipeline
from PIL import Image


def main() -> None:
    """Parse the command line, load, run and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("folder", "picture", "output", "prompt"):
        parser.add_argument(name)
    for name in ("strength", "guidance-scale"):
        parser.add_argument(f"--{name}", type=float, required=True)
    for name in ("seed", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--contiguous", action="store_true", help="leave the UNet in PyTorch's default memory format")
    arguments = parser.parse_args()

    dtype = getattr(torch, arguments.dtype)
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(arguments.folder, dtype=dtype)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    # The memory format affects the result, because it changes the order of rounding in bfloat16.
    if not arguments.contiguous:
        pipe.unet.to(memory_format=torch.channels_last)
    result = pipe(
        prompt=arguments.prompt,
        image=Image.open(arguments.picture),
        strength=arguments.strength,
        num_inference_steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(arguments.seed),
    )
    result.images[0].save(arguments.output)


if __name__ == "__main__":
    main()
