"""What every launcher calls for one run. It lives in a module of its own so that jobs can be pickled by reference."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Literal

from bench import store

LOG = "log.txt"
WAIT_SECONDS = 2.0  # between two looks at a run that another process holds
Outcome = Literal["finished", "failed", "locked"]


def run_one(run_dir: str | Path) -> Outcome:
    """Compute the run; "locked" if another process is at it. What goes wrong is written to its result.json."""
    run_dir = Path(run_dir)
    try:
        from bench import run  # torch

        return "finished" if run.execute(run_dir)["status"] == "finished" else "failed"
    except store.RunLocked:
        return "locked"
    except Exception as error:  # what lies outside the run's own net: its run.yaml, an import, the result's own file
        record_failure(run_dir, type(error).__name__, str(error), traceback.format_exc())
        return "failed"


def record_failure(run_dir: Path, kind: str, message: str, trace: str) -> None:
    """Write a failed result for a run that could not write its own; a finished one is left alone."""
    from bench.spec import RunSpec

    if store.is_finished(run_dir):
        return
    try:
        spec = RunSpec.load(run_dir / store.RUN).to_dict()
    except Exception:  # the run.yaml itself may be what is broken
        spec = {}
    error = {"type": kind, "message": message, "traceback": trace, "user": False}
    result = {"schema": 1, "run_id": run_dir.name, "sweep": run_dir.parent.name, "status": "failed", "error": error}
    result |= {"spec": spec, "metrics": None, "cost": None, "provenance": None}
    store.write_json(run_dir / store.RESULT, result)
