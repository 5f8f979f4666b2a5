"""One command from a sweep file to a report: expand the grid, run what is not finished, follow, write the tables."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import launch, store
from bench.errors import UserError

if TYPE_CHECKING:
    from bench.spec import RunSpec, Sweep

PLAN = "plan.json"
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """0: all finished (or submitted); 1: a run failed; 2: the user has something to fix; 130: stopped."""
    arguments = _arguments(argv)
    from bench.spec import expand
    from methods.registry import add_plugin

    try:
        for path in arguments.plugin:
            add_plugin(path)
        sweep = expand(arguments.file, arguments.overrides)
        if arguments.dry_run:
            print_plan(sweep, arguments.results / sweep.name)
            if launch.is_slurm(arguments.executor):
                print_scripts(sweep, arguments.results / sweep.name, arguments.reports / sweep.name)
            return 0
        return execute(
            sweep, arguments.results, arguments.reports, arguments.executor, arguments.workers, arguments.follow
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        words = str(interrupt) or "stopped; the same command goes on"
        print(f"\n{words}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sweep",
        description=__doc__,
        epilog="Runs that are finished are skipped, failed ones are tried again, and runs that another process is "
        "computing are waited for. Ctrl-C stops; the same command goes on. With Slurm it submits what is neither "
        "finished nor in the queue, and returns; a last job writes the report.",
    )
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="a sweep file, such as sweeps/demo.yaml")
    parser.add_argument(
        "--executor",
        choices=launch.EXECUTORS,
        default="auto",
        help="where: in this process, in local workers, or as Slurm arrays; auto is Slurm where sbatch exists",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan, for Slurm the scripts too, and stop")
    parser.add_argument(
        "--follow", action="store_true", help="with Slurm: stay and show progress; Ctrl-C leaves the jobs running"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="override values of the file, as in train.epochs=2 or grid.seed=[0]; they win over a method's own "
        "train and loss too",
    )
    parser.add_argument(
        "--plugin", type=Path, action="append", default=[], metavar="FILE", help="a Python file with methods or losses"
    )
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--reports", type=Path, default=Path("reports"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--workers", type=_positive, metavar="N", help="local workers; default: one a GPU, else one a core"
    )
    arguments = parser.parse_args(argv)
    if arguments.file is None and arguments.overrides and "=" not in arguments.overrides[-1]:
        arguments.file = Path(arguments.overrides.pop())  # `--set a=1 FILE`: argparse gives --set all that follows
    if arguments.file is None:
        parser.error("which sweep? give its file, such as sweeps/demo.yaml")
    return arguments


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def execute(
    sweep: Sweep,
    results: Path,
    reports: Path,
    executor: str = "auto",
    workers: int | None = None,
    stay: bool = False,
) -> int:
    """Run what is not finished and write the report; gives back the exit code.

    Slurm is left to it, the report included, unless this is to `stay`.
    """
    folder = results / sweep.name
    todo = {folder / run.run_id: run for run in sweep.runs if not store.is_finished(folder / run.run_id)}
    _say(sweep, len(todo), _stale(sweep, folder))
    _write_plan(sweep, folder)
    if todo:
        launcher = launch.make(executor, workers, folder, sweep.slurm, reports / sweep.name, stay)
        new = launcher.missing(list(todo))
        for run_dir in new:
            run_dir.mkdir(exist_ok=True)
            store.write_bytes(run_dir / store.RUN, todo[run_dir].dump().encode())
        if new:
            _preflight([todo[run_dir] for run_dir in new])
        if launcher.detached:
            if new:
                launcher.launch(new)
            return 0
        from bench.progress import follow

        with follow(list(todo)):
            launcher.launch(list(todo))
    return _report(sweep, folder, reports)


def print_plan(sweep: Sweep, folder: Path) -> None:
    """The runs of a sweep: what is new, what is finished, how many parameters each trains."""
    rows = [("run", "loss", "lr", "epochs", "trainable", "state")]
    for run in sweep.runs:
        result = store.read_result(folder / run.run_id)
        count = run.trainable_params()
        rows.append(
            (
                run.run_id,
                run.loss.name if run.method.trains else "-",
                f"{run.train.lr:g}" if run.method.trains else "-",
                str(run.train.epochs) if run.method.trains else "-",
                "-" if count is None else f"{count:,}",
                "to run" if result is None else "failed, to run again" if result["status"] == "failed" else "finished",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            text.rjust(width) if i in (2, 3, 4) else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    print()
    _say(sweep, sum(row[-1] != "finished" for row in rows[1:]), _stale(sweep, folder))


def print_scripts(sweep: Sweep, folder: Path, reports: Path) -> None:
    """What sbatch would be given for the runs that are not finished."""
    from bench.launch.slurm import SlurmArray

    todo = [folder / run.run_id for run in sweep.runs if not store.is_finished(folder / run.run_id)]
    if todo:
        for script in SlurmArray(folder, sweep.slurm, reports).scripts(todo):
            print(f"\n{script}")


def _stale(sweep: Sweep, folder: Path) -> list[str]:
    """A note on finished runs that were made by another version of a plug-in file than the one at hand."""
    from methods.registry import plugins, sources

    if not plugins():
        return []
    old = []
    for run in sweep.runs:
        made_by = ((store.read_result(folder / run.run_id) or {}).get("provenance") or {}).get("plugins") or {}
        now = sources(type(run.method), type(run.loss))
        if store.is_finished(folder / run.run_id) and sorted(made_by.values()) != sorted(now.values()):
            old.append(run.run_id)
    hint = f"delete their folders in {folder} to run them again: {', '.join(old[:3])}{', ...' if len(old) > 3 else ''}"
    return [f"{len(old)} finished runs were made by another version of the plug-in; {hint}"] if old else []


def _say(sweep: Sweep, todo: int, stale: Sequence[str] = ()) -> None:
    print(f"{sweep.name}: {len(sweep.runs)} runs, {len(sweep.runs) - todo} finished, {todo} to run")
    for note in (*sweep.notes, *stale):
        print(f"note: {note}")
    sys.stdout.flush()


def _write_plan(sweep: Sweep, folder: Path) -> None:
    """plan.json: the runs that the report is about."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write results to {folder}: {error.strerror}; choose another --results") from error
    runs = [{"run_id": run.run_id, "spec": run.to_dict()} for run in sweep.runs]
    store.write_json(folder / PLAN, {"sweep": sweep.name, "file": str(sweep.file), "runs": runs})


def _preflight(runs: list[RunSpec]) -> None:
    """Find missing images and weights now, not in every run; fill the pixel caches."""
    from bench.run import preflight  # torch

    preflight(runs, _pixel_counter() if sys.stdout.isatty() else None)


def _pixel_counter() -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        print(f"\rpreparing images: {done}/{total}", end="\n" if done >= total else "", flush=True)

    return show


def _report(sweep: Sweep, folder: Path, reports: Path) -> int:
    """Write and print the report; 1 if a run of the sweep has no finished result."""
    from bench import report
    from bench.progress import last_line

    written = report.build(folder, reports / sweep.name)
    written.print_table()
    print(f"\nreport: {written.index}", flush=True)
    failed = [run.run_id for run in sweep.runs if not store.is_finished(folder / run.run_id)]
    for run_id in failed:
        result = store.read_result(folder / run_id)
        if result is None:  # its job was cancelled or died
            print(f"lost:   {run_id}: no result and no job; the same command submits it again", file=sys.stderr)
            continue
        print(f"failed: {run_id}: {last_line(result)}", file=sys.stderr)
        print(f"        {folder / run_id / store.RESULT} holds the traceback", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
