"""The methods there are: name, settings with defaults, what they train on a backbone, and where they come from.

With --backbones: which methods each family of open_clip's models takes, and why not the others.

Counts come from closed forms and the backbone from open_clip's config: nothing is downloaded or built. They include
the default loss's own parameters. `table` is the preset that reproduces the published tables' Params column.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import methods
from bench.config.terminal import command, plugin_option
from bench.plan import recipes
from bench.plan.catalogue import listing
from bench.plan.families import Family, families
from bench.plan.reference import page, plain, settings_of
from methods import losses
from methods.base import Method
from methods.losses import Loss
from methods.registry import add_plugin

if TYPE_CHECKING:
    from rich.console import Console

PROG = "python -m bench.methods"


def print_table(rows: Sequence[dict[str, Any]], backbone: str) -> None:
    """One line a method, in 80 columns."""
    from rich.table import Table

    table = Table(title=f"Methods on {backbone}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("method", no_wrap=True)
    table.add_column("trainable", justify="right", no_wrap=True)
    table.add_column("as published", justify="right", no_wrap=True)
    table.add_column("paper")
    for row in rows:
        preset = row["presets"].get("table")
        published = _number(preset["trainable_params"]) if preset else ""
        table.add_row(row["name"], _number(row["trainable_params"]), published, row["paper"])
    console = _console()
    console.print(table)
    for row in rows:
        if row["note"]:
            console.print(row["note"], highlight=False, markup=False)
    notes = [
        "trainable: with the method's defaults and its own loss; as published: with `preset: table`.",
        "`petl-bench methods NAME` explains one: settings, bounds, presets, losses.",
        f"Any method can be trained with any loss: {', '.join(losses.names())}.",
    ]
    console.print("\n".join(notes), highlight=False, markup=False)


def print_families(found: Sequence[Family]) -> None:
    """Each family of backbones with its models, the methods that it takes, and why not the others; in 80 columns."""
    every = len(methods.names())
    for family in found:
        takes = "all" if len(family.takes) == every else f"{len(family.takes)} of {every}"
        points = [f"takes {takes} methods{': ' if family.takes else ''}{', '.join(family.takes)}"]
        points += [f"not {', '.join(names)}: {reason}" for reason, names in family.refused.items()]
        print(textwrap.fill(family.towers, 80))
        print(
            textwrap.fill(
                ", ".join(family.models), 80, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
            )
        )
        for point in points:
            print(textwrap.fill(point, 80, initial_indent="  - ", subsequent_indent="    "))
        print()
    print("With each method's defaults. Some methods can be set to leave one tower alone.")


def explain(name: str, backbone: str) -> None:
    """Print what a method or a loss is: docstring, paper, settings with their values, presets and counts."""
    from rich.table import Table
    from rich.text import Text

    console = _console()
    cls: type[Method | Loss] = methods.get(name) if name in methods.names() else losses.get(name)
    console.print(f"[bold]{name}[/]  {cls.paper}", highlight=False)
    for paragraph in (inspect.getdoc(cls) or "").split("\n\n"):
        console.print(" ".join(paragraph.split()), markup=False, highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("setting", "default", "values", "meaning"):
        table.add_column(heading)
    for each in settings_of(cls):
        table.add_row(*map(Text, (each.key, each.default, each.values.replace("`", ""), each.meaning)))
    console.print()
    console.print(table if table.row_count else "no settings")
    if not issubclass(cls, Method):
        return
    [row] = [row for row in listing(backbone) if row["name"] == name]
    console.print(f"\nTrains on {backbone}, with {row['default_loss'] or 'no loss'}:", highlight=False)
    counts = {"defaults": row["trainable_params"]}
    counts |= {f"preset: {preset}": found["trainable_params"] for preset, found in row["presets"].items()}
    for preset, count in counts.items():
        given = cls.presets.get(preset.removeprefix("preset: "), {})
        shown = ", ".join(f"{key}={plain(value)}" for key, value in given.items())
        console.print(f"  {preset:18}{_number(count):>13}  {shown}".rstrip(), highlight=False, markup=False)
    if row["note"]:
        console.print(row["note"], highlight=False, markup=False)
    for recipe in (recipes.get(each, each) for each in recipes.names()):
        if recipe.released == name:
            console.print(f"Recipe {recipe.name}: {recipe.source}", highlight=False, markup=False)


def print_recipes() -> None:
    """Print every recipe's name and file: source, what differs from it, and settings; within 80 columns."""
    console = _console()
    for name in recipes.names():
        console.print(f"[bold]{name}[/]", highlight=False)
        console.print(textwrap.indent(recipes.text(name), "  "), highlight=False, markup=False)


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 80)


def _number(count: int | None) -> str:
    return "–" if count is None else f"{count:,}"


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """0: printed; 2: the user has something to fix."""
    return command(_run, parser(prog).parse_args(argv))


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="explain this method or loss")
    parser.add_argument("--recipes", action="store_true", help="list the recipes with their sources and settings")
    parser.add_argument("--reference", action="store_true", help="print docs/settings.md: every key of a sweep file")
    parser.add_argument("--backbones", action="store_true", help="which methods open_clip's models take, and why not")
    parser.add_argument("--backbone", default="ViT-B-32", help="an open_clip model name (default: %(default)s)")
    plugin_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    for path in arguments.plugin:
        add_plugin(path)
    if arguments.reference:
        print(page(), end="")
        return 0
    if arguments.recipes:
        if arguments.json:
            print(json.dumps({name: recipes.get(name, name).sections for name in recipes.names()}, indent=2))
        else:
            print_recipes()
        return 0
    if arguments.name:
        explain(arguments.name, arguments.backbone)
        return 0
    if arguments.backbones:
        found = families()
        if arguments.json:
            print(json.dumps([dataclasses.asdict(family) for family in found], indent=2))
        else:
            print_families(found)
        return 0
    rows = listing(arguments.backbone)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        print_table(rows, arguments.backbone)
    return 0


if __name__ == "__main__":
    sys.exit(main())
