"""A results folder to tables, a figure and a page: `python -m bench.report results/<sweep>`. No torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from bench.config.terminal import command, given_path

PROG = "python -m bench.report"


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """The exit code: 0 when the report is written, even if runs are missing from it, 2 for a user's mistake."""
    return command(_run, parser(prog).parse_args(argv))


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Write tables, the figure and a page from the results of a sweep."
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
        "--live", action="store_true", help="write it anew while the sweep runs; the page loads itself again"
    )
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from bench.config.errors import UserError
    from bench.reporting.build import build
    from bench.store import planned

    plan = planned.read(arguments.results, arguments.plan)
    if plan is None and (arguments.plan or arguments.only):
        raise UserError(f"no plan {arguments.plan or ''} in {arguments.results}".replace("  ", " "))
    write = partial(build, arguments.results, arguments.out, plan, only=arguments.only, plain=arguments.no_significance)
    if arguments.live:
        from bench.reporting.live import follow

        report = follow([arguments.results], lambda live: write(live=live), lambda now: print(now.progress, flush=True))
    else:
        report = write()
    report.print_table()
    print(f"\nreport: {report.index}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
