"""The state of a run, from its folder first and its scheduler's queue second. No torch.

A run is finished or failed if it has a result, and running if a process holds its claim. All others wait: in a queue,
or to be submitted. A run is lost if it was started or submitted, but two looks some seconds apart find no process and
no job for it. `bench.status` and the live view of a sweep use this one definition.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from bench.core.position import Position
from bench.store import record
from bench.store.attempts import Attempt, read_attempts, saved_by
from bench.store.cluster import Job, Queue, Submission
from bench.store.folder import CLAIMS_ARE_SEEN, RESULT, is_claimed, last_seen, read_progress
from bench.store.record import Record

FRESH_SECONDS = 120.0  # how long the last sign of life counts where claims may be invisible: between hosts

State = Literal["finished", "running", "stopped", "waiting", "unknown", "failed", "lost"]
STATES: tuple[State, ...] = get_args(State)
OVER = ("finished", "failed", "lost")


@dataclass(frozen=True)
class Facts:
    """The content of a run's folder. claimed: by a process. Times are unix times.

    result_time: when result.json was written; seen: when a process last computed the run for certain.
    fault: why the folder can't be read; None if it can.
    """

    result: Record | None = None
    result_time: float = 0.0
    progress: dict[str, Any] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    claimed: bool = False
    seen: float = 0.0
    fault: str | None = None

    @classmethod
    def read(cls, run_dir: Path) -> Facts:
        """Read a run's folder, which may not exist yet.

        The result is read last, so that a run that ends meanwhile is found either running or ended.
        """
        try:
            claimed = is_claimed(run_dir)
            progress = read_progress(run_dir) or {}
            attempts = tuple(read_attempts(run_dir))
            seen = last_seen(run_dir, progress)
            result = record.read(run_dir)
            written = (run_dir / RESULT).stat().st_mtime if result else 0.0
        except OSError as error:
            return cls(fault=f"{run_dir} can't be read: {error.strerror}")
        return cls(result, written, progress, attempts, claimed, seen)

    @property
    def last(self) -> Attempt | None:
        """The latest attempt; None if the run was never started."""
        return self.attempts[-1] if self.attempts else None

    @property
    def saved(self) -> Position:
        """The position from which the run would continue, estimated without reading its saved state."""
        return saved_by(self.last, self.progress) if self.last else Position()


@dataclass(frozen=True)
class Standing:
    """The state of one run, in a word and in `words` for people.

    epoch, step: its position, or the one from which it will continue; None if unknown. job: the id of its living
    cluster job. hours: of all attempts; gpu_hours: multiplied by the GPUs of each attempt. share: how much of the run
    is done, 0 to 1. gone: it was started or submitted, but no process holds it and no job computes it; it counts as
    lost once a second look finds the same.
    """

    run_id: str
    method: str
    state: State
    words: str
    job: str | None = None
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    steps: int | None = None
    eta_seconds: float | None = None
    mean_recall: float | None = None
    attempts: int = 0
    hours: float = 0.0
    gpu_hours: float = 0.0
    share: float = 0.0
    gpus: float = 0.0  # of its last attempt
    gone: bool = False
    phase: str | None = None  # of a running one, with the last loss and validation score that it reported
    loss: float | None = None
    val_mean_recall: float | None = None
    label: str = ""  # its dataset and backbone, where the runs of its sweep differ in them

    def to_dict(self) -> dict[str, Any]:
        """The public fields as plain data; hours are rounded."""
        row = asdict(self)
        for key in ("share", "gpus", "gone", "phase", "loss", "val_mean_recall"):
            del row[key]
        return row | {"hours": round(self.hours, 4), "gpu_hours": round(self.gpu_hours, 4)}


def judge(
    run_id: str, spec: dict[str, Any], facts: Facts, *, alive: Queue, given: Submission | None, now: float
) -> Standing:
    """The state of a run with these settings (`spec`) and this folder.

    alive: the sweep's living jobs. given: the last submission with this run. now: unix time.
    """
    job, last = alive.runs.get(run_id), facts.last
    seconds = [_seconds(attempt, facts.seen) for attempt in facts.attempts]
    spec = spec or (facts.result.spec if facts.result else {})
    base = Standing(
        run_id,
        method=str(_section(spec, "method").get("name") or run_id.partition("-")[0]),
        state="waiting",
        words="",
        job=job.id if job else None,
        epochs=epochs if type(epochs := _section(spec, "train").get("epochs")) is int else None,
        attempts=len(facts.attempts),
        hours=sum(seconds) / 3600,
        gpu_hours=sum(each * attempt.gpus for each, attempt in zip(seconds, facts.attempts, strict=True)) / 3600,
        gpus=last.gpus if last else 0.0,
    )
    if facts.fault:
        return replace(base, state="unknown", words=facts.fault)
    if facts.result and facts.result.finished:
        metrics = facts.result.metrics
        recall = metrics.test.mean_recall if metrics and metrics.test else None
        trial = f"validation {metrics.val.mean_recall:.1f}" if metrics and metrics.val else "finished"
        words = trial if recall is None else f"mean recall {recall:.1f}"
        return replace(base, state="finished", words=words, mean_recall=recall, job=None, share=1.0)
    if _is_running(facts, job, now):
        run = _running(base, facts.progress, now)
        held = job and job.state != "running"
        return replace(run, words=f"{run.words}, its job is {job.state}") if job and held else run
    if facts.result and not (job and given and facts.result_time < given.submitted.timestamp()):
        return replace(base, state="failed", words=last_line(facts.result), job=None)
    saved = _saved(base, facts)
    if job:
        its = f"job {job.id} {job.state}" + (f" ({job.reason})" if job.reason else "")
        if last and saved.epoch is not None and facts.result is None:
            return replace(saved, state="stopped", words=f"{where_saved(facts)}; {its}")
        return replace(base, words=f"its turn will come, in job {job.id}" if job.state == "running" else its)
    if given and not alive.known:
        return replace(saved, state="unknown", words=f"{alive.scheduler} does not answer")
    if given or last:
        return replace(saved, state="unknown", words="no process holds it and no job has it", gone=True)
    return replace(base, words="not submitted")


def _section(spec: dict[str, Any], name: str) -> dict[str, Any]:
    found = spec.get(name)
    return found if isinstance(found, dict) else {}


def lost(run: Standing, facts: Facts, end: str | None) -> Standing:
    """The state of a run that was gone in two looks. `end`: how its job ended, if the scheduler knows."""
    last = facts.last
    what = "its process is gone" if last else "its job is gone"
    if end:
        what = f"its job ended: {end}"
    elif last and last.outcome == "stopped":
        what = "it was stopped"
    return replace(run, state="lost", words=f"{what}; {where_saved(facts) or 'it never started'}", gone=False)


def last_line(result: Record) -> str:
    """A failed result's error in one line."""
    return (result.error or record.Failure(message="no error was recorded")).line


