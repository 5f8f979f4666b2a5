"""Several runs in one task: loaded once, failed alone, stopped together, with the numbers that each has alone."""

from __future__ import annotations

import gc
import itertools
import time
from pathlib import Path

import pytest
import torch

from bench.compute import build, execute
from bench.launch.inline import run_many
from bench.launch.local import LocalPool
from bench.store import attempts, record
from bench.store.folder import LOG, RESULT, STATE, RunLocked, read_progress
from tests.test_run import MRS, make_run, numbers

METHODS: list[dict] = [MRS, {"name": "full_finetune"}, {"name": "lora", "rank": 2}, {"name": "coop", "n_ctx": 4}]


def packed(root: Path, folder: Path, **train) -> list[Path]:
    settings = {"epochs": 2} | train
    return [make_run(root, folder / str(i), method, seed=i, **settings) for i, method in enumerate(METHODS)]


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory) -> list[dict]:
    """The numbers of runs that share nothing."""
    found = []
    for run_dir in packed(root, tmp_path_factory.mktemp("alone")):
        assert execute.execute(run_dir).error is None
        found.append(numbers(run_dir))
    return found


@pytest.fixture(autouse=True)
def _nothing_kept():
    build._kept.clear()


def test_in_one_process(root, alone, tmp_path, monkeypatch, capfd):
    """A full fine-tuning between the others changes its own copy alone; a diverged run fails alone."""
    loads = []
    load_backbone = build.load_backbone
    monkeypatch.setattr(build, "load_backbone", lambda settings: loads.append(settings) or load_backbone(settings))
    runs = packed(root, tmp_path)
    bad = make_run(root, tmp_path / "bad", {"name": "full_finetune"}, lr=1e12, clip_grad_norm=None)
    outcomes = run_many([runs[0], bad, *runs[1:]])
    assert outcomes == {"0": "finished", "bad": "failed", "1": "finished", "2": "finished", "3": "finished"}
    assert [numbers(run_dir) for run_dir in runs] == alone
    assert len(loads) == 1
    assert "bad: failed" in capfd.readouterr().out.splitlines()
    assert (bad / LOG).exists()


def test_side_by_side(root, alone, tmp_path):
    runs = packed(root, tmp_path)
    assert set(run_many(runs, parallel=2).values()) == {"finished"}
    assert [numbers(run_dir) for run_dir in runs] == alone


def test_a_stop_saves_the_run_at_work_and_starts_no_other(root, alone, tmp_path):
    runs = packed(root, tmp_path)
    asked = itertools.count(1)
    assert run_many(runs, should_stop=lambda: next(asked) > 4) == {"0": "stopped"}
    assert (runs[0] / STATE).exists()
    assert run_many(runs, should_stop=lambda: True) == {}
    run_many(runs)
    assert [numbers(run_dir) for run_dir in runs] == alone


def test_a_stop_reaches_runs_side_by_side(root, tmp_path):
    """Each worker saves the step it was at, also where loaders serve it, stopped by a request or by Ctrl-C."""
    runs = packed(root, tmp_path, workers=1, epochs=200)
    started = time.time()

    def training() -> bool:
        """Whether the first two have come into an epoch since."""
        looks = [read_progress(run_dir) or {} for run_dir in runs[:2]]
        return all(look.get("phase") in ("train", "validate") and look["updated"] > started for look in looks)

    def interrupt() -> bool:
        if training():
            raise KeyboardInterrupt
        return False

    assert LocalPool(2).compute(runs, training) == {"0": "stopped", "1": "stopped"}
    started = time.time()
    with pytest.raises(KeyboardInterrupt):
        LocalPool(2).compute(runs, interrupt)
    for run_dir in runs[:2]:
        first, second = attempts.read_attempts(run_dir)
        assert (first.outcome, second.outcome) == ("stopped", "stopped")
        assert (0, 0) < first.reached < second.reached
    assert not any((run_dir / RESULT).exists() for run_dir in runs)
    assert attempts.read_attempts(runs[2]) == []


def test_after_running_out_of_memory_the_next_run_starts_clean(root, alone, tmp_path, monkeypatch):
    fit = execute.fit

    def full(*_, **__):
        monkeypatch.setattr(execute, "fit", fit)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(execute, "fit", full)
    runs = packed(root, tmp_path)[:2]
    assert run_many(runs) == {"0": "failed", "1": "finished"}
    assert "lower train.batch_size" in record.read(runs[0]).error.message
    assert numbers(runs[1]) == alone[1]


def test_what_another_process_holds_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "execute", lambda *_, **__: (_ for _ in ()).throw(RunLocked("x")))
    (tmp_path / "x").mkdir()
    assert run_many([tmp_path / "x"]) == {"x": "locked"}


def test_a_folder_that_is_gone_fails_alone(root, tmp_path, capfd):
    run_dir = packed(root, tmp_path)[0]
    run_dir.with_name("gone").mkdir()
    (run_dir.with_name("gone") / LOG).mkdir()
    assert run_many([tmp_path / "gone", run_dir], should_stop=lambda: False)["0"] == "finished"
    assert "gone: failed" in capfd.readouterr().out.splitlines()


def test_threads_of_a_resumed_run_are_its_own(root, tmp_path):
    """A run continues with the threads that it started with; the next run has those of the process."""
    threads = torch.get_num_threads()
    first, second = packed(root, tmp_path)[:2]
    try:
        torch.set_num_threads(threads + 1)
        asked = itertools.count()
        assert run_many([first], should_stop=lambda: next(asked) > 1) == {"0": "stopped"}
        torch.set_num_threads(threads)
        run_many([first, second])
    finally:
        torch.set_num_threads(threads)
    used = [record.read(run_dir).provenance["threads"] for run_dir in (first, second)]
    assert used == [threads + 1, threads]


def test_what_methods_cost_is_counted_once_each(root, tmp_path, monkeypatch):
    counted = []
    count = execute.cost.flops_per_pair
    monkeypatch.setattr(execute.cost, "flops_per_pair", lambda *given: counted.append(given) or count(*given))
    ranks = (2, 2, 64)
    runs = [make_run(root, tmp_path / str(i), {"name": "lora", "rank": r}, seed=i) for i, r in enumerate(ranks)]
    run_many(runs)
    first, again, other = (record.read(run_dir).cost.flops_per_pair for run_dir in runs)
    assert len(counted) == 2
    assert first == again < other


def test_garbage_of_imports_is_passed_over(root, tmp_path):
    """And what a run leaves is not: it is still collected before the next one."""
    run_many(packed(root, tmp_path)[:1])
    frozen = gc.get_freeze_count()
    assert frozen > 100_000
    run_many(packed(root, tmp_path / "more")[:1])
    assert gc.get_freeze_count() <= frozen
