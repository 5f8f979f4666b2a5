"""In front of a job's PYTHONPATH this makes its runs slow, or light: they write what runs write, and compute nothing.

SLOW: seconds that a real run rests whenever it writes its progress, at most at every step, until its job is requeued.
For light ones LIGHT_STEPS, LIGHT_SECONDS: so many steps of so long each. LIGHT_FAULT: "memory" takes more and more of
it, "hang" never ends its first step. Each finish of a light run adds a line to its `computed`: the job, and its GPU.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def execute(run_dir: Path, should_stop: Callable[[], bool], **_: Any) -> dict[str, Any]:
    from bench import store
    from bench.plan.spec import RunSpec

    saved, fault = run_dir / "light.json", os.environ.get("LIGHT_FAULT")
    steps, seconds = int(os.environ.get("LIGHT_STEPS", "1")), float(os.environ.get("LIGHT_SECONDS", "0"))
    with folder.claim(run_dir):
        if record.is_finished(run_dir):
            return record.read(run_dir) or {}
        done = files.read_json(saved) or 0
        attempts.start_attempt(run_dir, 1.0, (0, done))
        taken = []
        for step in range(done, steps):
            progress = {"phase": "train", "epoch": 1, "epochs": 1, "step": step, "steps": steps, "updated": time.time()}
            files.write_json(run_dir / folder.PROGRESS, progress)
            time.sleep(600 if fault == "hang" else seconds)
            if fault == "memory":
                taken.append(b"x" * 100_000_000)
            if should_stop():
                files.write_json(saved, step + 1)
                attempts.end_attempt(run_dir, "stopped", (0, step + 1))
                raise errors.Stopped
        six = {f"{side}_r{k}": 50.0 for side in ("i2t", "t2i") for k in (1, 5, 10)}
        result = {
            **{"schema": 1, "run_id": run_dir.name, "sweep": run_dir.parent.name, "status": "finished", "error": None},
            "spec": RunSpec.load(run_dir / folder.RUN).to_dict(),
            "metrics": {"best_epoch": 1, "val": {"mean_recall": 50.0}, "test": six | {"mean_recall": 50.0}},
            "cost": {"trainable_params": 1, "total_params": 1},
            "provenance": {"code": str(Path(store.__file__).parents[1])},
        }
        with (run_dir / "computed").open("a") as file:
            file.write(f"{os.environ['SLURM_JOB_ID']} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
        files.write_json(run_dir / folder.RESULT, result)
        attempts.end_attempt(run_dir, "finished", (1, 0))
        return result


def slow_down(seconds: float) -> None:

    write = files.write_json

    def rest_and_write(path: Path, content: Any) -> None:
        if path.name == folder.PROGRESS and "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(seconds)
        write(path, content)

    files.write_json = rest_and_write


if "SLOW" in os.environ:
    slow_down(float(os.environ["SLOW"]))
else:
    module = ModuleType("bench.run")
    module.execute = execute  # type: ignore[attr-defined]
    sys.modules["bench.run"] = module
