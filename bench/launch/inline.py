"""Runs in this process, one after another: for debugging, and where starting processes is slow."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from bench.launch.task import WAIT_SECONDS, run_one


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
            if run_one(run) == "locked":
                waiting.append(run)
                held += 1
                if held >= len(waiting):
                    time.sleep(WAIT_SECONDS)
                    held = 0
