"""Features that change a module's calls, in combination: cached features and prompts, guidance that ends early,
offloading, compiling, a ControlNet, a refiner, LoRAs and lanes. Each picture equals that of the plain pipeline.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from conftest import Count, psnr
from PIL import Image
from twins import make_twin

from img2img_cli.engines import cpu_kernels
from img2img_cli.engines.device import choose_placement
from img2img_cli.engines.diffusion.build import build_pipeline
from img2img_cli.engines.diffusion.compiling import Plan, compile_parts
from img2img_cli.engines.diffusion.feature_cache import cache_features, find_cache
from img2img_cli.engines.diffusion.latents import LatentsPipeline
from img2img_cli.engines.diffusion.offload import apply_offload
from img2img_cli.engines.module_calls import wrap_call, wrap_forward
from img2img_cli.presets.catalogue import resolve
from img2img_cli.presets.files import load_preset
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.batching import run_works
from img2img_cli.tasks.run import start_work, transform_image
from img2img_cli.tasks.side_inputs import SideInputs

CPU = torch.device("cpu")
OFFLOADS = ("model", "sequential", "group")
GUIDED = {"guidance_scale": 3.0, "num_inference_steps": 5, "strength": 0.8, "image_size": 64}
BOTH = {"cache_interval": 3, "guidance_end": 0.25}
SPEEDS: tuple[dict[str, float], ...] = (BOTH, {"cache_interval": 2}, BOTH, {})  # one picture after the other


def move(pipeline: LatentsPipeline, offload: str) -> None:
    """Make a pipeline's parts move between memories as on a GPU."""
    if offload == "sequential":  # diffusers asks for cpu:0, which accelerate takes for another device than the CPU
        for part in pipeline.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                accelerate.cpu_offload(part, CPU)
    else:
        apply_offload(pipeline.pipe, offload, CPU)
    pipeline.offload = offload


def build(**keys: Any) -> LatentsPipeline:
    return build_pipeline(Parameters(**keys), choose_placement("cpu", "float32"))


def bundled(prompt: str = "winter", **keys: object) -> Parameters:
    return resolve(load_preset("edit"), {**GUIDED, "prompt": prompt, **keys}).parameters


@pytest.fixture(scope="module")
def image(photograph: Image.Image) -> Image.Image:
    return photograph.resize((64, 64))


@pytest.fixture(scope="module")
def plain() -> LatentsPipeline:
    return build_pipeline(bundled(), choose_placement("cpu", "float32"))


@pytest.fixture(scope="module")
def expected(plain: LatentsPipeline, image: Image.Image) -> list[bytes]:
    return [transform_image(image, bundled(**speed), 7, plain).tobytes() for speed in SPEEDS]


def test_features_are_kept_beyond_the_end_of_guidance(plain: LatentsPipeline, image: Image.Image) -> None:
    with Count(plain.pipe.unet.mid_block.resnets[0]) as inner, Count(plain.pipe.unet.conv_in) as outer:
        transform_image(image, bundled(cache_interval=3, guidance_end=0.25), 7, plain)
    assert (inner.batches, outer.batches) == ([2, 1], [2, 1, 1, 1])


