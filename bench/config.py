"""Reading settings: YAML without surprises, and mistakes told with file, line, key and the right word. No torch."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import ValidationError

from bench.errors import UserError
from bench.settings import Settings

T = TypeVar("T", bound=Settings)
Key = tuple[str | int, ...]  # where a value stands in a document: ("grid", "method", 3, "harma", "bottleneck")

# --- YAML ------------------------------------------------------------------------------------------------------------


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
    """The same for a text; `name` stands for it in errors."""
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
                    raise UserError(f"{where}: key '{key.value}' stands here twice")
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


@dataclass
class Document:
    """Plain data and where each part of it was written: `places` holds "file:line", or the --set that put it there."""

    data: Any
    places: dict[Key, str]

    def at(self, path: Key) -> str:
        """The place of the nearest part known on the way to `path`."""
        while path not in self.places and path:
            path = path[:-1]
        return self.places.get(path, "settings")

    def put(self, path: tuple[str, ...], value: Any, place: str) -> None:
        """Write a value, also into each item where a section on the way is a list."""
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
    """A YAML file whose every key knows its file and line."""
    data, lines = read_yaml(path)
    return Document(data, {at: f"{path}:{line}" for at, line in lines.items()})


# --- checked settings ------------------------------------------------------------------------------------------------


def parse(
    cls: type[T],
    data: Any,
    owner: str,
    document: Document,
    path: Key = (),
    places: Mapping[str, str] | None = None,
    also: Sequence[str] = (),
) -> T:
    """The settings of a mapping, strictly typed; UserError with one line a mistake: place, owner, key, what is allowed.

    `path` is where the mapping stands in the document, `places` where single keys of it come from if elsewhere.
    `also` names keys that are allowed beside the class's own (they are suggested and listed, but taken out before).
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{document.at(path)}: {owner}: expected settings 'key: value', got {show(data)}")
    try:
        return cls.model_validate_json(json.dumps(data))
    except ValidationError as error:
        found: dict[tuple[Any, ...], list[Any]] = {}
        for each in error.errors(include_url=False):
            found.setdefault(_location(each, data), []).append(each)
    lines = []
    for loc, group in found.items():
        place = (places or {}).get(str(loc[0])) if loc else None
        here = place or document.at((*path, *loc))
        lines.append(f"{here}: {owner}: {_explain(cls, data, loc, group, also)}")
    raise UserError("\n".join(lines))


def _location(error: Any, data: Any) -> tuple[Any, ...]:
    """The part of pydantic's location that is in the data: it appends the tried members of a union."""
    loc: list[Any] = []
    for part in error["loc"]:
        inside = isinstance(data, Mapping) and part in data
        listed = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if not inside and not listed and not (error["type"] == "missing" and part == error["loc"][-1]):
            break
        loc.append(part)
        data = data[part] if inside or listed else None
    return tuple(loc)


def _explain(cls: type[Settings], data: Any, loc: tuple[Any, ...], errors: list[Any], also: Sequence[str]) -> str:
    key = ".".join(map(str, loc))
    first = errors[0]
    if first["type"] in ("extra_forbidden", "missing"):
        fields = _fields_at(cls, loc[:-1])
        allowed = [*fields, *(also if len(loc) == 1 else ())]
        if first["type"] == "missing":
            return f"'{key}' is missing"
        return f"unknown key '{key}'{_suggest(str(loc[-1]), allowed)} (allowed: {', '.join(allowed) or 'none'})"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    for part in loc:
        data = data[part]
    wanted: dict[str, None] = {}
    hint = ""
    for error in errors:
        if error["type"] == "literal_error":
            options = re.findall(r"'([^']*)'", error["ctx"]["expected"])
            wanted[error["ctx"]["expected"].replace(" or ", ", ")] = None
            hint = hint or (_suggest(data, options) if isinstance(data, str) else "")
        else:
            wanted[error["msg"].removeprefix("Input should be ").removeprefix("a valid ").removeprefix("Input ")] = None
    if any(error["type"] == "string_pattern_mismatch" for error in errors):
        wanted = {"letters, digits, '.', '_' and '-', starting with a letter or digit": None}
    return f"{key}: expected {' or '.join(wanted)}, got {show(data)}{hint}"


def _fields_at(cls: type[Settings], loc: Sequence[Any]) -> list[str]:
    for part in loc:
        annotation = cls.model_fields[part].annotation if part in cls.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, Settings)):
            return []
        cls = annotation
    return list(cls.model_fields)


def _suggest(word: str, options: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def show(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value) if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
