"""What a job decides when its time ends in an evaluation, a claim is held, or its folder can't be written.

Slurm's commands are stand-ins; see tests/test_slurm.py, and tests/test_slurm_faults.py for a real Slurm.
"""

from __future__ import annotations

import errno
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.compute import progress
from bench.config import files
from bench.core.position import Position
from bench.launch.slurm import job as slurm_job
from bench.store import attempts, record
from bench.store.folder import PROGRESS
from bench.store.standing import Facts, where_saved
from tests import records
from tests.test_slurm import command, error, folders, job, requeues
from tests.test_status import held

__all__ = ["command", "folders", "held", "job"]  # fixtures


# --- the end of the time in an evaluation ----------------------------------------------------------------------------


def begin(run: Path, at: tuple[int, int], phase: str, epoch: int, job: str = "5_1") -> None:
    """An attempt that has come into this phase of a run with 4 epochs of 10 steps."""
    attempts.start_attempt(run, gpus=1.0, job=job, at=Position(*at))
    state = {"phase": phase, "epoch": epoch, "epochs": 4, "step": 10, "steps": 10, "updated": time.time() + 1}
    files.write_json(run / PROGRESS, state)


@pytest.mark.parametrize(
    ("at", "phase", "epoch"),
    [
        ((3, 0), "test", 4),  # the last epoch was saved before the test began
        ((1, 0), "validate", 2),  # an epoch was trained
        ((1, 0), "validate", 3),
    ],
)
def test_a_run_that_came_to_its_evaluation_has_got_on(job, tmp_path, at, phase, epoch):
    orders = job()
    [run] = map(Path, orders.run_dirs)
    begin(run, at, phase, epoch)
    slurm_job._time_out(orders)
    assert (requeues(tmp_path), record.read(run)) == (1, None)


@pytest.mark.parametrize(
    ("at", "phase", "epoch", "where"),
    [
        ((4, 0), "test", 4, "in the test"),
        ((1, 10), "validate", 2, "in the validation of epoch 2"),
        ((0, 0), "data", 0, "at epoch 1"),
    ],
)
def test_an_evaluation_longer_than_the_limit_is_no_endless_loop(job, tmp_path, at, phase, epoch, where):
    orders = job()
    [run] = map(Path, orders.run_dirs)
    begin(run, at, phase, epoch)
    slurm_job._time_out(orders)
    assert requeues(tmp_path) == 0
    words = "without getting on" if epoch else "without finishing a step"
    assert error(run).message == (
        f"timed out after 60 min {where} {words} since it last started; raise slurm.timeout_min"
    )


def test_a_validation_that_is_reached_twice_but_never_ends_has_failed(job, tmp_path):
    """The epoch before it is not saved: it is trained again, and as much time is left for the validation."""
    orders = job()
    [run] = map(Path, orders.run_dirs)
    for _ in range(2):
        begin(run, (1, 0), "validate", 2)
        slurm_job._time_out(orders)
    assert requeues(tmp_path) == 1
    assert error(run).message.startswith("timed out after 60 min in the validation of epoch 2 without getting on")


@pytest.mark.parametrize(
    ("phase", "epoch", "words"),
    [
        ("train", 4, "saved at the end of epoch 3"),
        ("validate", 4, "saved at the end of epoch 3"),
        ("test", 4, "saved at the end of epoch 4"),
    ],
)
def test_where_a_killed_run_is_saved(folders, phase, epoch, words):
    [run] = folders("a")
    begin(run, (1, 0), phase, epoch)
    assert where_saved(Facts.read(run)) == words


# --- a signal from outside of Slurm -----------------------------------------------------------------------------------


def test_sigterms_without_progress_end(job, tmp_path):
    """As from a watchdog that ends each process that takes too much memory."""
    orders = job()
    [run] = map(Path, orders.run_dirs)
    attempts.start_attempt(run, gpus=1.0, job="5_1", at=Position(1, 4))
    attempts.end_attempt(run, "stopped", reached=Position(1, 4))
    slurm_job._requeue_if_needed(orders, False)
    assert requeues(tmp_path) == 0
    assert error(run).type == "Terminated"
    assert error(run).message == (
        "ended by a SIGTERM from outside of Slurm at epoch 2 without finishing a step since it last started"
    )


