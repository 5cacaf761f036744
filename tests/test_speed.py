"""Options that make a run faster change only what they say."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Count, psnr
from PIL import Image
from twins import make_twin

from img2img_cli.engines import cpu_kernels, device
from img2img_cli.engines.device import choose_placement
from img2img_cli.engines.diffusion import compiling
from img2img_cli.engines.diffusion.build import build_pipeline
from img2img_cli.engines.diffusion.compiling import Compiled, Plan
from img2img_cli.engines.diffusion.feature_cache import cache_features
from img2img_cli.engines.diffusion.latents import LatentsPipeline
from img2img_cli.errors import PresetError, UsageError
from img2img_cli.presets.catalogue import resolve, speed_up
from img2img_cli.presets.files import load_preset
from img2img_cli.system import processors
from img2img_cli.tasks.run import transform_image

GUIDED = {"prompt": "winter", "guidance_scale": 3.0, "num_inference_steps": 8, "image_size": 64}


@pytest.fixture(scope="module")
def pipeline() -> LatentsPipeline:
    return build_pipeline(resolve(load_preset("edit"), GUIDED).parameters, choose_placement("cpu", "float32"))


def make(pipeline: LatentsPipeline, photograph: Image.Image, **keys: object) -> Image.Image:
    return transform_image(photograph, resolve(load_preset("edit"), {**GUIDED, **keys}).parameters, 7, pipeline)


@pytest.mark.slow
def test_kept_features_save_the_inner_layers(pipeline: LatentsPipeline, photograph: Image.Image) -> None:
    unet = pipeline.pipe.unet
    inner = unet.mid_block.resnets[0]
    full, nearness = make(pipeline, photograph), []
    for interval, calls in ((1, 8), (2, 4), (3, 3)):
        with Count(inner) as deep, Count(unet.up_blocks[-1].resnets[-1].conv1) as outer, Count(unet.conv_out) as last:
            made = make(pipeline, photograph, cache_interval=interval)
        assert (len(deep.batches), len(outer.batches), len(last.batches)) == (calls, 8, 8)
        if interval == 1:
            assert made.tobytes() == full.tobytes()
        else:
            assert made.tobytes() != full.tobytes()
            nearness.append(psnr(made, full))
    assert nearness[0] > nearness[1] > psnr(make(pipeline, photograph, guidance_scale=1.0), full)
    assert make(pipeline, photograph).tobytes() == full.tobytes(), "nothing stays behind"


@torch.inference_mode()
def test_a_step_on_kept_features_is_exact_for_the_same_input(pipeline: LatentsPipeline) -> None:
    pipe = pipeline.pipe
    torch.manual_seed(0)
    sample, text = torch.randn(2, 4, 16, 16), torch.randn(2, 8, pipe.unet.config.cross_attention_dim)
    picture = torch.rand(2, 3, 16 * pipeline.factor, 16 * pipeline.factor)

    def step(sample: torch.Tensor) -> torch.Tensor:
        down, mid = pipe.controlnet(sample, 500, text, controlnet_cond=picture, return_dict=False)
        given = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return pipe.unet(sample, 500, text, **given, return_dict=False)[0]

    plain = step(sample)
    with cache_features(pipe, 2):
        first, second, third = step(sample), step(sample), step(sample + 1)
    assert torch.equal(plain, first)
    assert torch.equal(plain, second)
    assert torch.equal(third, step(sample + 1))


@pytest.mark.slow
def test_lanes_keep_features_of_their_own(pipeline: LatentsPipeline, photograph: Image.Image) -> None:
    seeds, alone, together = (1, 2), {}, {}
    p = resolve(load_preset("edit"), {**GUIDED, "cache_interval": 2}).parameters
    for seed in seeds:
        alone[seed] = transform_image(photograph, p, seed, pipeline).tobytes()
    lanes = [pipeline._share() for _ in seeds]

    def work(seed: int, lane: LatentsPipeline) -> None:
        together[seed] = transform_image(photograph, p, seed, lane).tobytes()

    threads = [threading.Thread(target=work, args=pair) for pair in zip(seeds, lanes, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_features_are_kept_by_unets_alone() -> None:
    with pytest.raises(UsageError, match="cache_interval"), cache_features(SimpleNamespace(transformer=1), 2):
        pass
    with cache_features(SimpleNamespace(transformer=1), 1):
        pass


@pytest.mark.slow
def test_guidance_that_ends_halves_the_steps_after(pipeline: LatentsPipeline, photograph: Image.Image) -> None:
    with Count(pipeline.pipe.unet.conv_in) as count:
        full = make(pipeline, photograph)
    assert count.batches == [2] * 8
    with Count(pipeline.pipe.unet.conv_in) as count:
        short = make(pipeline, photograph, guidance_end=0.5)
    assert count.batches == [2] * 4 + [1] * 4
    unguided = make(pipeline, photograph, guidance_scale=1.0)
    assert psnr(short, full) > psnr(unguided, full)
    with Count(pipeline.pipe.unet.conv_in) as count:
        again = make(pipeline, photograph)
    assert again.tobytes() == full.tobytes()


@pytest.mark.slow
def test_guidance_ends_in_stable_diffusion_xl_too(tmp_path: Path, photograph: Image.Image) -> None:
    folder = tmp_path / "sdxl"
    make_twin(resolve(load_preset("sdxl-edit"), {}).parameters.model, folder)
    keys = {
        "model": str(folder),
        "vae": None,
        "variant": None,
        "prompt": "fog",
        "image_size": 64,
        "num_inference_steps": 4,
        "strength": 1.0,
    }
    p = resolve(load_preset("sdxl-edit"), {**keys, "guidance_end": 0.5}).parameters
    pipeline = build_pipeline(p, choose_placement("cpu", "float32"))
    with Count(pipeline.pipe.unet.conv_in) as count:
        transform_image(photograph, p, 1, pipeline)
    assert count.batches == [2, 2, 1, 1]


def test_fast_says_what_it_changes() -> None:
    preset = load_preset("sd15-edit")
    fast = resolve(preset, speed_up(preset, {})).parameters
    assert (fast.num_inference_steps, fast.guidance_end, fast.vae) == (17, 0.6, "madebyollin/taesd")
    asked = resolve(preset, speed_up(preset, {"num_inference_steps": 40, "vae": "stabilityai/sd-vae-ft-mse"}))
    assert (asked.parameters.num_inference_steps, asked.parameters.vae) == (40, "stabilityai/sd-vae-ft-mse")
    for name in ("colorize", "sdxl-turbo", "sd15-lcm"):
        few = load_preset(name)
        steps = resolve(few, {}).parameters.num_inference_steps
        made = resolve(few, speed_up(few, {})).parameters
        assert (made.num_inference_steps, made.guidance_end) == (steps, 1.0), "made for few steps"


@pytest.mark.slow
def test_fast_on_the_command_line(here, picture: Path, tiny_sd: Path) -> None:
    model = ["--model", tiny_sd, "-p", "fog", "--set", "image_size=64", "--set", "tiny_vae=null", "--seed", 1]
    done = here("edit", picture, picture.parent / "fast.png", *model, "--fast", "--json")
    assert done.code == 0, done.err
    assert b'"guidance_end": 0.6' in done.out
    assert b'"num_inference_steps": 17' in done.out


def test_compile_and_kept_features_exclude_each_other() -> None:
    with pytest.raises(PresetError, match="exclude"):
        resolve(load_preset("edit"), {"prompt": "fog", "compile": "auto", "cache_interval": 2})


@pytest.mark.slow
def test_each_prompt_is_encoded_once(pipeline: LatentsPipeline, photograph: Image.Image) -> None:
    fresh = build_pipeline(resolve(load_preset("edit"), GUIDED).parameters, choose_placement("cpu", "float32"))
    layer = fresh.pipe.text_encoder.get_input_embeddings()
    prompts = ["fog", "night", "fog"]
    with Count(layer) as count:
        made = [make(fresh, photograph, prompt=prompt) for prompt in prompts]
    assert len(count.batches) == 3  # two prompts, and one empty one for the unguided half
    assert made[0].tobytes() == made[2].tobytes() != made[1].tobytes()
    assert make(pipeline, photograph, prompt="fog").tobytes() == made[0].tobytes()


def test_the_memory_of_texts_is_bounded_and_exact() -> None:
    encoder = torch.nn.Embedding(1000, 4)
    calls = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    plain = copy.deepcopy(encoder)
    computed = encoder.forward
    encoder.forward = lambda ids: (calls.append(2), computed(ids))[1]
    cpu_kernels.remember_texts(encoder)
    for index in range(3 * cpu_kernels.MOST_TEXTS):
        ids = torch.tensor([[index]])
        assert torch.equal(encoder(ids), plain(ids))
    assert calls.count(2) == 3 * cpu_kernels.MOST_TEXTS
    encoder(torch.tensor([[3 * cpu_kernels.MOST_TEXTS - 1]]))
    assert calls.count(2) == 3 * cpu_kernels.MOST_TEXTS
    encoder(torch.tensor([[0]]))
    assert calls.count(2) == 3 * cpu_kernels.MOST_TEXTS + 1


def test_compiling_has_to_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(calls=1000)
    module = torch.nn.Conv2d(3, 3, 3)
    monkeypatch.setitem(compiling.SAVING, "cpu", 0.1)
    compiled = Compiled(module, plan, "cpu")
    compiled.cost_s = 10.0
    shape = ((1, 3, 8, 8),)
    seen = compiled._seen[shape]
    seen.count, seen.fastest_s, plan.made = 2, 1.0, 2
    assert compiled.pays(shape)  # 998 s x 10 % saved
    seen.fastest_s = 0.01
    assert not compiled.pays(shape)
    seen.fastest_s, plan.calls = 1.0, 100
    assert not compiled.pays(shape)
    compiled._seen[((1, 3, 9, 9),)].count = 998  # a shape that comes seldom
    plan.calls, plan.made = 2000, 1000
    assert not compiled.pays(shape)
    assert Plan(made=50, is_open=True).left == 50


@pytest.mark.slow
@torch.inference_mode()
def test_a_compiled_module_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (reason := compiling.can_compile(torch.device("cpu"))) is not None:
        pytest.skip(reason)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    unet = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 3, 3))
    pipe = SimpleNamespace(unet=unet, controlnet=None)
    plain = copy.deepcopy(unet)
    plan = Plan(calls=10**9)
    (compiled,) = compiling.compile_parts(pipe, torch.device("cpu"), plan)
    compiled.cost_s = 0.0
    often, seldom = torch.randn(1, 3, 16, 16), torch.randn(1, 3, 20, 20)
    for _ in range(4):
        assert torch.allclose(unet(often), plain(often), atol=1e-5)
    assert [seen.compiled for seen in compiled._seen.values()] == [True]
    assert torch.equal(unet(seldom), plain(seldom)), "a shape that came once stays as it is"
    assert plan.made == 5


def test_compile_without_a_compiler_says_so(photograph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    p = resolve(load_preset("edit"), {**GUIDED, "compile": "auto"}).parameters
    pipeline = build_pipeline(p, choose_placement("cpu", "float32"))
    assert "no-such-compiler" in pipeline.notes[0]


def test_compile_has_fewer_shapes() -> None:
    p = resolve(load_preset("edit"), {**GUIDED, "compile": "auto"}).parameters
    pipeline = build_pipeline(p, choose_placement("cpu", "float32"))
    assert not pipeline.notes
    assert pipeline.multiple == 128


@pytest.mark.parametrize(
    ("text", "quota"), [("max 100000", None), ("200000 100000", 2), ("50000 100000", 1), ("garbage", None), ("", None)]
)
def test_a_containers_quota_is_read(tmp_path: Path, text: str, quota: int | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert processors._read_quota(tmp_path / "cpu.max") == quota
    assert processors._read_quota(tmp_path / "missing") is None


def test_threads_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processors.os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(processors, "_find_core", lambda processor: str(processor % 4))
    monkeypatch.setattr(processors, "_read_quota", lambda: None)
    assert device.choose_threads()[0] == 4
    monkeypatch.setattr(processors, "_read_quota", lambda: 3)
    assert device.choose_threads()[0] == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert device.choose_threads()[0] == 6


@pytest.mark.parametrize(
    ("capability", "dtype"), [((9, 0), torch.bfloat16), ((7, 5), torch.float16), ((6, 1), torch.float32)]
)
def test_16_bits_only_where_they_are_fast(monkeypatch: pytest.MonkeyPatch, capability, dtype) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert device._choose_dtype(torch.device("cuda"))[0] == dtype
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert device._choose_dtype(torch.device("cpu"))[0] == torch.float32
