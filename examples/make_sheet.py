"""Make the README's before/after picture with the installed `img2img` command."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
HEIGHT = 240
ROWS = [
    ("coffee-grey.jpg", ["colorize", "--seed", "1"]),
    ("chelsea-small.png", ["upscale", "--scale", "4", "--seed", "3"]),
    ("coffee.jpg", ["edit", "--prompt", "night", "--seed", "3"]),
    ("coffee.jpg", ["edit", "--prompt", "golden hour", "--seed", "3"]),
]


def main() -> None:
    """Run each command and lay the inputs and results out in pairs."""
    pictures = []
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, (command, *options)) in enumerate(ROWS):
            output = Path(folder) / f"{index}.png"
            words = [sys.executable, "-m", "img2img_cli", command, str(HERE / name), str(output), *options]
            subprocess.run(words, check=True)
            for path in (HERE / name, output):
                picture = Image.open(path).convert("RGB")
                width = round(picture.width * HEIGHT / picture.height)
                resample = Image.Resampling.NEAREST if picture.height < HEIGHT else Image.Resampling.LANCZOS
                pictures.append(picture.resize((width, HEIGHT), resample))
    column = max(p.width for p in pictures)
    sheet = Image.new("RGB", (4 * column + 12, 2 * HEIGHT + 4), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % 4 * (column + 4), index // 4 * (HEIGHT + 4)))
    sheet.save(HERE / "before-after.jpg", quality=90)


if __name__ == "__main__":
    main()
