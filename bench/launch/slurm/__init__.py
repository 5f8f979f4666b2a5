"""Slurm: runs as job arrays through submitit. All code that knows Slurm is in this folder. No torch.

`queue` reads Slurm's state, `launcher` decides what to submit, `submission` submits it, `job` runs inside the jobs.
The functions are those of `bench.launch.schedulers.Scheduler`. submitit is imported only to submit.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from math import ceil
from pathlib import Path

from bench.config.settings import SlurmSettings
from bench.launch.schedulers import Launcher
from bench.launch.slurm.queue import cancel, current_job, ends, look, submissions
from bench.store.planned import Plan

__all__ = ["at_once", "available", "cancel", "current_job", "ends", "look", "make_launcher", "scripts", "submissions"]


def available() -> bool:
    """Whether sbatch is on the PATH."""
    return shutil.which("sbatch") is not None


def make_launcher(
    folder: Path, settings: SlurmSettings, reports: Path, *, detached: bool, plan: Plan | None
) -> Launcher:
    """A launcher that submits the sweep's runs; the last job writes the plan's report into `reports`.

    UserError if the settings contradict each other.
    """
    from bench.launch.slurm.launcher import SlurmLauncher  # only now: jobs import this package, and submit nothing

    return SlurmLauncher(folder, settings, reports, detached=detached, plan=plan)


def at_once(settings: SlurmSettings, runs: int) -> int:
    """How many of so many runs are computed at the same time, if the cluster has room."""
    return min(settings.array_parallelism, ceil(runs / settings.runs_per_job)) * settings.parallel_runs


def scripts(
    folder: Path, settings: SlurmSettings, reports: Path, *, runs: Sequence[Path], plan: Plan | None
) -> list[str]:
    """The sbatch scripts for these runs, as text; works without Slurm."""
    from bench.launch.slurm.launcher import SlurmLauncher

    return SlurmLauncher(folder, settings, reports, plan=plan).scripts(runs)
