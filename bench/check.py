"""Check methods and losses against the conformance suite: `python -m bench.check my_package.my_method`.

A target is a registered name, a module, or a Python file; without one, all that is registered is checked. Exit code 1
if a check fails. The docstrings and messages in bench/conformance/ say what each check means. A module may excuse
itself: `EXCUSES = {(name, check): reason}`, as methods/excuses.py does; an excuse that is not needed is a failure.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import methods
from bench.config.errors import UserError
from bench.config.terminal import command, plugin_option
from methods import losses
from methods.base import Method
from methods.excuses import EXCUSES
from methods.losses import Loss
from methods.registry import add_module, add_plugin, load_file

if TYPE_CHECKING:
    from bench.conformance.suite import Outcome

PROG = "python -m bench.check"
Target = type[Method] | type[Loss]
STATES = ("passed", "not applicable", "excused", "failed")
SIGNS = {
    "passed": "[green]passed[/]",
    "failed": "[bold red]FAILED[/]",
    "excused": "[yellow]excused[/]",
    "not applicable": "–",
}


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """0: every check passed or is excused; 1: a check failed; 2: the user has something to fix."""
    return command(_run, parser(prog).parse_args(argv))


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="a registered name, a module, or a Python file")
    plugin_option(parser)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    for path in arguments.plugin:
        add_plugin(path)
    return report([each for target in arguments.targets for each in resolve(target)] or _everything())


def _everything() -> list[Target]:
    return [*map(methods.get, methods.names()), *map(losses.get, losses.names())]


def resolve(target: str) -> list[Target]:
    """The classes that a target means; UserError if it means none."""
    if target.endswith(".py"):
        add_plugin(Path(target))
        module = load_file(Path(target))
    elif target in methods.names() or target in losses.names():
        both = [registry.get(target) for registry in (methods, losses) if target in registry.names()]
        return list(both)
    else:
        try:
            module = importlib.import_module(target)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"'{target}' is no registered method or loss, and no module: {reason}") from error
        add_module(module)
    found: list[Target] = [*methods.METHODS.classes(module), *losses.LOSSES.classes(module)]
    if not found:
        raise UserError(f"{target} defines no method and no loss (a class with a `name` that extends Method or Loss)")
    return found


def report(targets: Sequence[Target]) -> int:
    """Run all checks with a progress bar, print what came of them; 1 if one failed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from bench.conformance import suite

    todo = []
    for cls in targets:
        method = issubclass(cls, Method)
        subjects = suite.method_subjects(cls) if issubclass(cls, Method) else suite.loss_subjects(cls)
        table = suite.METHOD_CHECKS if method else suite.LOSS_CHECKS
        todo += [(subject, name) for subject in subjects for name in table]
    excuses = dict(EXCUSES)
    for cls in targets:
        excuses |= getattr(sys.modules[cls.__module__], "EXCUSES", {})
    console = Console(width=None if sys.stdout.isatty() else 140)
    outcomes = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(todo))
        for subject, check in todo:
            bar.update(task, description=f"{subject.label}: {check}")
            excuse = suite.excuse_for(subject, check, excuses)
            outcomes.append(suite.run_check(check, subject, excuse))
            bar.advance(task)
    _print(console, targets, outcomes)
    return 1 if any(outcome.state == "failed" for outcome in outcomes) else 0


def _print(console: object, targets: Sequence[Target], outcomes: Sequence[Outcome]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    assert isinstance(console, Console)
    states = Counter(outcome.state for outcome in outcomes)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("check", no_wrap=True)
    if len(targets) <= 3:
        columns = list(dict.fromkeys(outcome.subject for outcome in outcomes))
        table.title, table.title_justify = "Each on all classes of backbones", "left"
    else:
        columns = list(STATES)
    for column in columns:
        table.add_column(escape(column), justify="center")
    for check in dict.fromkeys(outcome.check for outcome in outcomes):
        here = [outcome for outcome in outcomes if outcome.check == check]
        if len(targets) <= 3:
            cells = [_worst([outcome.state for outcome in here if outcome.subject == column]) for column in columns]
        else:
            count = Counter(outcome.state for outcome in here)
            cells = [str(count[column] or "–") for column in columns]
        table.add_row(check.replace("_", " "), *cells)
    console.print(table)
    for state in ("excused", "failed"):
        reasons = dict.fromkeys((o.subject, o.check, o.reason) for o in outcomes if o.state == state)
        for subject, check, reason in reasons:
            line = f"{state}: {subject}: {check.replace('_', ' ')}: {reason}"
            console.print(
                line, style="red" if state == "failed" else None, markup=False, highlight=False, soft_wrap=True
            )
    apart = Counter((o.check.replace("_", " "), o.reason) for o in outcomes if o.state == "not applicable")
    for (check, reason), times in apart.items():
        console.print(f"not applicable: {check}: {reason} ({times}x)", markup=False, highlight=False, soft_wrap=True)
    seconds = sum(outcome.seconds for outcome in outcomes)
    parts = ", ".join(f"{states[state]} {state}" for state in STATES)
    console.print(f"{len(outcomes)} checks: {parts}; {seconds:.0f} s", highlight=False)


def _worst(states: Sequence[str]) -> str:
    for state in ("failed", "excused", "passed", "not applicable"):
        if state in states:
            return SIGNS[state]
    return ""


if __name__ == "__main__":
    sys.exit(main())
