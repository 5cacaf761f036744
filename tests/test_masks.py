"""Masks in all forms that tools write are interpreted correctly, and read once."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pictures import encode, make_picture
from PIL import Image

from img2img_cli.errors import InputError, UsageError
from img2img_cli.pictures.masks import feather_mask
from img2img_cli.pictures.read import Picture, load_image
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.inputs import find_items
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.plan import BatchChoices, plan_batch
from img2img_cli.tasks.run import encode_result, finish_picture
from img2img_cli.tasks.side_inputs import SideInputs, load_mask, load_side_inputs

SIZE = (40, 30)
MARKED = np.zeros(SIZE[::-1], bool)
MARKED[5:20, 8:30] = True
QUICK = ["-p", "night", "--set", "image_size=64", "--set", "num_inference_steps=2", "--seed", "1"]


def of_values(low: int, high: int, dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.where(MARKED, high, low).astype(dtype))


def of_palette(low: tuple[int, ...], high: tuple[int, ...]) -> Image.Image:
    image = Image.fromarray(MARKED.astype(np.uint8))
    image = image.convert("P")
    image.putpalette([*low, *high])
    return image


def of_alpha(colour: tuple[int, ...], alpha: Image.Image) -> Image.Image:
    image = Image.new("RGB", SIZE, colour)
    image.putalpha(alpha)
    return image


def save(folder: Path, image: Image.Image, name: str = "mask.png") -> str:
    image.save(folder / name)
    return str(folder / name)


PAIRS = [(0, 1), (0, 2), (1, 2), (1, 255), (0, 254), (0, 128), (0, 255), (100, 200)]


@pytest.mark.parametrize(
    "image",
    [
        *(of_values(*pair) for pair in PAIRS),
        *(of_values(*pair, np.uint16) for pair in (*PAIRS, (0, 65535), (0, 40_000), (255, 256))),
        of_palette((0, 0, 0), (128, 0, 0)),
        of_palette((0, 0, 0), (1, 1, 1)),
        of_palette((200, 30, 30), (255, 255, 255)),
        Image.fromarray(MARKED),
        of_values(0, 255).convert("RGB"),
        of_values(0, 1).convert("RGBA"),
        of_alpha((255, 255, 255), of_values(0, 255)),
        of_alpha((0, 0, 0), of_values(0, 255)),
        of_alpha((255, 0, 0), of_values(0, 128)),
        Image.merge("RGBA", [*[of_values(9, 70)] * 3, of_values(0, 255)]),
    ],
    ids=lambda image: f"{image.mode} {image.getextrema()}",
)
def test_two_values_are_a_mask_whatever_they_are(tmp_path: Path, image: Image.Image) -> None:
    mask, _ = load_mask(save(tmp_path, image), SIZE)
    assert mask.mode == "L"
    assert (np.asarray(mask) == np.where(MARKED, 255, 0)).all()


def test_a_mask_of_floats_marks_its_ones(tmp_path: Path) -> None:
    mask, note = load_mask(save(tmp_path, Image.fromarray(MARKED.astype(np.float32)), "mask.tif"), SIZE)
    assert (np.asarray(mask) == np.where(MARKED, 255, 0)).all()
    assert not note


def test_levels_of_a_soft_mask_stay(tmp_path: Path) -> None:
    soft = Image.linear_gradient("L").resize(SIZE)
    assert load_mask(save(tmp_path, soft), SIZE)[0].tobytes() == soft.tobytes()
    deep = Image.fromarray(np.asarray(soft, np.uint16) * 257)
    assert load_mask(save(tmp_path, deep), SIZE)[0].tobytes() == soft.tobytes()
    assert load_mask(save(tmp_path, of_alpha((255, 255, 255), soft)), SIZE)[0].tobytes() == soft.tobytes()


LABELS = Image.fromarray((np.arange(SIZE[0] * SIZE[1]).reshape(SIZE[::-1]) % 4).astype(np.uint8))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (of_values(0, 255), None),
        (of_values(0, 1), None),
        (of_alpha((255, 255, 255), of_values(0, 255)), None),
        (Image.new("L", SIZE, 255), None),
        (of_values(0, 128), "0 and 128"),
        (of_alpha((0, 0, 0), of_values(0, 255)), "opaque"),
        (LABELS, "labels"),
        (make_picture("coffee", SIZE), "colours"),
        (Image.new("L", SIZE, 7), "all of the picture"),
    ],
)
def test_what_could_be_meant_otherwise_is_told_in_a_line(tmp_path: Path, image: Image.Image, words: str | None) -> None:
    notes = load_mask(save(tmp_path, image), SIZE)[1]
    assert len(notes) == (words is not None)
    for note in notes:
        assert words in note
        assert "mask.png" in note
        assert len(note.splitlines()) == 1


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (Image.new("L", SIZE), "all black"),
        (Image.new("RGBA", SIZE), "all black"),
        (of_palette((200, 0, 0), (0, 102, 0)), "equally bright"),
        (Image.fromarray(np.asarray(LABELS).astype(np.uint16)), "labels"),
    ],
)
def test_a_mask_that_marks_nothing_is_refused(tmp_path: Path, image: Image.Image, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        load_mask(save(tmp_path, image), SIZE)
    assert "mask.png" in str(error.value)


# --- under a mask, 16 bits


def grey16() -> Picture:
    return load_image("in.png", encode(Image.fromarray(np.full(SIZE[::-1], 100 * 257, np.uint16)), "PNG"))


def test_16_bits_blend_the_feather_once() -> None:
    """The soft mask blends the input's 16 bits and the model's 8 by its share, up to rounding."""
    picture, made = grey16(), Image.new("RGB", SIZE, (250, 250, 250))
    assert picture.luminance is not None
    parameters = Parameters(prompt="fog", mask_feather=8)
    job = Job(input="in.png", output="out.tif", preset="edit", parameters=parameters, seed=1, mask="mask.png")
    mask = of_values(0, 255)
    result = tifffile.imread(io.BytesIO(encode_result(finish_picture(made, picture, job, mask), picture, job)[0]))
    share = np.asarray(feather_mask(mask, 8), float)[..., None] / 255
    assert ((share > 0.3) & (share < 0.7)).any()
    assert np.abs(result - (250 * 257 * share + 100 * 257 * (1 - share))).max() <= 1


# --- from a pipe


@contextmanager
def pipe(path: Path, content: bytes) -> Iterator[str]:
    """Return a FIFO that yields its content once."""
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(content,), daemon=True)
    writer.start()
    yield str(path)
    writer.join(60)
    assert not writer.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 16])
def test_a_mask_from_a_pipe_is_read_once(here, tmp_path: Path, bits: int) -> None:
    grey = np.asarray(make_picture("coffee", SIZE).convert("L"))
    source = save(tmp_path, Image.fromarray(grey if bits == 8 else grey.astype(np.uint16) * 257), "in.png")
    with pipe(tmp_path / "mask", encode(of_values(0, 1), "PNG")) as mask:
        done = here("edit", source, tmp_path / "out.png", "--mask", mask, "--variations", "2", *QUICK)
    assert done.code == 0, done.err
    for name in ("out-1.png", "out-2.png"):
        after = np.asarray(load_image("out", (tmp_path / name).read_bytes()).rgb)
        assert (after[~MARKED] == grey[~MARKED][:, None]).all()
        assert (after[MARKED] != grey[MARKED][:, None]).any()


def test_style_and_control_pictures_come_from_pipes_too(tmp_path: Path) -> None:
    job = Job(input="in.png", output="out.png", preset="edit", parameters=Parameters(prompt="fog"), seed=1)
    content = encode(make_picture("coffee", SIZE), "PNG")
    picture = load_image("in.png", content)
    with pipe(tmp_path / "style", content) as style, pipe(tmp_path / "control", content) as control:
        side_inputs = load_side_inputs(job.model_copy(update={"style": style, "control_image": control}), picture)
    assert isinstance(side_inputs, SideInputs)
    assert side_inputs.style is not None
    assert side_inputs.control is not None
    assert side_inputs.style.tobytes() == side_inputs.control.tobytes()


def test_a_batch_takes_no_style_from_a_pipe(tmp_path: Path) -> None:
    make_picture("coffee", SIZE).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "style")
    choices = BatchChoices(folder=tmp_path / "out", preset="sd15-style", style=str(tmp_path / "style"))
    with pytest.raises(UsageError, match="regular file"):
        plan_batch(find_items([str(tmp_path / "a.png")]), choices)
