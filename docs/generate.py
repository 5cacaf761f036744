"""Write the reference pages and the man page from the code: `python docs/generate.py`.

`reference-commands.md` and `img2img.1` come from the command line's own parser, `reference-presets.md` from the schema
of a preset and from the presets in `configs/`. `tests/test_docs.py` fails when one of them is out of date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from img2img_cli import __version__
from img2img_cli.cli.app import build_command
from img2img_cli.errors import ExitCode
from img2img_cli.presets.files import EXTENDS, list_cards
from img2img_cli.presets.schema import Parameters

HERE = Path(__file__).parent
NOTE = "<!-- Written by `python docs/generate.py`; do not edit. -->"
RANGES = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}
CODES = {
    ExitCode.DONE: "Done.",
    ExitCode.BUG: "A bug in img2img. Please report it.",
    ExitCode.USAGE: "Wrong usage, or a preset that cannot be used.",
    ExitCode.SOME_FAILED: "A picture could not be read or made.",
    ExitCode.NOTHING_MATCHED: "Nothing matched.",
    ExitCode.MODEL: "A model, the hub or authentication failed.",
    ExitCode.OUTPUT: "The output could not be written.",
    ExitCode.LOCKED: "Another run holds the lock.",
    ExitCode.MEMORY: "Out of memory.",
    ExitCode.TIMEOUT: "A time limit ended the run.",
    ExitCode.HUNG_UP: "The terminal was closed.",
    ExitCode.INTERRUPTED: "Interrupted (Ctrl-C).",
    ExitCode.TERMINATED: "Terminated.",
}
ENVIRONMENT = {
    "IMG2IMG_TOKEN": "Token that web clients of `serve` must send.",
    "HF_TOKEN": "Token for gated models on the hub.",
    "HF_HUB_OFFLINE": "Set it to 1 to open no network connection.",
    "HF_HOME": "Folder of the hub's cache.",
    "XDG_RUNTIME_DIR": "Folder below which the server's sockets lie.",
}
Record = tuple[str, str]


def list_commands() -> Iterator[tuple[str, Any]]:
    """Yield every command's full name, such as `img2img presets list`, with its parser; groups before their members."""

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield name, command
        for child, member in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {child}", member)

    return walk("img2img", build_command())


