"""torch stays out until a job is known to be good, and `--help` loads next to nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT = [
    "batch", "cli.app", "cli.batch_run", "cli.picture", "control", "errors", "finish", "images", "inputs", "job",
    "journal", "lab", "modelref", "parameters", "plan", "report", "work",
    "preset", "record", "structure", "tiling", "writer", "yamlio",
    "apart", "assembly", "batcher", "entries", "interrupts", "provenance", "source", "stages", "state_file", "streams",
    "runner", "upscaler", "remote", "wire", "meeting", "processors", "silence",
    "cli.engine", "cli.serve_run", "weights",
]  # fmt: skip
PROBE = """
import sys
from img2img_cli.cli import app
sys.argv = ["img2img", *sys.argv[1:]]
try:
    code = app._run()
finally:
    heavy = {"torch", "diffusers", "transformers"} & set(sys.modules)
    print("HEAVY", sorted(heavy), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize("module", LIGHT)
def test_importing_leaves_torch_out(module: str) -> None:
    code = f"import sys, img2img_cli.{module}; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["edit", "--help"], 0),
        (["batch", "--help"], 0),
        (["batch", "nothing-*.png", "-o", "out", "--preset", "colorize"], 4),
        (["presets", "list"], 0),
        (["presets", "show", "sd15-upscale"], 0),
        (["presets", "schema"], 0),
        (["colorize", "{picture}", "--dry-run"], 0),
        (["colrize"], 2),
        (["edit", "{picture}"], 2),
        (["edit", "{picture}", "-p", "x", "--strength", "0.01", "--steps", "4"], 2),
        (["edit", "{picture}", "-p", "x", "--strength", "high"], 2),
        (["upscale", "{picture}", "--scale", "9"], 2),
        (["upscale", "{picture}", "--preset", "upscael"], 2),
        (["colorize", "{picture}", "--set", "satturation=2"], 2),
        (["colorize", "missing.jpg"], 3),
        (["colorize", "{picture}", "--model", "weights.ckpt"], 5),
        (["colorize", "{picture}", "{picture}"], 6),
        (["info", "{picture}"], 3),
        (["serve", "--keep", "soon"], 2),
        (["serve", "--preset", "nope"], 2),
        (["serve", "--status"], 4),
    ],
)
def test_light_calls_never_import_torch(arguments: list[str], code: int, picture: object) -> None:
    words = [word.format(picture=picture) for word in arguments]
    done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == "HEAVY []"
    if code:
        assert len(done.stderr.splitlines()) == 2
        assert "Traceback" not in done.stderr


def test_the_probe_can_see_torch(picture: object) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, "doctor"], capture_output=True, text=True)
    assert "torch" in done.stderr.splitlines()[-1]


def test_help_does_not_load_pixels_or_models() -> None:
    code = (
        "import sys; from img2img_cli.cli import app; sys.argv = ['img2img', '--help']; app._run();"
        "sys.exit(bool({'numpy', 'PIL', 'pydantic', 'yaml'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
