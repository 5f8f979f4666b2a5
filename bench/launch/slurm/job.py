"""The code that runs inside a Slurm job: it computes the job's runs, and requeues them on a warning. No torch.

Slurm sends SIGUSR2 when the job's time limit is near or the job is preempted, and SIGTERM alone when the job is
cancelled, requeued, or preempted without a warning. After either signal the current run saves its state at the end of
its step. The job then requeues itself, unless it was cancelled or Slurm requeues it. submitit's own signal handlers
are replaced, so that this module alone decides whether a job runs again, and how often.

The batch script of a job whose process died with exit code CODE calls `python -m bench.launch.slurm.job SWEEP_DIR CODE`
as its last line.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.config.errors import UserError
from bench.config.files import read_json, write_json
from bench.core.position import Position
from bench.launch.inline import run_many
from bench.launch.slurm import queue
from bench.launch.task import WAIT_SECONDS, record_failure
from bench.store import record
from bench.store.attempts import Attempt, read_attempts, saved_by
from bench.store.folder import RESULT, is_claimed, log_tail, read_progress
from bench.store.record import Failure

ASK_AGAIN_SECONDS = 10.0
HELD_SECONDS = 180.0  # how long to wait for claims: after a node failure an old process may outlive its job
UNWRITABLE_SECONDS, LOOK_SECONDS = 60.0, 5.0  # how long to wait for a folder that can't be written; between two looks


@dataclass(frozen=True, kw_only=True)
class Orders:
    """The runs of a job and its limits, pickled at submission.

    submitted: unix time; runs that failed before it are computed again. parallel: runs side by side. max_timeouts: how
    often the job may continue after its time limit.
    """

    run_dirs: tuple[str, ...]
    parallel: int
    timeout_min: int
    signal_seconds: int
    max_timeouts: int
    submitted: float

    def unsettled(self) -> list[Path]:
        """The folders of the runs that have neither finished nor failed since the submission."""
        return [path for path in map(Path, self.run_dirs) if not _settled(path, self.submitted)]


def _settled(run_dir: Path, submitted: float) -> bool:
    """Whether the run has finished, or failed since the submission (unix time)."""
    result = record.read(run_dir)
    if result is None:
        return False
    return result.finished or (run_dir / RESULT).stat().st_mtime >= submitted


def compute(orders: Orders) -> dict[str, str]:
    """Compute the job's runs; return the outcome of each run that was tried, by run id."""
    for leftover in Path(os.environ.get("SUBMITIT_FOLDER", os.devnull)).glob(f"{own_id()}_*.save_tmp"):
        leftover.unlink(missing_ok=True)  # left by a kill; submitit fails if it exists
    progress = time.monotonic()  # when a run was last settled
    outcomes: dict[str, str] = {}
    fault: str | None = None
    with Warnings(orders.signal_seconds, lambda: _too_late(orders)) as warnings:
        while not warnings.asked.is_set() and (runs := orders.unsettled()):
            try:
                outcomes |= run_many(runs, orders.parallel, warnings.asked.is_set)
            except (OSError, UserError) as error:  # not even the failure could be recorded
                print(error, flush=True)
            if "lost" in outcomes.values():
                break  # this process can compute no other run
            if fault := _wait_until_writable(orders.unsettled(), warnings.asked):
                break
            left = orders.unsettled()
            if len(left) < len(runs):
                progress = time.monotonic()
            elif time.monotonic() > progress + HELD_SECONDS:
                break  # other processes hold the rest
            warnings.asked.wait(WAIT_SECONDS if left else 0)
    if not (left := orders.unsettled()):
        return outcomes
    if warnings.asked.is_set():
        _requeue_if_needed(orders, warnings.warned)
    elif "lost" in outcomes.values():
        _requeue_if_running("its GPU was lost to a CUDA error")  # the second time in a row the run has failed
    elif fault:
        if int(os.environ.get("SLURM_RESTART_COUNT") or 0) >= orders.max_timeouts:
            sys.exit(fault)
        _requeue_if_running(fault)
    elif held := [run.name for run in left if not (is_claimed(run) and _is_computed(run))]:
        why = f"a process without a living job holds, or has just left, {', '.join(held)}"
        if (count := _count("waits")) <= orders.max_timeouts:
            _requeue_if_running(why)
        else:
            print(f"{why}: {count} times, which is more than slurm.max_timeouts; the same command goes on", flush=True)
    return outcomes


def report(sweep_dir: str, out_dir: str, plan: str | None = None) -> None:
    """Write the report of the sweep in `sweep_dir` for its plan to `out_dir`; CalledProcessError if that fails."""
    # Slurm's warning comes 90 s before the limit. Within a short one it would end the report, which saves nothing.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    command = [sys.executable, "-m", "bench.report", sweep_dir, "--out", out_dir]
    subprocess.run([*command, *(["--plan", plan] if plan else [])], check=True)


