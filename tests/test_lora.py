"""LoRAs of every format change the weights by their formulas; anything else is noted or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from twins import RECIPES, WIDTH, make_twin

from img2img_cli.engines.checkpoints.contents import tell_contents
from img2img_cli.engines.checkpoints.lora import fuse_loras
from img2img_cli.engines.device import choose_placement
from img2img_cli.engines.diffusion.build import build_pipeline
from img2img_cli.errors import ModelError
from img2img_cli.presets.schema import Parameters

SD, XL = "stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"
FLUX, QWEN = "black-forest-labs/FLUX.1-schnell", "Qwen/Qwen-Image-Edit-2511"
ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
FLAT = "lora_unet_" + ATTENTION.replace(".", "_")
FLAT_CONV = "lora_unet_" + CONV.replace(".", "_")
OPTIONS = ["--steps", "2", "--strength", "1", "--seed", "4", "--set", "image_size=64"]


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    root, made = tmp_path_factory.mktemp("twins"), {}

    def find(reference: str) -> Any:
        if reference not in made:
            make_twin(reference, root / reference)
            kind = diffusers.QwenImageEditPlusPipeline if reference == QWEN else diffusers.AutoPipelineForImage2Image
            more = {"processor": None} if reference == QWEN else {}
            made[reference] = kind.from_pretrained(root / reference, **more)
            made[reference].folder = root / reference
        return made[reference]

    return find


@pytest.fixture
def sd(pipes: Callable[[str], Any]) -> Iterator[Any]:
    yield from restored(pipes(SD))


@pytest.fixture
def xl(pipes: Callable[[str], Any]) -> Iterator[Any]:
    yield from restored(pipes(XL))


@pytest.fixture
def flux(pipes: Callable[[str], Any]) -> Iterator[Any]:
    yield from restored(pipes(FLUX))


def restored(pipe: Any) -> Iterator[Any]:
    """Yield a pipeline and restore its weights afterwards."""
    before = snapshot(pipe)
    yield pipe
    for name, weights in before.items():
        getattr(pipe, name).load_state_dict(weights)


def snapshot(pipe: Any) -> dict[str, dict[str, torch.Tensor]]:
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {name: {key: w.clone() for key, w in part.state_dict().items()} for name, part in parts.items()}


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) * 7 + len(shape))) / 4


def write(folder: Path, weights: dict[str, torch.Tensor], name: str = "lora", **metadata: str) -> Path:
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.clone().contiguous() for key, tensor in weights.items()}, path, metadata or None)
    return path


def fuse(pipe: Any, *paths: Path, scale: float = 1.0) -> list[str]:
    return fuse_loras(pipe, [(path.name, path, scale) for path in paths])


def check_only(pipe: Any, before: dict[str, dict[str, torch.Tensor]], wanted: dict[str, torch.Tensor]) -> None:
    """Check that the weights in `wanted`, by full name, have these values, and that no others have changed."""
    for part, weights in snapshot(pipe).items():
        for key, weight in weights.items():
            full = f"{part}.{key}"
            assert torch.allclose(weight, wanted.pop(full, before[part][key]), atol=1e-5), full
    assert not wanted


# peft's own formulas.


PEFT = {
    "lora": peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, target_modules=["to_q", "conv1"]),
    "rank-stabilised": peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, init_lora_weights=False, target_modules=["to_k"]
    ),
    "by layer": peft.LoraConfig(
        r=4, lora_alpha=6, rank_pattern={"attn2.to_v": 2}, alpha_pattern={"attn2.to_v": 3}, init_lora_weights=False,
        target_modules=["to_v"],
    ),
    "bias": peft.LoraConfig(r=2, lora_alpha=3, lora_bias=True, init_lora_weights=False, target_modules=["proj_in"]),
    "dora": peft.LoraConfig(
        r=4, lora_alpha=6, use_dora=True, init_lora_weights=False, target_modules=["to_q", "conv2"]
    ),
    "loha": peft.LoHaConfig(r=3, alpha=5, init_weights=False, target_modules=["to_q", "to_v", "conv1"]),
    "loha conv": peft.LoHaConfig(
        r=3, alpha=5, init_weights=False, use_effective_conv2d=True, target_modules=["conv1", "conv_shortcut"]
    ),
    "lokr": peft.LoKrConfig(r=2, alpha=3, init_weights=False, target_modules=["to_q", "to_v", "conv1"]),
    "lokr conv": peft.LoKrConfig(
        r=2, alpha=3, init_weights=False, use_effective_conv2d=True, decompose_both=True,
        target_modules=["to_q", "conv1", "conv2"],
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PEFT)
def test_what_peft_trains_is_applied_as_peft_applies_it(sd, tmp_path: Path, name: str) -> None:
    torch.manual_seed(3)
    unet = diffusers.UNet2DConditionModel.from_pretrained(sd.folder / "unet")
    model = peft.get_peft_model(unet, PEFT[name])
    for key, parameter in model.named_parameters():
        if "magnitude" in key:
            parameter.data *= 1.3
    (tmp_path / "peft").mkdir()
    path = write(tmp_path / "peft", get_peft_model_state_dict(model), "adapter_model")
    settings = {key: value for key, value in PEFT[name].to_dict().items() if isinstance(value, int | float | dict)}
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(settings, default=str))
    before = snapshot(sd)
    assert fuse(sd, path) == []
    merged = model.merge_and_unload().state_dict()
    changed = {f"unet.{key}": weight for key, weight in merged.items() if not torch.equal(weight, before["unet"][key])}
    assert len(changed) > 2
    check_only(sd, before, changed)


# Formulas of LyCORIS and kohya's scripts, written out.


def kron(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.einsum("ij,kl->ikjl", a, b).reshape(a.shape[0] * b.shape[0], -1)


def tucker(core: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return `(out, in, k, k)` from `(r, r, k, k)`, `(r, out)` and `(r, in)`."""
    return sum(
        a[i][:, None, None, None] * b[j][None, :, None, None] * core[i, j]
        for i in range(core.shape[0])
        for j in range(core.shape[1])
    )


