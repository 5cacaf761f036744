"""torch is not imported before a job is known to be valid, and `--help` imports next to nothing.

import-linter checks that the modules for planning and pictures do not import torch. These tests check that a command
that ends early has not imported it through functions that may.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

CALLS = [
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
    (["edit", "{picture}", "-p", "fog", "--strength", "0.01", "--steps", "4"], 2),
    (["edit", "{picture}", "-p", "fog", "--strength", "high"], 2),
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
]
# Runs each call in a child of its own, forked before anything heavy is imported.
PROBE = """
import json, os, sys
from img2img_cli.cli import app

told = []
for words in json.loads(sys.argv[1]):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["img2img", *words]
        code = 1
        try:
            code = app._run()
        finally:
            heavy = sorted({"torch", "diffusers", "transformers"} & set(sys.modules))
            print("HEAVY", heavy, file=sys.stderr, flush=True)
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as file:
        err = file.read()
    told.append([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), err.splitlines()])
print(json.dumps(told))
"""


def probe(calls: list[list[str]]) -> list[tuple[int, list[str]]]:
    done = subprocess.run([sys.executable, "-c", PROBE, json.dumps(calls)], capture_output=True, text=True, check=True)
    return [(code, lines) for code, lines in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, list[str]]]:
    """Return the exit code and the lines on stderr of each call."""
    path = tmp_path_factory.mktemp("startup") / "picture.png"
    Image.new("RGB", (64, 48), "teal").save(path)
    return probe([[word.format(picture=path) for word in words] for words, _ in CALLS])


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(CALLS)), ids=[" ".join(words) for words, _ in CALLS])
def test_light_calls_never_import_torch(index: int, told: list[tuple[int, list[str]]]) -> None:
    code, lines = told[index]
    assert code == CALLS[index][1], lines
    assert lines[-1] == "HEAVY []"
    if code:
        assert len(lines) == 2
        assert "Traceback" not in lines[0]


@pytest.mark.slow
def test_the_probe_can_see_torch() -> None:
    ((_, lines),) = probe([["doctor"]])
    assert "torch" in lines[-1]


def test_help_does_not_load_pixels_or_models() -> None:
    code = (
        "import sys; from img2img_cli.cli import app; sys.argv = ['img2img', '--help']; app._run();"
        "sys.exit(bool({'numpy', 'PIL', 'pydantic', 'yaml'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
