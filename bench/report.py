"""A results folder to tables, a figure and a page: `python -m bench.report results/<sweep>`. No torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.config.terminal import command, given_path

if TYPE_CHECKING:
    from bench.store.planned import Plan

PROG = "python -m bench.report"


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """The exit code: 0 when the report is written, even if runs are missing from it, 2 for a user's mistake."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["compare"]:
        from bench.reporting import compare

        return command(compare.run, compare.parser(f"{prog} compare").parse_args(words[1:]))
    return command(_run, parser(prog).parse_args(words))


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write tables, the figure and a page from the results of a sweep.",
        epilog="`compare A B` in place of all these compares two sets of results; `compare --help` says more.",
    )
    parser.add_argument("results", type=given_path, help="the folder of the sweep's results, such as results/demo")
    parser.add_argument("--out", type=given_path, help="where to write (default: reports/<name of the results folder>)")
    parser.add_argument(
        "--plan",
        metavar="ID",
        help="the grid of an earlier command, a file in the folder's plans/; default: the last one",
    )
    parser.add_argument("--only", action="store_true", help="leave out finished runs that are not in that grid")
    parser.add_argument(
        "--no-significance", action="store_true", help="no intervals, and no marks of what can't be told apart"
    )
    parser.add_argument(
        "--compare-protocols",
        action="store_true",
        help="print what choosing the epoch on the test set is worth for each method, of runs that did so",
    )
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from bench.config.errors import UserError
    from bench.reporting.build import build
    from bench.store import planned

    plan = planned.read(arguments.results, arguments.plan)
    if plan is None and (arguments.plan or arguments.only):
        raise UserError(f"no plan {arguments.plan or ''} in {arguments.results}".replace("  ", " "))
    report = build(arguments.results, arguments.out, plan, only=arguments.only, plain=arguments.no_significance)
    if arguments.compare_protocols:
        _compare(arguments.results, plan, arguments.only)
    else:
        report.print_table()
    print(f"\nreport: {report.index}")
    return 0


def _compare(results: Path, plan: Plan | None, only: bool) -> None:
    """Print the section on test selection; UserError if no run has what it needs."""
    from bench.config.errors import UserError
    from bench.reporting import protocols, summary
    from bench.store.frame import collect

    runs = collect(results, plan, only=only)
    found = protocols.comparison(runs, summary.summarise(runs))
    if not found:
        raise UserError(
            f"{results} has no finished run whose epoch the test set chose; "
            "run the sweep with `--set evaluation.protocol=test-selected`"
        )
    for section in found:
        print(f"{section.title}\n\n{section.shown.to_string(index=False)}\n\n{section.note}")


if __name__ == "__main__":
    sys.exit(main())
