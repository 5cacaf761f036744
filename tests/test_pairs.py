"""`img2img train pairs`: layouts, what `--check` tells, runs that are stopped and resumed, and what comes out."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import psnr
from PIL import Image
from safetensors.torch import load_file
from warm import Warm

from img2img_cli.errors import InputError, OutOfMemoryError, UsageError
from img2img_cli.train.metrics import measure_ssim
from img2img_cli.train.pairs.check import check_pairs, find_shift
from img2img_cli.train.pairs.data import PairData
from img2img_cli.train.pairs.discriminator import PatchDiscriminator, augment, compare
from img2img_cli.train.pairs.gan import Settings, Trainer
from img2img_cli.train.pairs.layouts import find_pairs
from img2img_cli.train.pairs.pictures import divide_pairs, read_pair

QUICK = ["--crop", 64, "--batch-size", 2]


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def darken(image: Image.Image) -> Image.Image:
    return image.point([round(v * 0.6) for v in range(256)] * 3)


@pytest.fixture
def views(photograph: Image.Image) -> list[Image.Image]:
    image = photograph.resize((192, 144))
    return [image.crop((x, x // 2, x + 96, x // 2 + 96)) for x in range(0, 96, 12)]


def write_folders(root: Path, views: list[Image.Image], first: str = "A", second: str = "B") -> Path:
    for index, view in enumerate(views):
        save(view, root / first / f"{index}.png")
        save(darken(view), root / second / f"{index}.jpg")
    return root


def write_halves(root: Path, views: list[Image.Image]) -> Path:
    for index, view in enumerate(views):
        both = Image.new("RGB", (2 * view.width, view.height))
        both.paste(view, (0, 0))
        both.paste(darken(view), (view.width, 0))
        save(both, root / "train" / f"{index}.png")
    return root


def write_ends(root: Path, views: list[Image.Image], first: str, second: str) -> Path:
    for index, view in enumerate(views):
        save(view, root / f"p{index}{first}.png")
        save(darken(view), root / f"p{index}{second}.png")
    return root


def write_table(root: Path, views: list[Image.Image], name: str, columns: tuple[str, str, str]) -> Path:
    write_folders(root, views, "x", "y")
    rows = [
        {columns[0]: f"x/{index}.png", columns[1]: f"y/{index}.jpg", columns[2]: f"darker {index}"}
        for index in range(len(views))
    ]
    if name.endswith(".csv"):
        lines = [",".join(columns), *(",".join(row.values()) for row in rows)]
    else:
        lines = list(map(json.dumps, rows))
    (root / name).write_text("\n".join(lines))
    return root


LAYOUTS = {
    "A/ B/": lambda root, views: write_folders(root, views),
    "train_A/ train_B/": lambda root, views: write_folders(root, views, "train_A", "train_B"),
    "trainA/ trainB/": lambda root, views: write_folders(root, views, "trainA", "trainB"),
    "input/ output/": lambda root, views: write_folders(root, views, "input", "output"),
    "before/ after/": lambda root, views: write_folders(root, views, "before", "after"),
    "A/train B/train": lambda root, views: write_folders(root, views, "A/train", "B/train"),
    "side by side": write_halves,
    "_start _end": lambda root, views: write_ends(root, views, "_start", "_end"),
    "_0 _1": lambda root, views: write_ends(root, views, "_0", "_1"),
    "-condlabel": lambda root, views: write_ends(root, views, "-condlabel", ""),
    "metadata.jsonl": lambda root, views: write_table(
        root, views, "metadata.jsonl", ("original_image", "edited_image", "edit_prompt")
    ),
    "metadata.csv": lambda root, views: write_table(
        root, views, "metadata.csv", ("input_image", "output_image", "text")
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_found_and_matched(tmp_path: Path, views: list[Image.Image], layout: str) -> None:
    LAYOUTS[layout](tmp_path, views)
    found = find_pairs(tmp_path)
    assert len(found.pairs) == len(views)
    assert not found.problems and not found.unpaired
    swapped = find_pairs(tmp_path, swap=True).pairs
    for pair, other in zip(found.pairs, swapped, strict=True):
        source, target = read_pair(pair, 1000)
        assert psnr(darken(source), target) > 25, pair
        assert np.array_equal(np.asarray(read_pair(other, 1000)[0]), np.asarray(target))


def test_a_folder_of_inputs_beside_the_outputs(tmp_path: Path, views: list[Image.Image]) -> None:
    write_folders(tmp_path, views, "conditions", "pictures")
    found = find_pairs(tmp_path / "pictures", control=tmp_path / "conditions")
    assert len(found.pairs) == len(views)
    assert found.pairs[0].input.parent.name == "conditions"


def test_captions_come_from_where_they_are(tmp_path: Path, views: list[Image.Image]) -> None:
    write_folders(tmp_path, views, "train_A", "train_B")
    (tmp_path / "train_prompts.json").write_text(json.dumps({"0.png": "from the table", "1.png": "also"}))
    (tmp_path / "train_B" / "1.txt").write_text("beside\nthe picture")
    captions = {pair.name: pair.caption for pair in find_pairs(tmp_path, prompt="for all").pairs}
    assert (captions["0"], captions["1"], captions["2"]) == ("from the table", "beside the picture", "for all")


def test_told_splits_and_splits_by_name(tmp_path: Path, views: list[Image.Image]) -> None:
    write_folders(tmp_path, views, "trainA", "trainB")
    write_folders(tmp_path, views[:2], "testA", "testB")
    training, validation = divide_pairs(find_pairs(tmp_path).pairs)
    assert (len(training), len(validation)) == (len(views), 2)
    many = write_folders(tmp_path / "more", views[:1] * 60)
    before = {pair.name for pair in divide_pairs(find_pairs(many).pairs)[1]}
    assert 1 <= len(before) < 20
    for index in range(60, 90):
        shutil.copy(many / "A" / "0.png", many / "A" / f"{index}.png")
        shutil.copy(many / "B" / "0.jpg", many / "B" / f"{index}.jpg")
    after = {pair.name for pair in divide_pairs(find_pairs(many).pairs)[1]}
    assert before <= after, "a pair stays where it is when others come"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root, views: None, "no pictures in it, but nothing at all"),
        (lambda root, views: (root / "notes.md").write_text("x"), "no pictures in it, but notes.md"),
        (lambda root, views: [save(v, root / f"{i}.png") for i, v in enumerate(views)], "not two squares side by side"),
        (lambda root, views: [save(views[0], root / "A/x.png"), save(views[0], root / "B/y.png")], "not one pair"),
        (lambda root, views: (root / "metadata.jsonl").write_text('{"a": 1}'), "has a; expected one of"),
        (lambda root, views: (root / "metadata.jsonl").write_text("[1]"), "metadata.jsonl:1: not a JSON object"),
        (lambda root, views: (root / "metadata.csv").write_bytes(b"\xff\xfe\x00"), "not UTF-8"),
    ],
)
def test_what_is_no_folder_of_pairs_is_one_line(here, tmp_path: Path, views, make, words: str) -> None:
    make(tmp_path, views)
    done = here("train", "pairs", tmp_path, "--check")
    assert done.code in (2, 3) and done.err.count("\n") == 1, done.err
    assert words in done.err


def test_check_tells_what_does_not_fit(here, tmp_path: Path, views: list[Image.Image], photograph: Image.Image) -> None:
    write_folders(tmp_path, views)
    wide = photograph.resize((300, 224))
    save(wide.crop((10, 8, 266, 208)), tmp_path / "A" / "moved.png")
    save(darken(wide).crop((0, 0, 256, 200)), tmp_path / "B" / "moved.png")
    save(views[1], tmp_path / "A" / "same.png")
    save(views[1], tmp_path / "B" / "same.png")
    save(views[0], tmp_path / "A" / "alone.png")
    save(views[0], tmp_path / "A" / "shape.png")
    save(views[0].resize((96, 60)), tmp_path / "B" / "shape.png")
    (tmp_path / "A" / "broken.png").write_bytes(b"no picture")
    save(views[0], tmp_path / "B" / "broken.png")
    os.mkfifo(tmp_path / "A" / "pipe.png")
    save(views[2], tmp_path / "B" / "pipe.png")
    done = here("train", "pairs", tmp_path, "--check", "-o", tmp_path / "sheet")
    assert done.code == 0, done.err
    lines = done.err.splitlines()
    assert "folders A/ B/: 9 pairs to train on, 1 to validate with" in lines[0]
    assert "sizes: 96 x 96 to 256 x 200" in lines[1]
    assert any("2 without a partner" in line and "alone.png" in line and "pipe.png" in line for line in lines)
    assert any("1 not aligned" in line and "moved by 10, 8" in line for line in lines)
    assert any("with the same picture on both sides: same" in line for line in lines)
    assert any("1 inputs come more than once" in line for line in lines)
    assert any("2 left out" in line for line in lines)
    assert any("crop one of them" in line for line in lines) and any("broken.png" in line for line in lines)
    with Image.open(tmp_path / "sheet" / "pairs.jpg") as sheet:
        assert sheet.width == 768
    assert not (tmp_path / "sheet" / "checkpoints").exists()


@pytest.mark.parametrize("shift", [(0, 0), (5, 0), (-3, 7)])
def test_a_shift_is_found(photograph: Image.Image, shift: tuple[int, int]) -> None:
    grey = np.asarray(photograph.resize((220, 200)).convert("L"), np.float32)
    first = grey[20:180, 20:200]
    second = grey[20 - shift[1] : 180 - shift[1], 20 - shift[0] : 200 - shift[0]]
    assert find_shift(first, second * 0.7) == shift


def test_ssim_agrees_with_another_implementation(photograph: Image.Image) -> None:
    from skimage.metrics import structural_similarity

    noisy = Image.fromarray(np.random.default_rng(0).normal(np.asarray(photograph), 20).clip(0, 255).astype(np.uint8))
    wanted = structural_similarity(
        np.asarray(photograph), np.asarray(noisy), channel_axis=-1, data_range=255, use_sample_covariance=False
    )
    assert abs(measure_ssim(noisy, photograph) - wanted) < 1e-3
    assert measure_ssim(photograph, photograph) == pytest.approx(1)


def make_trainer(root: Path, views: list[Image.Image], **settings) -> Trainer:
    pairs = check_pairs(find_pairs(write_folders(root, views))).training
    chosen = Settings(**{"size": 64, "batch_size": 2, "longest": 96, **settings})
    return Trainer(chosen, PairData(pairs, longest=96, size=64), torch.device("cpu"))


def test_a_network_learns_and_an_average_is_kept(tmp_path: Path, views: list[Image.Image]) -> None:
    trainer = make_trainer(tmp_path, views)
    losses = [trainer.advance(step / 60).difference for step in range(60)]
    assert np.mean(losses[-5:]) < 0.4 * np.mean(losses[:3])
    own, average = (next(net.parameters()) for net in (trainer.net, trainer.averaged))
    assert not torch.equal(own, average)


def test_an_adversary_learns_to_tell_and_moves_the_network(tmp_path: Path, views: list[Image.Image]) -> None:
    with_one = make_trainer(tmp_path, views, adversarial=0.1)
    told = [with_one.advance(0.0) for _ in range(12)]
    assert told[-1].discriminator < told[0].discriminator
    assert told[-1].real > told[-1].made
    without = make_trainer(tmp_path, views)
    for _ in range(12):
        without.advance(0.0)
    assert any(not torch.equal(a, b) for a, b in zip(with_one.net.parameters(), without.net.parameters(), strict=True))


def test_the_hinge_loss_and_the_augmentation() -> None:
    assert compare(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -3.0])) == 0
    assert compare(torch.tensor([0.0]), torch.tensor([0.0])) == 1
    pictures = torch.rand(3, 6, 64, 64)
    one, again = (augment(pictures, torch.Generator().manual_seed(4)) for _ in range(2))
    assert one.shape == pictures.shape and torch.equal(one, again) and not torch.equal(one, pictures)
    scores = PatchDiscriminator()(pictures[:, :3], pictures[:, 3:])
    assert scores.shape == (3, 1, 6, 6)


@pytest.mark.parametrize("adversarial", [0.0, 0.05])
def test_a_state_goes_on_to_the_same_weights(tmp_path: Path, views: list[Image.Image], adversarial: float) -> None:
    whole = make_trainer(tmp_path, views, adversarial=adversarial)
    for step in range(6):
        whole.advance(step / 6)
    first = make_trainer(tmp_path, views, adversarial=adversarial)
    for step in range(3):
        first.advance(step / 6)
    torch.save(first.state(), tmp_path / "state.pt")
    second = make_trainer(tmp_path, views, adversarial=adversarial)
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(3, 6):
        second.advance(step / 6)
    for key, value in whole.averaged.state_dict().items():
        assert torch.equal(value, second.averaged.state_dict()[key]), key


@pytest.fixture
def trained(here, tmp_path: Path, views: list[Image.Image]) -> Path:
    write_folders(tmp_path / "pairs", views)
    done = here("train", "pairs", tmp_path / "pairs", "-o", tmp_path / "look", "--steps", 40, *QUICK)
    assert done.code == 0, done.err
    return tmp_path / "look"


@pytest.mark.slow
def test_what_comes_out_is_a_preset_that_can_be_moved(
    here, fresh, tmp_path: Path, trained: Path, picture: Path
) -> None:
    for name in (
        "model.safetensors",
        "net.json",
        "preset.yaml",
        "README.md",
        "sheet.jpg",
        "report.html",
        "metrics.jsonl",
    ):
        assert (trained / name).stat().st_size > 0, name
    moved = tmp_path / "elsewhere" / "my look"
    moved.parent.mkdir()
    shutil.move(trained, moved)
    done = here("edit", picture, tmp_path / "o.png", "--preset", moved)
    assert done.code == 0, done.err
    with Image.open(tmp_path / "o.png") as made, Image.open(picture) as before:
        assert made.size == before.size
        light = [np.asarray(image.convert("L"), float).mean() for image in (made, before)]
        assert light[0] < 0.85 * light[1], "it learnt to darken"
    assert json.loads(here("info", "--json", tmp_path / "o.png").out)["parameters"]["model"] == str(moved)
    done = here("batch", picture.parent, "-o", tmp_path / "out", "--preset", moved)
    assert done.code == 0, done.err
    for command in (["presets", "show", moved], ["doctor", moved]):
        done = here(*command)
        assert done.code == 0, done.err


@pytest.mark.slow
def test_a_preset_is_measured_on_pairs(here, tmp_path: Path, trained: Path) -> None:
    done = here("train", "evaluate", trained, tmp_path / "pairs", "--all", "--json", "-o", tmp_path / "measured")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["pairs"] == 8
    assert told["psnr"] > told["input_psnr"] + 3
    assert (tmp_path / "measured" / "sheet.jpg").is_file()
    done = here("train", "evaluate", "style-bw", tmp_path / "pairs", "--set", "image_size=64", "--steps", "2")
    assert done.code == 0, done.err
    assert "| PSNR, dB |" in done.out.decode()


def test_a_preset_that_enlarges_is_given_the_small_picture(here, tmp_path: Path, photograph: Image.Image) -> None:
    for index in range(2):
        view = photograph.crop((8 * index, 0, 8 * index + 80, 64))
        save(view.resize((40, 32), Image.Resampling.BICUBIC), tmp_path / "A" / f"{index}.png")
        save(view, tmp_path / "B" / f"{index}.png")
    done = here("train", "evaluate", "upscale", tmp_path, "--all", "--json", "--set", "scale=2")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["psnr"] > told["input_psnr"] + 1, "it is nearer than the enlarged input"


@pytest.mark.slow
def test_a_run_is_not_overwritten_and_is_resumed_with_its_own_settings(here, tmp_path: Path, trained: Path) -> None:
    command = ["train", "pairs", tmp_path / "pairs", "-o", trained]
    done = here(*command, "--steps", 50, *QUICK)
    assert (done.code, done.err.splitlines()[-1].count("--resume")) == (2, 1)
    done = here(*command, "--steps", 50, "--crop", 96, "--resume")
    assert done.code == 2 and "size" in done.err and "batch_size" in done.err
    done = here(*command, "--steps", 42, *QUICK, "--resume", "--json")
    assert done.code == 0, done.err
    events = [json.loads(line) for line in done.out.splitlines()]
    assert {"resumed", "step", "validated", "finished"} <= {event["event"] for event in events}
    assert events[-1]["step"] == 42
    names = sorted(path.name for path in (trained / "checkpoints").iterdir())
    assert names[0] == "best.pt" and names[-1] == "step-00000042.pt"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_was_stopped_ends_in_the_same_weights(
    here, tmp_path: Path, views: list[Image.Image], number: int, code: int
) -> None:
    data = write_folders(tmp_path / "pairs", views)
    common = ["train", "pairs", data, "--steps", 30, *QUICK]
    assert here(*common, "-o", tmp_path / "whole").code == 0
    process = Warm([*common, "-o", tmp_path / "parts", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not any((tmp_path / "parts" / "metrics.jsonl").parent.glob("metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(1)
    process.send_signal(number)
    process.communicate(timeout=300)
    if process.returncode:  # on a fast machine it may have ended before
        assert process.returncode == code
    resumable = any((tmp_path / "parts" / "checkpoints").glob("step-*"))
    assert resumable or number == signal.SIGKILL
    if number != signal.SIGKILL:
        assert (tmp_path / "parts" / "preset.yaml").is_file(), "what was reached is usable"
    assert here(*common, "-o", tmp_path / "parts", *(["--resume"] if resumable else [])).code == 0
    ends = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_a_full_disk_is_one_line(here, tmp_path: Path, views: list[Image.Image], monkeypatch) -> None:
    from img2img_cli.train.pairs import run_folder

    def refuse(data: bytes, output: str) -> None:
        from img2img_cli.errors import OutputError

        raise OutputError(f"{output}: cannot be written (No space left on device); free space on its disk")

    data = write_folders(tmp_path / "pairs", views)
    monkeypatch.setattr(run_folder, "write_output_bytes", refuse)
    done = here("train", "pairs", data, "-o", tmp_path / "run", "--steps", 2, *QUICK)
    assert done.code == 6
    assert "No space left" in done.err.splitlines()[-1] and "Traceback" not in done.err


def test_a_loss_that_is_no_number_is_one_line(here, tmp_path: Path, views: list[Image.Image], monkeypatch) -> None:
    data = write_folders(tmp_path / "pairs", views)
    monkeypatch.setattr(PairData, "draw", lambda self, *_: spoil(draw(self, *_)))
    done = here("train", "pairs", data, "-o", tmp_path / "run", "--steps", 2, *QUICK)
    assert done.code == 5
    assert "not a number" in done.err.splitlines()[-1]


@pytest.mark.parametrize(("error", "code"), [(InputError("a.png: gone"), 3), (OutOfMemoryError("cpu: full"), 8)])
def test_what_ends_a_run_leaves_what_was_reached(here, tmp_path: Path, views, monkeypatch, error, code: int) -> None:
    def fail(self, seed: int, step: int, count: int):
        if step == 3:
            raise error
        return draw(self, seed, step, count)

    data = write_folders(tmp_path / "pairs", views)
    monkeypatch.setattr(PairData, "draw", fail)
    command = ["train", "pairs", data, "-o", tmp_path / "run", "--steps", 5, *QUICK]
    done = here(*command)
    assert (done.code, done.err.splitlines()[-1]) == (code, f"img2img: {error}")
    assert (tmp_path / "run" / "checkpoints" / "step-00000003.pt").is_file()
    assert (tmp_path / "run" / "preset.yaml").is_file()
    monkeypatch.setattr(PairData, "draw", draw)
    assert here(*command, "--resume").code == 0


draw = PairData.draw


def spoil(batch):
    batch.target.fill_(torch.nan)
    return batch


def test_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        find_pairs(tmp_path / "nowhere")


def test_places_tell_a_network_where_a_tile_lies(tmp_path: Path, photograph: Image.Image) -> None:
    """A vignette is learnt from crops and comes out whole, in tiles as at once."""
    from img2img_cli.engines.device import choose_placement
    from img2img_cli.engines.nets.folder import save_net
    from img2img_cli.engines.nets.picture_unet import PictureUNet
    from img2img_cli.engines.open import open_pipeline
    from img2img_cli.presets.schema import Parameters
    from img2img_cli.tasks.run import transform_image

    torch.manual_seed(0)
    net = PictureUNet(widths=(8, 8), blocks=(1, 1), places=True)
    torch.nn.init.normal_(net.leave.weight, std=0.02)
    save_net(net, tmp_path, torch.float32)
    image = Image.new("RGB", (400, 260), "grey")
    made = []
    for tile in (1024, 96):
        parameters = Parameters(model=str(tmp_path), prompt="fog", strength=1.0, tile_size=tile, tile_overlap=32)
        made.append(
            transform_image(image, parameters, 0, open_pipeline(parameters, choose_placement("cpu", "float32")))
        )
    whole = np.asarray(made[0], int)
    assert np.abs(whole[:, 20] - whole[:, -20]).max() > 2, "left and right are told apart"
    assert psnr(*made) > 50


@pytest.mark.slow
def test_a_terminal_shows_a_bar_and_a_file_lines(tmp_path: Path, views: list[Image.Image]) -> None:
    data = write_folders(tmp_path / "pairs", views)
    terminal, its_end = pty.openpty()
    with Warm(["train", "pairs", data, "-o", tmp_path / "run", "--minutes", "0.08", *QUICK], stderr=its_end) as process:
        os.close(its_end)
        told = b""
        with contextlib.suppress(OSError):  # which Linux raises once the other end is closed
            while more := os.read(terminal, 4096):
                told += more
        assert process.wait(120) == 0
    os.close(terminal)
    text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", told).decode()
    assert re.search(r"step \d+, 0\.\d min, difference 0\.\d+, 0\.\d min left +\S*━", text), text
    assert "validation" in text and "use it with --preset" in text
