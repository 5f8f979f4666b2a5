"""What a Slurm job of ours does: the runs it was given, and, when it has to end early, what becomes of them. No torch.

Slurm tells a job to make room with SIGUSR2 (its time limit is near, or it is preempted) or with SIGTERM alone (it is
cancelled, requeued, or preempted without a warning). Either way the run at work saves its state after its current step.
Then, if Slurm itself does not end the job, and only then, the job puts itself back into the queue. submitit's own
handlers are replaced: who tries again, and how often, is decided here alone.

`python -m bench.launch.slurm.job SWEEP_DIR CODE` is the last line of a job whose process died with that exit code.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.config.files import read_json, write_json
from bench.core.position import Position
from bench.launch.inline import run_many
from bench.launch.slurm import queue
from bench.launch.task import WAIT_SECONDS, record_failure
from bench.store import record
from bench.store.attempts import read_attempts
from bench.store.folder import RESULT, log_tail, read_progress

ASK_AGAIN_SECONDS = 10.0
HELD_SECONDS = 180.0  # after a failure of node or controller, a run's earlier process may outlive its job for a while


@dataclass(frozen=True)
class Orders:
    """What a job is to do, pickled at submission. `submitted`: unix time; failures from before are tried again."""

    run_dirs: tuple[str, ...]
    parallel: int
    timeout_min: int
    signal_seconds: int
    max_timeouts: int
    submitted: float

    def unsettled(self) -> list[Path]:
        """The runs that neither finished nor failed since the submission."""
        return [path for path in map(Path, self.run_dirs) if not self._settled(path)]

    def _settled(self, run_dir: Path) -> bool:
        result = record.read(run_dir)
        if result is None:
            return False
        return result.finished or (run_dir / RESULT).stat().st_mtime >= self.submitted


def compute(orders: Orders) -> dict[str, str]:
    """The job's task: compute its runs; gives back what became of each that was tried."""
    for leftover in Path(os.environ.get("SUBMITIT_FOLDER", os.devnull)).glob(f"{own_id()}_*.save_tmp"):
        leftover.unlink(missing_ok=True)  # a kill left it, and submitit would stumble over it
    patience = time.monotonic() + HELD_SECONDS
    outcomes: dict[str, str] = {}
    with Warnings(orders.signal_seconds, lambda: _too_late(orders)) as warnings:
        while not warnings.asked.is_set() and (runs := orders.unsettled()):
            outcomes |= run_many(runs, orders.parallel, warnings.asked.is_set)
            if "lost" in outcomes.values():
                break  # this process can compute no other run
            if time.monotonic() > patience:
                break  # whoever holds them computes them
            warnings.asked.wait(WAIT_SECONDS if orders.unsettled() else 0)
    if warnings.asked.is_set() and orders.unsettled():
        _make_room(orders, warnings.warned)
    elif "lost" in outcomes.values() and orders.unsettled():
        _lose_gpu()
    return outcomes


def report(sweep_dir: str, out_dir: str) -> None:
    """The last job: tables, figure and page of what there is."""
    subprocess.run([sys.executable, "-m", "bench.report", sweep_dir, "--out", out_dir], check=True)


class Warnings:
    """Hears SIGUSR2 and SIGTERM, at once, even while the main thread is deep in one long operation.

    asked: to be stopped, by either. warned: by SIGUSR2. `too_late` is called, in another thread, if the context still
    lasts some seconds before the time limit of which SIGUSR2 warned.
    """

    def __init__(self, signal_seconds: float, too_late: Callable[[], None]) -> None:
        self.asked, self.left = threading.Event(), threading.Event()
        self.warned = False
        self.patience = max(signal_seconds * 0.8, signal_seconds - 20)
        self.too_late = too_late

    def __enter__(self) -> Warnings:
        self.ear, mouth = os.pipe()
        os.set_blocking(mouth, False)
        signal.set_wakeup_fd(mouth)
        threading.Thread(target=self._listen, daemon=True).start()
        os.register_at_fork(after_in_child=_deafen)
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # submitit's handler would fill the logs
        return self

    def __exit__(self, *_: object) -> None:
        self.left.set()

    def _listen(self) -> None:
        while heard := os.read(self.ear, 1):
            if heard[0] == signal.SIGUSR2 and not self.warned:
                self.warned = True
                threading.Thread(target=self._watch, daemon=True).start()
            if heard[0] in (signal.SIGUSR2, signal.SIGTERM):
                self.asked.set()

    def _watch(self) -> None:
        if not self.left.wait(self.patience):
            self.too_late()


def _deafen() -> None:
    """For forked children: what ends a data loader's worker is no warning to the job."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


# --- making room -----------------------------------------------------------------------------------------------------


def own_id() -> str:
    """This job's id: "12_3" in an array, else "12"."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


