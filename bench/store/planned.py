"""plan.json: the runs of a sweep with their settings, and how it was last started. No torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.config.errors import UserError
from bench.config.files import write_json

PLAN = "plan.json"


@dataclass(frozen=True)
class Start:
    """How a sweep was last started. A retry starts it in the same way.

    executor: the one that was used, never "auto". reports: the folder of its report, absolute. blocks: each cluster
    scheduler's settings, with the user's overrides. plugins: the files of its plug-ins, absolute. command: as given.
    """

    executor: str
    reports: str
    workers: int | None = None
    blocks: dict[str, dict[str, Any]] = field(default_factory=dict)
    plugins: list[str] = field(default_factory=list)
    command: str | None = None


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep in order: run id -> settings as in run.yaml.

    `file` is the sweep file and `start` how it was started, where these are known: not in plans of earlier versions.
    """

    sweep: str
    runs: dict[str, dict[str, Any]]
    file: str | None = None
    start: Start | None = None


def write(folder: Path, plan: Plan) -> None:
    """Write the plan into the sweep's folder, which is created if need be; UserError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write results to {folder}: {error.strerror}; choose another --results") from error
    runs = [{"run_id": run_id, "spec": spec} for run_id, spec in plan.runs.items()]
    start = None if plan.start is None else asdict(plan.start)
    write_json(folder / PLAN, {"sweep": plan.sweep, "file": plan.file, "start": start, "runs": runs})


def read(folder: Path) -> Plan | None:
    """The plan of the sweep in this folder; None if there is none. UserError if the file is not a plan."""
    path = folder / PLAN
    if not path.exists():
        return None
    try:
        plan = json.loads(path.read_bytes())
        runs = {str(run["run_id"]): dict(run["spec"]) for run in plan["runs"]}
        if all(Path(run_id).name == run_id for run_id in runs):
            start = Start(**plan["start"]) if plan.get("start") else None
            return Plan(str(plan.get("sweep") or folder.resolve().name), runs, plan.get("file"), start)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"'{path}' is not a sweep's plan; run the sweep again, or delete it to report every run folder")
