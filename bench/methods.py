"""The methods there are: name, settings with defaults, what they train on a backbone, and where they come from.

Counts come from closed forms and the backbone from open_clip's config: nothing is downloaded or built. They include
the default loss's own parameters. `table` is the preset that reproduces the published tables' Params column.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import methods
from bench.errors import UserError
from bench.weights import model_shape
from methods import losses
from methods.base import Method
from methods.registry import add_plugin


def listing(backbone: str) -> list[dict[str, Any]]:
    """One entry a method with its settings' defaults (None where one must be given) and its presets' counts.

    `trainable_params` is None where the backbone can't take the method, or where it depends on what must be given.
    """
    shape = model_shape(backbone)
    return [
        {
            "name": name,
            "paper": cls.paper,
            "settings": _defaults(cls),
            "knob": cls.knob if isinstance(cls.knob, str) else None,  # peft's depends on the type
            "default_loss": cls.default_loss if cls.trains else None,
            **_count(cls, {}, backbone),
            "presets": {preset: _count(cls, values, backbone) for preset, values in cls.presets.items()},
            "total_params": shape.total_params,
        }
        for name, cls in _found()
    ]


def _found() -> Iterator[tuple[str, type[Method]]]:
    """All methods; an installed package's that can't be had is told, and leaves the others alone."""
    for name in methods.names():
        try:
            yield name, methods.get(name)
        except UserError as error:
            print(f"note: {error}", file=sys.stderr)


def _defaults(cls: type[Method]) -> dict[str, Any]:
    fields = cls.model_fields.items()
    values = {
        key: None if field.is_required() else field.get_default(call_default_factory=True) for key, field in fields
    }
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _count(cls: type[Method], settings: Any, backbone: str) -> dict[str, Any]:
    """Trainable parameters with the default loss, or why there is no such number."""
    needed = [key for key, field in cls.model_fields.items() if field.is_required()]
    if needed:
        return {"trainable_params": None, "note": f"{cls.name}: the count depends on {', '.join(needed)}"}
    shape = model_shape(backbone)
    method = cls(**settings)
    try:
        method.check(shape)
        count = method.trainable_params(shape)
    except UserError as error:
        return {"trainable_params": None, "note": str(error)}
    if count is not None and method.trains:
        count += losses.get(method.default_loss).params
    return {"trainable_params": count, "note": None}


def print_table(rows: Sequence[dict[str, Any]], backbone: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"Methods on {backbone}", title_justify="left", show_lines=False)
    for heading, justify in (
        ("method", "left"),
        ("trainable", "right"),
        ("preset: table", "right"),
        ("loss", "left"),
        ("settings", "left"),
        ("paper", "left"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        preset = row["presets"].get("table")
        settings = ", ".join(f"{key}={_short(value)}" for key, value in row["settings"].items())
        table.add_row(
            row["name"],
            _number(row["trainable_params"]),
            _number(preset["trainable_params"]) if preset else "",
            row["default_loss"] or "–",
            escape(settings) or "–",
            row["paper"],
        )
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table)
    for row in rows:
        if row["note"]:
            console.print(row["note"], highlight=False, markup=False)
    console.print("Any method can be trained with any loss: " + ", ".join(losses.names()) + ".", highlight=False)


def _number(count: int | None) -> str:
    return "–" if count is None else f"{count:,}"


def _short(value: Any) -> str:
    if value is None:
        return "(give it)"
    return "[" + " ".join(map(str, value)) + "]" if isinstance(value, list) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.methods", description=__doc__)
    parser.add_argument("--backbone", default="ViT-B-32", help="an open_clip model name (default: %(default)s)")
    parser.add_argument("--plugin", type=Path, action="append", default=[], metavar="FILE", help="more methods, losses")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    try:
        for path in arguments.plugin:
            add_plugin(path)
        rows = listing(arguments.backbone)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        print_table(rows, arguments.backbone)
    return 0


if __name__ == "__main__":
    sys.exit(main())
