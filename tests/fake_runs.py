"""Fake runs for the tests of the pool: the folder's name decides how a run ends, and nothing is trained."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests import records

VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


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
    environment = {name: os.environ.get(name) for name in VARIABLES}
    write = records.fail if kind == "bad" else records.finish
    return write(run_dir, provenance={"pid": os.getpid(), "environment": environment}).status
