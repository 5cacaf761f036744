"""Strict YAML: every value knows its line; duplicate keys, tags, anchors and deep nesting are refused."""

from __future__ import annotations

import re
from typing import Any

import yaml

Path = tuple[str | int, ...]
MAX_DEPTH = 20
MAX_CHARACTERS = 200_000
_STEERING = re.compile(r"[\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # PyYAML escapes the rest
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null")}


class YamlError(Exception):
    """What is wrong and on which line (1-based, or None)."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def parse_yaml(text: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """Parse a mapping. Returns it and the line of each key, by its path.

    Raises:
        YamlError: not a mapping, not YAML, or YAML of a kind that presets have no use for.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlError(f"longer than {MAX_CHARACTERS} characters")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise YamlError("nested too deeply", _line(event))
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise YamlError("anchors and aliases are not supported; use extends", _line(event))
        node = yaml.compose(text, Loader=yaml.SafeLoader)
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
    """A plain scalar's value by the rules of YAML 1.1, without tags that build objects."""
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError, OverflowError):
        raise YamlError(f"'{node.value}' cannot be read", line) from None


def parse_scalar(text: str) -> Any:
    """The value of one `--set key=value`: a number, true/false or null; all else is text as it stands."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return construct_scalar(node, 1) if isinstance(node, yaml.ScalarNode) and node.tag in _TAGS else text
    except (yaml.YAMLError, YamlError, RecursionError):
        return text


def dump_yaml(*documents: Any, sort_keys: bool = False) -> str:
    """YAML for people to read, with nothing in it that steers a terminal."""

    def dump(allow_unicode: bool) -> str:
        options: dict[str, Any] = {"allow_unicode": allow_unicode, "sort_keys": sort_keys, "width": 10**6}
        return str(yaml.safe_dump_all(documents, **options))

    text = dump(True)
    return text if _STEERING.search(text) is None else dump(False)
