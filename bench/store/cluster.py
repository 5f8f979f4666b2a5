"""A sweep's submissions to a cluster scheduler and its living jobs, the same for every scheduler. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Submission:
    """One submission of runs, as its file in the sweep's folder (`path`) holds it; `content` is the whole file.

    tasks: run id -> the id of its job, such as "12_3"; packed runs share a job. token: a unique mark that all jobs of
    the submission carry, since a scheduler uses job ids again. report_job: the job that writes the report.
    """

    path: Path
    submitted: datetime
    token: str
    tasks: dict[str, str]
    report_job: str | None = None
    content: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A living job. state: the scheduler's word for it: pending, running, requeued, suspended, ..."""

    id: str
    token: str
    state: str
    reason: str | None = None
    left_seconds: int | None = None  # until its time limit


@dataclass(frozen=True)
class Queue:
    """A sweep's living jobs. Not `known`: the scheduler did not answer, and a run without a job here may have one.

    scheduler: its name, for messages. jobs: all, with those for reports. runs: run id -> the living job that computes
    it, of the last submission with the run. ending: the ids of jobs that have ended, cancelled ones for example, whose
    processes may hold their runs for some seconds more.
    """

    scheduler: str = "no scheduler"
    known: bool = True
    jobs: tuple[Job, ...] = ()
    runs: dict[str, Job] = field(default_factory=dict)
    ending: frozenset[str] = frozenset()

    def state(self, run_id: str) -> str | None:
        """The state of the run's job; None if it has no living one."""
        return self.runs[run_id].state if run_id in self.runs else None
