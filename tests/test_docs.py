"""README and the pages in docs: commands work as written, and generated parts match the code.

The commands of a shell block are planned with `--dry-run`; an edit of "Get started" is run with the bundled model, and
README's installation by continuous integration. A block after a comment such as `<!-- needs: network -->` is only
parsed by the command line's own parser, and its presets and keys are looked up.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from PIL import Image

from img2img_cli.cli.app import build_command
from img2img_cli.errors import ExitCode
from img2img_cli.presets.files import list_presets
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.inputs import ROW_KEYS

ROOT = Path(__file__).parents[1]
GENERATED = ("reference-commands.md", "reference-presets.md")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name not in GENERATED),
]
PICTURE_COMMANDS = ("edit", "colorize", "upscale", "restore", "batch")
SEPARATORS = {"|", "||", "&&", ";", "&", "("}
# Of other programs.
FOREIGN_OPTIONS = {"--no-deps", "--write", "--count", "--memory-every", "--scenes", "--kills", "--strict", "--card"}
PRESET_NAME = re.compile(r"(?:sd15|sdxl|sd35|sd|flux2?|qwen|pix2pix|style|esrgan)-[a-z0-9-]+")


@dataclass(frozen=True)
class Block:
    """A fenced block: its position, its language, the needs in the comment before it, and its text."""

    place: str
    language: str
    needs: str
    text: str


def read_blocks(page: Path) -> Iterator[Block]:
    pattern = re.compile(r"(?:^<!-- (?P<note>[^>]*) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
    text = page.read_text()
    for found in pattern.finditer(text):
        line = text.count("\n", 0, found.start("text")) + 1
        note = found["note"] or ""
        # README's two marked blocks are run by continuous integration.
        needs = "installation" if note in ("install", "test") else note.removeprefix("needs: ")
        yield Block(f"{page.name}:{line}", found["language"], needs, found["text"])


def split_commands(text: str) -> Iterator[list[str]]:
    """Return the arguments of every `img2img ...` in lines of shell or crontab, without variables and redirections."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.wordchars += "!@%{}:,+"
        words = list(lexer)
        command: list[str] = []
        for word in [*words, ";"]:
            if word not in SEPARATORS:
                command.append(word)
                continue
            if "img2img" in command:
                arguments = command[command.index("img2img") + 1 :]
                redirected = arguments.index(">") if ">" in arguments else len(arguments)
                yield arguments[:redirected]
            command = []


BLOCKS = [block for page in PAGES for block in read_blocks(page)]
SHELL = [block for block in BLOCKS if block.language in ("", "sh")]
COMMANDS = [(block, arguments) for block in SHELL for arguments in split_commands(block.text)]


def parse(arguments: list[str]) -> Any:
    """Have the real parser read a command line, without running the command; return its context."""
    command: Any = build_command()
    rest = list(arguments)
    while hasattr(command, "commands") and rest and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    return command.make_context("img2img", rest)


def all_options() -> set[str]:
    """Return every option of every command."""

    def walk(command: Any) -> Iterator[str]:
        yield from (name for p in command.params for name in (*p.opts, *p.secondary_opts))
        for member in getattr(command, "commands", {}).values():
            yield from walk(member)

    return {*walk(build_command()), "--help"}