# --- a run that another process holds ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("holder", "state", "again"),
    [
        ("5_1", "RUNNING", 1),  # this job's own first process, on a node whose slurmd is dead
        ("4_0", "CANCELLED", 1),
        ("4_0", "RUNNING", 0),  # that job computes the run
        (None, "RUNNING", 0),  # a process outside of Slurm does
    ],
)
def test_a_claim_that_no_living_job_holds_is_waited_for(
    job, command, tmp_path, held, monkeypatch, holder, state, again
):
    monkeypatch.setattr(slurm_job, "HELD_SECONDS", 0.0)
    monkeypatch.setattr(slurm_job, "WAIT_SECONDS", 0.0)
    orders = job()
    command("scontrol", f'case "$*" in *4_0) echo JobState={state};; *) echo JobState=RUNNING;; esac')
    [run] = map(Path, orders.run_dirs)
    attempts.start_attempt(run, gpus=1.0, job=holder, at=Position())
    held(run)
    monkeypatch.setattr(slurm_job, "run_many", lambda runs, *_: {path.name: "locked" for path in runs})
    assert slurm_job.compute(orders) == {"a": "locked"}
    assert requeues(tmp_path) == again


def test_a_run_that_was_held_is_computed_after_a_long_one(job, folders, monkeypatch):
    """Patience counts from the last run that was settled, not from the job's start."""
    clock = [0.0]
    monkeypatch.setattr(slurm_job.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(slurm_job, "WAIT_SECONDS", 0.0)
    orders = job()
    orders = replace(orders, run_dirs=(*orders.run_dirs, *map(str, folders("b"))))
    passes: list[list[str]] = []

    def run_many(runs, *_):
        passes.append([run.name for run in runs])
        for run in runs:
            if run.name == "b" or len(passes) > 1:
                records.finish(run)
        clock[0] += 3600  # b takes an hour, while another process holds a
        return {run.name: "finished" if run.name == "b" or len(passes) > 1 else "locked" for run in runs}

    monkeypatch.setattr(slurm_job, "run_many", run_many)
    assert slurm_job.compute(orders) == {"a": "finished", "b": "finished"}
    assert passes == [["a", "b"], ["a"]]


def test_a_job_does_not_wait_for_ever(job, command, tmp_path, held, monkeypatch):
    monkeypatch.setattr(slurm_job, "HELD_SECONDS", -1.0)
    monkeypatch.setattr(slurm_job, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(slurm_job, "run_many", lambda runs, *_: {path.name: "locked" for path in runs})
    orders = replace(job(), max_timeouts=2)
    command("scontrol", "echo JobState=RUNNING")
    [run] = map(Path, orders.run_dirs)
    attempts.start_attempt(run, gpus=1.0, job="5_1", at=Position())
    held(run)
    for _ in range(4):
        slurm_job.compute(orders)
    assert requeues(tmp_path) == 2


# --- a folder that can't be written -----------------------------------------------------------------------------------


@pytest.fixture
def readonly(monkeypatch):
    """readonly(times) lets the next `times` looks find the results folder read-only, and its runs fail meanwhile."""
    left = [0]

    def unwritable(folder: Path) -> OSError | None:
        left[0] -= 1
        return OSError(errno.EROFS, "Read-only file system") if left[0] >= 0 else None

    def run_many(runs, *_):
        if left[0] <= 0:
            for run in runs:
                records.finish(run)
            return {run.name: "finished" for run in runs}
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(slurm_job, "unwritable", unwritable)
    monkeypatch.setattr(slurm_job, "run_many", run_many)
    monkeypatch.setattr(slurm_job, "LOOK_SECONDS", 0.01)
    return lambda times: left.__setitem__(0, times)


def test_a_folder_that_can_be_written_again_soon(job, tmp_path, readonly):
    readonly(3)
    assert slurm_job.compute(job()) == {"a": "finished"}
    assert requeues(tmp_path) == 0


@pytest.mark.parametrize(("restarts", "again"), [("2", 1), ("3", 0)])
def test_a_folder_that_stays_read_only_frees_the_gpu(job, tmp_path, readonly, monkeypatch, capsys, restarts, again):
    monkeypatch.setattr(slurm_job, "UNWRITABLE_SECONDS", 0.05)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    readonly(10**9)
    orders = replace(job(), max_timeouts=3)
    if again:
        slurm_job.compute(orders)
    else:
        with pytest.raises(SystemExit, match="can't be written: Read-only file system"):
            slurm_job.compute(orders)
    assert requeues(tmp_path) == again
    assert f"{tmp_path / 'results' / 'x' / 'a'} can't be written: Read-only file system" in capsys.readouterr().out


def test_a_file_system_is_asked(tmp_path, monkeypatch):
    assert slurm_job.unwritable(tmp_path) is None
    assert not list(tmp_path.iterdir())
    assert slurm_job.unwritable(tmp_path / "absent") is None

    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(slurm_job.tempfile, "TemporaryFile", full)
    assert str(slurm_job.unwritable(tmp_path)).endswith("No space left on device")


def test_progress_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch):
    def readonly(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(progress, "write_json", readonly)
    progress.Progress(tmp_path, 3)("train", epoch=1, step=1, steps=10)
