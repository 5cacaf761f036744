"""Diffusion models taught on pairs: every family's LoRA, ControlNets, InstructPix2Pix, and runs that go on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from twins import make_twin

from img2img_cli.engines.device import choose_placement
from img2img_cli.engines.open import open_pipeline
from img2img_cli.errors import UsageError
from img2img_cli.presets.catalogue import resolve
from img2img_cli.presets.files import load_preset
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.run import transform_image
from img2img_cli.train.diffusion import trainer as trainer_module
from img2img_cli.train.diffusion.capture import stack
from img2img_cli.train.diffusion.noising import Schedule, Steps
from img2img_cli.train.diffusion.settings import choose_run
from img2img_cli.train.diffusion.trainer import DiffusionTrainer
from img2img_cli.train.pairs.check import Checked, check_pairs
from img2img_cli.train.pairs.layouts import find_pairs

BASES = ("sd15-edit", "sdxl-edit", "pix2pix", "pix2pix-xl", "flux-dev", "flux-kontext", "flux2-klein", "qwen-edit")
PLACEMENT = choose_placement("cpu", "float32")
FEW = {"num_inference_steps": 4, "image_size": 64}


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory, photograph: Image.Image) -> Checked:
    """Return three pairs of one size, one of them for validation, of an inverted picture."""
    root = tmp_path_factory.mktemp("pairs")
    for index in range(3):
        view = photograph.resize((160, 120)).crop((8 * index, 0, 8 * index + 96, 64))
        for side, image in (("A", view), ("B", view.point([255 - v for v in range(256)] * 3))):
            (root / side).mkdir(exist_ok=True)
            image.save(root / side / f"{index}.png")
            (root / side / f"{index}.txt").write_text("an inverted picture")
    return check_pairs(find_pairs(root))


@pytest.fixture
def few_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not learn pairs mirrored too."""
    monkeypatch.setattr(trainer_module, "FEW_PAIRS", 0)


@pytest.fixture(scope="module")
def twin_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes the twin of a preset's model, once."""
    root, made = tmp_path_factory.mktemp("twins"), {}

    def find(reference: str) -> Path:
        if reference not in made:
            made[reference] = root / reference.replace("/", "--")
            make_twin(reference, made[reference])
        return made[reference]

    return find


def of_twin(parameters: Parameters, twin_of: Callable[[str], Path]) -> Parameters:
    own = {"model": str(twin_of(parameters.model)), "revision": None, "variant": None, "vae": None, **FEW}
    return parameters.model_copy(update=own)


def teach(base: str, method: str, checked: Checked, folder: Path, twin_of, **given: object) -> DiffusionTrainer:
    """Return a trainer on the twin of a base; unless told otherwise, with each pair in one form."""
    quick = {"size": 64, "learning_rate": 0.05, "caption_dropout": 0.0}
    settings, parameters, _ = choose_run(base, method, seed=3, given=quick | given)
    if base != "bundled":
        parameters = of_twin(parameters, twin_of)
    return DiffusionTrainer(settings, parameters, checked.training, PLACEMENT, folder, lambda done, total: None)


def apply_run(folder: Path, base: Parameters, keys: dict[str, object], picture: Image.Image) -> np.ndarray:
    """Return a picture as the preset of a run makes it, with the twin in place of the model."""
    changed = {
        key: tuple(str(folder / each.removeprefix("./")) for each in value) if isinstance(value, list) else value
        for key, value in keys.items()
    }
    changed = {k: str(folder / v[2:]) if isinstance(v, str) and v.startswith("./") else v for k, v in changed.items()}
    parameters = base.model_copy(update=changed)
    return np.asarray(transform_image(picture, parameters, 7, open_pipeline(parameters, PLACEMENT)), np.float32)


