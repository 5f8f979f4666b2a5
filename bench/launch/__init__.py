"""Where runs are computed: in this process, in a pool of local workers, or as Slurm arrays. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from bench.spec import SlurmSettings

EXECUTORS = ("auto", "inline", "local", "slurm")


class Launcher(Protocol):
    """Computes runs. What became of them is told by their folders alone."""

    detached: bool  # whether `launch` returns before the runs are done

    def missing(self, runs: Sequence[Path]) -> list[Path]:
        """Those of the runs that are not on their way already."""

    def launch(self, runs: Sequence[Path]) -> None:
        """Compute the runs in these folders, each of which holds a run.yaml; a failed run fails alone."""


def is_slurm(executor: str) -> bool:
    """Whether this executor is Slurm: `auto` is where sbatch exists."""
    return executor == "slurm" or (executor == "auto" and shutil.which("sbatch") is not None)


def make(
    executor: str, workers: int | None, folder: Path, slurm: SlurmSettings, reports: Path, follow: bool = False
) -> Launcher:
    """The launcher of that name for the sweep in `folder`.

    Slurm's writes the report into `reports` with its last job, and only with `follow` stays until the runs are done.
    """
    if is_slurm(executor):
        from bench.launch.slurm import SlurmArray

        return SlurmArray(folder, slurm, reports, detached=not follow)
    if executor == "inline":
        from bench.launch.inline import Inline

        return Inline()
    from bench.launch.local import LocalPool

    return LocalPool(workers)
