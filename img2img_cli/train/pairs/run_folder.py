"""The folder of a run: checkpoints, figures over time, and what comes out of it, which is a preset with its card."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from img2img_cli.errors import OutputError, UsageError, advise
from img2img_cli.pictures.write import write_output_bytes
from img2img_cli.train.pairs.check import Checked, draw_pairs
from img2img_cli.train.pairs.report import format_report
from img2img_cli.train.pairs.sheets import Figures, encode_sheet
from img2img_cli.train.pairs.trainer import PairTrainer

KEPT = 3  # checkpoints, besides the best
METRICS, SAMPLES, CHECKPOINTS, BEST = "metrics.jsonl", "samples", "checkpoints", "best.pt"
PRESET = "preset.yaml"


class RunFolder:
    """The files of one run. Every file is replaced as a whole.

    Args:
        path: made if it is missing.
        resume: whether a run that is there goes on.

    Raises:
        UsageError: the folder holds a run already and `resume` is false, or is no folder.
        OutputError: it cannot be made.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        if (path / CHECKPOINTS).is_dir() and any((path / CHECKPOINTS).iterdir()) and not resume:
            raise UsageError(f"{path}: holds a run already; go on with --resume, or name another folder with -o")
        try:
            for folder in (path, path / SAMPLES, path / CHECKPOINTS):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path}: cannot be made ({error.strerror}); {advise(error)}") from None
        if not resume:
            self._write(METRICS, b"")

    def _write(self, name: str, data: bytes) -> None:
        write_output_bytes(data, str(self.path / name))

    def note(self, row: dict[str, Any]) -> None:
        """Append a row to `metrics.jsonl`.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            with (self.path / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise OutputError(f"{self.path / METRICS}: cannot be written ({error.strerror}); {advise(error)}") from None

    def read_notes(self) -> list[dict[str, Any]]:
        """Return the rows of `metrics.jsonl`; a line that a crash has cut off is left out."""
        rows = []
        for line in (self.path / METRICS).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows

    def save_checkpoint(self, state: dict[str, Any], step: int) -> None:
        """Write a checkpoint and remove all but the last three.

        Raises:
            OutputError: it cannot be written; the earlier ones are still there.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._write(f"{CHECKPOINTS}/step-{step:08}.pt", buffer.getvalue())
        for old in self._list_checkpoints()[:-KEPT]:
            old.unlink(missing_ok=True)

    def _list_checkpoints(self) -> list[Path]:
        return sorted((self.path / CHECKPOINTS).glob("step-*.pt"))

    def load_checkpoint(self) -> dict[str, Any]:
        """Return the newest checkpoint that can be read.

        Raises:
            UsageError: there is none.
        """
        for path in reversed(self._list_checkpoints()):
            try:
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError):
                continue
            return state
        raise UsageError(f"{self.path}: has no checkpoint to go on from; leave --resume out")

    def is_best(self, psnr: float) -> bool:
        """Return whether no earlier validation was nearer to what is wanted."""
        return psnr >= max((row["psnr"] for row in self.read_notes() if row.get("event") == "validated"), default=-1.0)

    def keep_best(self, step: int) -> None:
        """Keep the checkpoint of a step as the best."""
        newest = self.path / CHECKPOINTS / f"step-{step:08}.pt"
        if newest.is_file():
            self._write(f"{CHECKPOINTS}/{BEST}", newest.read_bytes())

    def keep_sample(self, step: int, sheet: Image.Image) -> None:
        """Write what the validation pairs look like at a step."""
        self._write(f"{SAMPLES}/step-{step:08}.jpg", encode_sheet(sheet))

    def write_result(self, trainer: PairTrainer, checked: Checked, figures: Figures, seconds: float) -> None:
        """Write the weights, their preset and its card, a contact sheet and the report.

        Raises:
            OutputError: a file cannot be written.
        """
        trainer.save(self.path)
        name = self.path.resolve().name
        sheet = figures.draw(8)
        self._write("sheet.jpg", encode_sheet(sheet))
        self._write("pairs.jpg", encode_sheet(draw_pairs(checked.training)))
        self._write(PRESET, trainer.format_preset(name, checked).encode())
        self._write("README.md", _format_card(name, checked, trainer.made_of, figures, seconds).encode())
        samples = sorted((self.path / SAMPLES).glob("step-*.jpg"))
        self._write("report.html", format_report(name, self.read_notes(), samples).encode())


def _format_card(name: str, checked: Checked, settings: dict[str, Any], figures: Figures, seconds: float) -> str:
    means = figures.means
    worst = "\n".join(f"- {pair}: {psnr:.1f} dB" for pair, psnr in figures.list_worst())
    told = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
    looked = "validation pairs, which it was not trained on" if checked.validation else "a pair that it was trained on"
    return f"""# {name}

Turns pictures like the inputs of these pairs into pictures like their outputs. Made with `img2img train pairs`.

```sh
img2img edit picture.jpg result.jpg --preset {name}
img2img batch pictures -o results --preset {name}
```

![Input, made and wanted pictures](sheet.jpg)

*{len(figures.rows)} {looked}: input, made, wanted.*

| {len(figures.rows)} {looked} | this preset | input as it is |
| --- | --- | --- |
| PSNR, dB | {means["psnr"]:.2f} | {means["input_psnr"]:.2f} |
| SSIM | {means["ssim"]:.4f} | {means["input_ssim"]:.4f} |
| mean difference | {means["l1"]:.4f} | {means["input_l1"]:.4f} |

Worst of them:

{worst}

Data: {"; ".join(line.strip() for line in checked.lines)}. Trained for {seconds / 60:.1f} minutes.

| setting | value |
| --- | --- |
{told}

It knows pictures like those in its pairs; of others, look at the results before you trust them.
"""
