"""Runs as one Slurm job array through submitit, detached: results are read from the folders, not from the jobs."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import revision, store
from bench.errors import UserError
from bench.launch.task import run_one
from bench.spec import SlurmSettings

ROOT = Path(__file__).parents[2]
SECONDS = 20  # patience with any Slurm command


def queued(job_ids: Sequence[str]) -> set[str]:
    """Which of these jobs ("12" or "12_3") the queue still holds; UserError if Slurm does not say."""
    if not job_ids:
        return set()
    jobs = ",".join(sorted({job.partition("_")[0] for job in job_ids}))
    try:
        asked = subprocess.run(
            ["squeue", "-h", "-r", "-j", jobs, "-o", "%i"], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"squeue gave no answer ({error}), so nothing was submitted; try again later") from error
    if asked.returncode and "Invalid job id" not in asked.stderr:  # what it says when none of them is known any more
        raise UserError(f"squeue failed, so nothing was submitted; try again later: {asked.stderr.strip()}")
    return set(asked.stdout.split()) & set(job_ids)


@dataclass
class SlurmArray:
    """Submits what is not in the queue yet; each submission leaves `slurm/<time>.json`: job ids, tasks, commit."""

    sweep_dir: Path
    settings: SlurmSettings
    detached: bool = field(default=True, init=False)

    @property
    def folder(self) -> Path:
        return self.sweep_dir.absolute() / "slurm"

    def missing(self, runs: Sequence[Path]) -> list[Path]:
        tasks = self._tasks()
        alive = queued([tasks[run.name] for run in runs if run.name in tasks])
        if alive:
            print(f"in the queue: {len(alive)}; follow: squeue -j {_arrays(alive)}")
        return [run for run in runs if tasks.get(run.name) not in alive]

    def launch(self, runs: Sequence[Path]) -> None:
        jobs = self._submit([run.absolute() for run in runs])
        print(f"submitted: {len(runs)} as job {jobs}, at most {self.settings.array_parallelism} at once")
        print(f"follow:  squeue -j {jobs}")
        print(f"logs:    {self.folder}")
        print("The same command again submits what is neither finished nor queued, and in the end writes the report.")

    def _tasks(self) -> dict[str, str]:
        """The job that each run was last given to, from the manifests."""
        tasks: dict[str, str] = {}
        for path in sorted(self.folder.glob("*.json")):
            tasks |= (store.read_json(path) or {}).get("tasks", {})
        return tasks

    def _submit(self, runs: Sequence[Path]) -> str:
        """Submit one array and write its manifest; gives back the job's id."""
        import submitit

        try:
            executor = submitit.SlurmExecutor(self.folder)
            executor.update_parameters(**sbatch_parameters(self.settings, self.sweep_dir.name))
            jobs = executor.map_array(run_one, [str(run) for run in runs])
        except (RuntimeError, submitit.core.utils.FailedJobError, subprocess.SubprocessError) as error:
            raise UserError(f"Slurm did not take the jobs: {str(error).strip()}") from error
        ids = [job.job_id for job in jobs]
        now = datetime.now(UTC)
        manifest = {
            "submitted": now.isoformat(timespec="seconds"),
            "job_ids": sorted({job.partition("_")[0] for job in ids}),
            "tasks": {run.name: job for run, job in zip(runs, ids, strict=True)},
            "folder": str(self.sweep_dir.absolute()),
            "commit": revision.commit(),
        }
        store.write_json(self.folder / f"{now:%Y%m%dT%H%M%S%f}.json", manifest)
        return _arrays(ids)


def sbatch_parameters(settings: SlurmSettings, sweep: str) -> dict[str, Any]:
    """submitit's keyword arguments. Jobs run this very code: its folder goes in front of the others."""
    given = settings.model_dump(exclude_none=True)
    root = shlex.quote(str(ROOT))
    setup = [*given.pop("setup"), f"cd {root}", f"export PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}}"]
    if settings.cpus_per_task:
        setup.append(f"export OMP_NUM_THREADS={settings.cpus_per_task}")  # not every cluster binds tasks to cores
    parameters = {
        "job_name": f"bench-{sweep}",
        "time": given.pop("timeout_min"),
        "setup": setup,
        "stderr_to_stdout": True,
        "additional_parameters": given.pop("extra"),
    }
    if (memory := given.pop("mem_gb", None)) is not None:
        parameters["mem"] = f"{round(memory * 1024)}M"
    return parameters | given


def _arrays(job_ids: Sequence[str] | set[str]) -> str:
    return ",".join(sorted({job.partition("_")[0] for job in job_ids}))
