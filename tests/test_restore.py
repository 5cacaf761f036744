"""`restore` with the bundled model removes noise and keeps the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import psnr
from PIL import Image

from img2img_cli.train.bundled.degrade import add_noise


@pytest.fixture(scope="module")
def truth() -> Image.Image:
    from skimage import data

    return Image.fromarray(data.chelsea()).resize((301, 200), Image.Resampling.LANCZOS)


@pytest.mark.slow
def test_noise_goes_and_the_picture_stays(here, tmp_path: Path, truth: Image.Image) -> None:
    noisy = add_noise(truth, 25, np.random.default_rng(0))
    noisy.save(tmp_path / "noisy.png")
    done = here("restore", tmp_path / "noisy.png", "--seed", 0)
    assert done.code == 0, done.err
    with Image.open(tmp_path / "noisy-restore.png") as result:
        assert result.size == truth.size
        assert psnr(result, truth) > psnr(noisy, truth) + 1.5
        coarse = [image.reduce(16) for image in (result.convert("RGB"), noisy)]
        assert psnr(*coarse) > 33


@pytest.mark.slow
def test_a_clean_picture_is_hardly_changed(here, tmp_path: Path, truth: Image.Image) -> None:
    truth.save(tmp_path / "clean.png")
    assert here("restore", tmp_path / "clean.png", tmp_path / "out.png").code == 0
    with Image.open(tmp_path / "out.png") as result:
        assert psnr(result, truth) > 28


@pytest.mark.slow
def test_tiles_leave_no_seam(here, tmp_path: Path, truth: Image.Image) -> None:
    noisy = add_noise(truth, 15, np.random.default_rng(1))
    noisy.save(tmp_path / "in.png")
    size = ["--set", "tile_size=128", "--set", "tile_overlap=32"]
    assert here("restore", tmp_path / "in.png", tmp_path / "out.png", *size).code == 0
    with Image.open(tmp_path / "out.png") as result:
        across = np.abs(np.diff(np.asarray(result.convert("L"), np.float32), axis=1)).mean(0)
    reference = np.abs(np.diff(np.asarray(truth.convert("L"), np.float32), axis=1)).mean(0)
    excess = across - reference
    assert excess.max() < excess.mean() + 6 * excess.std()


@pytest.mark.slow
def test_a_mask_restores_only_what_is_white(here, tmp_path: Path, truth: Image.Image) -> None:
    noisy = add_noise(truth, 25, np.random.default_rng(0))
    noisy.save(tmp_path / "in.png")
    mask = Image.new("L", truth.size, 0)
    mask.paste(255, (0, 0, 150, 200))
    mask.save(tmp_path / "mask.png")
    assert here("restore", tmp_path / "in.png", tmp_path / "out.png", "--mask", tmp_path / "mask.png").code == 0
    with Image.open(tmp_path / "out.png") as result:
        pixels = np.asarray(result)
    assert (pixels[:, 150:] == np.asarray(noisy)[:, 150:]).all()
    assert not (pixels[:, :150] == np.asarray(noisy)[:, :150]).all()
