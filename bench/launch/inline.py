"""Runs in this process, one after another: for debugging, and for the runs of one job."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.config.errors import UserError
from bench.launch.local import LocalPool
from bench.launch.task import WAIT_SECONDS, Outcome, never, output_to, run_one
from bench.store.folder import LOG


class Inline:
    """Computes runs in this process. A run that another process holds is tried again until it is free."""

    detached = False

    def missing(self, runs: Sequence[Path]) -> list[Path]:
        """All of the runs: nothing is queued anywhere."""
        return list(runs)

    def launch(self, runs: Sequence[Path]) -> None:
        """Compute the runs in these folders."""
        waiting, held = deque(runs), 0
        while waiting:
            run = waiting.popleft()
            outcome = run_one(run)
            if outcome == "lost":
                raise UserError(f"the GPU was lost in {run.name}; the same command continues in a new process")
            if outcome == "locked":
                waiting.append(run)
                held += 1
                if held >= len(waiting):
                    time.sleep(WAIT_SECONDS)
                    held = 0


def run_many(
    run_dirs: Sequence[str | Path], parallel: int = 1, should_stop: Callable[[], bool] = never
) -> dict[str, Outcome]:
    """Compute runs one after another in this process, or `parallel` at a time in workers; return outcomes by run id.

    A dataset and backbone that consecutive runs share are loaded once. Each run's output goes to its log.txt. A run
    that another process holds is "locked". Once `should_stop()` is true, the current runs save their state, and runs
    that have not started have no outcome.
    """
    runs = [Path(run_dir) for run_dir in run_dirs]
    if parallel > 1:
        return LocalPool(parallel, wait_for_held=False).compute(runs, should_stop)
    outcomes: dict[str, Outcome] = {}
    for run_dir in runs:
        if should_stop():
            break
        try:
            with output_to(run_dir / LOG):
                outcomes[run_dir.name] = run_one(run_dir, should_stop)
        except OSError as error:  # its folder is missing, or the disk is full: the other runs may still work
            outcomes[run_dir.name] = "failed"
            print(error, flush=True)
        print(f"{run_dir.name}: {outcomes[run_dir.name]}", flush=True)
        if outcomes[run_dir.name] == "lost":
            break  # and the next run would fail at once
    return outcomes