@pytest.mark.usefixtures("few_forms")
@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_a_lora_of_each_family_is_learnt_and_changes_the_picture(
    base: str, checked: Checked, tmp_path: Path, twin_of, photograph: Image.Image
) -> None:
    trainer = teach(base, "lora", checked, tmp_path, twin_of, batch_size=2, rank=4, alpha=8.0)
    losses = [trainer.advance(0.0).difference for _ in range(3)]
    assert np.isfinite(losses).all()
    assert len({*losses}) == 3
    trainer.save(tmp_path)
    preset = yaml.safe_load(trainer.format_preset("run", checked))
    assert (preset["extends"], preset["lora"]) == (base, ["./lora.safetensors"])
    assert (preset["prompt"], preset["image_size"]) == ("an inverted picture", 64)
    keys = {key: preset[key] for key in ("lora", "prompt")}
    parameters = trainer._base
    plain = apply_run(tmp_path, parameters, {"prompt": preset["prompt"]}, photograph)
    taught = apply_run(tmp_path, parameters, keys, photograph)
    assert np.abs(plain - taught).mean() > 0.1
    pair = checked.validation[0]
    with Image.open(pair.input) as source, Image.open(pair.output) as target:
        (row,) = trainer.measure([(pair, source.convert("RGB"), target.convert("RGB"))]).rows
    assert row[2].size == target.size


