"""Fake runs for the tests of the pool: the folder's name decides how a run ends, and nothing is trained."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

from bench.config.errors import GpuLost
from bench.core.position import Position
from bench.launch.task import run_one
from bench.store import attempts
from tests import records

VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PETL_BENCH_GPUS_HELD")


def lose_gpu(run_dir: Path) -> str:
    """What the real task makes of a run that loses its GPU: always on GPU 3, elsewhere as often as its name says."""

    def execute(run_dir: Path, **_) -> Any:
        before = [attempt for attempt in attempts.read_attempts(run_dir) if attempt.outcome == "lost"]
        attempts.start_attempt(run_dir, gpus=1.0, job=None, at=Position())
        gpu = os.environ["CUDA_VISIBLE_DEVICES"]
        if gpu == "3" or len(before) < int(run_dir.name.rpartition("x")[2]):
            attempts.end_attempt(run_dir, "lost", reached=Position())
            raise GpuLost("CUDA error: device-side assert triggered")
        return records.finish(run_dir, provenance={"pid": os.getpid(), "gpu": gpu})

    sys.modules["bench.compute.execute"] = cast(ModuleType, SimpleNamespace(execute=execute))
    return run_one(run_dir)


def run(run_dir: Path, should_stop: Callable[[], bool]) -> str:
    kind = run_dir.name.partition("-")[0]
    print(f"this is {run_dir.name}", flush=True)
    (run_dir / "pid").write_text(str(os.getpid()))
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "crash":
        os.abort()
    if kind == "exits":
        os._exit(3)
    if kind == "slow":
        child = subprocess.Popen(["sleep", "60"])
        (run_dir / "child").write_text(str(child.pid))
        time.sleep(60)
    if kind == "held" and not (run_dir / "seen").exists():
        (run_dir / "seen").touch()
        return "locked"
    if kind == "lost":
        return lose_gpu(run_dir)
    environment = {name: os.environ.get(name) for name in VARIABLES}
    write = records.fail if kind == "bad" else records.finish
    return write(run_dir, provenance={"pid": os.getpid(), "environment": environment}).status
