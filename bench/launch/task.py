"""The functions that every launcher calls to compute runs, and to record a run that could not record its own failure.

They are in a module of their own so that a job can be pickled as a reference to one of them.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

from bench.config.errors import GpuLost, Stopped
from bench.launch.schedulers import current_job
from bench.plan.spec import RunSpec
from bench.store import record
from bench.store.attempts import read_attempts
from bench.store.folder import RUN, RunLocked
from bench.store.record import Failure

WAIT_SECONDS = 2.0  # before a run that another process holds is tried again
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # Slurm sends a job's warning to all of its processes
Outcome = Literal["finished", "failed", "stopped", "locked", "lost"]
LOST_GPU = 75  # the exit code of a worker whose run is "lost"


def never() -> bool:
    """False: the `should_stop` of a run that is never stopped."""
    return False


def run_one(run_dir: str | Path, should_stop: Callable[[], bool] = never) -> Outcome:
    """Compute the run and return its outcome; any failure is recorded in its result.json, and none is raised.

    "locked": another process holds the run. "stopped": `should_stop()` was true; the run saved its state and can
    continue. "lost": a CUDA error took the GPU from this process, which must end. The run can continue in another
    process; the second time in a row it is recorded as failed.
    """
    run_dir = Path(run_dir)
    try:
        from bench.compute.execute import execute  # torch

        _pass_over_imports()
        return execute(run_dir, should_stop=should_stop, keep=True, job=current_job()).status
    except RunLocked:
        return "locked"
    except Stopped:
        return "stopped"
    except GpuLost as error:
        traceback.print_exc()
        if lost_again(run_dir):
            words = f"the GPU was lost twice, in two processes: a fault of the GPU, or of the code on it ({error})"
            record_failure(run_dir, Failure(type="GpuLost", message=words, traceback=traceback.format_exc()))
        return "lost"
    except Exception as error:  # before or after `execute` catches errors: run.yaml, an import, writing result.json
        failure = Failure(type=type(error).__name__, message=str(error), traceback=traceback.format_exc())
        record_failure(run_dir, failure)
        return "failed"


@cache
def _pass_over_imports() -> None:
    """Let the collection of garbage before each run pass over what was imported: looking at it takes 0.2 s a run."""
    gc.collect()
    gc.freeze()


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Append the output of this process and its children to a file while the context lasts."""
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
    """Append the output of this process to a file from now on."""
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def record_failure(run_dir: Path, failure: Failure) -> None:
    """Write a failed result for a run that could not write its own; a finished result is kept."""
    try:
        spec = RunSpec.load(run_dir / RUN).to_dict()
    except Exception:  # the run.yaml itself may be what is broken
        spec = {}
    record.write_failure(run_dir, spec, failure)


def lost_again(run_dir: Path) -> bool:
    """Whether the run has lost its GPU in two attempts in a row, so that it is not retried."""
    outcomes = [attempt.outcome for attempt in read_attempts(run_dir)]
    in_a_row = next((i for i, outcome in enumerate(reversed(outcomes)) if outcome != "lost"), len(outcomes))
    return in_a_row > 0 and in_a_row % 2 == 0  # even: a failed run that is computed anew is retried once, too