@dataclass(frozen=True)
class OwnJob:
    """This job as Slurm sees it."""

    state: str
    preempted: bool

    @classmethod
    def ask(cls) -> OwnJob:
        """NoAnswer if Slurm does not say."""
        said = queue.ask("scontrol", "show", "job", "-o", own_id())
        state = re.search(r"\bJobState=(\w+)", said)
        when = re.search(r"\bPreemptTime=(\S+)", said)
        return cls(state[1] if state else "UNKNOWN", when is not None and when[1][0].isdigit())

    @classmethod
    def ask_patiently(cls, times: int = 60) -> OwnJob | None:
        """None if Slurm does not say for minutes."""
        for _ in range(times):
            try:
                return cls.ask()
            except queue.NoAnswer as error:
                print(f"Slurm gave no answer: {error}", flush=True)
                time.sleep(ASK_AGAIN_SECONDS)
        return None


def _make_room(orders: Orders, warned: bool) -> None:
    """The runs have stopped and saved: back into the queue, unless Slurm sees to it or it makes no sense."""
    job = OwnJob.ask_patiently()
    if job is None or job.state != "RUNNING":
        return  # cancelled, or requeued by Slurm
    if job.preempted:
        _requeue("preempted")
    elif warned:
        _time_out(orders)


def _lose_gpu() -> None:
    """A CUDA error took the GPU from this process: back into the queue with the runs that are not settled.

    A run that loses its GPU twice in a row has been recorded as failed, so this ends.
    """
    job = OwnJob.ask_patiently()
    if job is not None and job.state == "RUNNING":
        _requeue("its GPU was lost to a CUDA error")


def _time_out(orders: Orders) -> None:
    """Go on in the queue, up to max_timeouts times, with the runs that got on; the others have failed."""
    count = _count_timeout()
    for run_dir in orders.unsettled():
        attempts = [attempt for attempt in read_attempts(run_dir) if attempt.job == own_id()]
        if not attempts:
            continue  # its turn did not come yet
        start, reached = attempts[-1].at, attempts[-1].reached or _saved(run_dir)
        where = f"timed out after {orders.timeout_min} min at epoch {reached.epochs + 1}"
        if reached <= start:
            words = f"{where} without finishing a step since it last started; raise slurm.timeout_min"
            record_failure(run_dir, "TimedOut", words, log_tail(run_dir))
        elif count > orders.max_timeouts:
            words = f"{where}, {count} times by now; the same command goes on from there, or raise slurm.max_timeouts"
            record_failure(run_dir, "TimedOut", words, log_tail(run_dir))
    if count > orders.max_timeouts:
        print(f"timed out {count} times, which is more than slurm.max_timeouts", flush=True)
    elif orders.unsettled():
        _requeue(f"timed out {count} times so far")


def _too_late(orders: Orders) -> None:
    """The run at work heard the warning long ago and has not stopped: decide for it before the limit ends the job."""
    print("no step has ended since the warning", flush=True)
    job = OwnJob.ask_patiently(1)
    if job and job.state == "RUNNING" and not job.preempted:  # else Slurm requeues it, and more than saved is not had
        _time_out(orders)
        os._exit(0)


def _saved(run_dir: Path) -> Position:
    """Where a run that is still at work would go on: behind the last epoch it finished."""
    return Position(max(0, ((read_progress(run_dir) or {}).get("epoch") or 0) - 1))


def _count_timeout() -> int:
    """How often this job has timed out, this time included."""
    file = Path(os.environ["SUBMITIT_FOLDER"]) / f"{own_id()}_timeouts.json"
    count = 1 + (read_json(file) or 0)
    write_json(file, count)
    return count


def _requeue(why: str) -> None:
    print(f"back into the queue: {why}", flush=True)
    try:
        queue.ask("scontrol", "requeue", own_id())
    except queue.NoAnswer as error:
        print(f"not requeued: {error}", flush=True)  # Slurm was faster, or the same command submits it again


# --- a death ---------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """Account for the runs of a job whose process has died; the rest of its runs go back into the queue."""
    sweep_dir, code = Path(argv[0]), int(argv[1])
    job = OwnJob.ask_patiently(6)
    if job is None or job.state != "RUNNING" or job.preempted:
        return code
    own = [manifest for manifest in queue.submissions(sweep_dir) if own_id() in manifest.tasks.values()][-1]
    runs = [sweep_dir / run_id for run_id, task in own.tasks.items() if task == own_id()]
    since = own.submitted.timestamp()
    orders = Orders(tuple(map(str, runs)), 1, 0, 0, 0, since)
    unsettled = orders.unsettled()
    at_work = [run for run in unsettled if _is_open(run)]
    for run in at_work or unsettled:
        record_failure(run, "JobDied", f"the process of this run {_cause(code)}", log_tail(run))
    if at_work and orders.unsettled():
        _requeue(f"the process {_cause(code)}; its other runs go on")
    return code


def _is_open(run_dir: Path) -> bool:
    attempts = read_attempts(run_dir)
    return bool(attempts) and attempts[-1].job == own_id() and attempts[-1].ended is None


def _cause(code: int) -> str:
    if code <= 128:
        return f"exited with code {code}"
    hint = " (kill -9, or more memory than slurm.mem_gb)" if code - 128 == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(code - 128).name}{hint}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
