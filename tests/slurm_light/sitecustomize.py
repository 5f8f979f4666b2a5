"""In front of a job's PYTHONPATH this makes its runs slow, or light: they write what runs write, and compute nothing.

SLOW: seconds that a real run rests whenever it writes its progress, at most at every step, until its job is requeued.
For light ones LIGHT_STEPS, LIGHT_SECONDS: so many steps of so long each. LIGHT_FAULT: "memory" takes more and more of
it, "hang" never ends its first step. LIGHT_LINGER: seconds that a light run holds its claim after it has saved;
LIGHT_HELD: seconds that a job waits for a claim of another process.

Each finish of a light run adds a line to its `computed`: the job, and its GPU. Its recall is highest, 50, at a learning
rate of 1e-3; a trial of `tune` has it for validation alone.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.store.record import Record


def execute(run_dir: Path, *, should_stop: Callable[[], bool], keep: bool = False, job: str | None = None) -> Record:
    """A replacement of bench.compute.execute.execute that writes the same files without torch."""
    from bench.config.errors import Stopped
    from bench.config.files import read_json, write_json
    from bench.core.position import Position
    from bench.plan.spec import RunSpec
    from bench.store import provenance, record
    from bench.store.attempts import end_attempt, start_attempt
    from bench.store.folder import PROGRESS, RUN, claim
    from bench.store.record import RECALLS, Cost, Metrics, Record, Scores

    saved, fault = run_dir / "light.json", os.environ.get("LIGHT_FAULT")
    steps, seconds = int(os.environ.get("LIGHT_STEPS", "1")), float(os.environ.get("LIGHT_SECONDS", "0"))
    with claim(run_dir):
        if (found := record.read(run_dir)) and found.finished:
            return found
        done = read_json(saved) or 0
        start_attempt(run_dir, gpus=1.0, job=job, at=Position(0, done))
        taken = []
        for step in range(done, steps):
            progress = {"phase": "train", "epoch": 1, "epochs": 1, "step": step, "steps": steps, "pid": os.getpid()}
            write_json(run_dir / PROGRESS, progress | {"updated": time.time()})
            time.sleep(600 if fault == "hang" else seconds)
            if fault == "memory":
                taken.append(b"x" * 100_000_000)
            if should_stop():
                write_json(saved, step + 1)
                time.sleep(float(os.environ.get("LIGHT_LINGER", "0")))
                end_attempt(run_dir, "stopped", reached=Position(0, step + 1))
                raise Stopped
        spec = RunSpec.load(run_dir / RUN)
        scores = Scores(**dict.fromkeys(RECALLS, 50 - 10 * abs(math.log10(spec.train.lr) + 3)))
        result = Record(
            run_id=run_dir.name,
            sweep=run_dir.parent.name,
            spec=spec.to_dict(),
            status="finished",
            metrics=Metrics(best_epoch=1, val=scores, test=scores if spec.evaluation.test else None),
            cost=Cost(trainable_params=1, total_params=1),
            provenance={"code": str(provenance.ROOT)},
        )
        with (run_dir / "computed").open("a") as file:
            file.write(f"{os.environ['SLURM_JOB_ID']} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
        record.write(run_dir, result)
        end_attempt(run_dir, "finished", reached=Position(1))
        return result


def slow_down(seconds: float) -> None:
    """Let whoever imports write_json from now on, bench.compute.progress above all, rest before writing progress."""
    from bench.config import files

    write = files.write_json

    def rest_and_write(path: Path, content: Any) -> None:
        if path.name == "progress.json" and "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(seconds)
        write(path, content)

    files.write_json = rest_and_write


if "SLOW" in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the job's GPUs are pretended: it means to compute on the CPU
    slow_down(float(os.environ["SLOW"]))
else:
    module = ModuleType("bench.compute.execute")
    module.execute = execute  # type: ignore[attr-defined]
    sys.modules["bench.compute.execute"] = module
    if "LIGHT_HELD" in os.environ:
        from bench.launch.slurm import job

        job.HELD_SECONDS = float(os.environ["LIGHT_HELD"])
