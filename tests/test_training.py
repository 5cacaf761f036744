"""Train the bundled model on a few pictures: it learns, resumes, and writes a usable model."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionControlNetImg2ImgPipeline
from PIL import Image
from safetensors.torch import load_file

from img2img_cli.presets.references import BUNDLED, BUNDLED_NETS, bundled_dir
from img2img_cli.train.bundled import autoencoder, classifier, diffusion, recipe, samples
from img2img_cli.train.bundled.captions import compose_caption, measure_colours
from img2img_cli.train.bundled.classifier import CLASSES, classify, train_classifier
from img2img_cli.train.bundled.degrade import recolour
from img2img_cli.train.bundled.evaluate import Evaluation, format_tables, write_evaluation
from img2img_cli.train.bundled.styles import STYLES
from img2img_cli.train.card import BEGIN, END
from img2img_cli.train.data import BalancedDraw, Photograph, read_shard
from img2img_cli.train.diffusion.noising import weigh_loss
from img2img_cli.train.metrics import correlate_structure, measure_chroma, measure_detail, measure_psnr


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of three crops and of one of scikit-image's photographs, with captions."""
    from skimage import data

    folder = tmp_path_factory.mktemp("shards")
    pictures = [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "coffee", "chelsea")]
    for number in range(2):
        with tarfile.open(folder / f"photos-{number:02}.tar", "w") as tar:
            rows = []
            for index, picture in enumerate(pictures[: 1 if number else None]):
                left = 40 * number
                blob = io.BytesIO()
                picture.crop((left, 0, left + 260, 260)).save(blob, "WEBP", quality=90)
                add(tar, f"{index}.webp", blob.getvalue())
                rows.append({"file": f"{index}.webp", "caption": f"a photo of {index}", "source": "here"})
            add(tar, "captions.jsonl", "\n".join(map(json.dumps, rows)).encode())
    return folder


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


@pytest.fixture(scope="module")
def photographs(shards: Path) -> list[Photograph]:
    return read_shard(shards / "photos-00.tar")


@pytest.mark.slow
def test_training_goes_on_from_the_bundled_model_and_from_its_own_checkpoint(
    shards, tmp_path, here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusion, "RESOLUTIONS", ((64, 2, 1.0),))
    monkeypatch.setattr(recipe, "CROP", 64)
    monkeypatch.setattr(recipe, "BATCH_SIZE", 2)
    monkeypatch.setattr(samples, "SIZE", 64)
    monkeypatch.setattr(samples, "STEPS", 2)
    command = ["train", "bundled", "--from", "bundled", "--data", shards, "--out", tmp_path]
    assert here(*command, "--steps", "1").code == 0
    first = torch.load(tmp_path / "diffusion.pt", weights_only=True)
    assert first["step"] == 1
    assert {"modules", "optimizer", "ema", "seed", "spent"} <= set(first)
    assert here(*command, "--steps", "2", "--resume").code == 0
    second = torch.load(tmp_path / "diffusion.pt", weights_only=True)
    assert second["step"] == 2
    assert second["spent"] > first["spent"]
    assert list(tmp_path.glob("samples-*.jpg"))

    folder = tmp_path / "bundled"
    pipe = StableDiffusionControlNetImg2ImgPipeline.from_pretrained(folder, use_safetensors=True)
    assert type(pipe.vae) is AutoencoderTiny
    before, after = (
        load_file(root / "vae" / "diffusion_pytorch_model.safetensors") for root in (bundled_dir(), folder)
    )
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("encoder"))
    assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith("decoder"))
    picture = Image.new("RGB", (64, 64), "teal")
    picture.save(tmp_path / "in.png")
    common = ["--prompt", "fog", "--model", folder, "--preset", "edit", "--set", "image_size=64"]
    done = here("edit", tmp_path / "in.png", tmp_path / "out.png", *common)
    assert done.code == 0, done.err


