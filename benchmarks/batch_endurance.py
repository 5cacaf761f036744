"""Kill `img2img batch` repeatedly over many mixed files, some broken, and check that the final results are exact."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

QUICK = ["--set", "num_inference_steps=1", "--set", "num_samples=1", "--set", "image_size=64"]
EXTENSIONS = (".jpg", ".png", ".webp", ".tif", ".bmp")


def make_files(folder: Path, count: int) -> set[str]:
    """Write pictures of mixed sizes, formats and orientations, one in twenty of them broken.

    Returns:
        the names of the intact pictures, relative to the folder.
    """
    good = set()
    for index in range(count):
        rng = np.random.default_rng(index)
        path = folder / f"{index % 7}" / f"{index:05}{EXTENSIONS[index % len(EXTENSIONS)]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = int(rng.integers(16, 160)), int(rng.integers(16, 160))
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = int(rng.integers(1, 9))
        coarse.save(path, **({} if path.suffix == ".bmp" else {"exif": exif}))
        if index % 20 == 7:
            data = path.read_bytes()
            path.write_bytes((data[: len(data) // 3], b"no picture", b"", data[:40] * 3)[index // 20 % 4])
        else:
            good.add(str(path.relative_to(folder)))
    return good


def read_results(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below the folder by its relative name, except the state and the lock."""
    own = {".img2img.sqlite", ".img2img.lock"}
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in own}


def main() -> None:
    """Kill and resume a batch, finish it, and compare it with an undisturbed run. Exit with 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--batch-size", default="auto", help="a number mixes pictures, which rounds differently")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        good = make_files(root / "in", arguments.count)
        command = [sys.executable, "-m", "img2img_cli", "batch", str(root / "in"), "--preset", "colorize", *QUICK]
        command += ["--batch-size", str(arguments.batch_size)]
        moments = []
        for _ in range(arguments.kills):
            began = time.monotonic()
            process = subprocess.Popen([*command, "-o", str(root / "killed")], stderr=subprocess.DEVNULL)
            try:
                process.wait(timeout=float(rng.uniform(0.5, 8)))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            moments.append(len(list((root / "killed").rglob("*.*"))) if (root / "killed").exists() else 0)
            if process.returncode == 3:
                print(
                    f"came to its end after {time.monotonic() - began:.0f} s; the rest of the kills would hit nothing"
                )
                break
        outcomes = []
        for folder in ("killed", "clean"):
            done = subprocess.run([*command, "-o", str(root / folder), "--json"], capture_output=True, text=True)
            outcomes.append((done.returncode, json.loads(done.stdout.splitlines()[-1])))
        killed, clean = read_results(root / "killed"), read_results(root / "clean")
        print(f"{len(moments)} kills; files there after each: {moments}")
        print(f"exit codes {[code for code, _ in outcomes]}, summaries {[summary for _, summary in outcomes]}")
        exact = set(killed) == set(clean) == good
        print(f"expected set: {exact}; same bytes: {killed == clean}")
        codes = [code for code, _ in outcomes]
        sys.exit(0 if exact and killed == clean and codes == [3, 3] else 1)


if __name__ == "__main__":
    main()
