"""Presets: errors with file and line, inheritance, merge order, schema."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from img2img_cli.errors import PresetError
from img2img_cli.presets.catalogue import preset_schema, resolve
from img2img_cli.presets.files import configs_dir, list_cards, list_presets, load_preset
from img2img_cli.presets.repositories import list_repositories
from img2img_cli.presets.schema import Parameters
from img2img_cli.presets.strict_yaml import dump_yaml, parse_scalar, parse_yaml


def write(folder: Path, text: str, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", list_presets())
def test_shipped_presets_are_valid_and_described(name: str) -> None:
    parameters = resolve(load_preset(name), {}).parameters
    assert parameters.description
    assert parameters.license
    assert parameters.task == "edit" or name.endswith(parameters.task)
    assert (parameters.look is not None) == (name.startswith("style-") or name in ("erase", "style"))


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("task: edit\nstrenght: 0.5\n", 2, ["strenght", "'strength'"]),
        ("strength: 0.5\nscale: 2.0\nstrength: 0.6\n", 3, ["given twice", "line 1"]),
        ("strength: no\n", 1, ["strength", "number"]),
        ("strength: 1e3\n", 1, ["strength", "less than or equal to 1"]),
        ("strength: .nan\n", 1, ["strength"]),
        ("\n\nstrength: 1.5\n", 3, ["strength", "less than or equal to 1"]),
        ("num_inference_steps: 2.5\n", 1, ["num_inference_steps", "integer"]),
        ("task: colourise\n", 1, ["task", "'colorize'"]),
        ("control: gray\n", 1, ["did you mean 'grey'"]),
        ("size: 10by10\n", 1, ["size"]),
        ("prompt: !!python/object/apply:os.system [ls]\n", 1, ["tag"]),
        ("prompt: &a x\nnegative_prompt: *a\n", 1, ["anchors"]),
        ("- a\n", 1, ["mapping"]),
        ("prompt: [a\n", 2, ["YAML"]),
        ("prompt: " + "[" * 5000, None, ["nested too deeply"]),
        ("extends: nowhere\n", None, ["unknown preset 'nowhere'"]),
    ],
)
def test_a_bad_preset_is_refused_with_file_line_and_remedy(
    tmp_path: Path, text: str, line: int | None, words: list[str]
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(PresetError) as caught:
        resolve(load_preset(path), {})
    message = str(caught.value)
    assert "\n" not in message
    if line is not None:
        assert f"mine.yaml:{line}" in message
    for word in words:
        assert word in message


def test_merge_order_is_defaults_then_parent_then_preset_then_command_line(tmp_path: Path) -> None:
    write(tmp_path, "strength: 0.3\nguidance_scale: 2.0\nseedless: 1\n".replace("seedless: 1\n", ""), "base.yaml")
    path = write(tmp_path, "extends: ./base.yaml\nguidance_scale: 3.0\nimage_size: 128\n")
    resolved = resolve(load_preset(path), {"image_size": 256})
    p, origin = resolved.parameters, resolved.origin
    assert (p.strength, p.guidance_scale, p.image_size) == (0.3, 3.0, 256)
    assert p.num_inference_steps == Parameters().num_inference_steps
    assert origin["strength"].endswith("base.yaml:1")
    assert origin["guidance_scale"].endswith("mine.yaml:2")
    assert (origin["image_size"], origin["num_inference_steps"]) == ("command line", "default")


def test_cards_tell_what_the_presets_resolve_to() -> None:
    shown = ("task", "model", "license", "gated", "memory_gib", "num_inference_steps", "strength", "description")
    for name, card in list_cards().items():
        parameters = resolve(load_preset(name), {}).parameters
        assert {key: getattr(card, key) for key in shown} == {key: getattr(parameters, key) for key in shown}
        assert list_repositories(card) == list_repositories(parameters)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:0", "1:0"), ("12:30:45", "12:30:45"), ("no", "no"), ("Yes", "Yes"), ("off", "off"), ("010", 10),
        ("0o10", 8), ("0x1f", 31), ("1_000", "1_000"), ("0b1", "0b1"), ("1e3", 1000.0), ("-.5", -0.5), ("2.", 2.0),
        ("~", None), ("null", None), ("2026-11-25", "2026-11-25"), ("=", "="), ("<<", "<<"), ("true", True),
        ("False", False),
    ],
)  # fmt: skip
def test_plain_values_mean_what_yaml_1_2_says(text: str, value: object) -> None:
    assert parse_yaml(f"prompt: {text}\n")[0] == {"prompt": value}
    assert parse_scalar(text) == value
    assert type(parse_scalar(text)) is type(value)
    written = dump_yaml({"prompt": text})
    assert parse_yaml(written)[0] == {"prompt": text}
    assert yaml.safe_load(written) == {"prompt": text}, "text stays text for readers of YAML 1.1, too"


def test_a_time_is_no_number_of_steps(here, picture: Path) -> None:
    done = here("edit", picture, "-p", "fog", "--set", "num_inference_steps=1:0", "--dry-run")
    assert (done.code, "num_inference_steps" in done.err) == (2, True)


def test_a_cycle_of_extends_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "extends: ./b.yaml\n", "a.yaml")
    write(tmp_path, "extends: ./a.yaml\n", "b.yaml")
    with pytest.raises(PresetError, match="extends itself"):
        load_preset(str(tmp_path / "a.yaml"))


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(PresetError, match="did you mean 'colorize'"):
        load_preset("colorise")


@given(strength=st.floats(0.001, 1), steps=st.integers(1, 200))
def test_the_remedy_for_zero_steps_works(strength: float, steps: int) -> None:
    if int(steps * strength) >= 1:
        Parameters(strength=strength, num_inference_steps=steps)
        return
    with pytest.raises(ValueError, match="leaves no step") as caught:
        Parameters(strength=strength, num_inference_steps=steps)
    words = str(caught.value).split()
    better_steps = int(words[words.index("num_inference_steps") + 1])
    Parameters(strength=strength, num_inference_steps=better_steps)
    better_strength = float(words[words.index("strength", words.index("or")) + 1])
    Parameters(strength=better_strength, num_inference_steps=steps)


@pytest.mark.parametrize(("strength", "steps"), [(0.2, 5), (0.3, 4), (0.6, 2), (1.0, 1), (0.01, 100)])
def test_a_low_strength_lengthens_a_short_schedule(strength: float, steps: int) -> None:
    assert resolve(load_preset("style-night"), {"strength": strength}).parameters.num_inference_steps == steps


def test_steps_that_are_asked_for_are_not_changed() -> None:
    for overrides in ({"strength": 0.2, "num_inference_steps": 3}, {"strength": 0.001}, {"strength": -1.0}):
        with pytest.raises(PresetError, match="strength"):
            resolve(load_preset("style-sepia"), overrides)


def test_the_schema_file_is_the_models_schema() -> None:
    shipped = json.loads((configs_dir() / "preset.schema.json").read_text())
    assert shipped == preset_schema()
    assert set(shipped["properties"]) == {"extends", *Parameters.model_fields}
    assert shipped["additionalProperties"] is False


def test_the_list_loads_no_validation() -> None:
    code = (
        "import sys; from img2img_cli.cli import app; sys.argv = ['img2img', 'presets', 'list']; app._run();"
        "sys.exit(bool({'img2img_cli.presets.schema', 'img2img_cli.engines.hub', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_show_prints_yaml_that_is_a_preset_again(fresh, tmp_path: Path) -> None:
    out = fresh("presets", "show", "sd15-colorize").out.decode()
    assert "sd15-edit.yaml:" in out
    path = write(tmp_path, out)
    assert resolve(load_preset(path), {}).parameters == resolve(load_preset("sd15-colorize"), {}).parameters
    assert yaml.safe_load(out)["controlnet"] == "latentcat/control_v1p_sd15_brightness"


@pytest.mark.slow
def test_validate_exits_0_and_2(fresh, tmp_path: Path) -> None:
    assert fresh("presets", "validate", write(tmp_path, "extends: edit\nstrength: 0.4\n")).code == 0
    bad = fresh("presets", "validate", write(tmp_path, "strengthh: 0.4\n"))
    assert bad.code == 2
    assert "mine.yaml:1" in bad.err


def test_a_revision_goes_with_its_model(tmp_path: Path) -> None:
    pinned = resolve(load_preset("sd15-edit"), {}).parameters
    assert pinned.revision
    assert resolve(load_preset("sd15-edit"), {"strength": 0.5}).parameters.revision == pinned.revision
    other = resolve(load_preset("sd15-edit"), {"model": "someone/model"}).parameters
    assert (other.revision, other.variant) == (None, None)
    both = resolve(load_preset("sd15-edit"), {"model": "someone/model", "revision": "v2"}).parameters
    assert both.revision == "v2"
    (tmp_path / "mine.yaml").write_text("extends: sd15-canny\nmodel: someone/model\ncontrolnet: someone/net\n")
    mine = resolve(load_preset(str(tmp_path / "mine.yaml")), {})
    assert (mine.parameters.revision, mine.parameters.controlnet_revision) == (None, None)
    assert mine.origin["revision"] == "default"


def test_references_that_begin_with_a_dot_are_meant_from_the_presets_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    keys = ("model", "vae", "controlnet", "refiner", "ip_adapter", "ip_adapter_image_encoder", "upscaler")
    lines = [f"{key}: ./{key}" for key in keys]
    lines += ["lora: [./a.safetensors:0.5, someone/other]", "embedding: [./b.safetensors]", "extends: edit"]
    (folder / "preset.yaml").write_text("\n".join(lines))
    values = load_preset(str(folder)).values
    assert [values[key] for key in keys] == [str(folder / key) for key in keys]
    assert values["lora"] == [f"{folder}/a.safetensors:0.5", "someone/other"]
    assert values["embedding"] == [f"{folder}/b.safetensors"]
