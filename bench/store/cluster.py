"""What a cluster scheduler knows of a sweep: its submissions, and the jobs that are alive. Any scheduler; no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Submission:
    """One submission of runs. `tasks`: run id -> the job that it was given to, "12_3"; packed runs share one.

    token: what all of its jobs carry; a scheduler uses job ids again, a token is unique. content: the file as it is.
    """

    path: Path
    submitted: datetime
    token: str
    tasks: dict[str, str]
    report_job: str | None = None
    content: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A job that the scheduler holds, in the scheduler's words: pending, running, requeued, suspended, ..."""

    id: str
    token: str
    state: str
    reason: str | None = None
    left_seconds: int | None = None  # until its time limit


@dataclass(frozen=True)
class Queue:
    """A sweep's living jobs. If not `known`, the scheduler gave no answer: that a run has no job here means nothing."""

    scheduler: str = "no scheduler"  # its name, for messages
    known: bool = True
    jobs: tuple[Job, ...] = ()  # the report's too
    runs: dict[str, Job] = field(default_factory=dict)  # run id -> the job it was last given to, where that one lives

    def state(self, run_id: str) -> str | None:
        """The state of the run's job; None if it has no living one."""
        return self.runs[run_id].state if run_id in self.runs else None
