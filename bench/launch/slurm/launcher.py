"""The Slurm launcher: it submits the runs that are neither finished nor queued, and can wait for them."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.config.errors import UserError
from bench.config.settings import SlurmSettings
from bench.launch.slurm import queue
from bench.launch.slurm.queue import job_names
from bench.launch.slurm.submission import NewSubmission
from bench.store.attempts import read_attempts
from bench.store.cluster import Queue
from bench.store.folder import is_claimed
from bench.store.planned import Plan
from bench.store.record import is_finished

POLL_SECONDS, RETRY_SECONDS = 10.0, 60.0


@dataclass
class SlurmLauncher:
    """Submits runs that are neither finished, nor queued, nor running; UserError for contradictory settings.

    With `detached=False`, `launch` waits until no run is queued or running; Ctrl-C ends the waiting, not the jobs.
    The last job writes the plan's report into `reports`.
    """

    sweep_dir: Path
    settings: SlurmSettings
    reports: Path
    detached: bool = field(default=True, kw_only=True)
    plan: Plan | None = field(default=None, kw_only=True)
    held_back: list[Path] = field(default_factory=list, init=False)  # runs that a submit limit kept out

    def __post_init__(self) -> None:
        self.sweep_dir, self.reports = self.sweep_dir.absolute(), self.reports.absolute()
        if "%" in str(self.sweep_dir):
            raise UserError(
                f"'%' in the results folder {self.sweep_dir}: Slurm replaces patterns such as %j in the paths of logs; "
                "choose another --results"
            )
        if self.settings.parallel_runs > self.settings.runs_per_job:
            raise UserError(
                f"slurm.parallel_runs ({self.settings.parallel_runs}) is more than slurm.runs_per_job "
                f"({self.settings.runs_per_job}): a job can't run more side by side than it has"
            )
        if self.settings.signal_seconds > 30 * self.settings.timeout_min:
            raise UserError(
                f"slurm.signal_seconds ({self.settings.signal_seconds}) is more than half of slurm.timeout_min "
                f"({self.settings.timeout_min}): jobs would be told to stop before they got anywhere"
            )

    @property
    def folder(self) -> Path:
        """Where the submissions of this sweep are kept."""
        return self.sweep_dir / queue.FOLDER

    def missing(self, runs: Sequence[Path]) -> list[Path]:
        """Those of the runs that are to be submitted; UserError if squeue does not answer."""
        alive = self._look()
        if queued := sum(alive.state(run.name) is not None for run in runs):
            print(f"in the queue: {queued} runs; squeue -j {job_names([job.id for job in alive.jobs])}")
        return _idle(runs, alive)

    def launch(self, runs: Sequence[Path]) -> None:
        """Submit those of the runs that are to be; UserError if Slurm refuses them or does not answer."""
        self._submit(runs)
        if not self.detached:
            try:
                self._wait(runs)
            except KeyboardInterrupt:
                raise KeyboardInterrupt("no longer following; the jobs continue, see bench.status") from None

    def scripts(self, runs: Sequence[Path]) -> list[str]:
        """The sbatch scripts that `launch` would submit for these runs; works without Slurm."""
        return self._submission(Queue("Slurm")).scripts([run.absolute() for run in runs])

    def _submission(self, alive: Queue) -> NewSubmission:
        return NewSubmission(self.sweep_dir, self.settings, self.reports, alive=alive, plan=self.plan)

    def _look(self) -> Queue:
        alive = queue.look(queue.submissions(self.sweep_dir))
        if not alive.known:
            raise UserError("squeue gave no answer, so nothing was submitted; try again later")
        return alive

    def _submit(self, runs: Sequence[Path]) -> None:
        with self._lock():
            missed = _idle(runs, self._look())
            alive = self._look()  # again, since an answer may lack jobs
            new = [run.absolute() for run in _idle(missed, alive)]
            self.held_back = self._submission(alive).submit(new) if new else []

    def _wait(self, runs: Sequence[Path]) -> None:
        """Wait until two looks in a row find none of these runs queued or running; submit held-back runs meanwhile."""
        misses, retry = 0, time.monotonic() + RETRY_SECONDS
        while misses < 2 and not all(map(is_finished, runs)):
            time.sleep(POLL_SECONDS)
            alive = queue.look(queue.submissions(self.sweep_dir))
            if not alive.known:
                continue
            at_work = any(alive.state(run.name) or is_claimed(run) for run in runs if not is_finished(run))
            misses = 0 if at_work or self.held_back else misses + 1
            if self.held_back and time.monotonic() >= retry:
                self._submit(self.held_back)
                retry = time.monotonic() + RETRY_SECONDS

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Let one process submit at a time, so that a second one sees the jobs of the first; UserError if it can't."""
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((self.folder / "submit.lock").open("a"))
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    print("another process is submitting this sweep; waiting for it", flush=True)
                    fcntl.lockf(file, fcntl.LOCK_EX)
            except OSError as error:
                raise UserError(f"cannot lock {self.folder}: {error.strerror}; may you write there?") from error
            yield


def _idle(runs: Sequence[Path], alive: Queue) -> list[Path]:
    """Those of the runs that are neither finished, nor queued, nor running.

    A run whose job is ending is not running: its process saves, and the new job waits for that.
    """
    idle = [run for run in runs if alive.state(run.name) is None and not is_finished(run)]
    return [run for run in idle if not is_claimed(run) or _job_of(run) in alive.ending]


def _job_of(run: Path) -> str | None:
    """The id of the job that started the run last; None if none did."""
    attempts = read_attempts(run)
    return attempts[-1].job if attempts else None
