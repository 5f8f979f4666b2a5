"""The methods there are: name, settings with defaults, what they train on a backbone, and where they come from.

Counts come from closed forms and the backbone from open_clip's config: nothing is downloaded or built.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import methods
from bench.errors import UserError
from bench.weights import model_shape
from methods import losses
from methods.base import Method


def listing(backbone: str) -> list[dict[str, Any]]:
    """One entry a method with its settings' defaults; `trainable_params` is None where the backbone can't take it."""
    shape = model_shape(backbone)
    rows = []
    for name in methods.names():
        cls = methods.get(name)
        method = cls()
        row = {
            "name": name,
            "paper": cls.paper,
            "settings": method.model_dump(mode="json"),
            "default_loss": cls.default_loss if cls.trains else None,
            **_count(method, backbone),
            "total_params": shape.total_params,
        }
        rows.append(row)
    return rows


def _count(method: Method, backbone: str) -> dict[str, Any]:
    """Trainable parameters with the default loss, or why the method can't go on this backbone."""
    shape = model_shape(backbone)
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
        ("loss", "left"),
        ("settings", "left"),
        ("paper", "left"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        count = "–" if row["trainable_params"] is None else f"{row['trainable_params']:,}"
        settings = ", ".join(f"{key}={_short(value)}" for key, value in row["settings"].items())
        table.add_row(row["name"], count, row["default_loss"] or "–", escape(settings) or "–", row["paper"])
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for row in rows:
        if row["note"]:
            console.print(row["note"], highlight=False, markup=False)
    console.print("Any method can be trained with any loss: " + ", ".join(losses.names()) + ".", highlight=False)


def _short(value: Any) -> str:
    return "[" + " ".join(map(str, value)) + "]" if isinstance(value, list) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.methods", description=__doc__)
    parser.add_argument("--backbone", default="ViT-B-32", help="an open_clip model name (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    try:
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
