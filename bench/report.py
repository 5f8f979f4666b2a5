"""A results folder to tables, a figure and a page: `python -m bench.report results/<sweep>`. No torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.config.terminal import command


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 when the report is written, even if runs are missing from it, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description="Write tables, the figure and a page from the results of a sweep."
    )
    parser.add_argument("results", type=Path, help="the folder of the sweep's results, such as results/demo")
    parser.add_argument("--out", type=Path, help="where to write (default: reports/<name of the results folder>)")
    return command(_run, parser.parse_args(argv))


def _run(arguments: argparse.Namespace) -> int:
    from bench.reporting.build import build

    report = build(arguments.results, arguments.out)
    report.print_table()
    print(f"\nreport: {report.index}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
