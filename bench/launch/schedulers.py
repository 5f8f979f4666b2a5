"""The protocols of launchers and cluster schedulers, and the list of schedulers. No torch.

A scheduler is a folder of `bench/launch/` whose `__init__.py` has the functions of `Scheduler`, and a block of settings
of the same name in `bench.config.settings.SCHEDULERS`. To add one, write these two; no other code changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from bench.config.settings import SCHEDULERS
from bench.store.cluster import Job, Queue, Submission
from bench.store.planned import Plan


class Launcher(Protocol):
    """Computes runs. Their results are in their folders."""

    detached: bool  # whether `launch` returns before the runs are done

    def missing(self, runs: Sequence[Path]) -> list[Path]:
        """Those of the runs that are not queued or running already."""

    def launch(self, runs: Sequence[Path]) -> None:
        """Compute the runs in these folders, which hold a run.yaml each. A run's failure is recorded, not raised."""


class Scheduler(Protocol):
    """The functions of a scheduler's folder. `folder` is a sweep's folder in the results."""

    def available(self) -> bool:
        """Whether jobs can be submitted from this machine."""

    def current_job(self) -> str | None:
        """The id of the job that this process belongs to; None outside of jobs."""

    def submissions(self, folder: Path) -> list[Submission]:
        """The sweep's submissions, newest last; files that are not submissions are left out.

        The content of a submission holds the settings that it used under the scheduler's name.
        """

    def look(self, submissions: Sequence[Submission]) -> Queue:
        """The living jobs of these submissions. It does not raise: `known` is False without an answer."""

    def ends(self, submissions: Sequence[Submission]) -> dict[tuple[str, str], str]:
        """How jobs ended, in the scheduler's words: (token, job as in `tasks`) -> "TIMEOUT"; without unknown ends."""

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Cancel these jobs and no others; UserError if that fails."""

    def make_launcher(
        self, folder: Path, settings: Any, reports: Path, *, detached: bool, plan: Plan | None
    ) -> Launcher:
        """A launcher that submits the sweep's runs; the last job writes the report of that plan into `reports`.

        `settings` is the scheduler's own block. Unless `detached`, it waits for the runs.
        """

    def at_once(self, settings: Any, runs: int) -> int:
        """How many of so many runs are computed at the same time, if the cluster has room."""

    def scripts(
        self, folder: Path, settings: Any, reports: Path, *, runs: Sequence[Path], plan: Plan | None
    ) -> list[str]:
        """The job scripts for these runs, as text; works without the scheduler."""


@dataclass(frozen=True)
class Submitted:
    """A sweep's submissions to one scheduler, newest last."""

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
    """The name of the scheduler that an executor uses, None for a local one. `auto` uses the first available one."""
    if executor == "auto":
        return next((name for name in SCHEDULERS if scheduler(name).available()), None)
    return executor if executor in SCHEDULERS else None


def submitted(folder: Path) -> Submitted | None:
    """The submissions of the sweep in this folder, to the first scheduler that has any; None if none has."""
    found = (Submitted(name, scheduler(name), scheduler(name).submissions(folder)) for name in SCHEDULERS)
    return next((each for each in found if each.submissions), None)


def current_job() -> str | None:
    """The id of the cluster job that this process belongs to; None outside of jobs."""
    found = (scheduler(name).current_job() for name in SCHEDULERS)
    return next((job for job in found if job), None)