def inline_code(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 60
    assert sum(not block.needs for block, _ in COMMANDS) > 30


@pytest.mark.parametrize("arguments", [pytest.param(a, id=f"{b.place} {a[0] if a else ''}") for b, a in COMMANDS])
def test_command_lines_are_read_by_the_parser(arguments: list[str]) -> None:
    try:
        context = parse(arguments)
    except typer.Exit:
        return
    given = context.params
    presets = given.get("preset") or given.get("name") or ()
    for preset in [presets] if isinstance(presets, str) else presets:
        if PRESET_NAME.fullmatch(preset):
            assert preset in list_presets()
    for assignment in given.get("set_") or ():
        assert assignment.partition("=")[0] in Parameters.model_fields


@pytest.mark.parametrize(
    "block", [pytest.param(b, id=b.place) for b in SHELL if b.language == "sh" and not b.needs and "img2img" in b.text]
)
def test_commands_that_need_nothing_can_be_planned(
    block: Block, here: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    rows = re.search(r"printf '(.*)' > (\S+)", block.text)
    if rows:
        Path(rows[2]).write_text(rows[1].replace("\\n", "\n"))
    names = b"\0".join(str(path).encode() for path in Path("examples").glob("*grey*"))
    for arguments in split_commands(block.text):
        if arguments[0] not in PICTURE_COMMANDS:
            continue
        stdin = names if arguments[0] == "batch" else Path("examples/coffee-grey.jpg").read_bytes()
        told = here(*(a for a in arguments if a != "--json"), "--dry-run", stdin=stdin)
        assert told.code == ExitCode.DONE, f"{block.place}: img2img {shlex.join(arguments)}: {told.err}"


@pytest.mark.slow
def test_an_edit_and_its_info_work(
    here: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    with Image.open("examples/coffee.jpg") as picture:  # small, so it is quick
        picture.resize((96, 64)).save("examples/coffee.jpg")
    blocks = [block for block in SHELL if block.place.startswith("index.md") and not block.needs]
    for arguments in (arguments for block in blocks for arguments in split_commands(block.text)):
        if arguments[0] not in ("edit", "info"):  # the others take as long again, and have their own tests
            continue
        told = here(*arguments)
        assert told.code == ExitCode.DONE, f"img2img {shlex.join(arguments)}: {told.err}"
    with Image.open("night.png") as picture:
        picture.load()


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_options_presets_and_keys_that_pages_name_exist(page: Path) -> None:
    options = all_options() | FOREIGN_OPTIONS
    presets, keys = set(list_presets()), {*Parameters.model_fields, *ROW_KEYS}
    for code in inline_code(page):
        if not code.startswith(("python", "pip")):
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", code)) <= options, code
        if PRESET_NAME.fullmatch(code):
            assert code in presets or code == "sd-models", code  # an endpoint of the web UI
        assigned = re.search(r"--set ([a-z_]+)=", code)
        assert assigned is None or assigned[1] in keys, code
        if code.startswith("img2img "):
            find_command(code.split()[1:])


def find_command(words: list[str]) -> Any:
    """Return the command that the first words name; raise KeyError if there is none."""
    command: Any = build_command()
    for word in words:
        if not hasattr(command, "commands") or word.startswith("-"):
            break
        command = command.commands[word]
    return command


@pytest.mark.parametrize("block", [pytest.param(b, id=b.place) for b in BLOCKS if b.language == "yaml"])
def test_presets_in_pages_are_valid(block: Block, tmp_path: Path) -> None:
    from img2img_cli.presets.catalogue import resolve
    from img2img_cli.presets.files import load_preset

    (tmp_path / "page.yaml").write_text(block.text)
    assert isinstance(yaml.safe_load(block.text), dict)
    resolve(load_preset(str(tmp_path / "page.yaml")), {})


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_files_that_pages_name_exist(page: Path) -> None:
    for code in inline_code(page):
        if re.fullmatch(r"(img2img_cli|tests|docs|configs|benchmarks|\.ci)/[\w./-]*", code):
            assert (ROOT / code).exists(), code
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_links_within_the_readme_lead_to_a_heading() -> None:
    text = (ROOT / "README.md").read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    known = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
    linked = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert len(linked) > 10
    assert linked <= known


def test_every_exit_code_is_explained() -> None:
    text = (ROOT / "docs/scripts.md").read_text().partition("## Exit codes")[2]
    told = {int(number) for row in re.findall(r"^\| ([\d, ]+) \|", text, re.M) for number in row.split(",")}
    assert told == {int(code) for code in ExitCode}


def test_troubleshooting_quotes_messages_that_exist() -> None:
    code = "".join(path.read_text() for path in sorted((ROOT / "img2img_cli").rglob("*.py")))
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    page = (ROOT / "docs/troubleshooting.md").read_text()
    quoted = [heading for heading in re.findall(r"^### (.+)$", page, re.M) if heading[0].islower()]
    assert len(quoted) > 20
    missing = [part for heading in quoted for part in re.split(r", | or (?=unknown)", heading) if part not in code]
    assert missing == [], "bring docs/troubleshooting.md up to date"


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", [*GENERATED, "img2img.1"])
def test_the_reference_is_up_to_date(page: str) -> None:
    assert load_generator().PAGES[page]() == (ROOT / "docs" / page).read_text(), "run `python docs/generate.py`"
