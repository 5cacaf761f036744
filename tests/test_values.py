"""Every value that a record can hold can be typed, and the command that `info` prints reproduces it."""

from __future__ import annotations

import csv
import io
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from img2img_cli.cli import app
from img2img_cli.cli.choices import parse_assignment
from img2img_cli.errors import PresetError, UsageError
from img2img_cli.presets.catalogue import resolve
from img2img_cli.presets.files import load_preset
from img2img_cli.presets.references import parse_lora, split_references
from img2img_cli.presets.schema import CARD_KEYS, Parameters
from img2img_cli.presets.values import read_value, write_value
from img2img_cli.presets.words import knows_any
from img2img_cli.tasks import plan
from img2img_cli.tasks.inputs import read_manifest
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.record import _check_record, make_record, quote_word, replay_command, replay_words

NASTY = [
    *("", " ", "-", "--set", "-x", "a b", " a ", "a=b", "=", "a:b", ":0.5", "a\nb", "\n", "\r\n", "\t", "'", '"', '""'),
    *('"a"', '"a', "$HOME", "`id`", "$(id)", "\\", "\\n", "a;b", "#a", "null", "none", "~", "true", "1", "1:0", "1e5"),
    *("{a: b}", "[a]", "[", "{", "!x", "&a", "*a", "é漢字\U0001f3a8", "\u202e", "\x1b[31m", "\x00", "a,b", "@a", "%s"),
]
texts = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
words = texts.filter(bool)
optional = st.none() | texts
fractions = st.floats(0, 1)
references = st.lists(words, max_size=3)
plain = (
    st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | texts | st.none()
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "model": words,
    "revision": optional,
    "variant": optional,
    "vae": optional,
    "lora": references,
    "embedding": references,
    "controlnet": optional,
    "controlnet_revision": optional,
    "control": st.sampled_from([None, "grey", "softedge", "canny", "picture", "lineart", "depth", "openpose"]),
    "ip_adapter": optional,
    "ip_adapter_image_encoder": texts,
    "ip_adapter_scale": st.floats(0, 2),
    "ip_adapter_blocks": st.sampled_from(["all", "style"]),
    "scheduler": optional,
    "scheduler_config": st.dictionaries(texts, plain, max_size=3),
    "quantization": st.sampled_from(["none", "int8"]),
    "refiner": optional,
    "refiner_strength": st.floats(0.1, 1),
    "compile": st.sampled_from(["never", "auto"]),
    "dtype": st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
    "prompt": texts,
    "prompt_template": texts.map(lambda text: text + "{prompt}"),
    "negative_prompt": texts,
    "strength": st.floats(0.01, 1),
    "num_inference_steps": st.integers(1, 1000),
    "guidance_scale": st.floats(0, 50),
    "guidance_end": fractions,
    "cache_interval": st.integers(1, 10),
    "tiny_vae": optional,
    "true_cfg_scale": st.floats(0, 50),
    "image_guidance_scale": st.floats(0, 20),
    "noise_level": st.integers(0, 350),
    "controlnet_conditioning_scale": st.floats(0, 4),
    "control_guidance_start": fractions,
    "control_guidance_end": fractions,
    "image_size": st.integers(64, 2048),
    "size": st.sampled_from(["original", "model", "640x480"]),
    "mask_feather": st.floats(0, 200),
    "saturation": st.floats(0, 4),
    "variety": fractions,
    "faithful": st.booleans(),
    "num_samples": st.integers(1, 16),
    "scale": st.floats(1, 8),
    "keep_detail": fractions,
    "tile_size": st.integers(64, 2048),
    "tile_overlap": st.integers(0, 512),
}
PRESETS = (
    "edit",
    "sd15-edit",
    "sdxl-edit",
    "sdxl-hyper",
    "flux-dev",
    "sd15-style",
    "sdxl-canny",
    "colorize",
    "restore",
)
changes = st.fixed_dictionaries({}, optional=VALUES)
few = settings(deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))


def test_every_parameter_is_tried() -> None:
    assert VALUES.keys() | CARD_KEYS | {"task", "upscaler", "look"} == Parameters.model_fields.keys()