@pytest.mark.usefixtures("few_forms")
@pytest.mark.slow
@pytest.mark.parametrize("base", ["sd15-edit", "sdxl-edit", "bundled"])
def test_a_controlnet_is_learnt_and_used(base: str, checked: Checked, tmp_path: Path, twin_of, photograph) -> None:
    trainer = teach(base, "controlnet", checked, tmp_path, twin_of, batch_size=2)
    for _ in range(3):
        trainer.advance(0.0)
    trainer.save(tmp_path)
    preset = yaml.safe_load(trainer.format_preset("run", checked))
    assert (preset["controlnet"], preset["control"], preset["strength"]) == ("./controlnet", "picture", 1.0)
    keys = {key: preset[key] for key in ("controlnet", "control", "strength", "prompt")}
    parameters = trainer._base.model_copy(update={**FEW, "control": "picture"})
    taught = apply_run(tmp_path, parameters, keys, photograph)
    other = apply_run(tmp_path, parameters, keys, photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert np.abs(taught - other).mean() > 0.03, "it does not see the picture"
    assert np.abs(taught - apply_run(tmp_path, parameters, {**keys, "controlnet": None}, photograph)).mean() > 0.03


@pytest.mark.usefixtures("few_forms")
@pytest.mark.slow
@pytest.mark.parametrize("base", ["sd15-edit", "sdxl-edit"])
def test_instruct_pix2pix_is_learnt_and_used(base: str, checked: Checked, tmp_path: Path, twin_of, photograph) -> None:
    trainer = teach(base, "ip2p", checked, tmp_path, twin_of, batch_size=2)
    before = trainer._taught.module.conv_in.weight.detach().clone()
    assert not before[:, 4:].any()
    for _ in range(3):
        trainer.advance(0.0)
    assert trainer._taught.module.conv_in.weight[:, 4:].any()
    trainer.save(tmp_path)
    keys = yaml.safe_load(trainer.format_preset("run", checked))
    del keys["extends"], keys["description"]
    parameters = trainer._base.model_copy(update=FEW)
    taught = apply_run(tmp_path, parameters, keys, photograph)
    other = apply_run(tmp_path, parameters, keys, photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert np.abs(taught - other).mean() > 0.1, "it does not see the picture"


@pytest.mark.parametrize("base", ["pix2pix", "flux-kontext"])
def test_a_method_that_a_base_cannot_take_is_refused(base: str, checked: Checked, tmp_path: Path, twin_of) -> None:
    with pytest.raises(UsageError, match="--method lora"):
        teach(base, "ip2p", checked, tmp_path, twin_of)


@pytest.mark.slow
def test_training_sees_what_the_pipeline_is_given(checked: Checked, tmp_path: Path, twin_of) -> None:
    """A perfect answer at the first step of a run from the noised input leads to the wanted picture's latents."""
    trainer = teach("sd15-edit", "lora", checked, tmp_path, twin_of, batch_size=2)
    example = trainer._store.get(trainer._keys[0][0])
    schedule = Schedule(trainer._taught.pipe.scheduler, example.steps)
    scheduler = trainer._taught.pipe.scheduler
    first = example.steps.timesteps[:1].long()
    noise = torch.randn(example.target.shape, generator=torch.Generator().manual_seed(0))
    begun = scheduler.add_noise(example.source, noise, first)
    told = noise + schedule.start * (example.source - example.target)
    assert torch.allclose(begun, scheduler.add_noise(example.target, told, first), atol=1e-4)
    both = stack([example, trainer._store.get(trainer._keys[1][0])])
    assert both.target.shape[0] == both.model["encoder_hidden_states"].shape[0] == 2


def test_few_steps_are_trained_on_themselves() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    generator = torch.Generator().manual_seed(0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    for count in (4, 30):
        scheduler.set_timesteps(count)
        steps = Steps(timesteps=scheduler.timesteps.float(), sigmas=scheduler.sigmas[:count].float(), unit=1e-3)
        moment = Schedule(scheduler, steps).draw(200, generator)
        own = (moment.noise[:, None] - steps.sigmas).abs().min(1).values < 1e-6
        assert own.all() == (count == 4)
        assert torch.allclose(moment.timesteps, moment.noise, atol=1e-5)
        latents, noise = torch.randn(200, 8, generator=generator), torch.randn(200, 8, generator=generator)
        noisy, wanted = Schedule(scheduler, steps).mix(latents, noise, moment)
        assert torch.allclose(noisy - moment.noise[:, None] * wanted, latents, atol=1e-5)


@pytest.mark.slow
def test_a_state_goes_on_to_the_same_weights(checked: Checked, tmp_path: Path, twin_of) -> None:
    options = {"batch_size": 2, "accumulate": 2, "caption_dropout": 0.3}
    whole = teach("sd15-edit", "lora", checked, tmp_path, twin_of, **options)
    for _ in range(4):
        whole.advance(0.1)
    parts = teach("sd15-edit", "lora", checked, tmp_path, twin_of, **options)
    for _ in range(2):
        parts.advance(0.1)
    torch.save(parts.state(), tmp_path / "state.pt")
    again = teach("sd15-edit", "lora", checked, tmp_path, twin_of, **options)
    again.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        again.advance(0.1)
    assert all(map(torch.equal, whole._averaged, again._averaged))
    assert any(average.any() for average in whole._averaged)


@pytest.mark.slow
def test_the_command_teaches_the_bundled_model(here, checked: Checked, tmp_path: Path, picture: Path) -> None:
    data = checked.training[0].input.parents[1]
    common = ["train", "pairs", data, "-o", tmp_path / "run", "--base", "bundled", "--crop", 64, "--batch-size", 2]
    done = here(*common, "--steps", 2)
    assert done.code == 0, done.err
    assert "method controlnet on bundled" in done.err
    assert here(*common, "--steps", 3, "--resume").code == 0
    moved = tmp_path / "elsewhere" / "mine"
    moved.parent.mkdir()
    shutil.move(tmp_path / "run", moved)
    done = here("edit", picture, tmp_path / "out.png", "--preset", moved, "--set", "image_size=64", "--no-server")
    assert done.code == 0, done.err
    assert (moved / "README.md").is_file()
    assert resolve(load_preset(str(moved)), {}).parameters.controlnet == str(moved / "controlnet")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "lora"], "--base"),
        (["--base", "bundled", "--method", "gan"], "leave --base out"),
        (["--base", "bundled", "--adversarial", "0.1"], "--adversarial"),
        (["--rank", "4"], "--rank"),
        (["--base", "restore"], "no diffusion model"),
        (["--base", "esrgan-upscale"], "no diffusion model"),
        (["--base", "sd15-edti"], "did you mean"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(here, checked, tmp_path: Path, options, words: str) -> None:
    data = checked.training[0].input.parents[1]
    done = here("train", "pairs", data, "-o", tmp_path / "run", "--steps", 1, *options)
    assert done.code == 2, done.err
    assert words in done.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
