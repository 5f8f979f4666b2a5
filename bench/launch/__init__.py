"""Where runs are computed: in this process, in a pool of local workers, or as a Slurm array. No torch."""

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


def make(executor: str, workers: int | None, folder: Path, slurm: SlurmSettings) -> Launcher:
    """The launcher of that name for the sweep in `folder`; `auto` is Slurm where sbatch exists, else local."""
    if executor == "slurm" or (executor == "auto" and shutil.which("sbatch")):
        from bench.launch.slurm import SlurmArray

        return SlurmArray(folder, slurm)
    if executor == "inline":
        from bench.launch.inline import Inline

        return Inline()
    from bench.launch.local import LocalPool

    return LocalPool(workers)