def lengths(weight: torch.Tensor, *, rows: bool) -> torch.Tensor:
    over = [d for d in range(weight.ndim) if d != (0 if rows else 1)]
    return weight.pow(2).sum(over, keepdim=True).sqrt()


def lora(flat: str, out: int, columns: tuple[int, ...], rank: int = 2) -> dict[str, torch.Tensor]:
    ends = (1, 1) if len(columns) > 1 else ()
    return {
        f"{flat}.lora_down.weight": random(rank, *columns),
        f"{flat}.lora_up.weight": random(out, rank, *ends),
        f"{flat}.alpha": torch.tensor(1.5),
    }


def make_case(name: str) -> tuple[str, dict[str, torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
    """Return a layer's full name, its file, and the expected weight of the layer."""
    n, r = 64, 2
    linear, conv = f"unet.{ATTENTION}.weight", f"unet.{CONV}.weight"
    w = lora(FLAT, n, (n,))
    delta = w[f"{FLAT}.lora_up.weight"] @ w[f"{FLAT}.lora_down.weight"] * 0.75
    if name == "lora":
        return linear, w, lambda base: base + delta
    if name.startswith("dora"):
        rows = name == "dora by row"
        shape = (n, 1) if rows else (1, n)
        size = random(*shape).abs() + 1
        w[f"{FLAT}.dora_scale"] = size
        return linear, w, lambda base: (base + delta) / lengths(base + delta, rows=rows) * size
    if name in ("conv", "conv dora"):
        w = lora(FLAT_CONV, 32, (32, 3, 3))
        change = torch.einsum("oi,inkl->onkl", w[f"{FLAT_CONV}.lora_up.weight"][:, :, 0, 0],
                              w[f"{FLAT_CONV}.lora_down.weight"]) * 0.75  # fmt: skip
        if name == "conv":
            return conv, w, lambda base: base + change
        size = random(1, 32, 1, 1).abs() + 1
        w[f"{FLAT_CONV}.dora_scale"] = size
        return conv, w, lambda base: (base + change) / lengths(base + change, rows=False) * size
    if name == "conv in three":
        w = lora(FLAT_CONV, 32, (32, 1, 1)) | {f"{FLAT_CONV}.lora_mid.weight": random(r, r, 3, 3)}
        up, down = w[f"{FLAT_CONV}.lora_up.weight"], w[f"{FLAT_CONV}.lora_down.weight"]
        change = tucker(w[f"{FLAT_CONV}.lora_mid.weight"], up[:, :, 0, 0].T, down[:, :, 0, 0]) * 0.75
        return conv, w, lambda base: base + change
    if name == "loha":
        a, b, c, d = random(n, 3), random(3, n), random(n, 3) + 1, random(3, n) - 1
        w = dict(zip(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), (a, b, c, d), strict=True))
        w |= {"alpha": torch.tensor(6.0)}
        return linear, {f"{FLAT}.{k}": v for k, v in w.items()}, lambda base: base + 2 * (a @ b) * (c @ d)
    if name == "loha conv":
        a, b, t = random(r, 32), random(r, 32) + 1, random(r, r, 3, 3)
        w = {"hada_w1_a": a, "hada_w1_b": b, "hada_t1": t, "hada_w2_a": b, "hada_w2_b": a, "hada_t2": t * 2}
        change = tucker(t, a, b) * tucker(t * 2, b, a)
        return conv, {f"{FLAT_CONV}.{k}": v for k, v in w.items()}, lambda base: base + change
    if name == "lokr":
        a, b, c = random(4, 4), random(16, r), random(r, 16)
        w = {"lokr_w1": a, "lokr_w2_a": b, "lokr_w2_b": c, "alpha": torch.tensor(3.0)}
        return linear, {f"{FLAT}.{k}": v for k, v in w.items()}, lambda base: base + 1.5 * kron(a, b @ c)
    if name == "lokr of whole factors":  # which has no scale, whatever its alpha says
        a, b = random(8, 4), random(8, 16)
        w = {"lokr_w1": a, "lokr_w2": b, "alpha": torch.tensor(99999.0)}
        return linear, {f"{FLAT}.{k}": v for k, v in w.items()}, lambda base: base + kron(a, b)
    if name == "lokr dora":
        a, b, size = random(8, 8), random(8, 8), random(n, 1).abs() + 1
        w = {"lokr_w1": a, "lokr_w2": b, "dora_scale": size}
        return (
            linear,
            {f"{FLAT}.{k}": v for k, v in w.items()},
            lambda base: (base + kron(a, b)) / lengths(base + kron(a, b), rows=True) * size,
        )
    if name == "lokr conv":
        a, b, c, d, t = random(4, r), random(r, 4), random(r, 8), random(r, 8) + 1, random(r, r, 3, 3)
        w = {"lokr_w1_a": a, "lokr_w1_b": b, "lokr_w2_a": c, "lokr_w2_b": d, "lokr_t2": t, "alpha": torch.tensor(1.0)}
        full = tucker(t, c, d)
        change = torch.einsum("ij,mnkl->imjnkl", a @ b, full).reshape(32, 32, 3, 3) / 2
        return conv, {f"{FLAT_CONV}.{k}": v for k, v in w.items()}, lambda base: base + change
    assert name == "full"
    change = random(n, n)
    return linear, {f"{FLAT}.diff": change, **lora(FLAT_CONV, 32, (32, 3, 3))}, lambda base: base + change


CASES = (
    "lora", "dora by column", "dora by row", "conv", "conv dora", "conv in three", "loha", "loha conv", "lokr",
    "lokr of whole factors", "lokr dora", "lokr conv", "full",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_file_changes_the_weight_by_its_formula(sd, tmp_path: Path, name: str) -> None:
    full, weights, change = make_case(name)
    before = snapshot(sd)
    part, _, key = full.partition(".")
    assert fuse(sd, write(tmp_path, weights), scale=0.5) == []
    base = before[part][key]
    wanted = {full: base + 0.5 * (change(base) - base)}
    if name == "full":
        wanted["unet." + CONV + ".weight"] = snapshot(sd)["unet"][CONV + ".weight"]
    assert (wanted[full] - base).abs().max() > 0.01
    check_only(sd, before, wanted)


def test_several_are_applied_one_after_the_other_and_rounded_once(sd, tmp_path: Path) -> None:
    cases = [make_case(name) for name in ("lora", "dora by column", "loha", "lokr")]
    paths = [write(tmp_path, weights, str(index)) for index, (_, weights, _) in enumerate(cases)]
    full = cases[0][0]
    sd.unet.to(torch.bfloat16)
    before = snapshot(sd)
    fuse(sd, *paths)
    wanted = before["unet"][f"{ATTENTION}.weight"].float()
    for _, _, change in cases:
        wanted = change(wanted)
    check_only(sd, before, {full: wanted.bfloat16()})
    sd.unet.to(torch.float32)


def test_biases_and_norms_change_too(sd, tmp_path: Path) -> None:
    norm = "mid_block.attentions.0.norm"
    flat = "lora_unet_" + norm.replace(".", "_")
    weights = {f"{flat}.w_norm": random(64), f"{flat}.b_norm": random(64) + 1, f"{FLAT_CONV}.diff_b": random(32)}
    before = snapshot(sd)
    fuse(sd, write(tmp_path, weights | lora(FLAT, 64, (64,))))
    now = snapshot(sd)["unet"]
    for key, change in ((f"{norm}.weight", random(64)), (f"{norm}.bias", random(64) + 1), (f"{CONV}.bias", random(32))):
        assert torch.allclose(now[key], before["unet"][key] + change), key


# Names.


@pytest.mark.slow
def test_the_original_names_of_xl_are_found(xl, tmp_path: Path) -> None:
    name = "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"
    flat = "lora_unet_input_blocks_3_1_transformer_blocks_1_attn2_to_k"
    out, columns = xl.unet.get_submodule(name).weight.shape
    te = {1: "text_model.encoder.layers.1.self_attn.q_proj", 2: "text_model.encoder.layers.0.mlp.fc1"}
    weights = lora(flat, out, (columns,))
    for number, layer in te.items():
        weights |= lora(f"lora_te{number}_{layer.replace('.', '_')}", WIDTH, (WIDTH,))
    a, b = random(4, 8), random(out // 4, columns // 8)
    loha = {f"lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_k.{k}": v for k, v in
            {"lokr_w1": a, "lokr_w2": b}.items()}  # fmt: skip
    before = snapshot(xl)
    assert fuse(xl, write(tmp_path, weights | loha)) == []
    now = snapshot(xl)
    moved = {
        f"{part}.{key}"
        for part, own in now.items()
        for key, weight in own.items()
        if (weight != before[part][key]).any()
    }
    assert len(moved) == 4
    key = f"{name}.weight"
    delta = weights[f"{flat}.lora_up.weight"] @ weights[f"{flat}.lora_down.weight"] * 0.75
    assert torch.allclose(now["unet"][key], before["unet"][key] + delta, atol=1e-6)
    key = key.replace("blocks.1.attn2", "blocks.0.attn2")
    assert torch.allclose(now["unet"][key], before["unet"][key] + kron(a, b), atol=1e-6)
    assert any(name.startswith("text_encoder.") for name in moved)
    assert any(name.startswith("text_encoder_2.") for name in moved)


@pytest.mark.slow
def test_fused_layers_of_flux_go_to_each_of_their_parts(flux, tmp_path: Path) -> None:
    a, b = random(3, 4), random(32, 8)
    weights = {
        "lora_unet_double_blocks_0_img_attn_qkv.lokr_w1": a,
        "lora_unet_double_blocks_0_img_attn_qkv.lokr_w2": b,
    } | lora("lora_unet_double_blocks_0_txt_attn_qkv", 96, (32,))
    before = snapshot(flux)
    assert fuse(flux, write(tmp_path, weights)) == []
    text = weights["lora_unet_double_blocks_0_txt_attn_qkv.lora_up.weight"]
    text = text @ weights["lora_unet_double_blocks_0_txt_attn_qkv.lora_down.weight"] * 0.75
    wanted = {}
    for names, delta in ((("to_q", "to_k", "to_v"), kron(a, b)), (("add_q_proj", "add_k_proj", "add_v_proj"), text)):
        for name, rows in zip(names, delta.split(32), strict=True):
            key = f"transformer_blocks.0.attn.{name}.weight"
            wanted[f"transformer.{key}"] = before["transformer"][key] + rows
    check_only(flux, before, wanted)


@pytest.mark.slow
def test_layers_of_t5_are_applied(flux, tmp_path: Path) -> None:
    """Use OneTrainer's names, with which diffusers' converter fails."""
    weights = lora("lora_transformer_transformer_blocks_0_attn_to_q", 32, (32,))
    weights |= lora("lora_te2_encoder_block_0_layer_0_SelfAttention_q", 32, (32,))
    before = snapshot(flux)
    assert fuse(flux, write(tmp_path, weights)) == []
    wanted = {}
    for part, key in (
        ("transformer", "transformer_blocks.0.attn.to_q.weight"),
        ("text_encoder_2", "encoder.block.0.layer.0.SelfAttention.q.weight"),
    ):
        start = next(name for name in weights if name.startswith("lora_te2" if "2" in part else "lora_tr"))
        flat = start.partition(".")[0]
        delta = weights[f"{flat}.lora_up.weight"] @ weights[f"{flat}.lora_down.weight"] * 0.75
        wanted[f"{part}.{key}"] = before[part][key] + delta
    check_only(flux, before, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reference", "source"),
    [(SD, "latent-consistency/lcm-lora-sdv1-5"), (XL, "latent-consistency/lcm-lora-sdxl"),
     (QWEN, "lightx2v/Qwen-Image-Edit-2511-Lightning")],
)  # fmt: skip
def test_the_catalogues_loras_come_out_as_diffusers_fuses_them(pipes, tmp_path: Path, reference, source) -> None:
    pipe = pipes(reference)
    before = snapshot(pipe)
    RECIPES[source](tmp_path / "lora", None)
    (path,) = (tmp_path / "lora").rglob("*.safetensors")
    assert fuse(pipe, path, scale=0.5) == []
    ours = snapshot(pipe)
    for name, weights in before.items():
        getattr(pipe, name).load_state_dict(weights)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="x")
    pipe.set_adapters(["x"], [0.5])
    pipe.fuse_lora(adapter_names=["x"])
    pipe.unload_lora_weights()
    theirs = snapshot(pipe)
    for part, weights in ours.items():
        for key, weight in weights.items():
            assert torch.allclose(weight, theirs[part][key], atol=1e-5), key
    for name, weights in before.items():
        getattr(pipe, name).load_state_dict(weights)


# What is told and what is refused.


@pytest.mark.slow
def test_what_has_no_place_in_the_model_is_counted(here, sd, tmp_path: Path, picture: Path) -> None:
    weights = lora(FLAT, 64, (64,)) | lora(FLAT.replace("mid_block", "mid_blockz"), 64, (64,))
    weights |= lora("lora_te_text_model_encoder_layers_7_mlp_fc1", 32, (32,)) | {"bundle_emb.word": random(1, 32)}
    path = write(tmp_path, weights)
    common = ["edit", picture, tmp_path / "o.png", "-p", "fog", "--model", sd.folder, *OPTIONS]
    done = here(*common, "--lora", path)
    assert done.code == 0, done.err
    assert f"{path}: 1 of 4 layers apply" in done.err.splitlines()[0]
    assert "such as lora_" in done.err
    done = here("batch", picture, "-o", tmp_path / "many", "-pfog", "--preset", "sd15-edit", "--json", "--lora", path,
                "--model", sd.folder, *OPTIONS[6:])  # fmt: skip
    notes = [json.loads(line) for line in done.out.splitlines() if b"1 of 4 layers" in line]
    assert [note["event"] for note in notes] == ["note"]


@pytest.mark.slow
def test_a_server_tells_each_of_its_clients(sd, tmp_path: Path) -> None:
    weights = lora(FLAT, 64, (64,)) | lora("lora_unet_nowhere", 64, (64,))
    parameters = Parameters(model=str(sd.folder), lora=(str(write(tmp_path, weights)),))
    pipeline = build_pipeline(parameters, choose_placement("cpu", "float32"))
    (lane, *_) = pipeline.make_lanes()
    for _ in range(2):
        assert ["1 of 2 layers apply" in note for note in lane.find_cuts([parameters])] == [True]


@pytest.mark.slow
def test_what_fits_nowhere_is_one_line(here, sd, tmp_path: Path, picture: Path) -> None:
    path = write(tmp_path, lora(FLAT.replace("mid_block", "mid_blockz"), 64, (64,)))
    for command in (["edit", picture], ["batch", picture, "-o", tmp_path / "out", "--preset", "sd15-edit"]):
        done = here(*command, "-p", "fog", "--model", sd.folder, *OPTIONS[6:], "--lora", path)
        assert (done.code, len(done.err.splitlines())) == (5, 1 if command[0] == "edit" else 2), done.err
        assert "another family" in done.err.splitlines()[-1]


def make_wrong(name: str) -> dict[str, torch.Tensor]:
    attention = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    return {
        "xl by width": lora(attention, 640, (2048,)),
        "xl by name": lora("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", 64, (64,)),
        "sd3": lora("lora_unet_joint_blocks_0_x_block_attn_qkv", 96, (32,)),
        "flux": lora("transformer.single_transformer_blocks.0.proj_mlp", 32, (32,)),
        "flux2": lora("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 32, (32,)),
        "qwen": lora("transformer_blocks.0.img_mlp.net.0.proj", 32, (32,)),
        "wan": lora("diffusion_model.blocks.0.cross_attn.k", 32, (32,)),
        "another size": lora(FLAT, 48, (48,)),
        "oft": {f"{FLAT}.oft_blocks": random(4, 16, 16)},
        "embedding": {"emb_params": random(2, 32)},
        "vae": {"first_stage_model.decoder.conv_in.weight": random(8, 4, 3, 3)},
        "no rank": {f"{FLAT}.lora_down.weight": torch.ones(0, 64), f"{FLAT}.lora_up.weight": torch.ones(64, 0)},
        "two ranks": {f"{FLAT}.lora_down.weight": random(2, 64), f"{FLAT}.lora_up.weight": random(64, 4)},
        "strange names": lora("lora_unet_nowhere_attn2_to_k", 64, (768,)) | lora("lora_unet_mid_block_x", 4, (4,)),
        "half": {f"{FLAT}.lora_down.weight": random(2, 64)},
        "a bomb": {f"{FLAT}.lokr_w1": random(90_000, 1), f"{FLAT}.lokr_w2": random(90_000, 1)},
    }[name]


@pytest.mark.parametrize(
    ("name", "words"),
    [("xl by width", "made for Stable Diffusion XL, and the model is Stable Diffusion 1 or 2; choose a preset of that"),
     ("xl by name", "such as sdxl-edit"), ("sd3", "such as sd35-medium"), ("flux", "such as flux-dev"),
     ("flux2", "such as flux2-klein"), ("qwen", "such as qwen-edit"), ("wan", "no preset is of that family"),
     ("another size", "1 of 1 layers have other sizes"), ("oft", "an OFT, a format that is not supported"),
     ("embedding", "an embedding, not a LoRA; give it with --embedding"),
     ("vae", "a VAE, not a LoRA; give it with --vae"),
     ("no rank", "other sizes"), ("two ranks", "other sizes"), ("strange names", "not known, such as"),
     ("half", "not a LoRA"), ("a bomb", "other sizes")],
)  # fmt: skip
def test_what_is_no_lora_of_the_models_family_says_so(sd, tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        fuse(sd, write(tmp_path, make_wrong(name)))
    assert words in str(caught.value)


def test_formats_are_told_apart() -> None:
    for name in CASES:
        _, weights, _ = make_case(name)
        found = tell_contents({key: tuple(tensor.shape) for key, tensor in weights.items()})
        wanted = {"lo": name[:4], "do": "dora", "co": "dora" if "dora" in name else "lora", "fu": "lora"}[name[:2]]
        assert (found.kind, str(found.format).lower()) == ("LoRA", wanted), name


@pytest.mark.slow
def test_a_torn_file_is_one_line(here, sd, tmp_path: Path, picture: Path) -> None:
    path = write(tmp_path, lora(FLAT, 64, (64,)))
    path.write_bytes(path.read_bytes()[:-40])
    done = here("edit", picture, "-p", "fog", "--model", sd.folder, "--lora", path)
    assert (done.code, len(done.err.splitlines())) == (5, 1), done.err
    assert "damaged" in done.err
