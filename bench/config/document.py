"""YAML files as plain data that knows the file and line of each part. No torch."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from bench.config.errors import UserError
from bench.config.files import read_small

Key = tuple[str | int, ...]  # the place of a value in a document: ("grid", "method", 3, "harma", "bottleneck")


LARGEST_FILE = 2**18  # bytes
MOST_VALUES = 20_000  # in a file; an alias counts as all that it stands for
DEEPEST = 32  # lists and mappings within each other
LARGEST_INT = 2**63 - 1


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars, decimal numbers only: `no` is text, `1e-4` a number, `010` ten, `12:30` text.

    UserError, without the file's name, for a document beyond the limits above.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth, self.count = self.depth + 1, self.count + 1
        _limit(self.depth, self.count, self.line + 1)
        node = super().compose_node(parent, index)  # type: ignore[no-untyped-call]
        self.depth -= 1
        return node


class _TooMuch(Exception):
    """What is beyond a limit, and its line."""


def _limit(depth: int, count: int, line: int) -> None:
    if depth > DEEPEST:
        raise _TooMuch(f"nested over {DEEPEST} deep", line)
    if count > MOST_VALUES:
        raise _TooMuch(f"over {MOST_VALUES:,} values, counting aliases as often as they are used", line)


class Dumper(yaml.SafeDumper):
    """Quotes whatever PyYAML's own or our reader would take for something other than text."""


_DIGITS = 100  # of a whole number that are read: it is too large with fewer, and Python refuses 5,000
_SCALARS: dict[str, tuple[str, list[str], Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""], lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF"), lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]+", list("-+0123456789"), lambda text: int(text[:_DIGITS])),
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
        text = read_small(path, LARGEST_FILE).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> tuple[Any, dict[Key, int]]:
    """`read_yaml` for a text that errors call `name`."""
    try:
        root = _Loader(text).get_single_node()  # type: ignore[no-untyped-call]
        lines: dict[Key, int] = {}
        return (None if root is None else _Builder(name, lines).build(root, (), ())), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        hint = " (quote texts with ${...} inside { } or [ ], or write $NAME)" if "${" in text and mark else ""
        raise UserError(f"{name}{line}: not valid YAML: {problem}{hint}") from None
    except _TooMuch as limit:
        what, line = limit.args
        raise UserError(f"{name}:{line}: {what}") from None


@dataclass
class _Builder:
    """Plain data from YAML's nodes; fills `lines`."""

    name: str
    lines: dict[Key, int]
    count: int = 0

    def build(self, node: yaml.Node, at: Key, within: tuple[yaml.Node, ...]) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(at, line)
        self.count += 1
        if node in within:
            raise UserError(f"{self.name}:{line}: an alias that contains itself")
        within = (*within, node)
        _limit(len(within), self.count, line)
        if isinstance(node, yaml.MappingNode):
            result: dict[str, Any] = {}
            for key, value in node.value:
                name, key_line = self.key(key, result)
                self.lines[(*at, name)] = key_line
                result[name] = self.build(value, (*at, name), within)
            return result
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*at, index), within) for index, item in enumerate(node.value)]
        return self.scalar(node, f"{self.name}:{line}")

    def key(self, node: yaml.Node, known: dict[str, Any]) -> tuple[str, int]:
        """A mapping's key and its line."""
        line = node.start_mark.line + 1
        where = f"{self.name}:{line}"
        if not isinstance(node, yaml.ScalarNode):
            raise UserError(f"{where}: a key must be one word")
        if node.value in known:
            raise UserError(f"{where}: key {show(node.value)} is written twice")
        return whole_characters(node.value, where), line

    def scalar(self, node: yaml.Node, where: str) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind == "str":
            return whole_characters(node.value, where)
        try:
            value = _SCALARS[kind][2](node.value)
        except (KeyError, ValueError):
            raise UserError(f"{where}: cannot read {show(node.value)} as {show(node.tag)}") from None
        if kind in ("int", "float") and not abs(value) <= (LARGEST_INT if kind == "int" else sys.float_info.max):
            raise UserError(f"{where}: {shorten(node.value)} is too large for a number")
        return value


def whole_characters(text: str, where: str) -> str:
    """The text; UserError if it can't be written as UTF-8, such as a file name of another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: {half_character(text)}") from None
    return text


def half_character(text: str) -> str:
    """What is wrong with a text that can't be written as UTF-8."""
    return f"half a character (a lone surrogate) in {show(text)}; write it in UTF-8"


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
        if len(path) > DEEPEST:
            raise UserError(f"{place}: nested over {DEEPEST} deep")
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
    return shorten("nothing" if value is None else json.dumps(value) if isinstance(value, bool) else repr(value))


def shorten(text: str, length: int = 60) -> str:
    """The text, cut to so many characters."""
    return text if len(text) <= length else text[: length - 1] + "…"
