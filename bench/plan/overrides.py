"""Overrides of a sweep file from the command line: `--set key=value`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from bench.config.document import OVERRIDE, Document, Key, parse_yaml, shorten, show, whole_characters
from bench.config.errors import UserError
from bench.plan.axes import values

# The keys that a method's entry may have for itself.
EVERYWHERE = ("recipe", "dataset", "backbone", "train", "loss")


def override_key(document: Document, override: str) -> None:
    """Put the value of `key=value` into the document; it wins over a method's own settings and over every recipe."""
    key, equals, text = override.partition("=")
    place = shorten(f"{OVERRIDE} {override}", 200)
    if not equals or not all(key.split(".")):
        raise UserError(f"{place}: expected key=value, such as train.epochs=2")
    whole_characters(key, place)
    path = tuple(key.split("."))
    value = parse_yaml(text, place)[0]
    document.put(path, value, place)
    grid = document.data.get("grid")
    if path[0] in EVERYWHERE and isinstance(grid, dict) and grid.get("method") is not None:
        for entry, at in method_entries(document, grid["method"]):
            for name, settings in entry.items():
                if isinstance(settings, dict):
                    _forget(settings, path)
                    if "recipe" in settings and path[0] != "recipe":
                        _write(document, settings, path, value, (*at, name), place)


def _forget(settings: dict[str, Any], path: Sequence[str]) -> None:
    """Remove a method's own value, so that the override applies."""
    own = settings.get(path[0])
    blocks = own if isinstance(own, list) else [own]
    if len(path) == 1 or path[0] == "loss":
        settings.pop(path[0], None)
    for block in blocks:
        if isinstance(block, dict) and len(path) > 1:
            block.pop(path[1], None)


def _write(
    document: Document, settings: dict[str, Any], path: tuple[str, ...], value: Any, at: Key, place: str
) -> None:
    """Make the override a value of the entry's own, where the entry has a recipe: that would win over the sweep's."""
    Document(settings, {}).put(path, deepcopy(value), place)
    document.places[(*at, *path)] = place


def method_entries(document: Document, listed: Any) -> list[tuple[dict[str, Any], Key]]:
    """Each `{name: settings}` of the grid's methods with its path; a bare name has no settings."""
    base: Key = ("grid", "method")
    entries = [(listed, base)]
    if isinstance(listed, list):
        values(document, base, listed)
        entries = [(item, (*base, index)) for index, item in enumerate(listed)]
    found = []
    for entry, path in entries:
        entry = {entry: {}} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or len(entry) != 1:
            raise UserError(
                f"{document.at(path)}: grid.method: expected a method's name or one 'name: {{settings}}' an entry, "
                f"got {show(entry)}"
            )
        found.append((entry, path))
    return found