@pytest.mark.parametrize("name", [BUNDLED, *BUNDLED_NETS])
def test_the_shipped_weights_are_those_of_the_card(name: str) -> None:
    folder = bundled_dir(name)
    listed = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    found = {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*.safetensors")
    }
    assert found == listed
    card = (folder / "README.md").read_text()
    tables = card.partition(BEGIN)[2].partition(END)[0]
    assert ("dB" in card or "chroma error" in tables) and tables.count("|") > 20
    assert (folder / "evaluation.jpg").is_file()


def test_all_weights_together_stay_small() -> None:
    folder = bundled_dir().parent
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 60e6
    config = json.loads((bundled_dir() / "vae" / "config.json").read_text())
    assert not any(str(value).startswith("/") for value in config.values())


@pytest.mark.parametrize("reference", ["owner/name", "model.safetensors"])
def test_training_goes_on_from_folders_only(reference, shards, tmp_path, here, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").touch()
    done = here("train", "bundled", "--data", shards, "--from", reference, "--out", tmp_path / "out")
    assert done.code == 2
    assert reference in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_autoencoder_learns(photographs) -> None:
    torch.manual_seed(0)
    vae = autoencoder.build_autoencoder()
    stage = autoencoder.make_stage(vae, torch.device("cpu"))
    batches = autoencoder.draw_crops(photographs, size=64, batch_size=4, seed=0)
    optimizer = torch.optim.AdamW(stage.parameters, lr=2e-3)
    losses = []
    for step in range(30):
        loss = stage.compute_loss(next(batches), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


@pytest.mark.slow
def test_every_parameter_but_the_autoencoders_is_trained(photographs) -> None:
    networks = diffusion.load_networks(bundled_dir())
    stage = diffusion.make_stage(networks, torch.device("cpu"))
    batch = next(diffusion.draw_examples(photographs, networks.tokenizer, 0))
    stage.compute_loss({key: value[:2] for key, value in batch.items()}, 0).backward()
    for name, module in stage.modules.items():
        without = [key for key, p in module.named_parameters() if p.grad is None]
        assert not without, f"{name}: {without}"
    assert not any(p.requires_grad for p in networks.vae.parameters())


def test_deterministic_sampling_from_the_noised_input_meets_what_training_shows() -> None:
    """Run DDIM from a noised input with a perfect prediction; each step has the residual of the formula."""
    scheduler = diffusion.load_networks(bundled_dir()).scheduler
    generator = torch.Generator().manual_seed(0)
    source, target, noise = (torch.randn(1, 4, 4, 4, generator=generator) for _ in range(3))
    scheduler.set_timesteps(10)
    steps = scheduler.timesteps[4:]
    sample = scheduler.add_noise(source, noise, steps[:1])
    alphas = scheduler.alphas_cumprod
    first = alphas[steps[0]]
    residual = (first / (1 - first)).sqrt() * (source - target)
    for step in steps:
        expected = scheduler.add_noise(target, noise + residual, step[None])
        assert torch.allclose(sample, expected, atol=1e-4)
        velocity = scheduler.get_velocity(target, noise + residual, step[None])
        sample = scheduler.step(velocity, step, sample, eta=0.0).prev_sample
    assert torch.allclose(sample, target, atol=0.05)


def test_starts_lie_at_or_before_the_timestep() -> None:
    scheduler = diffusion.load_networks(bundled_dir()).scheduler
    torch.manual_seed(0)
    timesteps = torch.randint(0, 1000, (2000,))
    weights = diffusion.draw_residual_weights(scheduler, timesteps).flatten()
    alphas = scheduler.alphas_cumprod[timesteps]
    assert (weights <= (alphas / (1 - alphas)).sqrt() + 1e-6).all()
    assert 0.3 < float((weights == 0).float().mean()) < 0.5
    assert float(weights.max()) > 1


def test_terminal_steps_are_learnt() -> None:
    scheduler = diffusion.load_networks(bundled_dir()).scheduler
    weights = weigh_loss(scheduler.alphas_cumprod[[999, 500, 0]], "v_prediction")
    assert weights[0] == pytest.approx(1.0, abs=1e-3)
    assert weights[2] < 0.1


@pytest.mark.parametrize("style", STYLES)
def test_styles_change_a_picture_and_keep_its_structure(style, photographs) -> None:
    view = Image.fromarray(photographs[0].pixels)
    styled = STYLES[style](view, np.random.default_rng(0))
    assert styled.size == view.size
    assert styled.mode == "RGB"
    assert measure_psnr(styled, view) < 28
    assert correlate_structure(styled, view) > 0.5


@pytest.mark.slow
def test_a_classifier_tells_styles_apart(photographs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "VIEWS", ((96, 20), (192, 6)))
    model = train_classifier(photographs, steps=90)
    view = Image.fromarray(photographs[2].pixels)
    named = {style: classify(model, apply(view, np.random.default_rng(0))) for style, apply in STYLES.items()}
    right = [style for style, found in named.items() if style == found]
    assert len(right) >= 9, named
    assert classify(model, view) in CLASSES


def test_metrics_know_better_from_worse(photographs) -> None:
    truth = Image.fromarray(photographs[1].pixels)
    grey = truth.convert("L").convert("RGB")
    blurred = truth.reduce(4).resize(truth.size, Image.Resampling.BICUBIC)
    assert measure_psnr(truth, truth) > 100 > measure_psnr(blurred, truth)
    assert measure_detail(blurred) < 0.8 * measure_detail(truth)
    error, of_grey, chroma = measure_chroma(grey, truth)
    assert error == pytest.approx(of_grey, rel=0.01)
    assert chroma < 1
    assert correlate_structure(grey, truth) > 0.99
    assert abs(correlate_structure(Image.fromarray(photographs[0].pixels), truth)) < 0.5


def test_recolouring_changes_hue_and_keeps_value(photographs) -> None:
    view = Image.fromarray(photographs[1].pixels)
    other = recolour(view, np.random.default_rng(3))
    assert measure_colours(other) != measure_colours(view)
    drift = np.abs(np.asarray(other.convert("HSV"), int)[..., 2] - np.asarray(view.convert("HSV"), int)[..., 2])
    assert drift.mean() < 2


def test_captions_name_the_task_first_and_are_at_times_empty() -> None:
    rng = np.random.default_rng(0)
    styled = [compose_caption("edit", "tulips", ["red"], "fog", rng) for _ in range(400)]
    assert {c.split(", ")[0] for c in styled} == {"edit", ""}
    assert all(c.startswith("edit, fog") for c in styled if c)
    assert 0.08 < styled.count("") / 400 < 0.17
    assert {"edit, fog", "edit, fog, tulips, red", "edit, fog, red", "edit, fog, tulips"} <= set(styled)
    plain = [compose_caption("edit", "tulips", ["red"], None, rng) for _ in range(100)]
    assert "edit" not in plain


def test_small_sources_are_drawn_more_often_than_their_share() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    many = [Photograph(pixels=pixels, caption="", source="many")] * 90
    few = [Photograph(pixels=pixels, caption="", source="few")] * 10
    draw, rng = BalancedDraw([*many, *few]), np.random.default_rng(0)
    share = np.mean([draw(rng).source == "few" for _ in range(1000)])
    assert 0.2 < share < 0.3


def test_an_evaluation_is_written_between_the_cards_marks(tmp_path) -> None:
    card = tmp_path / "README.md"
    card.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    evaluation = Evaluation(
        counts={"held out": 2, "scikit-image": 3, "styles": 1},
        figures={"autoencoder: PSNR, dB": {"held out": 31.0, "scikit-image": 29.0}},
        styles={"fog": {"accuracy": 1.0, "structure": 0.9, "accuracy of the style itself": 1.0, "its structure": 0.8}},
        sheet=Image.new("RGB", (8, 8)),
    )
    write_evaluation(evaluation, tmp_path / "out", card)
    text = card.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert format_tables(evaluation) in text
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["styles"]["fog"]["accuracy"] == 1.0
    assert (tmp_path / "evaluation.json").read_bytes() == (tmp_path / "out" / "evaluation.json").read_bytes()
    assert Image.open(tmp_path / "evaluation.jpg").size == (4, 4)
