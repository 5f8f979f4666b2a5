"""Typed settings from plain data: a mistake is reported with file, line, owner, key and what is allowed. No torch."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from bench.config.document import Document, Key, half_character, shorten, show
from bench.config.errors import UserError
from bench.config.settings import Settings

T = TypeVar("T", bound=Settings)
_MOST_MISTAKES = 20  # that one message tells
_LONGEST_WORD = 60  # characters that are compared with what is allowed


def parse(
    cls: type[T],
    data: Any,
    owner: str,
    document: Document,
    path: Key = (),
    places: Mapping[str, str] | None = None,
    also: Sequence[str] = (),
) -> T:
    """The settings of a mapping, strictly typed.

    `path` is the mapping's place in the document; `places` has the places of keys that were written elsewhere. `also`
    names keys that are allowed beside the class's own: the caller removes them, errors suggest and list them.
    UserError with one line for each mistake: place, owner, key, what is allowed.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{document.at(path)}: {owner}: expected settings 'key: value', got {show(data)}")
    try:
        return cls.model_validate_json(json.dumps(data, ensure_ascii=False).encode())
    except UnicodeEncodeError as error:
        raise UserError(f"{document.at(path)}: {owner}: {half_character(error.object[: error.end][-60:])}") from None
    except ValidationError as error:
        found: dict[tuple[Any, ...], list[Any]] = {}
        for each in error.errors(include_url=False):
            found.setdefault(_location(each, data), []).append(each)
    lines = []
    for loc, group in found.items():
        place = (places or {}).get(str(loc[0])) if loc else None
        here = place or document.at((*path, *loc))
        lines.append(f"{here}: {owner}: {_explain(cls, data, loc, group, also)}")
    if len(lines) > _MOST_MISTAKES:
        lines[_MOST_MISTAKES:] = [f"and {len(lines) - _MOST_MISTAKES} more mistakes in {owner}"]
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
        return f"unknown key '{shorten(key)}'{suggest(str(loc[-1]), allowed)} (allowed: {', '.join(allowed) or 'none'})"
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
            hint = hint or (suggest(data, options) if isinstance(data, str) else "")
        else:
            wanted[error["msg"].removeprefix("Input should be ").removeprefix("a valid ").removeprefix("Input ")] = None
    if first["type"] == "string_too_long":
        wanted = {f"at most {first['ctx']['max_length']} characters": None}
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


def suggest(word: str, options: Sequence[str]) -> str:
    """`; did you mean 'trials'?` for a word that is like one of the options; else nothing."""
    word = word[:_LONGEST_WORD]
    close = _short_for(word, options) or difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def _short_for(word: str, options: Sequence[str]) -> list[str]:
    """The options that the word abbreviates or spells out: `r` rank, `bs` batch_size, `learning_rate` lr."""
    if not word:
        return []
    initials = "".join(part[:1] for part in word.split("_"))
    return [
        each
        for each in options
        if each.startswith(word) or word == "".join(part[:1] for part in each.split("_")) or each == initials
    ]
