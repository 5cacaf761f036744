"""The bundled model says which words it was never taught, and refuses a prompt of nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from img2img_cli.engines.device import choose_placement
from img2img_cli.engines.diffusion.build import build_pipeline
from img2img_cli.presets.schema import Parameters
from img2img_cli.presets.words import keep_known_words, knows_any, read_words, split_prompt, tell_unknown_words
from img2img_cli.train.bundled.captions import HUES
from img2img_cli.train.bundled.styles import STYLES

FAST = ["--set", "image_size=64", "--steps", 1]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "in.png")
    return tmp_path / "in.png"


def test_the_list_is_what_the_recipe_teaches() -> None:
    known = read_words("bundled")
    assert known is not None
    assert set(known["looks"]) == set(STYLES)
    assert {*HUES, "black", "white", "grey", "brown"} == set(known["colours"])


@pytest.mark.parametrize(
    ("prompt", "taught", "unknown"),
    [
        ("fog", ["fog"], []),
        ("Make it look like a WATERCOLOUR", ["watercolour"], []),
        ("(red:1.3) sky, 2 boats", ["red"], ["sky", "boats"]),
        ("", [], []),
        ("a photo of the", [], []),
        ("oil and vinegar", ["oil"], ["vinegar"]),
        ("雪", [], ["雪"]),
    ],
)
def test_a_prompt_is_split_into_what_was_taught_and_what_was_not(prompt, taught, unknown) -> None:
    known = read_words("bundled")
    assert known is not None
    assert split_prompt(prompt, known) == (taught, unknown)


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ("fog", "fog"),
        ("make it blue", "blue"),
        ("Black and White, please", "Black and White"),
        ("a (foggy:1.2) harbour at (night:1.3), in red and gold", "(night:1.3), red"),
        ("red and blue", "red and blue"),
        ("and", ""),
    ],
)
def test_the_model_is_given_only_what_it_was_taught(prompt: str, kept: str) -> None:
    assert keep_known_words(prompt, Parameters()) == kept
    assert keep_known_words(prompt, Parameters(model="owner/name")) == prompt


def test_words_around_a_known_one_change_nothing(here, picture: Path, tmp_path: Path) -> None:
    for name, prompt in {"short": "sepia", "long": "please make this photo sepia"}.items():
        assert here("edit", picture, tmp_path / f"{name}.png", "--prompt", prompt, "--seed", 1, *FAST).code == 0
    made = [Image.open(tmp_path / f"{name}.png").tobytes() for name in ("short", "long")]
    assert made[0] == made[1]


def test_models_without_a_list_and_with_additions_may_know_every_word(tmp_path: Path) -> None:
    for parameters in (
        Parameters(model="owner/name"),
        Parameters(model=str(tmp_path)),
        Parameters(lora=("x.safetensors",)),
        Parameters(controlnet=str(tmp_path)),
        Parameters(task="colorize", control="grey"),
    ):
        assert knows_any("anime", parameters)
        assert tell_unknown_words("anime", parameters) is None
    assert not knows_any("anime", Parameters())
    (tmp_path / "words.txt").write_text("animals: cat, dog\n")
    assert not knows_any("anime", Parameters(model=str(tmp_path)))
    assert knows_any("a dog", Parameters(model=str(tmp_path)))
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe")
    assert read_words(str(tmp_path / "words.txt")) is None


def test_a_prompt_of_unknown_words_is_refused_before_anything_is_made(here, picture: Path, tmp_path: Path) -> None:
    done = here("edit", picture, tmp_path / "o.png", "--prompt", "remove the background")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "'remove', 'background'" in done.err and "watercolour" in done.err and "sd15-edit" in done.err
    assert not (tmp_path / "o.png").exists()


def test_fillers_alone_and_a_presets_own_prompt_are_refused_too(here, picture: Path, tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("extends: edit\nprompt: an anime heroine\n")
    for words, said in (
        (["--prompt", "make it like this photo"], "any word of the prompt"),
        (["--preset", preset], "anime"),
    ):
        done = here("edit", picture, tmp_path / "o.png", *words)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert said in done.err and "watercolour" in done.err
    assert not (tmp_path / "o.png").exists()


def test_some_unknown_words_are_a_line_and_the_picture_is_made(here, picture: Path, tmp_path: Path) -> None:
    done = here("edit", picture, tmp_path / "o.png", "--prompt", "fog over the harbour", *FAST)
    assert done.code == 0, done.err
    assert "'over', 'harbour'" in done.err
    assert (tmp_path / "o.png").exists()
    done = here("edit", picture, tmp_path / "p.png", "--prompt", "make it sepia", *FAST)
    assert "does not know" not in done.err


def test_a_batch_tells_the_unknown_words_of_every_prompt() -> None:
    each = [Parameters(prompt=prompt, control="picture") for prompt in ("fog over it", "night, anime", "night, anime")]
    notes = build_pipeline(each[0], choose_placement("cpu", "float32")).find_cuts(each)
    assert [word for word in ("'over'", "'anime'") if sum(word in note for note in notes) == 1] == ["'over'", "'anime'"]


def test_a_row_with_unknown_words_fails_alone(here, picture: Path, tmp_path: Path) -> None:
    rows = [{"input": str(picture), "output": f"{word}.png", "prompt": word} for word in ("sepia", "anime")]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = here("batch", tmp_path / "jobs.jsonl", "-o", tmp_path / "out", "--preset", "edit", *FAST)
    assert done.code == 3, done.err
    assert "'anime'" in done.err
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["sepia.png"]