def describe(name: str, command: Any) -> tuple[str, str, dict[str, list[Record]]]:
    """Return a command's usage line, its help, and its parameters (how they are written, what they do) by panel."""
    context = type(command).context_class(command, info_name=name)
    panels: dict[str, list[Record]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or "--help" in parameter.opts:
            continue
        argument = parameter.param_type_name == "argument"
        panel = "Arguments" if argument else getattr(parameter, "rich_help_panel", None) or "Options"
        panels.setdefault(panel, []).append((record[0], " ".join(record[1].split())))
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    return usage, re.sub(r"\s*\n\s*", " ", (command.help or "").strip()), panels


def write_commands() -> str:
    """Return the page of all commands and their options."""
    lines = ["# Commands", "", NOTE, "", "Every command also takes `-h` and `--help`.", ""]
    for name, command in list_commands():
        usage, text, panels = describe(name, command)
        lines += [f"## {name}", "", text, "", "```text", usage, "```", ""]
        for panel, records in panels.items():
            lines += [f"| {panel} | |", "| --- | --- |"]
            lines += [f"| `{_cell(left)}` | {_cell(right)} |" for left, right in records]
            lines += [""]
    lines += ["## Exit codes", "", "| Code | Meaning |", "| --- | --- |"]
    lines += [f"| {int(code)} | {text} |" for code, text in CODES.items()]
    lines += ["", "## Environment", "", "| Variable | Meaning |", "| --- | --- |"]
    lines += [f"| `{name}` | {text} |" for name, text in ENVIRONMENT.items()]
    return "\n".join(lines) + "\n"


def write_presets() -> str:
    """Return the page of all preset keys, and of the presets that come with the package."""
    properties = Parameters.model_json_schema()["properties"]
    lines = ["# Preset keys", "", NOTE, ""]
    lines += [
        "`--set KEY=VALUE` sets any of them on the command line. See [Presets](presets.md) for how to use them.",
        "",
    ]
    lines += ["| Key | Values | Default | Meaning |", "| --- | --- | --- | --- |"]
    lines += [f"| `{EXTENDS}` | text | | The preset, by name or file, whose values this one starts from. |"]
    for key, schema in properties.items():
        default = schema.get("default")
        shown = "" if default in (None, "", [], {}) else f"`{json.dumps(default).strip(chr(34))}`"
        lines.append(f"| `{key}` | {_cell(_values(schema))} | {shown} | {_cell(schema['description'])} |")
    lines += ["", "## Presets that come with img2img", ""]
    lines += ["| Preset | Task | Model | Memory, GiB | Steps run | Licence of the model | |", "| " + "--- | " * 7]
    for name, card in sorted(list_cards().items()):
        steps = max(1, int(card.num_inference_steps * card.strength))
        licence = f"{card.license} (gated)" if card.gated else card.license
        cells = [f"`{name}`", card.task, f"`{card.model}`", f"{card.memory_gib:g}", str(steps), licence]
        lines.append("| " + " | ".join(map(_cell, [*cells, card.description])) + " |")
    lines[-1] = lines[-1].rstrip()
    return "\n".join(lines) + "\n"


def _values(schema: dict[str, Any]) -> str:
    """What a key may hold, in words: its type or its choices, and its range."""
    if "anyOf" in schema:
        return " or ".join("nothing" if s.get("type") == "null" else _values(s) for s in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema["type"] == "array":
        return f"list of {_values(schema['items'])}"
    kinds = {"number": "number", "integer": "whole number", "string": "text", "boolean": "true or false"}
    ranges = [text.format(f"{schema[key]:g}") for key, text in RANGES.items() if key in schema]
    return ", ".join([kinds.get(schema["type"], "mapping"), *ranges])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def write_manual() -> str:
    """Return the man page, in roff."""
    lines = [f'.TH IMG2IMG 1 "" "img2img {__version__}" "User Commands"', ".SH NAME"]
    lines += ["img2img \\- turn one picture into another with Stable Diffusion", ".SH SYNOPSIS"]
    lines += [".B img2img", r"\fICOMMAND\fR [\fIOPTIONS\fR] [\fIARGUMENTS\fR]", ".SH DESCRIPTION"]
    lines += [_roff(build_command().help), ".SH OPTIONS", *_list_parameters("img2img", build_command()), ".SH COMMANDS"]
    for name, command in list_commands():
        if name == "img2img":
            continue
        usage, text, _ = describe(name, command)
        lines += [f".SS {_roff(name)}", ".B " + _roff(usage), ".PP", _roff(text)]
        lines += _list_parameters(name, command)
    lines += [".SH EXIT STATUS"]
    for code, text in CODES.items():
        lines += [".TP", f".B {int(code)}", _roff(text)]
    lines += [".SH ENVIRONMENT"]
    for name, text in ENVIRONMENT.items():
        lines += [".TP", f".B {name}", _roff(text)]
    return "\n".join(lines) + "\n"


def _list_parameters(name: str, command: Any) -> list[str]:
    records = [record for panel in describe(name, command)[2].values() for record in panel]
    return [line for left, right in records for line in (".TP", ".B " + _roff(left), _roff(right) or "\\&")]


def _roff(text: str) -> str:
    """Text with roff's own characters escaped; a dot or quote at the start would be a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "")
    text = "".join(c if ord(c) < 128 else f"\\[u{ord(c):04X}]" for c in text)
    return f"\\&{text}" if text.startswith((".", "'")) else text


PAGES = {"reference-commands.md": write_commands, "reference-presets.md": write_presets, "img2img.1": write_manual}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (HERE / page).write_text(write(), encoding="utf-8")
