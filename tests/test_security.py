"""Known attacks on users of similar tools, through pictures, presets, weights and folders made by others."""

from __future__ import annotations

import base64
import json
import os
import pickle
import resource
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import yaml
from conftest import Outcome
from loopback_hub import LoopbackHub
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file
from serving import serve_own

from img2img_cli.batch import stages
from img2img_cli.batch.journal import LOCK, STATE, hold_folder
from img2img_cli.errors import InputError, OutputError, UsageError
from img2img_cli.presets.strict_yaml import dump_yaml, parse_scalar
from img2img_cli.server import sockets
from img2img_cli.server.client import ask_server
from img2img_cli.server.pool import Pool
from img2img_cli.server.queue import Dispatcher
from img2img_cli.server.state import State
from img2img_cli.tasks.inputs import find_items
from img2img_cli.tasks.plan import BatchChoices, plan_batch
from img2img_cli.tasks.record import read_record, replay_command
from img2img_cli.text import printable

QUICK = ["--set", "num_inference_steps=1", "--set", "num_samples=1", "--set", "image_size=64"]
ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\x7f\r\u202etxt"
STEERING = set("\x1b\x07\x9b\x7f\r\u202e\u2066\u200f")


def refused(done: Outcome, code: int, words: str = "") -> None:
    assert done.code == code, done.err
    assert len(done.err.splitlines()) == 1, done.err
    assert "a bug" not in done.err
    assert words in done.err


# Paths.


