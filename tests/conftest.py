"""Fixtures: run the command in a new process or in this one, a tiny Stable Diffusion, pictures."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

os.environ["HF_HUB_OFFLINE"] = "1"
# The code under test in every process that a test starts, whatever folder it is in and whatever else is installed.
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
# Workers side by side: threads that spin while they wait would take each other's time.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# No server of whoever runs the tests; tests that want one start it. Sockets' names must be short.
_sockets = tempfile.TemporaryDirectory(prefix="i2i")
os.environ["XDG_RUNTIME_DIR"] = _sockets.name
# A shell ignores SIGINT in what it starts in the background, nohup SIGHUP; children of the tests would inherit that.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


import warm  # noqa: E402 - as it remembers the environment


@dataclass(frozen=True)
class Outcome:
    """The exit code and output of a command."""

    code: int
    out: bytes
    err: str


@pytest.fixture
def fresh() -> Callable[..., Outcome]:
    """Run `img2img ARGUMENTS` in a process of its own; in a new interpreter if the environment is another."""

    def run(*arguments: object, stdin: bytes = b"", **environment: str) -> Outcome:
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with warm.Warm(arguments, env={**os.environ, **environment}, **streams) as process:
            try:
                out, err = process.communicate(stdin, timeout=300)
            except BaseException:
                process.kill()
                raise
        return Outcome(process.returncode, out, err.decode())

    return run


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Outcome]:
    """Run `img2img ARGUMENTS` in this interpreter, where torch is loaded only once."""
    from img2img_cli.cli import app

    def run(*arguments: object, stdin: bytes = b"") -> Outcome:
        capfdbinary.readouterr()
        monkeypatch.setattr(sys, "argv", ["img2img", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = app._run()
        out, err = capfdbinary.readouterr()
        return Outcome(code, out, err.decode())

    return run


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute with one thread, alone and in lanes, because the number of threads affects how large sums are rounded."""
    import torch

    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def photograph() -> Image.Image:
    """Return a colour photograph of 96 x 72 pixels."""
    from skimage import data

    return Image.fromarray(data.coffee()).resize((96, 72), Image.Resampling.LANCZOS)


@pytest.fixture
def picture(tmp_path: Path, photograph: Image.Image) -> Path:
    """Return the path of the photograph as a PNG file."""
    path = tmp_path / "photo.png"
    photograph.save(path)
    return path


@pytest.fixture
def trained_features(tmp_path: Path) -> Path:
    """Return a file with random weights in SqueezeNet's shapes, in 16 bits, classifier and all."""
    import torch
    from safetensors.torch import save_file

    from img2img_cli.train.nets.features import SqueezeNetFeatures

    torch.manual_seed(0)
    weights = {name: value.half() for name, value in SqueezeNetFeatures().state_dict().items()}
    save_file(weights | {"conv10.weight": torch.zeros(1000, 512, 1, 1)}, tmp_path / "squeezenet.safetensors")
    return tmp_path / "squeezenet.safetensors"


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a diffusers folder with Stable Diffusion 1.5's classes at tiny size and seeded random weights."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from img2img_cli.engines.checkpoints.single_file import load_clip_tokenizer

    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(
        unet=UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
        ),
        vae=AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=49408
            )
        ),
        tokenizer=load_clip_tokenizer(),
        scheduler=PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    pipe.save_pretrained(folder)
    return folder


class Count:
    """Counts a module's calls and records their batch sizes."""

    def __init__(self, module: Any) -> None:
        self.batches: list[int] = []
        self._handle = module.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, arguments: tuple[Any, ...], options: dict[str, Any], output: object) -> None:
        first = arguments[0] if arguments else options["hidden_states"]
        self.batches.append(len(first))

    def __enter__(self) -> Count:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


GREY = str(Path(__file__).with_name("grey.yaml"))  # colours by the bundled diffusion model


def psnr(a: Image.Image | np.ndarray, b: Image.Image | np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of two 8-bit pictures in dB."""
    error = np.mean((np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
