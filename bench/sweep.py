"""One command from a sweep file to a report: expand the grid, run what is not finished, follow, write the tables."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.config.terminal import USER_MISTAKE, command, given_path, override_option, plugin_option

if TYPE_CHECKING:
    from bench.plan.grid import Sweep
    from bench.store.planned import Plan


PROG = "python -m bench.sweep"


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """The exit code: 0 if all runs finished or were submitted, 1 if one failed, 2 for a user's mistake, 130 stopped."""
    return command(_run, _arguments(argv, prog))


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        epilog="Runs that are finished are skipped, failed ones are tried again, and runs that another process is "
        "computing are waited for. Ctrl-C stops; the same command continues. With a cluster scheduler it submits what "
        "is neither finished nor in the queue, and returns; a last job writes the report.",
    )
    parser.add_argument(
        "file", type=given_path, nargs="?", metavar="FILE", help="a sweep file, such as sweeps/demo.yaml"
    )
    parser.add_argument(
        "--executor",
        type=_executor,
        default="auto",
        metavar="WHERE",
        help="auto, inline (this process), local (workers) or a cluster scheduler such as slurm; auto is Slurm where "
        "sbatch exists, else local",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan, for a cluster scheduler the scripts too, and stop"
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="with a cluster scheduler: stay and show progress; Ctrl-C leaves the jobs running",
    )
    override_option(parser)
    plugin_option(parser)
    parser.add_argument(
        "--only",
        action="store_true",
        help="leave out of the report what earlier commands finished and this command's grid does not have",
    )
    parser.add_argument(
        "--results", type=given_path, default=Path("results"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--reports", type=given_path, default=Path("reports"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--workers", type=_positive, metavar="N", help="local workers; default: one a GPU, else one a core"
    )
    return parser


def _arguments(argv: Sequence[str] | None, prog: str) -> argparse.Namespace:
    options = parser(prog)
    arguments = options.parse_args(argv)
    if arguments.file is None and arguments.overrides and "=" not in arguments.overrides[-1]:
        arguments.file = Path(arguments.overrides.pop())  # `--set a=1 FILE`: argparse gives --set all that follows
    arguments.command = shlex.join([*prog.split(), *(sys.argv[1:] if argv is None else argv)])
    if arguments.file is None:
        options.error("which sweep? give its file, such as sweeps/demo.yaml")
    return arguments


def _executor(name: str) -> str:
    from bench.launch.schedulers import executors  # only now: --help imports no settings

    if name not in executors():
        raise argparse.ArgumentTypeError(f"invalid choice: '{name}' (choose from {', '.join(executors())})")
    return name


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _run(arguments: argparse.Namespace) -> int:
    from bench.launch.stages import staged
    from bench.plan.grid import expand
    from methods.registry import add_plugin

    try:
        for path in arguments.plugin:
            add_plugin(path)
        sweep = expand(arguments.file, arguments.overrides)
        folder, reports = arguments.results / sweep.name, arguments.reports / sweep.name
        if arguments.dry_run:
            sweep = staged(sweep, folder)
            print_plan(sweep, folder, arguments)
            print_scripts(sweep, folder, reports, executor=arguments.executor)
            return _print_faults(sweep, folder)
        return execute(sweep, folder, reports, arguments)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(str(interrupt) or "stopped; the same command continues") from None


def execute(sweep: Sweep, folder: Path, reports: Path, arguments: argparse.Namespace) -> int:
    """Run what is not finished and write the report; a scheduler does both on its own unless `--follow` is given.

    A sweep that tunes goes on with its winners' runs when the trials are over.
    """
    from bench.config.terminal import progress_counter
    from bench.launch.stages import staged
    from bench.launch.start import start

    stage = staged(sweep, folder)
    while True:
        _print_counts(stage, folder, arguments)
        started = start(
            stage,
            folder=folder,
            reports=reports,
            executor=arguments.executor,
            workers=arguments.workers,
            stay=arguments.follow,
            command=arguments.command,
            only=arguments.only,
            on_pixels=progress_counter("preparing images"),
        )
        if not started.over:
            if stage.later:
                print("when these are finished, the same command goes on with what the trials decide")
            return 0
        before, stage = stage, staged(sweep, folder)
        if [run.run_id for run in stage.runs] == [run.run_id for run in before.runs]:
            return _report(started.plan, folder, reports)


def print_plan(sweep: Sweep, folder: Path, arguments: argparse.Namespace) -> None:
    """Print a table of the sweep's runs: settings, trainable parameters, estimated time, and whether each is to run."""
    from bench.launch.start import estimate
    from bench.store import record
    from bench.store.standing import clock

    cost = estimate(sweep, folder, executor=arguments.executor, workers=arguments.workers)
    many = {
        "dataset": len({run.dataset for run in sweep.runs}) > 1,
        "backbone": len({run.backbone for run in sweep.runs}) > 1,
    }
    rows = [("run", "dataset", "backbone", "loss", "lr", "epochs", "trainable", "time", "state")]
    for run in sweep.runs:
        result = record.read(folder / run.run_id)
        count, seconds = run.trainable_params(), cost.seconds.get(run.run_id)
        rows.append(
            (
                run.run_id,
                run.dataset.called,
                f"{run.backbone.model}/{Path(run.backbone.weights).name}",
                run.loss.name if run.method.trains else "-",
                f"{run.train.lr:g}" if run.method.trains else "-",
                str(run.train.epochs) if run.method.trains else "-",
                "-" if count is None else f"{count:,}",
                "-" if seconds is None else clock(seconds),
                "to run" if result is None else "finished" if result.finished else "failed, to run again",
            )
        )
    shown = [i for i, name in enumerate(rows[0]) if many.get(name, True)]
    _print_rows([[row[i] for i in shown] for row in rows])
    print()
    _print_counts(sweep, folder, arguments)
    if cost.seconds:
        per = "GPU-hours" if cost.gpu else "hours of one worker"
        print(
            f"estimate: {clock(cost.wall_seconds)} for all with {cost.slots} at once, {cost.total_seconds / 3600:.2g} "
            f"{per}; {cost.basis}"
        )
    if cost.unknown:
        print(f"no estimate for {cost.unknown} runs: their towers are not open_clip's own, or their data can't be read")


def _print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first row is its heading; columns of numbers are set to the right."""
    right = {i for i, name in enumerate(rows[0]) if name in ("lr", "epochs", "trainable", "time")}
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


def _print_faults(sweep: Sweep, folder: Path) -> int:
    """Print what would end runs at once; the exit code."""
    from bench.launch.faults import faults
    from bench.launch.start import unfinished

    found = faults(list(unfinished(sweep, folder).values()))
    for fault in found:
        print(f"would fail: {fault}", file=sys.stderr)
    return USER_MISTAKE if found else 0


def print_scripts(sweep: Sweep, folder: Path, reports: Path, *, executor: str) -> None:
    """Print what would be submitted for the runs that are not finished; nothing if `executor` is a local one."""
    from bench import launch
    from bench.launch.start import plan_of, unfinished

    todo, name = unfinished(sweep, folder), launch.scheduler_for(executor)
    if todo and name:
        settings, plan = sweep.schedulers[name], plan_of(sweep)
        for script in launch.scheduler(name).scripts(folder, settings, reports, runs=list(todo), plan=plan):
            print(f"\n{script}")


def _print_counts(sweep: Sweep, folder: Path, arguments: argparse.Namespace) -> None:
    """Print how many runs are finished and to run, what becomes of other finished runs, and the plan's notes."""
    from bench.launch.start import outside, stale, unfinished

    todo, others = len(unfinished(sweep, folder)), len(outside(sweep, folder))
    print(f"{sweep.name}: {len(sweep.runs)} runs, {len(sweep.runs) - todo} finished, {todo} to run")
    if others:
        runs = f"{others} finished runs" if others > 1 else "1 finished run"
        does = "leaves them out of" if arguments.only else "keeps them in"
        hint = "" if arguments.only else ", marked; --only leaves them out"
        print(f"note: {runs} of other commands in {folder} are not in this grid; this command {does} the report{hint}")
    for note in (*sweep.notes, *stale(sweep, folder), *_unmeasured(sweep, folder)):
        print(f"note: {note}")
    sys.stdout.flush()


def _unmeasured(sweep: Sweep, folder: Path) -> list[str]:
    """At most one note: how many finished runs lack something of the section `behaviour`."""
    from bench.measure import PROG as MEASURE
    from bench.measure import unmeasured

    lacking = len(unmeasured(sweep, folder))
    hint = f"`{MEASURE} {sweep.file or 'FILE'}` measures them; nothing is trained again"
    return [f"{lacking} finished runs lack what `behaviour` asks for: {hint}"] if lacking else []


def _report(plan: Plan, folder: Path, reports: Path) -> int:
    """Write and print the report; return the exit code, 1 if a run of the plan has no finished result."""
    from bench.reporting.build import build
    from bench.store import record
    from bench.store.folder import RESULT
    from bench.store.standing import last_line

    written = build(folder, reports, plan)
    written.print_table()
    print(f"\nreport: {written.index}", flush=True)
    failed = [run_id for run_id in plan.runs if not record.is_finished(folder / run_id)]
    for run_id in failed:
        result = record.read(folder / run_id)
        if result is None:  # its job was cancelled or died
            print(f"lost:   {run_id}: no result and no job; the same command submits it again", file=sys.stderr)
            continue
        print(f"failed: {run_id}: {last_line(result)}", file=sys.stderr)
        print(f"        {folder / run_id / RESULT} holds the traceback", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