@pytest.fixture
def folder(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with in/photo.png, an output folder `out`, and `else`, which the command must not touch."""
    monkeypatch.chdir(tmp_path)
    for name in ("in", "out", "else"):
        (tmp_path / name).mkdir()
    shutil.copy(picture, tmp_path / "in")
    return tmp_path


def batch(here: Callable[..., Outcome], *more: object) -> Outcome:
    return here("batch", "in", "-o", "out", "--preset", "colorize", *QUICK, *more)


@pytest.mark.parametrize(
    "name", ["{stem:{ext}}{ext}", "{stem:{seed.__class__}}", "{index:999999999999}{ext}", "{seed:x}{ext}", "{stem!z}"]
)
def test_a_name_is_no_program(folder: Path, name: str) -> None:
    with pytest.raises(UsageError):
        plan_batch(find_items(["in"]), BatchChoices(folder=Path("out"), preset="colorize", name=name))


def test_a_name_may_count_in_columns(folder: Path) -> None:
    (job,) = plan_batch(find_items(["in"]), BatchChoices(folder=Path("out"), preset="colorize", name="{index:04}{ext}"))
    assert job.output == "out/0001.png"


@pytest.mark.parametrize("more", [[], ["--force"]])
@pytest.mark.parametrize("there", [False, True])
def test_a_result_that_is_a_link_out_is_refused(folder: Path, here, there: bool, more: list[str]) -> None:
    """Include a link to a picture made by this tool, which it would take for its own result."""
    target = folder / "else" / "theirs.png"
    if there:
        assert here("colorize", "in/photo.png", target, *QUICK).code == 0
    before = target.read_bytes() if there else None
    (folder / "out" / "photo.png").symlink_to(target)
    refused(batch(here, *more), 6, "leads out")
    assert (target.read_bytes() if target.exists() else None) == before


@pytest.mark.slow
def test_links_within_the_output_folder_are_the_users_own(folder: Path, here) -> None:
    (folder / "out" / "photo.png").symlink_to("elsewhere.png")
    assert batch(here).code == 0
    assert (folder / "out" / "elsewhere.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["folder", "result"])
def test_a_link_that_comes_while_the_batch_runs_is_refused(
    folder: Path, here, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    (folder / "in" / "sub").mkdir()
    (folder / "in" / "photo.png").rename(folder / "in" / "sub" / "photo.png")
    encode = stages.encode_result

    def swap(*arguments: Any, **more: Any) -> Any:
        if what == "folder":
            (folder / "out" / "sub").symlink_to(folder / "else")
        else:
            (folder / "out" / "sub").mkdir()
            (folder / "out" / "sub" / "photo.png").symlink_to(folder / "else" / "photo.png")
        return encode(*arguments, **more)

    monkeypatch.setattr(stages, "encode_result", swap)
    done = batch(here, "--force")
    assert done.code == 3
    assert "leads out" in done.err
    assert not list((folder / "else").iterdir())


@pytest.mark.parametrize("name", [STATE, LOCK])
def test_what_a_batch_keeps_is_not_written_through_a_link(folder: Path, here, name: str) -> None:
    target = folder / "else" / "diary"
    target.write_text("dear diary")
    (folder / "out" / name).symlink_to(target)
    with pytest.raises(OutputError, match="link"), hold_folder(folder / "out"):
        pass
    refused(batch(here), 6, "is a link")
    assert target.read_text() == "dear diary"


def forge(path: Path, **changes: object) -> Path:
    """Return a picture with a record written by hand."""
    record = {"input": "a.png", "preset": "edit", "seed": 1, "parameters": {"task": "edit", "prompt": "fog"}, **changes}
    info = PngImagePlugin.PngInfo()
    info.add_itxt("img2img", json.dumps(record))
    Image.new("RGB", (16, 16)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"input": "/etc/shadow"}, "shadow"),
        ({"input": "../../.ssh/id.png"}, "id.png"),
        ({"input": "--in-place"}, "./--in-place"),
        ({"mask": "-f"}, "./-f"),
        ({"style": "/etc/passwd"}, "passwd"),
        ({"input": "$(rm -rf ~).png"}, "'$(rm -rf ~).png'"),
    ],
)
def test_a_forged_record_names_no_other_folder_and_no_option(
    tmp_path: Path, changes: dict[str, object], word: str
) -> None:
    command = replay_command(read_record(str(forge(tmp_path / "a.png", **changes))))
    assert f" {word} " in f"{command} "
    assert "/etc" not in command
    assert ".." not in command


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": "1; rm -rf ~"},
        {"seed": True},
        {"seed": -1},
        {"seed": 2**32},
        {"preset": ["edit"]},
        {"input": ".."},
        {"input": {"a": 1}},
        {"mask": 7},
        {"parameters": {"task": "os.system"}},
        {"parameters": {"prompt": "fog", "unknown": 1}},
        {"parameters": []},
    ],
)
def test_a_forged_record_of_other_types_is_damaged(here, tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match="damaged"):
        read_record(str(forge(tmp_path / "a.png", **changes)))
    refused(here("info", tmp_path / "a.png"), 3, "damaged")


def test_a_record_of_few_parameters_has_the_defaults(here, tmp_path: Path) -> None:
    done = here("info", forge(tmp_path / "a.png", parameters={"task": "edit", "prompt": "fog"}))
    assert done.code == 0
    assert b"img2img edit a.png" in done.out


def test_a_record_cannot_have_a_file_of_any_size_read(here, tmp_path: Path) -> None:
    """A record names its preset by file, and `info` reads that file."""
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(64 << 30)
    done = here("info", forge(tmp_path / "a.png", preset=str(large)))
    assert done.code == 0
    refused(here("presets", "validate", large), 2, "longer than")


# Weights and models.


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self._path, "w"))


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """Return the path of a file that must not be created."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code of a model was run"


def header(content: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[object], start: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


LIES = {
    "nothing": b"",
    "short": b"\0" * 7,
    "long": header({}, length=2**63),
    "longer than the file": header({}, length=1 << 20),
    "no object": header([]),
    "deep": header(b"[" * 100_000 + b"]" * 100_000),
    "deep in metadata": header(b'{"__metadata__":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"),
    "overlap": header({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)),
    "gap": header({"a": tensor([2], 0, 8), "b": tensor([2], 80, 88)}, bytes(88)),
    "outside": header({"a": tensor([2**40], 0, 2**42)}),
    "overflow": header({"a": tensor([2**62, 2**62], 0, 8)}, bytes(8)),
    "negative": header({"a": tensor([-1], 0, 8)}, bytes(8)),
    "no number": header({"a": tensor(["2"], 0, 8)}, bytes(8)),
    "empty": header({"a.lora_A.weight": tensor([10**9, 0], 0, 0), "a.lora_B.weight": tensor([0, 10**9], 0, 0)}),
}
OPTIONS = ["--model", "--lora", "--embedding", "--vae", "--controlnet", "--upscaler"]


def use(here: Callable[..., Outcome], option: str, weights: Path, picture: Path, tiny_sd: Path) -> Outcome:
    """Return a command that has to load these weights."""
    output = picture.parent / "result.png"
    if option == "--upscaler":
        done = here("upscale", picture, output, "--set", "model=none", "--upscaler", weights)
    else:
        base = [] if option == "--model" else ["--model", tiny_sd]
        small = ["--set", "image_size=64", "--steps", "2", "--strength", "0.5"]
        control = ["--set", "control=canny"] if option == "--controlnet" else []
        done = here("edit", picture, output, "-p", "fog", *base, *control, option, weights, *small)
    assert output.exists() == (done.code == 0)
    output.unlink(missing_ok=True)
    return done


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_headers_that_lie_are_refused_in_small_memory(
    here, picture: Path, tiny_sd: Path, tmp_path: Path, option: str
) -> None:
    weights = tmp_path / "weights.safetensors"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for lie, content in LIES.items():
        weights.write_bytes(content)
        done = use(here, option, weights, picture, tiny_sd)
        assert (done.code, len(done.err.splitlines())) == (5, 1), (lie, done.err)
        assert "weights.safetensors" in done.err, lie
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10, "in KiB"


def test_an_upscaler_cannot_claim_a_billion_layers(here, picture: Path, tiny_sd: Path, tmp_path: Path) -> None:
    weights = {"model.0.weight": torch.zeros(8, 3, 3, 3), "model.0.bias": torch.zeros(8)}
    for count in (10**9, 10**30):
        weights[f"model.1.sub.{count}.RDB1.conv1.0.weight"] = torch.zeros(8, 8, 3, 3)
    save_file(weights, tmp_path / "net.safetensors")
    refused(use(here, "--upscaler", tmp_path / "net.safetensors", picture, tiny_sd), 5, "counts further")


@pytest.mark.parametrize("kind", ["pickle", "zip"])
@pytest.mark.parametrize("option", OPTIONS)
def test_a_pickle_by_another_name_is_not_opened(
    here, picture: Path, tiny_sd: Path, tmp_path: Path, canary: Path, option: str, kind: str
) -> None:
    for name in ("weights.safetensors", "weights.SafeTensors", "weights.ckpt", "weights.PT", "weights.bin"):
        weights = tmp_path / name
        if kind == "zip":
            torch.save({"a": Canary(canary)}, weights)
        else:
            weights.write_bytes(pickle.dumps(Canary(canary)))
        takes_folders = option in ("--model", "--vae", "--controlnet")
        words = "neither a diffusers folder nor" if weights.suffix == ".SafeTensors" and takes_folders else ""
        refused(use(here, option, weights, picture, tiny_sd), 5, words)
        weights.unlink()


@pytest.fixture
def model(tiny_sd: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_sd, tmp_path / "model")


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_pickles_inside_a_model_are_not_opened(
    here, picture: Path, model: Path, canary: Path, tmp_path: Path, part: str
) -> None:
    names = [PARTS[part], "pytorch_model"]
    weights = model / part / f"{PARTS[part]}.safetensors"
    good = weights.read_bytes()
    for name in [weights.name, *(f"{name}{ending}" for name in names for ending in (".bin", ".ckpt", ".pt"))]:
        weights.unlink(missing_ok=True)
        torch.save({"a": Canary(canary)}, model / part / name)
        refused(use(here, "--model", model, picture, model), 5)
        (model / part / name).unlink()
    # Neither when an index calls one a part of the weights, or names a file elsewhere.
    torch.save({"a": Canary(canary)}, model / part / "evil.bin")
    (tmp_path / "evil.safetensors").write_bytes(good)
    for shard in ("evil.bin", "../../evil.safetensors", str(tmp_path / "evil.safetensors"), 7):
        index = {"metadata": {}, "weight_map": {"conv_in.weight": shard}}
        (model / part / f"{PARTS[part]}.safetensors.index.json").write_text(json.dumps(index))
        refused(use(here, "--model", model, picture, model), 5, "index")
        (model / part / f"{PARTS[part]}.safetensors.index.json").unlink()


def test_an_adapter_inside_a_model_leads_nowhere(here, picture: Path, model: Path, canary: Path) -> None:
    """An adapter names its own base model, and may be a pickle."""
    adapter = {"base_model_name_or_path": "someone/evil", "peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]}
    (model / "text_encoder" / "adapter_config.json").write_text(json.dumps(adapter))
    torch.save({"a": Canary(canary)}, model / "text_encoder" / "adapter_model.bin")
    refused(use(here, "--model", model, picture, model), 5, "--lora")


def plant(canary: Path, *paths: Path) -> None:
    """Create modules that create a file when they are imported."""
    code = f"open({str(canary)!r}, 'w')\nclass Evil:\n    pass\nModel = Pipeline = UNet2DConditionModel = Evil\n"
    for path in paths:
        path.write_text(code)


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": ["evil", "Pipeline"]},
        {"_class_name": ["pipeline", "Pipeline"]},
        {"_class_name": "evil.Pipeline"},
        {"_class_name": None},
        {"unet": ["evil", "Model"]},
        {"unet": ["os", "system"]},
        {"unet": ["diffusers", "DiffusionPipeline"]},
        {"unet": ["diffusers", "AutoModel"]},
        {"text_encoder": ["transformers", "AutoModel"]},
        {"tokenizer": ["transformers", "AutoTokenizer"]},
        {"unet": [["evil", "Model"]]},
        {"trust_remote_code": True, "unet": ["evil", "Model"]},
        {"custom_pipeline": "evil"},
        {},
    ],
)
def test_code_inside_a_model_is_never_run(
    here, picture: Path, model: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """The index may name the code, or the code may be in a place that a library searches. The user is never asked."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    plant(canary, model / "evil.py", model / "pipeline.py")
    plant(canary, *(model / part / f"{name}.py" for part in PARTS for name in ("evil", "diffusers", "modeling")))
    for part in (*PARTS, "tokenizer"):
        config = model / part / ("tokenizer_config.json" if part == "tokenizer" else "config.json")
        names = ("AutoModel", "AutoConfig", "AutoTokenizer")
        change_json(config, auto_map=dict.fromkeys(names, "modeling.Model"), model_type="evil")
    change_json(model / "model_index.json", **change)
    done = use(here, "--model", model, picture, model)
    if change not in ({}, {"custom_pipeline": "evil"}):
        refused(done, 5, "" if change == {"_class_name": "evil.Pipeline"} else "model_index.json")


@pytest.mark.parametrize("config", [{"model_type": "evil"}, {"_class_name": "Evil"}, {"_class_name": ["evil", "Evil"]}])
def test_code_beside_a_vae_is_never_run(
    here, picture: Path, tiny_sd: Path, tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, config: Any
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    vae = shutil.copytree(tiny_sd / "vae", tmp_path / "vae")
    plant(canary, vae / "evil.py", vae / "modeling.py")
    for names in ((), ("AutoConfig",), ("AutoModel",), ("AutoConfig", "AutoModel")):
        auto_map = dict.fromkeys(names, "modeling.Evil")
        (vae / "config.json").write_text(json.dumps({**config, "auto_map": auto_map}))
        refused(use(here, "--vae", vae, picture, tiny_sd), 5)


@pytest.mark.slow
def test_a_repository_of_pickles_is_refused(fresh, tiny_sd: Path, tmp_path: Path, picture: Path, canary: Path) -> None:
    pickles = shutil.copytree(tiny_sd, tmp_path / "pickles")
    for weights in pickles.rglob("*.safetensors"):
        name = "pytorch_model.bin" if weights.stem == "model" else f"{weights.stem}.bin"
        torch.save({"a": Canary(canary)}, weights.with_name(name))
        weights.unlink()
    code = shutil.copytree(tiny_sd, tmp_path / "code")
    plant(canary, code / "evil.py", code / "unet" / "evil.py")
    change_json(code / "model_index.json", _class_name=["evil", "Pipeline"], unet=["evil", "Model"])
    with LoopbackHub({"someone/pickles": pickles, "someone/code": code}) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        commands = [["models", "pull", "someone/pickles"], ["edit", picture, "-p", "fog", "--model", "someone/code"]]
        with ThreadPoolExecutor() as pool:
            for done in pool.map(lambda command: fresh(*command, **environment), commands):
                refused(done, 5)
    assert not [path for path in hub.requests if path.endswith(".bin")]


# YAML.


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system [touch canary]",
        "!!python/name:os.system",
        "!!python/name:os.system x",
        "!!binary x",
        "!!timestamp x",
        "!!int x",
        "2001-99-99",
        "[" * 300,
        "[" * 100_000,
        "{" * 100_000,
        "- " * 500 + "x",
        "? " * 500 + "x",
        "[&a [1], *a, *a]",
        "&a 7",
        "9" * 5000,
        "0x" + "f" * 900,
        "\x1b[31m",
        "\ufeff7",
        "\0",
    ],
)
def test_values_are_numbers_or_text(here, tmp_path: Path, picture: Path, text: str) -> None:
    """Test values of `--set` and of a manifest's cells."""
    value = parse_scalar(text)
    assert isinstance(value, str | int)
    if "\0" not in text:
        done = here("edit", picture, "-p", "fog", "--dry-run", "--set", f"strength={text}")
        refused(done, 2, "strength")
        assert not STEERING & set(done.err)
        (tmp_path / "jobs.jsonl").write_text(json.dumps({"input": picture.name, "strength": text}))
        common = ["-o", tmp_path / "out", "--preset", "colorize", "--quiet"]
        refused(here("batch", tmp_path / "jobs.jsonl", *common), 3, "strength")
        if "\ufeff" not in text:
            (tmp_path / "jobs.csv").write_text(f'input,strength\n{picture.name},"{text}"\n')
            refused(here("batch", tmp_path / "jobs.csv", *common), 3)


@pytest.mark.parametrize("levels", [50, 500, 900, 990, 5000])
def test_deep_rows_are_refused(here, tmp_path: Path, picture: Path, levels: int) -> None:
    for key in ("strength", "scheduler_config", "prompt"):
        row = f'{{"input": "{picture.name}", "{key}": {"[" * levels}{"]" * levels}}}'
        (tmp_path / "jobs.jsonl").write_text(row)
        done = here("batch", tmp_path / "jobs.jsonl", "-o", tmp_path / "out", "--preset", "colorize", "--quiet")
        assert done.code in (2, 3), "the row's failure, or the manifest's where the parser gives up"
        refused(done, done.code, "nested")


@pytest.mark.parametrize(
    "text",
    [
        "scheduler_config: !!python/object/apply:os.system [touch canary]\n",
        "scheduler_config:\n  a: &a [1, 2]\n  b: [*a, *a]\n",
        "scheduler_config: {<<: {a: 1}}\n",
        "? [a, b]\n: c\n",
        "- " * 100 + "x\n",
        "%TAG ! tag:yaml.org,2002:python/\n---\nprompt: !name:os.system x\n",
        "prompt: x\n---\nprompt: y\n",
        "prompt: " + "x" * 300_000,
    ],
)
def test_a_preset_of_tricks_is_refused(here, tmp_path: Path, text: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    refused(here("presets", "validate", tmp_path / "p.yaml"), 2, "p.yaml")


# The terminal.


def shows_plainly(done: Outcome) -> None:
    text = done.out.decode() + done.err
    assert not STEERING & set(text), ascii(text)
    assert "Traceback" not in text


@pytest.fixture
def hostile(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a hostile name that holds a picture, a preset and a broken picture with hostile names."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / f"in{ESCAPES}"
    folder.mkdir()
    shutil.copy(picture, folder / f"good{ESCAPES}.png")
    shutil.copy(picture, os.fsencode(folder) + b"/latin-\xe9.png")
    (folder / f"bad{ESCAPES}.png").write_bytes(b"no")
    words = {"extends": "colorize", "description": ESCAPES, "license": ESCAPES, "prompt": ESCAPES}
    (folder / f"p{ESCAPES}.yaml").write_text(json.dumps(words))
    return folder


@pytest.mark.slow
def test_names_and_presets_cannot_steer_a_terminal(here, hostile: Path, tmp_path: Path) -> None:
    preset, good = hostile / f"p{ESCAPES}.yaml", hostile / f"good{ESCAPES}.png"
    latin = os.fsdecode(os.fsencode(hostile) + b"/latin-\xe9.png")
    colorize = ["colorize", good, "--preset", preset, *QUICK]
    outcomes = [
        (here(*colorize, "--dry-run"), 0),
        (here(*colorize, tmp_path / f"a{ESCAPES}.png"), 0),
        (here(*colorize, tmp_path / f"b{ESCAPES}.png", "--json"), 0),
        (here("colorize", latin, tmp_path / "c.png", *QUICK, "--json"), 0),
        (here("colorize", latin, *QUICK, "--dry-run"), 0),
        (here("info", tmp_path / f"a{ESCAPES}.png"), 0),
        (here("info", tmp_path / f"a{ESCAPES}.png", "--json"), 0),
        (here("presets", "show", preset), 0),
        (here("presets", "validate", preset), 0),
        (here("doctor", preset), 0),
        (here("colorize", hostile / f"bad{ESCAPES}.png"), 3),
        (here("colorize", good, "--preset", f"none{ESCAPES}"), 2),
        (here("colorize", good, "--set", f"strength={ESCAPES}"), 2),
        (here("colorize", good, f"--{ESCAPES}"), 2),
        (here("colorize", good, "--model", f"model{ESCAPES}"), 5),
        (here("models", "verify", f"model{ESCAPES}"), 5),
        (here("models", "pull", preset), 0),
        (here("batch", hostile, "-o", "out", "--preset", preset, *QUICK, "--dry-run"), 0),
        (here("batch", hostile, "-o", "out", "--preset", preset, *QUICK, "--report", f"r{ESCAPES}.html"), 3),
        (here("batch", hostile, "-o", "out2", "--preset", preset, *QUICK, "--json"), 3),
    ]
    for done, code in outcomes:
        assert done.code == code, done.err
        shows_plainly(done)
    assert yaml.safe_load(outcomes[0][0].out)["input"] == str(good), "what is printed is still what is meant"
    assert json.loads(outcomes[2][0].out)["input"] == str(good)
    assert os.fsencode(json.loads(outcomes[3][0].out)["input"]).endswith(b"latin-\xe9.png")


def test_what_others_wrote_into_a_picture_cannot_steer_a_terminal(here, tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", f"a cat{ESCAPES}\nSteps: 1{ESCAPES}")
    Image.new("RGB", (16, 16)).save(tmp_path / "theirs.png", pnginfo=info)
    forge(tmp_path / "forged.png", version=ESCAPES, input=f"a{ESCAPES}.png", preset=f"p{ESCAPES}", note=ESCAPES)
    forge(tmp_path / "lone.png", preset="\ud800", input="\ud800.png")
    for name in ("theirs.png", "forged.png", "lone.png"):
        for more in ([], ["--json"]):
            done = here("info", tmp_path / name, *more)
            assert done.code == (3 if name == "lone.png" else 0), done.err
            shows_plainly(done)


def test_yaml_for_people_is_yaml() -> None:
    for value in ("\u00e9\U0001f600", ESCAPES, "\u202e", "\ud800", "a\nb", "\u2028"):
        text = dump_yaml({"prompt": value})
        assert not STEERING & set(text)
        text.encode()
        if "\ud800" not in value:
            assert yaml.safe_load(text) == {"prompt": value}
    assert "\u00e9" in dump_yaml({"prompt": "\u00e9"})
    assert not STEERING & set(printable(ESCAPES))


@pytest.mark.slow
def test_names_cannot_break_out_of_a_report(here, tmp_path: Path, picture: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = "<!--TITLE--><svg onload=alert(1)>\u2028'\"`${1}*{}"
    shutil.copy(picture, f"{words}.png")
    Path(f"{words}2.png").write_bytes(b"no")
    Path(f"{words}.yaml").write_text(json.dumps({"extends": "colorize", "prompt": words, "negative_prompt": words}))
    done = here("batch", ".", "-o", "out", "--preset", f"./{words}.yaml", "--report", "r.html", *QUICK)
    assert done.code == 3, done.err
    page = Path("r.html").read_text()
    assert "<svg" not in page
    assert "\u2028" not in page
    assert page.count("<script>") == page.count("</script>") == 1
    assert "default-src 'none'" in page


# Tokens.


@pytest.mark.slow
def test_tokens_are_in_nothing_that_is_told_or_written(
    here, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {"HF_TOKEN": "hf_averysecrettoken", "IMG2IMG_TOKEN": "anothersecrettoken", "HF_HUB_OFFLINE": "1"}
    for key, value in secrets.items():
        monkeypatch.setenv(key, value)
    colorize = ["--preset", "colorize", *QUICK]
    outcomes = [
        here("colorize", picture, tmp_path / "a.png", *QUICK, "--json"),
        here("info", tmp_path / "a.png", "--json"),
        here("batch", picture, "-o", tmp_path / "out", *colorize, "--json", "--report", tmp_path / "r"),
        here("edit", picture, "-p", "fog", "--model", "someone/nowhere"),
        here("models", "verify", "someone/nowhere"),
        here("serve", "--token", "tooshort", "--host", "127.0.0.1"),
        here("serve", "--preset", "nowhere", "--host", "127.0.0.1"),
    ]
    assert [done.code for done in outcomes] == [0, 0, 0, 5, 5, 2, 2]
    told = b"".join(done.out + done.err.encode() for done in outcomes)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in ("hf_averysecrettoken", "anothersecrettoken", "tooshort"):
        assert secret.encode() not in told + written
        assert base64.b64encode(secret.encode())[:-4] not in told + written


def test_a_token_that_can_be_guessed_is_refused(here) -> None:
    for token in ("", "short", "x" * 15):
        refused(here("serve", "--host", "127.0.0.1", "--token", token), 2, "16 characters")


# Sockets.


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="i2i") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


def test_a_socket_folder_that_is_a_link_is_refused(runtime: Path) -> None:
    (runtime / "real").mkdir(mode=0o700)
    (runtime / "img2img").symlink_to("real")
    with pytest.raises(UsageError, match="0700"):
        sockets.make_socket_folder()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sockets.socket_path("api"))
        listener.listen()
        assert sockets.connect() is None


as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")


@as_root
def test_a_socket_folder_of_another_user_is_refused(runtime: Path) -> None:
    folder = runtime / "img2img"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    with pytest.raises(UsageError, match="yours alone"):
        sockets.make_socket_folder()
    assert sockets.connect() is None


def _visit_as_another(path: str) -> NoReturn:
    """Ask for the status as another user; exit with 0 if there is no answer."""
    code = 2
    try:
        os.setuid(65534)
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.settimeout(30)
            visitor.connect(path)
            code = 0
            visitor.sendall(b"GET /img2img/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
            code = 1 if visitor.recv(1) else 0
    except TimeoutError:
        code = 1
    except OSError:  # cut off before all was said
        pass
    finally:
        os._exit(code)


@as_root
def test_commands_and_their_server_are_the_same_user(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check must work even if the folder has let another user in."""
    state = State(dispatcher=Dispatcher(Pool(600)))
    with serve_own(state) as path:
        assert ask_server("GET", "/img2img/status")["pid"] == os.getpid()
        runtime.chmod(0o755)
        Path(sockets.socket_folder()).chmod(0o755)
        Path(path).chmod(0o666)
        child = os.fork()
        if child == 0:
            _visit_as_another(path)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        # The other way round: a command gives its pictures to nobody else.
        monkeypatch.setattr(sockets, "is_private", lambda folder: True)
        assert sockets.connect() is not None
        monkeypatch.setattr(os, "getuid", lambda: 65534)
        monkeypatch.setattr(sockets, "socket_path", lambda kind: path)
        assert sockets.connect() is None
        monkeypatch.undo()
    state.dispatcher.close()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["somebody else's", "open to others", "no folder", "a long name"])
def test_a_folder_that_cannot_be_used_costs_the_server_and_not_the_picture(
    runtime: Path, here, picture: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    folder = runtime / "img2img"
    if fault == "no folder":
        folder.write_text("a file")
    elif fault == "a long name":
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime / ("x" * 90)))
        (runtime / ("x" * 90)).mkdir()
    else:
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
        if fault == "somebody else's" and os.getuid() == 0:
            folder.chmod(0o700)
            os.chown(folder, 65534, 65534)
    done = here("colorize", picture, picture.parent / "made.png", "--keep-warm", "5s", *QUICK)
    assert done.code == 0, done.err
    assert Image.open(picture.parent / "made.png").size == (96, 72)
    line, _ = done.err.splitlines()
    assert str(runtime) in line
    assert line.endswith("going on without a server")