class Warnings:
    """Receives SIGUSR2 and SIGTERM at once, even while the main thread is inside one long operation.

    asked: set by either signal. warned: whether SIGUSR2 came, which it does `signal_seconds` before the time limit.
    `too_late` is called in another thread if the context has not ended shortly before that limit.
    """

    def __init__(self, signal_seconds: float, too_late: Callable[[], None]) -> None:
        self.asked, self.left = threading.Event(), threading.Event()
        self.warned = False
        self.patience = max(signal_seconds * 0.8, signal_seconds - 20)
        self.too_late = too_late

    def __enter__(self) -> Warnings:
        self.received, sender = os.pipe()
        os.set_blocking(sender, False)
        signal.set_wakeup_fd(sender)  # Python writes the number of each signal to it
        threading.Thread(target=self._listen, daemon=True).start()
        os.register_at_fork(after_in_child=_reset_signals)
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # submitit's handler would fill the logs
        return self

    def __exit__(self, *_: object) -> None:
        self.left.set()

    def _listen(self) -> None:
        while number := os.read(self.received, 1):
            if number[0] == signal.SIGUSR2 and not self.warned:
                self.warned = True
                threading.Thread(target=self._watch, daemon=True).start()
            if number[0] in (signal.SIGUSR2, signal.SIGTERM):
                self.asked.set()

    def _watch(self) -> None:
        if not self.left.wait(self.patience):
            self.too_late()


def _reset_signals() -> None:
    """In a forked child: a signal that ends a data loader's worker must not count as a warning to the job."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


# --- an early end ----------------------------------------------------------------------------------------------------


def own_id() -> str:
    """This job's id; empty outside of jobs."""
    return queue.current_job() or ""


@dataclass(frozen=True)
class JobState:
    """A job's state in Slurm's words, such as RUNNING, and whether Slurm is preempting it.

    PreemptMode=REQUEUE without grace is no preemption here: Slurm has put the job back into the queue already.
    """

    state: str
    preempted: bool

    @classmethod
    def ask(cls, job: str | None = None) -> JobState:
        """Ask Slurm once about a job, by default this one; NoAnswer if it does not answer, or knows no such job."""
        answer = queue.ask("scontrol", "show", "job", "-o", job or own_id())
        state = re.search(r"\bJobState=(\w+)", answer)
        when = re.search(r"\bPreemptTime=(\S+)", answer)
        return cls(state[1] if state else "UNKNOWN", when is not None and when[1][0].isdigit())

    @classmethod
    def ask_patiently(cls, times: int = 60) -> JobState | None:
        """Ask Slurm up to `times` times, some seconds apart; None if it never answers."""
        for _ in range(times):
            try:
                return cls.ask()
            except queue.NoAnswer as error:
                print(f"Slurm gave no answer: {error}", flush=True)
                time.sleep(ASK_AGAIN_SECONDS)
        return None


def _requeue_if_needed(orders: Orders, warned: bool) -> None:
    """Requeue this job, whose runs have saved their state, unless it was cancelled or Slurm requeues it itself."""
    job = JobState.ask_patiently()
    if job is None:
        return
    if job.preempted:
        _requeue("preempted")  # also where Slurm cancels what it preempts: the job may go back while it completes
    elif job.state == "RUNNING" and warned:
        _time_out(orders)
    elif job.state == "RUNNING":
        _terminated(orders)


def _requeue_if_running(why: str) -> None:
    """Requeue this job unless Slurm ends it."""
    job = JobState.ask_patiently()
    if job is not None and job.state == "RUNNING":
        _requeue(why)


def _count(what: str) -> int:
    """Count one more of these for this job; how many there have been."""
    file = Path(os.environ["SUBMITIT_FOLDER"]) / f"{own_id()}_{what}.json"
    count = 1 + (read_json(file) or 0)
    write_json(file, count)
    return count


def _time_out(orders: Orders) -> None:
    """Requeue this job at its time limit."""
    what, hint = f"timed out after {orders.timeout_min} min", "; raise slurm.timeout_min"
    _go_on(orders, kind="TimedOut", what=what, hint=hint)


def _terminated(orders: Orders) -> None:
    """Requeue this job after a SIGTERM that Slurm did not send."""
    _go_on(orders, kind="Terminated", what="ended by a SIGTERM from outside of Slurm")


def _go_on(orders: Orders, *, kind: str, what: str, hint: str = "") -> None:
    """Requeue this job up to max_timeouts times; runs that have not got on since they last started have failed."""
    file = Path(os.environ["SUBMITIT_FOLDER"]) / f"{own_id()}_stops.json"
    stops = read_json(file) or {"count": 0, "furthest": {}}
    count = stops["count"] = stops["count"] + 1
    for run_dir in orders.unsettled():
        attempts = [attempt for attempt in read_attempts(run_dir) if attempt.job == own_id()]
        if not attempts:
            continue  # this job has not started it
        furthest, where = _furthest(run_dir, attempts[-1])
        if furthest <= max(attempts[-1].at, Position(*stops["furthest"].get(run_dir.name, ()))):
            no_step = "without finishing a step" if where.startswith("at") else "without getting on"
            _fail(run_dir, kind, f"{what} {where} {no_step} since it last started{hint}")
        elif count > orders.max_timeouts:
            more = f"{count} times by now; the same command goes on from there, or raise slurm.max_timeouts"
            _fail(run_dir, kind, f"{what} {where}, {more}")
        stops["furthest"][run_dir.name] = furthest
    write_json(file, stops)
    if count > orders.max_timeouts:
        print(f"{what}, {count} times, which is more than slurm.max_timeouts", flush=True)
    elif orders.unsettled():
        _requeue(f"{what}, {count} times so far")


