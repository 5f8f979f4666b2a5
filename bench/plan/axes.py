"""The axes of a section of a sweep file, and their combinations, which are counted before they are built. No torch."""

from __future__ import annotations

import itertools
import math
import os
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from bench.config.document import Document, Key, show
from bench.config.errors import UserError
from bench.config.settings import Settings


@dataclass(frozen=True)
class Choice:
    """One value of each key of a section, and the place of each."""

    values: dict[str, Any]
    places: dict[str, str]

    def over(self, other: Choice) -> Choice:
        """These values, and beneath them the other's."""
        return Choice(other.values | self.values, other.places | self.places)


# The values that one key may take: (key, value, place) of each.
Axis = Sequence[tuple[str, Any, str]]


@dataclass(frozen=True)
class Choices:
    """All combinations of a section's axes, in order; of each of its parts, where it is a list of mappings."""

    parts: tuple[tuple[Axis, ...], ...]

    @property
    def count(self) -> int:
        """How many there are; none is built."""
        return sum(math.prod(map(len, axes)) for axes in self.parts)

    def __iter__(self) -> Iterator[Choice]:
        for axes in self.parts:
            for picked in itertools.product(*axes):
                yield Choice({key: value for key, value, _ in picked}, {key: place for key, _, place in picked})


def values(document: Document, path: Key, value: Any) -> list[tuple[Any, str]]:
    """A list's items or the one value, each with its place; an empty list is an error."""
    if not isinstance(value, list | tuple):
        return [(value, document.at(path))]
    if not value:
        raise UserError(f"{document.at(path)}: {'.'.join(map(str, path))}: an empty list gives no run")
    return [(item, document.at((*path, index))) for index, item in enumerate(value)]


def section(cls: type[Settings] | tuple[type[Settings], ...], document: Document, path: Key, data: Any) -> Choices:
    """The combinations of a section's axes; a list is an axis where the setting takes one value.

    The section itself may be a list of mappings. Of several classes, the first that has a setting says what it takes.
    """
    if isinstance(data, list):
        values(document, path, data)
        found = [section(cls, document, (*path, index), item or {}) for index, item in enumerate(data)]
        return Choices(tuple(part for each in found for part in each.parts))
    if not isinstance(data, Mapping):
        owner = str(next(part for part in reversed(path) if isinstance(part, str)))
        raise UserError(f"{document.at(path)}: {owner}: expected settings 'key: value', got {show(data)}")
    classes = cls if isinstance(cls, tuple) else (cls,)
    axes = []
    for key, value in data.items():
        cls_ = next((each for each in classes if key in each.model_fields), classes[0])
        field = cls_.model_fields.get(key)
        depth = cls_.extra_depth(key) if field is None else _type_depth(field.annotation)
        axis = depth is not None and isinstance(value, list) and _depth(value) > depth
        options = values(document, (*path, key), value) if axis else [(value, document.at((*path, key)))]
        axes.append([(key, option, place) for option, place in options])
    return Choices((tuple(axes),))


def expanded(choice: Choice) -> dict[str, Any]:
    """The values with environment variables ($NAME, ${NAME}; $$ is a dollar) and a leading ~ replaced in texts."""

    def text(key: str, value: str) -> str:
        def variable(match: re.Match[str]) -> str:
            name = match[1] or match[2]
            if name and not os.environ.get(name):
                raise UserError(
                    f"{choice.places[key]}: the environment variable {name} is not set; export it, "
                    f"or write the value of '{key}' here"
                )
            return os.environ[name] if name else "$"

        return os.path.expanduser(re.sub(r"\$(?:(\w+)|\{(\w+)\}|\$)", variable, value))  # noqa: PTH111

    def deep(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {inner: deep(key, each) for inner, each in value.items()}
        return text(key, value) if isinstance(value, str) else value

    return {key: deep(key, value) for key, value in choice.values.items()}


def _depth(value: Any) -> int:
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _type_depth(annotation: Any) -> int:
    """How many lists deep a setting's type goes: 0 for int, 1 for tuple[float, float]."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType, Annotated):
        members = arguments[:1] if origin is Annotated else arguments
        return max(map(_type_depth, members))
    if origin in (tuple, list, set, frozenset, Sequence):
        return 1 + max(map(_type_depth, arguments), default=0)
    return 0