def where_saved(facts: Facts) -> str:
    """The position of the run's saved state, in words; empty if the run was never started."""
    if facts.last is None:
        return ""
    epochs, batches = facts.saved
    if not epochs and not batches:
        return "nothing saved yet"
    return "saved at " + (f"epoch {epochs + 1}, step {batches}" if batches else f"the end of epoch {epochs}")


def clock(seconds: float) -> str:
    """Seconds as `1:05` (minutes) or `2:03:00` (hours)."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _is_running(facts: Facts, job: Job | None, now: float) -> bool:
    """Whether a process computes the run: it holds the claim or, where claims may be invisible, is known to live.

    It is known to live while its job is running or, without a job, if it was seen within FRESH_SECONDS.
    """
    if facts.claimed:
        return True
    last = facts.last
    if last is None or last.ended is not None or facts.result_time > last.started:
        return False
    if job:
        return job.state == "running" and job.id == last.job
    if CLAIMS_ARE_SEEN and last.host == socket.gethostname():
        return False
    return now - max(last.started, facts.seen) < FRESH_SECONDS


def _running(base: Standing, progress: dict[str, Any], now: float) -> Standing:
    eta, age = progress.get("eta_seconds"), now - (progress.get("updated") or now)
    left = None if eta is None else max(0.0, round(eta - age, 1))
    phase = str(progress.get("phase") or "start")
    epochs, steps = progress.get("epochs") or 0, progress.get("steps") or 0
    epoch, step = progress.get("epoch") or 0, progress.get("step") or 0
    parts = [phase]
    if epoch:
        parts = [f"epoch {epoch}/{progress.get('epochs')}", f"step {step}/{steps}" if phase == "train" else phase]
    parts += [f"{clock(left)} left"] if left is not None else []
    done = max(0, epoch - 1) + (step / steps if steps else 0.0)
    return replace(
        base,
        state="running",
        words=", ".join(parts),
        epoch=epoch or None,
        epochs=epochs or base.epochs,
        step=step or None,
        steps=steps or None,
        eta_seconds=left,
        share=min(done / epochs, 1.0) if epochs else 0.0,
        phase=phase,
        loss=progress.get("loss"),
        val_mean_recall=progress.get("val_mean_recall"),
    )


def _saved(base: Standing, facts: Facts) -> Standing:
    """The run at the position of its saved state."""
    epochs, batches = facts.saved
    if not epochs and not batches:
        return base
    share = epochs / base.epochs if base.epochs else 0.0
    return replace(base, epoch=epochs + bool(batches), step=batches or None, share=share)


def _seconds(attempt: Attempt, seen: float) -> float:
    return max(0.0, (attempt.ended or seen) - attempt.started)


# --- many runs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Total:
    """Hours that all attempts of all runs took, and an estimate of the hours left; None without an estimate."""

    hours: float
    gpu_hours: float
    hours_left: float | None
    gpu_hours_left: float | None


def counts(runs: Sequence[Standing]) -> dict[str, int]:
    """How many runs are in each state."""
    found = Counter(run.state for run in runs)
    return {state: found[state] for state in STATES}


def total(runs: Sequence[Standing]) -> Total:
    """Hours used, and hours left by the average of each method's finished runs; None left if a method has none."""
    took: dict[str, list[Standing]] = {}
    for run in runs:
        if run.state == "finished" and run.hours:
            took.setdefault(run.method, []).append(run)
    left = [_left(run, took.get(run.method, [])) for run in runs if run.state not in OVER]
    known = [each for each in left if each is not None]
    whole = len(known) == len(left)
    return Total(
        sum(run.hours for run in runs),
        sum(run.gpu_hours for run in runs),
        sum(each.hours for each in known) if whole else None,
        sum(each.gpu_hours for each in known) if whole else None,
    )


@dataclass(frozen=True)
class _Rest:
    hours: float
    gpu_hours: float


def _left(run: Standing, alike: Sequence[Standing]) -> _Rest | None:
    """The hours that a run still takes: its own estimate, else the average of the finished runs `alike`."""
    if run.eta_seconds is not None:
        return _Rest(run.eta_seconds / 3600, run.eta_seconds / 3600 * run.gpus)
    if not alike:
        return None
    rest = (1 - run.share) / len(alike)
    return _Rest(rest * sum(each.hours for each in alike), rest * sum(each.gpu_hours for each in alike))
