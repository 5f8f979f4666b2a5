"""What every launcher calls for runs. It lives in a module of its own so that jobs can be pickled by reference."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from bench.config.errors import Stopped
from bench.launch.schedulers import current_job
from bench.plan.spec import RunSpec
from bench.store import record
from bench.store.folder import LOG, RUN, RunLocked

WAIT_SECONDS = 2.0  # between two looks at a run that another process holds
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # Slurm sends its own to every process of a job
Outcome = Literal["finished", "failed", "stopped", "locked"]


def never() -> bool:
    """For a run that nobody stops."""
    return False


def run_one(run_dir: str | Path, should_stop: Callable[[], bool] = never) -> Outcome:
    """Compute the run. What goes wrong is written to its result.json.

    "locked": another process is at it; "stopped": its state was saved because `should_stop()`, and it can go on.
    """
    run_dir = Path(run_dir)
    try:
        from bench.compute.execute import execute  # torch

        return execute(run_dir, should_stop=should_stop, keep=True, job=current_job()).status
    except RunLocked:
        return "locked"
    except Stopped:
        return "stopped"
    except Exception as error:  # what lies outside the run's own net: its run.yaml, an import, the result's own file
        record_failure(run_dir, type(error).__name__, str(error), traceback.format_exc())
        return "failed"


def run_many(
    run_dirs: Sequence[str | Path], parallel: int = 1, should_stop: Callable[[], bool] = never
) -> dict[str, Outcome]:
    """Compute runs one after another in this process, or `parallel` at a time in workers of their own.

    What they share is loaded once. Their output goes to their log.txt. Runs that another process holds are passed
    over. Once `should_stop()`, those under way save their state and no other is started: they are not in the answer,
    which is keyed by run id.
    """
    runs = [Path(run_dir) for run_dir in run_dirs]
    if parallel > 1:
        from bench.launch.local import LocalPool

        return LocalPool(parallel, wait_for_held=False).compute(runs, should_stop)
    outcomes: dict[str, Outcome] = {}
    for run_dir in runs:
        if should_stop():
            break
        try:
            with output_to(run_dir / LOG):
                outcomes[run_dir.name] = run_one(run_dir, should_stop)
        except OSError as error:  # its folder is gone, or full: no reason to leave out the others
            outcomes[run_dir.name] = "failed"
            print(error, flush=True)
        print(f"{run_dir.name}: {outcomes[run_dir.name]}", flush=True)
    return outcomes


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Sends what this process and its children print to the end of a file."""
    before = [os.dup(1), os.dup(2)]
    try:
        redirect(log)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in enumerate(before, 1):
            os.dup2(saved, number)
            os.close(saved)


def redirect(log: Path) -> None:
    """From now on what this process prints goes to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def record_failure(run_dir: Path, kind: str, message: str, trace: str) -> None:
    """Write a failed result for a run that could not write its own; a finished one is left alone."""
    try:
        spec = RunSpec.load(run_dir / RUN).to_dict()
    except Exception:  # the run.yaml itself may be what is broken
        spec = {}
    record.write_failure(run_dir, spec, record.Failure(type=kind, message=message, traceback=trace))
