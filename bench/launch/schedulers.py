"""What launchers and cluster schedulers promise, and which schedulers there are. No torch.

A scheduler is a folder of `bench/launch/` with the functions of `Scheduler` in its `__init__.py`, and a block of
settings of the same name in `bench.config.settings.SCHEDULERS`. Nothing else knows which schedulers there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from bench.config.settings import SCHEDULERS
from bench.store.cluster import Job, Queue, Submission


class Launcher(Protocol):
    """Computes runs. What became of them is in their folders alone."""

    detached: bool  # whether `launch` returns before the runs are done

    def missing(self, runs: Sequence[Path]) -> list[Path]:
        """Those of the runs that are not on their way already."""

    def launch(self, runs: Sequence[Path]) -> None:
        """Compute the runs in these folders, each of which holds a run.yaml; a failed run fails alone."""


class Scheduler(Protocol):
    """What a scheduler's folder offers. `folder` is a sweep's folder in the results."""

    def available(self) -> bool:
        """Whether jobs can be submitted from this machine."""

    def current_job(self) -> str | None:
        """The id of the job that this process belongs to; None outside of jobs."""

    def submissions(self, folder: Path) -> list[Submission]:
        """The sweep's submissions, newest last. What can't be read is left out."""

    def look(self, submissions: Sequence[Submission]) -> Queue:
        """The living jobs of these submissions."""

    def ends(self, submissions: Sequence[Submission]) -> dict[tuple[str, str], str]:
        """How jobs have ended, in the scheduler's words, by (token, job), as far as it says."""

    def cancel(self, jobs: Sequence[Job]) -> None:
        """End these jobs, and nothing else; UserError if the scheduler does not do it."""

    def make_launcher(self, folder: Path, settings: Any, reports: Path, *, detached: bool) -> Launcher:
        """Submits the sweep's runs with its own block of settings; the last job writes the report into `reports`."""

    def scripts(self, folder: Path, settings: Any, reports: Path, runs: Sequence[Path]) -> list[str]:
        """What would be submitted for these runs, as text; works without the scheduler."""


@dataclass(frozen=True)
class Submitted:
    """What one scheduler was given of a sweep: its submissions, newest last."""

    name: str
    scheduler: Scheduler
    submissions: list[Submission]

    def look(self) -> Queue:
        """The living jobs of these submissions."""
        return self.scheduler.look(self.submissions)


def executors() -> tuple[str, ...]:
    """The names that `--executor` takes: the two local ones, and each scheduler."""
    return ("auto", "inline", "local", *SCHEDULERS)


def scheduler(name: str) -> Scheduler:
    """The scheduler of that name, one of `bench.config.settings.SCHEDULERS`."""
    return cast(Scheduler, import_module(f"bench.launch.{name}"))


def scheduler_for(executor: str) -> str | None:
    """The scheduler's name that an executor means; None for local ones. `auto` is the first that is available."""
    if executor == "auto":
        return next((name for name in SCHEDULERS if scheduler(name).available()), None)
    return executor if executor in SCHEDULERS else None


def submitted(folder: Path) -> Submitted | None:
    """The submissions of the sweep in this folder; None if there are none. A sweep uses one scheduler: the first."""
    found = (Submitted(name, scheduler(name), scheduler(name).submissions(folder)) for name in SCHEDULERS)
    return next((each for each in found if each.submissions), None)


def current_job() -> str | None:
    """The id of the cluster job that this process belongs to; None outside of jobs."""
    found = (scheduler(name).current_job() for name in SCHEDULERS)
    return next((job for job in found if job), None)
