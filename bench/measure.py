"""Measure finished runs anew: what the section `behaviour` of a sweep file asks for. Nothing is trained.

python -m bench.measure sweeps/rsitmd.yaml --set behaviour.geometry=true 'behaviour.evaluate=[rsicd, ucm]'

Runs that have been measured for all of it are left alone. A report of the sweep then has the tables.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.config.errors import UserError
from bench.config.terminal import command, given_path, override_option, plugin_option

if TYPE_CHECKING:
    from bench.plan.grid import Sweep
    from bench.plan.spec import RunSpec

PROG = "python -m bench.measure"


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """0: all finished runs are measured; 1: something could not be measured; 2: a mistake; 130: Ctrl-C."""
    return command(_run, parser(prog).parse_args(argv))


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=given_path, metavar="FILE", help="a sweep file")
    override_option(parser)
    parser.add_argument(
        "--results", type=given_path, default=Path("results"), metavar="DIR", help="default: %(default)s"
    )
    plugin_option(parser)
    return parser


def unmeasured(sweep: Sweep, folder: Path) -> list[RunSpec]:
    """The finished runs of the sweep that lack something of what its section `behaviour` asks for."""
    from bench.store import behaviour, record

    found = []
    for run in sweep.runs:
        asked = run.behaviour.model_dump(mode="json", exclude_defaults=True)
        run_dir = folder / run.run_id
        if asked and record.is_finished(run_dir) and not behaviour.is_measured(run_dir, asked):
            found.append(run)
    return found


def _run(arguments: argparse.Namespace) -> int:
    from bench.plan.grid import expand
    from methods.registry import add_plugin

    for path in arguments.plugin:
        add_plugin(path)
    sweep = expand(arguments.file, arguments.overrides)
    if not any(run.behaviour.model_dump(exclude_defaults=True) for run in sweep.runs):
        raise UserError(
            f"{arguments.file} asks for nothing: give it a section `behaviour`, or --set behaviour.geometry=true"
        )
    folder = arguments.results / sweep.name
    todo = unmeasured(sweep, folder)
    failed = measure(todo, folder) if todo else 0
    print(f"{len(todo)} finished runs measured, of {len(sweep.runs)} runs; {failed} with something missing")
    print(f"the tables: python -m bench.report {folder}")
    return 1 if failed else 0


def measure(todo: Sequence[RunSpec], folder: Path) -> int:
    """Measure these finished runs; how many of them lack something."""
    from bench.compute.behaviour import Finished  # torch

    finished, failed = Finished(), 0
    for number, run in enumerate(todo, 1):
        sets = finished.record(folder / run.run_id, run)
        print(f"[{number}/{len(todo)}] {run.run_id}", flush=True)
        missing = [f"{each.dataset}: {each.note}" for each in sets if each.note]
        for line in missing:
            print(f"    not measured: {line}", file=sys.stderr)
        failed += bool(missing)
    return failed


if __name__ == "__main__":
    sys.exit(main())
