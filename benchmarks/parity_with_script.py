"""Compare `img2img edit` with a plain diffusers script: the same settings must give the same picture.

Both run in separate processes, so the times include start-up and loading. As a control, the script also runs with a
second seed. That picture must differ clearly, or the comparison would prove nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

PLAIN_SCRIPT = Path(__file__).with_name("plain_diffusers.py")
THRESHOLD_DB = 40.0
SEED, PROMPT = 7, "a photo"
SETTINGS = ("--steps", "4", "--strength", "0.5", "--guidance-scale", "7.5")
SCHEDULER = "DPMSolverMultistepScheduler"  # as in plain_diffusers.py


def run_command(model: Path, picture: Path, output: Path, dtype: str) -> float:
    """Run `img2img edit` on the CPU and return the seconds it took."""
    start = (sys.executable, "-m", "img2img_cli", "edit", str(picture), str(output), "--model", str(model))
    fixed = ("--dtype", dtype, "--device", "cpu", "--set", f"scheduler={SCHEDULER}", "--quiet")
    return _time([*start, "--prompt", PROMPT, "--seed", str(SEED), *SETTINGS, *fixed])


def run_script(folder: Path, picture: Path, output: Path, dtype: str, seed: int = SEED) -> float:
    """Run the plain script with the same settings and return the seconds it took."""
    start = (sys.executable, str(PLAIN_SCRIPT), str(folder), str(picture), str(output), PROMPT)
    return _time([*start, "--dtype", dtype, "--seed", str(seed), *SETTINGS])


def _time(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - began


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """Read a picture as a uint8 RGB array `(H, W, 3)`."""
    return np.asarray(Image.open(path).convert("RGB"))


def compare(result: Path, reference: Path) -> float:
    """Return the PSNR of two pictures in dB, infinite if all pixels are equal."""
    ours, theirs = read_pixels(result), read_pixels(reference)
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(theirs, ours))


def check_parity(folder: Path, single_file: Path | None, work: Path, dtype: str) -> bool:
    """Run everything and print the figures.

    Args:
        work: the folder for the pictures.

    Returns:
        whether each command matches the script with at least 40 dB and the control stays below 20 dB.
    """
    picture, reference, control = (work / f"{name}.png" for name in ("picture", "script", "control"))
    Image.fromarray(data.astronaut()).save(picture)
    script_seconds = run_script(folder, picture, reference, dtype)
    run_script(folder, picture, control, dtype, seed=SEED + 1)
    distance = compare(control, reference)
    print(f"script: {script_seconds:.1f} s, pixel deviation {read_pixels(reference).std():.1f} of 255")
    print(f"control, script with another seed: {distance:.2f} dB")
    good = distance < THRESHOLD_DB / 2
    for kind, model in (("folder", folder), ("single file", single_file)):
        if model is not None:
            result = work / f"{kind}.png"
            seconds = run_command(model, picture, result, dtype)
            psnr = compare(result, reference)
            print(f"command, {kind}: {psnr:.2f} dB, time {seconds / script_seconds:.2f} of the script's")
            good = good and psnr >= THRESHOLD_DB
    return good


def main() -> None:
    """Parse the command line and check parity. Exit with 1 if it does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="Stable Diffusion 1.x as a diffusers folder")
    parser.add_argument("--single-file", type=Path, metavar="FILE", help="the same weights as one .safetensors file")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        good = check_parity(arguments.folder, arguments.single_file, Path(work), arguments.dtype)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
