"""Make the README's pictures with the installed `img2img` command: before and after, looks, a painter's style."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from img2img_cli.presets.files import list_presets

HERE = Path(__file__).parent
HEIGHT, GAP, LABEL = 240, 4, 16
PAIRS = [
    {"input": "chelsea-small.png", "preset": "upscale", "scale": 4, "seed": 3},
    {"input": "astronaut-noisy.jpg", "preset": "restore", "seed": 3},
    {"input": "palace-grey.jpg", "preset": "colorize", "seed": 1},
    {"input": "palace-grey.jpg", "preset": "colorize", "seed": 1, "control_image": str(HERE / "palace-hints.png")},
]
STYLES = [{"input": "coffee.jpg", "preset": name, "seed": 3} for name in list_presets() if name.startswith("style-")]
PAINTER = "gauguin.jpg"
PAINTED = [
    {"input": name, "preset": "style", "style": str(HERE / PAINTER), "seed": 3}
    for name in ("astronaut.jpg", "coffee.jpg")
]


def run_batch(rows: Sequence[dict[str, object]], folder: Path) -> list[Path]:
    """Make every row with one `img2img batch`; the results in the rows' order."""
    outputs = [f"{index}.png" for index in range(len(rows))]
    manifest = folder / "jobs.jsonl"
    entries = [
        row | {"input": str(HERE / str(row["input"])), "output": out} for row, out in zip(rows, outputs, strict=True)
    ]
    manifest.write_text("\n".join(map(json.dumps, entries)))
    command = [sys.executable, "-m", "img2img_cli", "batch", str(manifest), "-o", str(folder / "out")]
    subprocess.run(command, check=True)
    return [folder / "out" / name for name in outputs]


def load(path: Path) -> Image.Image:
    """A picture at the sheet's height; a small one shows its pixels."""
    picture = Image.open(path).convert("RGB")
    resample = Image.Resampling.NEAREST if picture.height < HEIGHT else Image.Resampling.LANCZOS
    return picture.resize((round(picture.width * HEIGHT / picture.height), HEIGHT), resample)


def lay_out(pictures: Sequence[tuple[str, Image.Image]], columns: int) -> Image.Image:
    """Pictures in rows, each under its label."""
    width = max(picture.width for _, picture in pictures) + GAP
    height = HEIGHT + LABEL + GAP
    sheet = Image.new("RGB", (columns * width - GAP, -(-len(pictures) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (label, picture) in enumerate(pictures):
        left, top = index % columns * width, index // columns * height
        draw.text((left + 2, top + 2), label, fill="#444")
        sheet.paste(picture, (left, top + LABEL))
    return sheet


def main() -> None:
    """Run both batches and save both sheets."""
    with tempfile.TemporaryDirectory() as name:
        made = run_batch([*PAIRS, *PAINTED, *STYLES], Path(name))
        pairs = []
        for row, result in zip(PAIRS, made, strict=False):
            source, label, view = str(row["input"]), str(row["preset"]), load(HERE / str(row["input"]))
            if "control_image" in row:
                source, label = Path(str(row["control_image"])).name, f"{label} --hints"
                strokes = Image.open(HERE / source).resize(view.size)
                view.paste(strokes, mask=strokes)
            pairs += [(source, view), (label, load(result))]
        painted = [(name, load(HERE / name)) for name in (PAINTER, "astronaut.jpg")]
        painted += [("--style gauguin.jpg", load(path)) for path in made[len(PAIRS) :][: len(PAINTED)]]
        looks = made[len(PAIRS) + len(PAINTED) :]
        styles = [("coffee.jpg", load(HERE / "coffee.jpg"))]
        styles += [(str(row["preset"]), load(path)) for row, path in zip(STYLES, looks, strict=True)]
    lay_out(pairs, 4).save(HERE / "before-after.jpg", quality=88)
    lay_out(painted, 4).save(HERE / "style.jpg", quality=88)
    lay_out(styles, 4).save(HERE / "gallery.jpg", quality=85)


if __name__ == "__main__":
    main()
