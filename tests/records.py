"""Results as runs write them: whole records, through the one writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.store import record
from bench.store.record import RECALLS, Cost, Failure, Metrics, Record, Scores


def finish(run_dir: Path, recall: float = 50.0, **parts: Any) -> Record:
    """Write a finished record whose recalls are all `recall` percent. `parts` replace fields of the record."""
    scores = Scores(**dict.fromkeys(RECALLS, recall))
    cost = Cost(trainable_params=1, total_params=1)
    metrics = Metrics(best_epoch=1, val=scores, test=scores)
    return _write(run_dir, status="finished", metrics=metrics, cost=cost, **parts)


def fail(run_dir: Path, message: str = "it\nbroke", kind: str = "ValueError", **parts: Any) -> Record:
    """Write a failed record with this error. `parts` replace fields of the record."""
    return _write(run_dir, status="failed", error=Failure(type=kind, message=message, traceback="..."), **parts)


def _write(run_dir: Path, **parts: Any) -> Record:
    spec = {"method": {"name": run_dir.name.partition("-")[0]}}
    found = Record(**{"run_id": run_dir.name, "sweep": run_dir.parent.name, "spec": spec, "provenance": {}} | parts)
    record.write(run_dir, found)
    return found
