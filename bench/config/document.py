"""YAML files as plain data that knows the file and line of each part. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from bench.config.errors import UserError

Key = tuple[str | int, ...]  # the place of a value in a document: ("grid", "method", 3, "harma", "bottleneck")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars, decimal numbers only: `no` is text, `1e-4` a number, `010` ten, `12:30` text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


class Dumper(yaml.SafeDumper):
    """Quotes whatever PyYAML's own or our reader would take for something other than text."""


_SCALARS: dict[str, tuple[str, list[str], Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""], lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF"), lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]+", list("-+0123456789"), int),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
        list("-+.0123456789"),
        float,
    ),
}
for _name, (_pattern, _first, _) in _SCALARS.items():
    for _class in (_Loader, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)  # type: ignore[no-untyped-call]


def read_yaml(path: Path) -> tuple[Any, dict[Key, int]]:
    """A YAML file's content, and the line (from 1) of every key and list item by its path. UserError with file:line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> tuple[Any, dict[Key, int]]:
    """`read_yaml` for a text that errors call `name`."""
    lines: dict[Key, int] = {}

    def build(node: yaml.Node, at: Key, within: tuple[yaml.Node, ...]) -> Any:
        line = node.start_mark.line + 1
        lines.setdefault(at, line)
        if node in within:
            raise UserError(f"{name}:{line}: an alias that contains itself")
        within = (*within, node)
        if isinstance(node, yaml.MappingNode):
            result: dict[str, Any] = {}
            for key, value in node.value:
                where = f"{name}:{key.start_mark.line + 1}"
                if not isinstance(key, yaml.ScalarNode):
                    raise UserError(f"{where}: a key must be one word")
                if key.value in result:
                    raise UserError(f"{where}: key '{key.value}' is written twice")
                lines[(*at, key.value)] = key.start_mark.line + 1
                result[key.value] = build(value, (*at, key.value), within)
            return result
        if isinstance(node, yaml.SequenceNode):
            return [build(item, (*at, index), within) for index, item in enumerate(node.value)]
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind == "str":
            return node.value
        try:
            value = _SCALARS[kind][2](node.value)
        except (KeyError, ValueError):
            raise UserError(f"{name}:{line}: cannot read {node.value!r} as '{node.tag}'") from None
        if value in (float("inf"), float("-inf")):
            raise UserError(f"{name}:{line}: {node.value} is too large for a number")
        return value

    try:
        root = _Loader(text).get_single_node()  # type: ignore[no-untyped-call]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        hint = " (quote texts with ${...} inside { } or [ ], or write $NAME)" if "${" in text and mark else ""
        raise UserError(f"{name}{line}: not valid YAML: {problem}{hint}") from None
    return (None if root is None else build(root, (), ())), lines


OVERRIDE = "--set"


@dataclass
class Document:
    """Plain data and the place of each part: "file:line", or the --set that wrote it."""

    data: Any
    places: dict[Key, str]

    def at(self, path: Key) -> str:
        """The place of the nearest part known on the way to `path`."""
        while path not in self.places and path:
            path = path[:-1]
        return self.places.get(path, "settings")

    def is_override(self, path: Key) -> bool:
        """Whether the value at `path`, or a section that it is in, was put there by a --set."""
        return any(self.places.get(path[:end], "").startswith(OVERRIDE) for end in range(1, len(path) + 1))

    def put(self, path: tuple[str, ...], value: Any, place: str) -> None:
        """Write a value, into each item where a section on the way is a list. UserError for what is no section."""
        for known in [known for known in self.places if known[: len(path)] == path]:
            del self.places[known]
        self.places[path] = place
        owners, parents = [self.data], path[:-1]
        for depth, key in enumerate(parents):
            for owner in owners:
                if owner.get(key) is None:
                    owner[key] = {}
                    self.places.setdefault(path[: depth + 1], place)
            found = [owner[key] for owner in owners]
            owners = [item for each in found for item in (each if isinstance(each, list) else [each])]
            for owner in owners:
                if not isinstance(owner, dict):
                    raise UserError(f"{place}: '{'.'.join(path[: depth + 1])}' holds {show(owner)}, not settings")
        for owner in owners:
            owner[path[-1]] = value


def read_document(path: Path) -> Document:
    """A YAML file as a document; UserError, with file and line, if it can't be read."""
    data, lines = read_yaml(path)
    return Document(data, {at: f"{path}:{line}" for at, line in lines.items()})


def show(value: Any) -> str:
    """A value as errors print it, at most 60 characters."""
    text = "nothing" if value is None else json.dumps(value) if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