@pytest.mark.parametrize("key", VALUES)
def test_what_is_written_is_read_again(key: str) -> None:
    @settings(deadline=None, max_examples=15)
    @given(VALUES[key])
    def check(value: Any) -> None:
        text = write_value(key, value)
        assert len(text.splitlines()) <= 1
        assert "\0" not in text
        assert read_value(key, text) == value

    check()


def make(preset: str, values: dict[str, Any]) -> Parameters | None:
    try:
        return resolve(load_preset(preset), values).parameters
    except PresetError:  # values that exclude each other
        return None


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Job:
    """Return the job of a command line, parsed by Typer."""
    seen: list[Job] = []

    def plan_only(template: Job, output: Any, **options: Any) -> list[Job]:
        seen.append(template.model_copy(update={"output": "out.png"}))
        raise typer.Exit

    monkeypatch.setattr(plan, "plan_variations", plan_only)
    monkeypatch.setattr(plan, "choose_seed", lambda: 0)
    app.build_command()(args=words, standalone_mode=False)
    return seen[0]


@pytest.mark.slow
@few
@given(st.sampled_from(PRESETS), changes, st.data())
def test_the_printed_command_gives_the_same_parameters(
    preset: str, values: dict[str, Any], data: st.DataObject
) -> None:
    parameters = make(preset, values)
    if parameters is None or (parameters.prompt and parameters.reads_no_words):
        return
    if not knows_any(parameters.prompt, parameters):  # it is refused before there is a result
        return
    names = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="/\0"), min_size=1, max_size=8)
    job = Job(input=f"in/{data.draw(names)}.png", output="o.png", preset=preset, parameters=parameters, seed=7)
    if parameters.task == "edit" and parameters.control and data.draw(st.booleans()):
        job = job.model_copy(update={"control_image": data.draw(names) + ".png"})
    record = _check_record(json.loads(json.dumps(make_record(job))))
    command = replay_command(record)
    assert len(command.splitlines()) == 1
    told = replay_words(record)
    if "$'" not in command:
        assert shlex.split(command) == told
    with pytest.MonkeyPatch.context() as monkeypatch:
        again = parse(told[1:], monkeypatch)
    assert again.parameters.to_record() == parameters.to_record()
    assert make_record(again) == make_record(job)


def test_a_shell_reads_the_command_as_it_was_meant() -> None:
    told = [word for word in NASTY if "\0" not in word]
    script = " ".join(
        ["exec", shlex.quote(sys.executable), "-c", "'import json, sys; print(json.dumps(sys.argv[1:]))'"]
    )
    done = subprocess.run(["bash", "-c", " ".join([script, *map(quote_word, told)])], capture_output=True, check=True)
    assert json.loads(done.stdout) == told


@pytest.mark.slow
@few
@given(st.sampled_from(("edit", "sd15-edit")), changes)
def test_a_csv_file_holds_every_value(tmp_path: Path, preset: str, values: dict[str, Any]) -> None:
    wanted = make(preset, values)
    if wanted is None:
        return
    cells = {key: write_value(key, value) for key, value in values.items()}
    # An empty cell is nothing said; an empty text is written as such.
    cells = {key: text or '""' for key, text in cells.items()}
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["input", *cells])
    writer.writeheader()
    writer.writerow({"input": "a.png", **cells})
    (tmp_path / "m.csv").write_text(file.getvalue(), newline="")
    (item,) = read_manifest(tmp_path / "m.csv")
    assert make(preset, dict(item.overrides)) == wanted


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("scheduler_config", '{"use_karras_sigmas": true}', {"use_karras_sigmas": True}),
        (
            "scheduler_config",
            "{use_karras_sigmas: true, beta_end: 0.012}",
            {"use_karras_sigmas": True, "beta_end": 0.012},
        ),
        ("scheduler_config", "{}", {}),
        ("lora", "[a b.safetensors:0.5, c]", ["a b.safetensors:0.5", "c"]),
        ("lora", '["a b.safetensors"]', ["a b.safetensors"]),
        ("lora", "[a] b.safetensors", "[a] b.safetensors"),
        ("prompt", '"two\\nlines"', "two\nlines"),
        ("prompt", '"so" and "so"', '"so" and "so"'),
        ("prompt", "null", "null"),
        ("revision", "none", None),
        ("revision", '"none"', "none"),
        ("strength", "5e-1", 0.5),
        ("num_inference_steps", "7", 7),
    ],
)
def test_json_and_yaml_are_values(key: str, text: str, value: Any) -> None:
    assert read_value(key, text) == value
    assert parse_assignment(f"{key}={text}") == (key, value)


