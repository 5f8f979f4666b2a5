"""Slurm: runs as job arrays through submitit. Everything that knows Slurm is in this folder. No torch.

`queue` asks Slurm, `submission` submits, `job` is what a job does. submitit is imported only to submit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from bench.config.settings import SlurmSettings
from bench.launch.schedulers import Launcher
from bench.launch.slurm.queue import cancel, ends, look, submissions

__all__ = ["available", "cancel", "current_job", "ends", "look", "make_launcher", "scripts", "submissions"]


def available() -> bool:
    """Whether sbatch exists here."""
    return shutil.which("sbatch") is not None


def current_job() -> str | None:
    """This process's job: "12_3" in an array, else "12"; None outside of jobs."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID")


def make_launcher(folder: Path, settings: SlurmSettings, reports: Path, *, detached: bool) -> Launcher:
    """See `bench.launch.schedulers.Scheduler`."""
    from bench.launch.slurm.launcher import SlurmLauncher  # a job's own process must not import what submits it

    return SlurmLauncher(folder, settings, reports, detached)


def scripts(folder: Path, settings: SlurmSettings, reports: Path, runs: Sequence[Path]) -> list[str]:
    """The sbatch scripts for these runs."""
    from bench.launch.slurm.launcher import SlurmLauncher

    return SlurmLauncher(folder, settings, reports).scripts(runs)