@torch.inference_mode()
def test_what_is_kept_of_a_guided_step_serves_an_unguided_one(plain: LatentsPipeline) -> None:
    torch.manual_seed(0)
    unet = plain.pipe.unet
    sample, text = torch.randn(2, 4, 16, 16), torch.randn(2, 8, unet.config.cross_attention_dim)
    control = torch.zeros(2, 3, 16 * plain.factor, 16 * plain.factor)

    def step(sample: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        down, mid = plain.pipe.controlnet(sample, 500, text, controlnet_cond=control[: len(sample)])[:2]
        given = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return unet(sample, 500, text, **given, return_dict=False)[0]

    alone = step(sample[1:], text[1:])
    with cache_features(plain.pipe, 2):
        step(sample, text)
        find_cache().keep_guided_half()
        assert torch.allclose(step(sample[1:], text[1:]), alone, atol=1e-4)
    assert find_cache() is None


@pytest.mark.slow
@pytest.mark.parametrize("offload", OFFLOADS)
def test_parts_that_move_change_nothing(expected: list[bytes], image: Image.Image, offload: str) -> None:
    pipeline = build_pipeline(bundled(), choose_placement("cpu", "float32"))
    move(pipeline, offload)
    with Count(pipeline.pipe.text_encoder.get_input_embeddings()) as encoded:
        made = [transform_image(image, bundled(**speed), 7, pipeline).tobytes() for speed in SPEEDS]
        assert made == expected
        assert len(encoded.batches) == 2, "the prompt and an empty one"
        transform_image(image, bundled("summer"), 7, pipeline)
        assert len(encoded.batches) == 3


@pytest.mark.slow
def test_everything_at_once(tmp_path: Path, image: Image.Image) -> None:
    twins = {
        "model": "stabilityai/stable-diffusion-xl-base-1.0",
        "refiner": "stabilityai/stable-diffusion-xl-refiner-1.0",
        "controlnet": "xinsir/controlnet-tile-sdxl-1.0",
        "lora": "latent-consistency/lcm-lora-sdxl",
    }
    for name, reference in twins.items():
        make_twin(reference, tmp_path / name)
    lora = next((tmp_path / "lora").glob("*.safetensors"))
    places = {name: str(tmp_path / name) for name in ("model", "refiner", "controlnet")}
    keys = {**places, "lora": (str(lora),), "control": "picture", "prompt": "a (red:1.3) house", **GUIDED, **BOTH}
    pipeline = build(**keys)
    wanted = transform_image(image, Parameters(**keys), 3, pipeline)
    slow = transform_image(image, Parameters(**{**keys, "cache_interval": 1}), 3, pipeline)
    assert wanted != slow
    for part in (pipeline, pipeline.refiner):
        move(part, "model")
    for _ in range(2):
        assert transform_image(image, Parameters(**keys), 3, pipeline) == wanted
    again = transform_image(image, Parameters(**{**keys, "cache_interval": 1}), 3, pipeline)
    # Weights that were moved lie elsewhere in memory, so a float32 sum may round otherwise.
    assert np.abs(np.asarray(again, int) - np.asarray(slow, int)).max() <= 1


HALVES = {
    "stable-diffusion-v1-5/stable-diffusion-inpainting": True,
    "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": True,
    "timbrooks/instruct-pix2pix": False,
    "stabilityai/stable-diffusion-3.5-medium": False,
    "black-forest-labs/FLUX.1-dev": False,
    "stabilityai/stable-diffusion-x4-upscaler": False,
}


@pytest.mark.slow
@pytest.mark.parametrize("reference", HALVES)
def test_guidance_ends_early_or_it_is_said_that_it_cannot(tmp_path: Path, image: Image.Image, reference: str) -> None:
    make_twin(reference, tmp_path)
    upscale = {"task": "upscale", "tile_size": 64, "tile_overlap": 0} if "upscaler" in reference else {}
    parameters = Parameters(model=str(tmp_path), prompt="fog", **GUIDED, guidance_end=0.5, **upscale)
    pipeline = build_pipeline(parameters, choose_placement("cpu", "float32"))
    mask = Image.new("L", image.size, 255)
    denoiser = getattr(pipeline.pipe, "unet", None) or pipeline.pipe.transformer
    with Count(denoiser) as count:
        run_works([start_work(image, parameters, 3, pipeline, SideInputs(mask=mask))], pipeline)
    halved = count.batches[-1] < count.batches[0]
    assert halved == HALVES[reference]
    assert ["cannot stop early" in note for note in pipeline.notes] == ([] if halved else [True])
    assert pipeline.find_cuts([parameters]) == ([] if halved else [*pipeline.notes])


def test_a_wrapped_module_stays_what_it_is() -> None:
    module, asked = torch.nn.Linear(2, 2), []
    values = torch.ones(1, 2)
    wanted = module(values)

    def note(name: str) -> Any:
        return lambda module, compute, *given: asked.append(name) or compute(*given)

    wrap_call(module, note("first"))
    wrap_call(module, note("second"))
    wrap_forward(module, note("inner"))
    for _ in range(2):
        accelerate.hooks.add_hook_to_module(module, accelerate.hooks.ModelHook())
        assert torch.equal(module(values), wanted)
        accelerate.hooks.remove_hook_from_module(module)
    assert torch.equal(copy.deepcopy(module)(values), wanted)
    assert asked == 3 * ["second", "first", "inner"]
    assert (type(module).__name__, isinstance(module, torch.nn.Linear)) == ("Linear", True)
    assert str(type(module)) == str(torch.nn.Linear)


@pytest.mark.slow
def test_a_compiled_part_counts_its_calls_whatever_moves_it(tiny_sd: Path, image: Image.Image) -> None:
    keys = {"model": str(tiny_sd), "prompt": "fog", **GUIDED, "guidance_end": 0.5}
    pipeline, plan = build(**keys), Plan()
    wanted = transform_image(image, Parameters(**keys), 3, pipeline)
    compile_parts(pipeline.pipe, CPU, plan)
    for offload, calls in (("model", 5), ("model", 10), ("group", 10)):
        plan.is_off = offload == "group"
        move(pipeline, offload)
        assert transform_image(image, Parameters(**keys), 3, pipeline) == wanted
        assert plan.made == calls


def test_texts_are_remembered_by_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "MOST_TEXTS", 1)
    encoder = torch.nn.Embedding(10, 2)
    cpu_kernels.remember_texts(encoder)
    first, second = torch.tensor([1]), torch.tensor([2])
    wanted = encoder(first)
    encoder.register_forward_hook(lambda *_: other())  # another lane's prompt, just when this one's is computed

    def other() -> None:
        if not asked:
            asked.append(1)
            encoder(second)
            encoder(torch.tensor([3]))

    asked: list[int] = []
    encoder(second)
    assert torch.equal(encoder(first), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("offload", ["none", *OFFLOADS])
def test_a_second_try_in_float32_copies_the_vae_alone(
    tiny_sd: Path, monkeypatch: pytest.MonkeyPatch, offload: str
) -> None:
    pipeline = build_pipeline(Parameters(model=str(tiny_sd)), choose_placement("cpu", "bfloat16"))
    latents = torch.randn(1, 4, 8, 8, generator=torch.manual_seed(0))
    wanted = pipeline.decode(latents)[0]
    if offload != "none":
        move(pipeline, offload)
    used: list[Any] = []
    decode = LatentsPipeline._decode

    def overflow(self: LatentsPipeline, latents: torch.Tensor, vae: Any = None) -> torch.Tensor:
        used.append(vae)
        made = decode(self, latents, vae)
        return made if vae is not None else made * float("nan")

    with monkeypatch.context() as patch:
        patch.setattr(LatentsPipeline, "_decode", overflow)
        second = pipeline.decode(latents)[0]
    assert psnr(second, wanted) > 30
    assert pipeline.decode(latents)[0] == wanted
    copied = used[1]
    assert copied.dtype == torch.float32
    assert pipeline.pipe.vae.dtype == torch.bfloat16
    reached = list_modules(copied)
    assert reached == set(copied.modules()), "nothing of the pipeline comes with it"
    assert not reached & set(pipeline.pipe.vae.modules())
    assert all(parameter.device == CPU for parameter in copied.parameters())


def list_modules(found: Any) -> set[torch.nn.Module]:
    """Return every module that can be reached from an object, including through hooks and bound methods."""
    seen: dict[int, Any] = {}
    todo = [found]
    while todo:
        value = todo.pop()
        if id(value) in seen or isinstance(value, type | str | int | float | torch.Tensor | torch.dtype | None):
            continue
        seen[id(value)] = value
        todo += vars(value).values() if hasattr(value, "__dict__") else ()
        todo += [getattr(value, name) for name in ("__self__", "func", "args") if hasattr(value, name)]
        todo += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
    return {value for value in seen.values() if isinstance(value, torch.nn.Module)}


def test_no_second_try_where_it_cannot_help(plain: LatentsPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    monkeypatch.setattr("img2img_cli.engines.diffusion.latents.copy_alone", lambda *given: tried.append(given))
    latents = torch.full((1, plain.pipe.vae.config.latent_channels, 8, 8), float("nan"))
    with pytest.raises(Exception, match="not numbers"):
        plain.decode(latents)
    assert not tried