@pytest.mark.parametrize(
    "text",
    [
        *("x", "{a", '{"a": 1, "a": 2}', "{a: 1, a: 2}", "{a: [1]}", "{" * 5000, '{"a":' * 5000, "{a: !!x 1}"),
        *(
            "{}\nb: 1",
            '{"a": NaN}',
            '{"a": 1e999}',
            f'{{"a": 1{"0" * 5000}}}',
            f"{{a: {'x' * 70_000}}}",
            "{a: &b c}",
            "[1]",
        ),
    ],
    ids=lambda text: text[:20],
)
def test_a_mapping_that_is_none_is_refused_in_a_line(here, picture: Path, text: str) -> None:
    done = here("edit", picture, "-p", "fog", "--set", f"scheduler_config={text}", "--dry-run")
    assert done.code == 2, done.err
    assert "scheduler_config" in done.err
    assert len(done.err.splitlines()) == 1
    assert len(done.err) < 1000


def test_names_with_spaces_and_colons_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my lora.safetensors", "dir/my lora.safetensors", "a:1.safetensors", "b.safetensors"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert split_references("my lora.safetensors:0.5") == ("my lora.safetensors:0.5",)
    assert split_references("dir/my lora.safetensors b.safetensors:2 o/n") == (
        "dir/my lora.safetensors",
        "b.safetensors:2",
        "o/n",
    )
    assert split_references("not here.safetensors o/n:0.3") == ("not here.safetensors", "o/n:0.3")
    assert split_references("o/n o/m:0.5  b.safetensors") == ("o/n", "o/m:0.5", "b.safetensors")
    found = [parse_lora(text) for text in ("a:1.safetensors", "a:1.safetensors:0.5", "my lora.safetensors:0.25")]
    assert [(lora.file, lora.scale) for lora in found] == [
        ("a:1.safetensors", 1.0),
        ("a:1.safetensors", 0.5),
        ("my lora.safetensors", 0.25),
    ]


def test_a_csv_column_names_a_lora_with_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my lora.safetensors").touch()
    Path("m.csv").write_text('input,lora,embedding\ns.png,my lora.safetensors,"[""a b.safetensors"", o/n]"\n')
    (item,) = read_manifest(Path("m.csv"))
    parameters = resolve(load_preset("sd15-edit"), dict(item.overrides)).parameters
    assert parameters.lora == ("my lora.safetensors",)
    assert parameters.embedding == ("a b.safetensors", "o/n")


def test_a_bad_cell_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("input,scheduler_config\ns.png,{a\n")
    with pytest.raises(UsageError, match=r"m\.csv:2: scheduler_config"):
        read_manifest(tmp_path / "m.csv")


def test_a_lora_beside_its_option_is_checked_like_one_in_a_preset(here, picture: Path) -> None:
    done = here("edit", picture, "-p", "fog", "--preset", "sd15-edit", "--set", "quantization=int8", "--lora", "o/n")
    assert done.code == 2
    assert "quantization" in done.err


def test_a_prompt_of_several_lines_is_one_line_of_info(here, tmp_path: Path) -> None:
    parameters = Parameters(prompt="fog\ncommand: rm -rf ~\n\x1b[31m")
    record = make_record(Job(input="a.png", output="b.png", preset="edit", parameters=parameters, seed=1))
    info = PngImagePlugin.PngInfo()
    info.add_itxt("img2img", json.dumps(record))
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png", pnginfo=info)
    lines = here("info", tmp_path / "a.png").out.decode().splitlines()
    commands = [line for line in lines if line.startswith("command: ")]
    assert len(commands) == 1
    assert 'prompt="fog\\ncommand: rm -rf ~\\n\\u001b[31m"' in shlex.split(commands[0])
