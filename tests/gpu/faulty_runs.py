"""What the pool's workers compute in tests/gpu: real runs, but the name of a run's folder says what breaks in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from bench.compute import execute
from bench.launch.task import run_one
from bench.store.attempts import read_attempts
from tests.gpu.device import STAND_IN


def run(run_dir: Path, should_stop: Callable[[], bool]) -> str:
    """Compute the run; `poisoned...` poisons its CUDA context in its first attempt."""
    if run_dir.name.startswith("poisoned") and not read_attempts(run_dir):
        with patch.object(execute, "fit", poison):
            if STAND_IN:
                execute.gpu_is_lost = lambda: True
            return run_one(run_dir, should_stop)
    return run_one(run_dir, should_stop)


def poison(model: torch.nn.Module, **_: Any) -> None:
    """An index out of range fails an assertion on the GPU, which no later call of this process survives."""
    if STAND_IN:
        raise RuntimeError("CUDA error: device-side assert triggered (emulated)")
    device = next(model.parameters()).device
    beyond = torch.zeros(2, device=device)[torch.tensor([7], device=device)]
    float(beyond)  # here the host hears of it
    raise AssertionError("the index out of range was not noticed")
