"""Results of one sweep or several to tables, figures and a page: `python -m bench.report results/<sweep>`. No torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.config.terminal import command, given_path

if TYPE_CHECKING:
    from bench.reporting.build import Report

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
        description="Write tables, figures and a page from the results of a sweep, or of several in one table.",
        epilog="`compare A B` in place of all these compares two sets of results; `compare --help` says more.",
    )
    parser.add_argument(
        "sweeps",
        type=given_path,
        nargs="+",
        metavar="SWEEP",
        help="a folder of results, such as results/demo, or a sweep's file; several make one table",
    )
    parser.add_argument(
        "--results",
        type=given_path,
        default=Path("results"),
        metavar="DIR",
        help="of sweep files; default: %(default)s",
    )
    parser.add_argument(
        "--out", type=given_path, help="where to write (default: reports/ and the names of the folders, joined by +)"
    )
    parser.add_argument(
        "--style", choices=("paper", "slides"), default="paper", help="size of the figures; default: %(default)s"
    )
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

    folders = list(dict.fromkeys(_folder(path, arguments.results) for path in arguments.sweeps))
    if arguments.plan and len(folders) > 1:
        raise UserError("--plan is of one results folder; give one")
    plan = planned.read(folders[0], arguments.plan) if len(folders) == 1 else None
    if plan is None and (arguments.plan or (arguments.only and len(folders) == 1)):
        raise UserError(f"no plan {arguments.plan or ''} in {folders[0]}".replace("  ", " "))
    write = partial(
        build,
        folders if len(folders) > 1 else folders[0],
        arguments.out,
        plan,
        only=arguments.only,
        plain=arguments.no_significance,
        style=arguments.style,
    )
    if arguments.live:
        from bench.reporting.live import follow

        report = follow(folders, lambda live: write(live=live), lambda now: print(now.progress, flush=True))
    else:
        report = write()
    if arguments.compare_protocols:
        _compare(report)
    else:
        report.print_table()
    print(f"\nreport: {report.index}")
    return 0


def _compare(report: Report) -> None:
    """Print the section on test selection; UserError if no run has what it needs."""
    from bench.config.errors import UserError
    from bench.reporting import protocols

    found = [section for section in report.more if section.name == protocols.COMPARISON]
    if not found:
        raise UserError(
            "no finished run has its epoch chosen by the test set; run the sweep with "
            "`--set evaluation.protocol=test-selected`"
        )
    for section in found:
        print(f"{section.title}\n\n{section.shown.to_string(index=False)}\n\n{section.note}")


def _folder(path: Path, results: Path) -> Path:
    """The results folder that is meant: itself, or that of a sweep's file, by the name in it."""
    from bench.config.document import read_yaml
    from bench.config.errors import UserError

    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return path
    content = read_yaml(path)[0]
    name = content.get("name") if isinstance(content, dict) else None
    if not isinstance(name, str) or Path(name).name != name or name in (".", ".."):
        raise UserError(f"'{path}' has no usable `name:`; give a sweep's file or its folder of results")
    if not (results / name).is_dir():
        raise UserError(f"no results of '{path}' in '{results / name}'; run the sweep, or give --results DIR")
    return results / name


if __name__ == "__main__":
    sys.exit(main())
