"""A CUDA error that leaves the process without its GPU ends the process; the run is tried once more in another.

Real errors of this kind are in tests/gpu/; here CUDA's answers are stand-ins.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.compute import execute
from bench.config.errors import GpuLost, UserError
from bench.launch import inline
from bench.launch.inline import Inline, run_many
from bench.launch.local import LocalPool
from bench.launch.slurm import job as slurm_job
from bench.launch.task import run_one
from bench.store import attempts, record
from bench.store.folder import RESULT
from tests import records
from tests.test_launch import TARGET, folders  # noqa: F401 - a fixture
from tests.test_run import make_run

MESSAGE = "CUDA error: device-side assert triggered"


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """cuda(error, lost) makes training raise `error`, and CUDA say afterwards that it is lost, or not."""

    def make(error: Exception, lost: bool) -> None:
        def fit(*_, **__):
            raise error

        def synchronize() -> None:
            if lost:
                raise RuntimeError(MESSAGE)

        monkeypatch.setattr(execute, "fit", fit)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)

    return make


def outcomes(run_dir: Path) -> list[str | None]:
    return [attempt.outcome for attempt in attempts.read_attempts(run_dir)]


# --- one run ----------------------------------------------------------------------------------------------------------


def test_the_first_loss_is_not_recorded_as_a_failure(root, tmp_path, cuda):
    run_dir = make_run(root, tmp_path / "run", {"name": "bitfit"})
    cuda(RuntimeError(MESSAGE), lost=True)
    with pytest.raises(GpuLost, match="device-side assert"):
        execute.execute(run_dir)
    assert not (run_dir / RESULT).exists()
    assert outcomes(run_dir) == ["lost"]


def test_each_second_loss_in_a_row_is_a_failure(root, tmp_path, cuda, capfd):
    run_dir = make_run(root, tmp_path / "run", {"name": "bitfit"})
    cuda(RuntimeError(MESSAGE), lost=True)
    for count in range(1, 5):
        assert run_one(run_dir) == "lost"
        found = record.read(run_dir)
        assert (found is not None) == (count % 2 == 0), "recorded after the second loss, and not before"
        if found is not None:
            assert found.error is not None
            assert "lost twice" in found.error.message
            assert MESSAGE in found.error.traceback
            (run_dir / RESULT).unlink()  # the user runs it again
    assert MESSAGE in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "OutOfMemoryError"),
        (RuntimeError("CUDA error: invalid configuration argument"), "RuntimeError"),
        (ValueError("a mistake in a method"), "ValueError"),
    ],
)
def test_an_error_after_which_the_gpu_works_is_an_ordinary_failure(root, tmp_path, cuda, error, kind):
    run_dir = make_run(root, tmp_path / "run", {"name": "bitfit"})
    cuda(error, lost=False)
    assert run_one(run_dir) == "failed"
    found = record.read(run_dir)
    assert found is not None
    assert found.error is not None
    assert found.error.type == kind


# --- the pool ---------------------------------------------------------------------------------------------------------


def test_the_worker_ends_and_the_run_is_retried_once(folders):  # noqa: F811
    """`lost-x1` loses its GPU once and `lost-x9` each time; what else the pool has to do goes on."""
    runs = folders("lost-x1", "good-1", "lost-x9", "good-2")
    assert LocalPool(1, TARGET).compute(runs) == {
        "lost-x1": "finished",
        "good-1": "finished",
        "lost-x9": "failed",
        "good-2": "finished",
    }
    assert outcomes(runs[2]) == ["lost", "lost"]
    found = record.read(runs[2])
    assert found is not None
    assert found.error is not None
    assert found.error.type == "GpuLost"
    log = (runs[0] / "log.txt").read_text()
    assert log.count("this is lost-x1") == 2
    assert MESSAGE in log
    pids = [(run / "pid").read_text() for run in runs]
    assert pids[1] != pids[3], "a worker went on without its GPU"


def test_one_bad_gpu_does_not_drain_a_sweep(folders, monkeypatch):  # noqa: F811
    """GPU 3 loses every run; each is computed on GPU 5 in the end."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    runs = folders(*(f"lost-{number}x0" for number in range(6)))
    assert set(LocalPool(2, TARGET).compute(runs).values()) == {"finished"}
    found = [record.read(run) for run in runs]
    assert {each.provenance["gpu"] for each in found if each and each.provenance} == {"5"}
    assert all(outcomes(run).count("lost") <= 1 for run in runs)
    assert any("lost" in outcomes(run) for run in runs)


# --- one process, and a job of Slurm's --------------------------------------------------------------------------------


def test_a_process_computes_nothing_after_it_lost_its_gpu(tmp_path, monkeypatch):
    runs = [tmp_path / name for name in ("a", "b", "c")]
    for run in runs:
        run.mkdir()
    answers = {"a": "finished", "b": "lost"}
    monkeypatch.setattr(inline, "run_one", lambda run, *_: answers[run.name])
    assert run_many(runs) == answers
    with pytest.raises(UserError, match="the GPU was lost in b"):
        Inline().launch(runs)


@pytest.fixture
def requeued(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """This process is a running job; the reasons why it put itself back into the queue."""
    reasons: list[str] = []

    @contextmanager
    def no_warnings(*_: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(asked=threading.Event(), warned=False)

    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.delenv("SUBMITIT_FOLDER", raising=False)
    monkeypatch.setattr(slurm_job, "Warnings", no_warnings)
    monkeypatch.setattr(slurm_job, "_requeue", reasons.append)
    monkeypatch.setattr(slurm_job.JobState, "ask_patiently", lambda: slurm_job.JobState("RUNNING", False))
    return reasons


def test_a_job_requeues_itself_until_its_runs_are_settled(folders, monkeypatch, requeued):  # noqa: F811
    """The job's second run loses its GPU each time: two losses, then it has failed, and the third run is computed."""
    runs = folders("a", "b", "c")
    taken = []

    def one(run: Path, *_: object) -> str:
        taken.append(run.name)
        if run.name != "b":
            return records.finish(run).status
        if taken.count("b") == 2:
            records.fail(run)
        return "lost"

    monkeypatch.setattr(inline, "run_one", one)
    orders = slurm_job.Orders(
        run_dirs=tuple(map(str, runs)),
        parallel=1,
        timeout_min=60,
        signal_seconds=120,
        max_timeouts=2,
        submitted=time.time() - 5,
    )
    for started in range(1, 4):
        slurm_job.compute(orders)
        assert len(requeued) == min(started, 2)
    assert taken == ["a", "b", "b", "c"]
    assert orders.unsettled() == []
