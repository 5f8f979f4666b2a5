"""The methods there are: name, settings with defaults, what they train on a backbone, and where they come from.

Counts come from closed forms and the backbone from open_clip's config: nothing is downloaded or built. They include
the default loss's own parameters. `table` is the preset that reproduces the published tables' Params column.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from bench.config.terminal import command, given_path
from bench.plan.catalogue import listing
from methods import losses
from methods.registry import add_plugin

PROG = "python -m bench.methods"


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


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """0: printed; 2: the user has something to fix."""
    return command(_run, parser(prog).parse_args(argv))


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("--backbone", default="ViT-B-32", help="an open_clip model name (default: %(default)s)")
    parser.add_argument(
        "--plugin", type=given_path, action="append", default=[], metavar="FILE", help="more methods, losses"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    for path in arguments.plugin:
        add_plugin(path)
    rows = listing(arguments.backbone)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        print_table(rows, arguments.backbone)
    return 0


if __name__ == "__main__":
    sys.exit(main())
