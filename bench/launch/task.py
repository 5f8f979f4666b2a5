"""What every launcher calls for runs. It lives in a module of its own so that jobs can be pickled by reference."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from bench.config.errors import GpuLost, Stopped
from bench.launch.schedulers import current_job
from bench.plan.spec import RunSpec
from bench.store import record
from bench.store.attempts import read_attempts
from bench.store.folder import RUN, RunLocked

WAIT_SECONDS = 2.0  # between two looks at a run that another process holds
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # Slurm sends its own to every process of a job
Outcome = Literal["finished", "failed", "stopped", "locked", "lost"]
LOST_GPU = 75  # the exit code of a worker whose run is "lost"


def never() -> bool:
    """For a run that nobody stops."""
    return False


def run_one(run_dir: str | Path, should_stop: Callable[[], bool] = never) -> Outcome:
    """Compute the run. What goes wrong is written to its result.json.

    "locked": another process is at it; "stopped": its state was saved because `should_stop()`, and it can go on.
    "lost": this process can't use its GPU any more and must end. The run can go on in another process; the second time
    in a row it is recorded as failed.
    """
    run_dir = Path(run_dir)
    try:
        from bench.compute.execute import execute  # torch

        return execute(run_dir, should_stop=should_stop, keep=True, job=current_job()).status
    except RunLocked:
        return "locked"
    except Stopped:
        return "stopped"
    except GpuLost as error:
        traceback.print_exc()
        if lost_again(run_dir):
            words = (
                f"the GPU was lost twice, in two processes: a fault of the GPU, or of the code that it runs ({error})"
            )
            record_failure(run_dir, "GpuLost", words, traceback.format_exc())
        return "lost"
    except Exception as error:  # what lies outside the run's own net: its run.yaml, an import, the result's own file
        record_failure(run_dir, type(error).__name__, str(error), traceback.format_exc())
        return "failed"


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


def lost_again(run_dir: Path) -> bool:
    """Whether the run has lost its GPU in two attempts in a row, so that it is not retried."""
    outcomes = [attempt.outcome for attempt in read_attempts(run_dir)]
    in_a_row = next((i for i, outcome in enumerate(reversed(outcomes)) if outcome != "lost"), len(outcomes))
    return in_a_row > 0 and in_a_row % 2 == 0  # even: a failed run that is computed anew is retried once, too
