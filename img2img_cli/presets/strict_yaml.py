"""Parse strict YAML: record the line of each key; refuse duplicate keys, tags, anchors and deep nesting.

Plain values follow YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema). PyYAML itself follows
YAML 1.1, where `no` is false, `1:0` is 60, `010` is 8, `1e3` is text and `2026-11-25` is a date.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from typing import Any, ClassVar

import yaml

Path = tuple[str | int, ...]
MAX_DEPTH = 20
MAX_CHARACTERS = 1 << 16
MAX_SCALAR = 1000  # characters; longer texts are never numbers
MAX_BITS = 1024  # of an integer; about the range of a float
_STEERING = re.compile(r"[\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # PyYAML escapes the others
_TAG = "tag:yaml.org,2002:"
_TAGS = {_TAG + kind for kind in ("map", "seq", "str", "int", "float", "bool", "null")}
# For each kind of plain scalar: its possible first characters and the pattern of its whole text.
_SCALARS = (
    ("null", ["~", "n", "N", ""], re.compile(r"(?:~|null|Null|NULL|)\Z")),
    ("bool", list("tTfF"), re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")),
    ("int", list("-+0123456789"), re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")),
    (
        "float",
        list("-+.0123456789"),
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
    ),
)
_NO_SCALAR = frozenset("[{&*!|>?#%@`")


# libyaml is about thirty times faster; PyYAML builds without it fall back to the Python parser.
_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Parser):  # type: ignore[misc]
    """Parser and composer that tags plain scalars by the core schema."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes text which YAML 1.1 or 1.2 would not read as text."""


for _kind, _firsts, _pattern in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, _pattern, _firsts)


class YamlError(Exception):
    """An error in a YAML text, with its line (1-based, or None)."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def parse_yaml(text: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """Parse a mapping; return it and the line (1-based) of each key, by the key's path. No text is an empty mapping.

    Raises:
        YamlError: the text is not a mapping, not YAML, too long, or uses a feature that is not supported.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlError(f"longer than {MAX_CHARACTERS} characters")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise YamlError("nested too deeply", _line(event))
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise YamlError("anchors and aliases are not supported; use extends", _line(event))
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise YamlError(f"not valid YAML: {problem}", mark.line + 1 if mark else None) from None
    lines: dict[Path, int] = {}
    value = _construct(node, (), lines) if node is not None else {}
    if not isinstance(value, dict):
        raise YamlError("must be a mapping of keys to values, such as 'strength: 0.6'", 1)
    return value, lines


def _construct(node: yaml.Node, path: Path, lines: dict[Path, int]) -> Any:
    line = _line(node)
    if node.tag not in _TAGS:
        raise YamlError(f"tag {node.tag} is not supported", line)
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key_line = _line(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise YamlError("a key must be plain text", key_line)
            key = str(key_node.value)
            if key in result:
                raise YamlError(f"'{key}' is given twice (first on line {lines[(*path, key)]})", key_line)
            lines[(*path, key)] = key_line
            result[key] = _construct(value_node, (*path, key), lines)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*path, index), lines) for index, item in enumerate(node.value)]
    return construct_scalar(node, line)


def _line(marked: yaml.Event | yaml.Node) -> int:
    return marked.start_mark.line + 1 if marked.start_mark else 1


def construct_scalar(node: yaml.Node, line: int) -> Any:
    """Return a scalar's value according to its tag.

    Args:
        line: the line for the error message.

    Raises:
        YamlError: the text does not fit an explicit tag such as `!!int`, or the number is too large.
    """
    kind, text = node.tag.removeprefix(_TAG), node.value
    if kind == "str":
        return text
    pattern = next(pattern for name, _, pattern in _SCALARS if name == kind)
    try:
        if not pattern.match(text):
            raise ValueError(text)
        value = _CONSTRUCT[kind](text)
    except ValueError:  # Python also refuses integers of thousands of digits
        raise YamlError(f"'{_shorten(text)}' cannot be read", line) from None
    if isinstance(value, int) and value.bit_length() > MAX_BITS:  # Python may refuse to convert it to decimal
        raise YamlError(f"'{_shorten(text)}' is too large a number", line)
    return value


def _construct_int(text: str) -> int:
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _construct_float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_CONSTRUCT: dict[str, Callable[[str], Any]] = {
    "null": lambda _: None,
    "bool": lambda text: text.lower() == "true",
    "int": _construct_int,
    "float": _construct_float,
}


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."


def parse_scalar(text: str) -> Any:
    """Return the value of `--set key=value` as a number, bool or None; return any other text unchanged."""
    if len(text) > MAX_SCALAR or text.lstrip()[:1] in _NO_SCALAR:
        return text  # PyYAML takes a second to parse a thousand brackets
    try:
        first = next(islice(yaml.parse(text, Loader=_Loader), 2, None))
        node = yaml.compose(text, Loader=_Loader) if isinstance(first, yaml.ScalarEvent) else None
        return construct_scalar(node, 1) if isinstance(node, yaml.ScalarNode) and node.tag in _TAGS else text
    except (yaml.YAMLError, YamlError, StopIteration):
        return text


def dump_yaml(*documents: Any, sort_keys: bool = False) -> str:
    """Return documents as YAML for people to read, with characters escaped that would affect a terminal."""

    def dump(allow_unicode: bool) -> str:
        options: dict[str, Any] = {"allow_unicode": allow_unicode, "sort_keys": sort_keys, "width": 10**6}
        return str(yaml.dump_all(documents, Dumper=_Dumper, **options))

    text = dump(True)
    return text if _STEERING.search(text) is None else dump(False)
