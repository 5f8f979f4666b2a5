"""What a run reports while it is computed."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bench.config.errors import UserError
from bench.config.files import write_json
from bench.store.folder import PROGRESS

PROGRESS_SECONDS = 0.5


class Progress:
    """Writes progress.json, at most twice a second, for those who follow the run."""

    def __init__(self, folder: Path, epochs: int) -> None:
        self.path = folder / PROGRESS
        self.state: dict[str, Any] = {
            "phase": "data",
            "epoch": 0,
            "epochs": epochs,
            "step": 0,
            "steps": 0,
            "loss": None,
            "val_mean_recall": None,
            "eta_seconds": None,
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        self.written = 0.0
        self.start: tuple[float, float] | None = None

    def __call__(self, phase: str, loss_sum: Tensor | None = None, **changes: Any) -> None:
        """Note where the run is. The epoch's summed loss is read from the device only when the file is written."""
        now = time.monotonic()
        due = now - self.written >= PROGRESS_SECONDS or phase != self.state["phase"]
        self.state |= {"phase": phase, **changes}
        if not due:
            return
        if loss_sum is not None:
            value = float(loss_sum) / self.state["step"]
            self.state["loss"] = value if np.isfinite(value) else None
        if self.state["steps"]:
            done = self.state["epoch"] - 1 + self.state["step"] / self.state["steps"]
            self.start = self.start or (now, done)
            if done > self.start[1]:
                pace = (now - self.start[0]) / (done - self.start[1])
                self.state["eta_seconds"] = round(pace * (self.state["epochs"] - done), 1)
        with suppress(OSError, UserError):  # a folder that can't be written for a while: what counts is the saved state
            write_json(self.path, self.state | {"updated": time.time()})
        self.written = now
