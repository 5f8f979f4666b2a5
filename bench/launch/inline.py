"""Runs in this process, one after another: for debugging, and where processes are dear."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from bench.launch.task import WAIT_SECONDS, run_one


class Inline:
    """Waits for runs that another process holds, and takes them over if they are let go unfinished."""

    detached = False

    def missing(self, runs: Sequence[Path]) -> list[Path]:
        return list(runs)

    def launch(self, runs: Sequence[Path]) -> None:
        waiting, held = deque(runs), 0
        while waiting:
            run = waiting.popleft()
            if run_one(run) == "locked":
                waiting.append(run)
                held += 1
                if held >= len(waiting):
                    time.sleep(WAIT_SECONDS)
                    held = 0
