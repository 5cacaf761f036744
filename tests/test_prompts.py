"""Weighted and long prompts, and textual inversions, on twins of the models with CLIP text encoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import psnr
from loopback_hub import LoopbackHub
from PIL import Image
from safetensors.torch import save_file
from twins import RECIPES, WIDTH, make_twin

from img2img_cli.engines.device import choose_placement
from img2img_cli.engines.diffusion.build import build_pipeline
from img2img_cli.engines.diffusion.latents import LatentsPipeline
from img2img_cli.engines.diffusion.prompts import split_weights
from img2img_cli.presets.references import identify_file, identify_model
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.pieces import Piece

SD, XL = "stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"
LONG = "a red house by the sea, " * 12
OPTIONS = ["--seed", "4", "--steps", "2", "--strength", "1", "--set", "image_size=64", "--dtype", "float32"]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("clip")

    def find(reference: str) -> Path:
        if not (root / reference).exists():
            make_twin(reference, root / reference)
        return root / reference

    return find


@pytest.fixture(scope="module", params=[SD, XL])
def pipeline(request: pytest.FixtureRequest, folder_of: Callable[[str], Path]) -> LatentsPipeline:
    return build(folder_of(request.param))


def build(model: object, **keys: object) -> LatentsPipeline:
    return build_pipeline(Parameters(model=str(model), **keys), choose_placement("cpu", "float32"))


def pieces_of(*prompts: str, **keys: object) -> list[Piece]:
    settings = {"model": "owner/name", "num_inference_steps": 2, "strength": 1.0, "guidance_scale": 6.0, **keys}
    image = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    return [
        Piece(image=image, control=None, seed=3, parameters=Parameters(prompt=prompt, **settings)) for prompt in prompts
    ]


def run(pipeline: LatentsPipeline, *prompts: str, **keys: object) -> list[np.ndarray]:
    return [np.asarray(image) for image in pipeline.transform(pieces_of(*prompts, **keys))]


@pytest.mark.parametrize(
    "text",
    ["a house", "(a house)", "((a house))", "C++ and C--", "word++", "(x)1.3", "(x)++", "(16:9)", "(at 12:30)", "(a:2)",
     "(a: 1.3)", "(a:1.3 )", "a:1.3", "(:1.3)", "( :1.3)", "(a:12.5)", "(a:-1.5)", '"quoted".and()', "[a:1.3]"],
)  # fmt: skip
def test_ordinary_signs_are_text(text: str) -> None:
    assert split_weights(text) == [(text, 1.0)]


def test_weights_are_read() -> None:
    assert split_weights("a (red hat:1.3), (crowd:.5)(x:0.0)") == [
        ("a ", 1.0), ("red hat", 1.3), (", ", 1.0), ("crowd", 0.5), ("x", 0.0),
    ]  # fmt: skip
    assert split_weights("(ratio 16:9:1.2)") == [("ratio 16:9", 1.2)]
    assert split_weights("") == [("", 1.0)]


@pytest.mark.slow
def test_a_plain_prompt_never_leaves_the_stock_path(pipeline: LatentsPipeline) -> None:
    for text in ("a house", "(a house) of C++ at 16:9", "a " * 75, ""):
        arguments = pipeline._make_arguments([pieces_of(text)[0].parameters], [], None)
        assert arguments["prompt"] == [text.strip(" ,")]
        assert "prompt_embeds" not in arguments


@pytest.mark.slow
def test_unweighted_words_are_encoded_as_the_stock_path_does(pipeline: LatentsPipeline) -> None:
    made = pipeline.prompts.embed(["a cat", "a red dog on grass"], ["bad", ""])
    stock = pipeline.pipe.encode_prompt(
        prompt=["a cat", "a red dog on grass"],
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt=["bad", ""],
    )
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    for name, expected in zip(names, stock, strict=False):
        assert torch.allclose(made[name], expected, atol=1e-5), name


def test_the_tail_of_a_long_prompt_counts(pipeline: LatentsPipeline) -> None:
    cat, dog = run(pipeline, LONG + "a cat", LONG + "a dog")
    assert (cat != dog).any()
    assert psnr(cat, run(pipeline, LONG + "a cat")[0]) > 40  # kernels round by a batch's size
    assert not pipeline.prompts.notes


@pytest.mark.parametrize("weight", ["0.0", "0.4", "1.6"])
def test_weights_change_the_result(pipeline: LatentsPipeline, weight: str) -> None:
    plain, weighted, same = run(pipeline, "a red house", f"a (red:{weight}) house", "a (red:1.0) house")
    assert (plain != weighted).any()
    assert psnr(plain, same) > 40


@pytest.mark.slow
def test_a_long_negative_prompt_counts_while_guidance_is_on(pipeline: LatentsPipeline) -> None:
    (short,) = run(pipeline, "a house", negative_prompt=LONG)
    (other,) = run(pipeline, "a house", negative_prompt=LONG + "a cat")
    assert (short != other).any()
    off = [run(pipeline, "(a:1.2) house", negative_prompt=n, guidance_scale=1.0)[0] for n in ("", LONG)]
    assert (off[0] == off[1]).all()


@pytest.mark.slow
def test_neighbours_in_a_batch_do_not_matter(pipeline: LatentsPipeline) -> None:
    prompts = ["a house", LONG + "a cat", "a (red:1.5) house", LONG * 2, "a (blue:0.5) house"]
    for prompt, made in zip(prompts, run(pipeline, *prompts), strict=True):
        assert psnr(made, run(pipeline, prompt)[0]) > 40, prompt


def test_prompts_of_different_lengths_are_filled_up(pipeline: LatentsPipeline) -> None:
    made = pipeline.prompts.embed(["a", LONG], ["b", "c"])
    assert {value.shape[1] for key, value in made.items() if "pooled" not in key} == {154}
    assert {value.shape[0] for value in made.values()} == {2}


@pytest.mark.slow
@pytest.mark.parametrize("reference", [name for name in RECIPES if "inpaint" in name or "pix2pix" in name])
def test_models_that_encode_the_picture_themselves_take_them(
    here, tmp_path: Path, picture: Path, folder_of: Callable[[str], Path], reference: str
) -> None:
    common = ["--model", folder_of(reference), *OPTIONS]
    if "inpaint" in reference:
        Image.new("L", (96, 72), 255).save(tmp_path / "mask.png")
        common += ["--mask", tmp_path / "mask.png"]
    images = []
    for index, prompt in enumerate(("a (red:1.5) house", LONG + "a cat")):
        done = here("edit", picture, tmp_path / f"{index}.png", "-p", prompt, *common)
        assert done.code == 0, done.err
        images.append(np.asarray(Image.open(tmp_path / f"{index}.png")))
    assert (images[0] != images[1]).any()


@pytest.mark.slow
def test_the_bundled_model_takes_weights_and_tells_what_it_leaves_out(here, picture: Path, tmp_path: Path) -> None:
    common = ["edit", picture, "--preset", "edit", *OPTIONS[:-2]]
    results, known = [], "red night, blue fog, " * 12
    for index, prompt in enumerate(("fog", "(fog:1.6)", known, known + "sepia", "(fog:1.6)" + known)):
        done = here(*common, tmp_path / f"{index}.png", "-p", prompt)
        assert done.code == 0, done.err
        notes = [line for line in done.err.splitlines() if "reads 32 tokens" in line]
        assert len(notes) == (index > 1), done.err
        results.append(np.asarray(Image.open(tmp_path / f"{index}.png")))
    assert (results[0] != results[1]).any()
    assert (results[2] == results[3]).all()
    done = here("batch", picture, "-o", tmp_path / "many", "-p", known, "--preset", "edit", "--json", *OPTIONS[4:-2])
    notes = [json.loads(line) for line in done.out.splitlines() if b"reads 32 tokens" in line]
    assert [note["event"] for note in notes] == ["note"]


@pytest.mark.slow
def test_t5_takes_long_prompts_itself(folder_of: Callable[[str], Path]) -> None:
    pipeline = build(folder_of("stabilityai/stable-diffusion-3.5-medium"))
    assert pipeline.prompts.count_windows("a (red:1.3) house", "") == 0
    pipeline.prompts.note_cuts(["a house " * 10, "ab" * 400])
    assert [note.split("'")[1][:4] for note in pipeline.prompts.notes] == ["abab"]


def write_embedding(path: Path, **vectors: torch.Tensor) -> Path:
    save_file(vectors, path)
    return path


def vectors_of(count: int, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(5))


@pytest.mark.slow
@pytest.mark.parametrize("reference", [SD, XL])
def test_an_embedding_is_a_word_in_the_prompt(
    here, tmp_path: Path, picture: Path, folder_of: Callable[[str], Path], reference: str
) -> None:
    parts = {"clip_l": vectors_of(2), "clip_g": vectors_of(2)} if reference == XL else {"emb_params": vectors_of(2)}
    file = write_embedding(tmp_path / "MyStyle.safetensors", **parts)
    common = ["edit", picture, "--model", folder_of(reference), *OPTIONS]
    results = {}
    for name, prompt, given in (
        ("without", "a MyStyle house", []),
        ("named", "a MyStyle house", ["--embedding", file]),
        ("lower", "a mystyle house", ["--embedding", file]),
        ("unnamed", "a plain house", ["--embedding", file]),
        ("plain", "a plain house", []),
        ("weighted", "a (MyStyle:1.5) house", ["--embedding", file]),
    ):
        done = here(*common, tmp_path / f"{name}.png", "-p", prompt, *given)
        assert done.code == 0, done.err
        assert len(done.err.splitlines()) == 1 + (name == "unnamed")
        assert ("does not hold its word 'mystyle'" in done.err) == (name == "unnamed")
        results[name] = np.asarray(Image.open(tmp_path / f"{name}.png"))
    assert (results["named"] != results["without"]).any()
    assert (results["named"] == results["lower"]).all()
    assert (results["unnamed"] == results["plain"]).all()
    assert (results["weighted"] != results["named"]).any()
    assert f"--embedding {file}" in here("info", tmp_path / "named.png").out.decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "words"), [("<inner>", ("<inner>", "mystyle")), ("mystyle", ("mystyle",)), ("clip_l", ("mystyle",))]
)
def test_an_embeddings_own_name_and_its_files_are_words(
    tmp_path: Path, folder_of: Callable[[str], Path], key: str, words: tuple[str, ...]
) -> None:
    file = write_embedding(tmp_path / "mystyle.safetensors", **{key: vectors_of(2)})
    pipeline = build(folder_of(SD), embedding=(str(file),))
    assert pipeline.prompts.words == {str(file): words}
    results = [run(pipeline, f"a house, {word}", embedding=(str(file),))[0] for word in (*words, "<other>")]
    assert len({result.tobytes() for result in results}) == 2
    assert [note for note in pipeline.prompts.notes if "<other>" in note] == pipeline.prompts.notes
    assert f"its word {' or '.join(map(repr, words))}" in pipeline.prompts.notes[0]


def test_a_files_name_does_not_take_the_place_of_an_english_word(
    tmp_path: Path, folder_of: Callable[[str], Path]
) -> None:
    file = write_embedding(tmp_path / "photographs.safetensors", **{"<inner>": vectors_of(2)})
    assert build(folder_of(SD), embedding=(str(file),)).prompts.words == {str(file): ("<inner>",)}


@pytest.mark.slow
def test_an_embedding_may_be_named_in_the_negative_prompt(tmp_path: Path, folder_of: Callable[[str], Path]) -> None:
    file = write_embedding(tmp_path / "ugly-one.safetensors", emb_params=vectors_of(2))
    pipeline = build(folder_of(SD), embedding=(str(file),))
    run(pipeline, "a house", negative_prompt="Ugly-One", embedding=(str(file),))
    assert not pipeline.notes
    run(pipeline, "a house", negative_prompt="Ugly-One", embedding=(str(file),), guidance_scale=1.0)
    assert len(pipeline.notes) == 1


@pytest.mark.slow
def test_all_vectors_of_an_embedding_count(tmp_path: Path, folder_of: Callable[[str], Path]) -> None:
    vectors = vectors_of(3)
    results = []
    for count in (1, 3):
        file = write_embedding(tmp_path / f"{count}.safetensors", **{"<My-Style>": vectors[:count].contiguous()})
        pipeline = build(folder_of(SD), embedding=(str(file),))
        results.append(run(pipeline, "a <My-Style> house", embedding=(str(file),))[0])
    assert (results[0] != results[1]).any()


@pytest.mark.slow
def test_an_embedding_is_part_of_the_fingerprint(here, tmp_path: Path, picture: Path, folder_of) -> None:
    file = write_embedding(tmp_path / "sunny.safetensors", sunnystyle=vectors_of(1))
    command = ["batch", picture, "-o", tmp_path / "out", "-p", "a sunnystyle house", "--json", "--embedding", file]
    command += ["--preset", "sd15-edit", "--model", folder_of(SD), "--set", "image_size=64"]

    def events() -> list[str]:
        done = here(*command)
        assert done.code == 0, done.err
        return [json.loads(line)["event"] for line in done.out.splitlines()]

    assert "done" in events()
    assert "up-to-date" in events()
    write_embedding(file, sunnystyle=vectors_of(2))
    identify_file.cache_clear()
    identify_model.cache_clear()
    assert "done" in events()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "words"),
    [("style.pt", "pickle"), ("nowhere.safetensors", "no such file"), ("someone/../x.safetensors", "no such file")],
)
def test_a_wrong_embedding_is_refused_before_torch(fresh, picture: Path, text: str, words: str) -> None:
    for command in (["edit", picture], ["batch", picture, "--preset", "edit", "-o", picture.parent / "out"]):
        done = fresh(*command, "-p", "fog", "--embedding", text)
        assert (done.code, len(done.err.splitlines())) == (5, 1), done.err
        assert words in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reference", "name", "vectors", "words"),
    [
        (SD, "sty.safetensors", {"mystyle": vectors_of(1, 7)}, "another family"),
        (SD, "sty.safetensors", {"clip_l": vectors_of(1), "clip_g": vectors_of(1)}, "another family"),
        (XL, "sty.safetensors", {"mystyle": vectors_of(1)}, "another family"),
        (SD, "cat.safetensors", {"emb_params": vectors_of(1)}, "has a word 'cat' already"),
        (SD, "sty.safetensors", {"clip_l": vectors_of(1, 768), "clip_g": vectors_of(1, 1280)}, "such as sdxl-edit"),
        (SD, "sty.safetensors", {"x.lora_up.weight": vectors_of(1), "x.lora_down.weight": vectors_of(1)}, "--lora"),
        (SD, "sty.safetensors", None, "damaged"),
        ("black-forest-labs/FLUX.1-schnell", "sty.safetensors", {"mystyle": vectors_of(1)}, "takes no embeddings"),
    ],
)
def test_an_embedding_that_does_not_fit_is_one_line(
    here, tmp_path: Path, picture: Path, folder_of: Callable[[str], Path], reference: str, name: str, vectors, words
) -> None:
    file = tmp_path / name
    file.write_bytes(b"\0" * 99) if vectors is None else write_embedding(file, **vectors)
    done = here("edit", picture, "-p", "fog", "--model", folder_of(reference), *OPTIONS, "--embedding", file)
    assert (done.code, len(done.err.splitlines())) == (5, 1), done.err
    assert words in done.err


@pytest.mark.slow
def test_an_embedding_comes_from_the_hub(fresh, tmp_path: Path, picture: Path, folder_of) -> None:
    (tmp_path / "repository").mkdir()
    write_embedding(tmp_path / "repository" / "learned_embeds.safetensors", mystyle=vectors_of(1))
    (tmp_path / "mine.yaml").write_text(f"extends: sd15-edit\nmodel: {folder_of(SD)}\nembedding: [someone/my-style]\n")
    with LoopbackHub({"someone/my-style": tmp_path / "repository"}) as hub:
        place = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        done = fresh("models", "pull", tmp_path / "mine.yaml", HF_HUB_OFFLINE="0", **place)
        assert (done.code, done.err) == (0, "someone/my-style: here\n")
    done = fresh(
        "edit", picture, tmp_path / "o.png", "-p", "a mystyle", "--preset", tmp_path / "mine.yaml", *OPTIONS, **place
    )
    assert done.code == 0, done.err