def _furthest(run_dir: Path, attempt: Attempt) -> tuple[Position, str]:
    """The position that this attempt came to, and where that is, in words.

    An epoch whose validation has begun counts with all of its steps, although it is not saved before its end.
    """
    progress = read_progress(run_dir) or {}
    reached, phase = saved_by(attempt, progress), progress.get("phase")
    if attempt.reached is None and (progress.get("updated") or 0.0) >= attempt.started:
        if phase == "test":
            return reached, "in the test"
        if phase == "validate":
            epoch = progress.get("epoch") or 1
            trained = Position(epoch - 1, progress.get("steps") or 0)
            return max(reached, trained), f"in the validation of epoch {epoch}"
    return reached, f"at epoch {reached.epochs + 1}"


def _too_late(orders: Orders) -> None:
    """The current step has not ended since the warning: requeue or fail the runs before Slurm ends the job."""
    print("no step has ended since the warning", flush=True)
    job = JobState.ask_patiently(1)
    if job and job.preempted:
        _requeue("preempted")
        os._exit(0)
    if job and job.state == "RUNNING":  # else Slurm ends it; the run continues from its last save
        _time_out(orders)
        os._exit(0)


def _fail(run_dir: Path, kind: str, message: str) -> None:
    record_failure(run_dir, Failure(type=kind, message=message, traceback=log_tail(run_dir)))


def _requeue(why: str) -> None:
    print(f"back into the queue: {why}", flush=True)
    try:
        queue.ask("scontrol", "requeue", own_id())
    except queue.NoAnswer as error:
        print(f"not requeued: {error}", flush=True)  # Slurm did it already, or the user submits the sweep again


# --- what a job waits for --------------------------------------------------------------------------------------------


def _is_computed(run_dir: Path) -> bool:
    """Whether the process that holds the run belongs to another running job, or to no job.

    The process of a job that has ended may live on where a node's slurmd is dead. It may finish the run, or be killed.
    """
    attempts = read_attempts(run_dir)
    holder = attempts[-1].job if attempts else None
    if holder is None:
        return True
    try:
        return holder != own_id() and JobState.ask(holder).state == "RUNNING"
    except queue.NoAnswer:
        return False


def _wait_until_writable(runs: Sequence[Path], asked: threading.Event) -> str | None:
    """Wait, up to UNWRITABLE_SECONDS, until these folders can be written; return what is wrong if they can't."""
    deadline = time.monotonic() + UNWRITABLE_SECONDS
    fault = None
    for run in runs:
        while error := unwritable(run):
            fault = f"{run} can't be written: {error.strerror}"
            print(fault, flush=True)
            if time.monotonic() > deadline or asked.wait(LOOK_SECONDS):
                return fault
    return None


def unwritable(folder: Path) -> OSError | None:
    """The error of writing a block into the folder; None if it can be written, or was deleted."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(4096))
    except FileNotFoundError:
        return None
    except OSError as error:
        return error
    return None


# --- a dead process --------------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """Record the current run of this job, whose process has died, as failed; requeue the job if it has more runs.

    Arguments: the sweep's folder, and the exit code of the process, which is returned.
    """
    sweep_dir, code = Path(argv[0]), int(argv[1])
    job = JobState.ask_patiently(6)
    if job is None or job.state != "RUNNING" or job.preempted:
        return code
    own = [each for each in queue.submissions(sweep_dir) if own_id() in each.tasks.values()][-1]
    runs = [sweep_dir / run_id for run_id, task in own.tasks.items() if task == own_id()]
    unsettled = [run for run in runs if not _settled(run, own.submitted.timestamp())]
    running = [run for run in unsettled if _is_open(run)]
    for run in running or unsettled:
        _fail(run, "JobDied", f"the process of this run {_cause(code)}")
    if running and len(unsettled) > len(running):
        _requeue(f"the process {_cause(code)}; its other runs go on")
    return code


def _is_open(run_dir: Path) -> bool:
    """Whether this job has started the run and not ended it."""
    attempts = read_attempts(run_dir)
    return bool(attempts) and attempts[-1].job == own_id() and attempts[-1].ended is None


def _cause(code: int) -> str:
    if code <= 128:
        return f"exited with code {code}"
    hint = " (kill -9, or more memory than slurm.mem_gb)" if code - 128 == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(code - 128).name}{hint}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
