from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import launch
from bench.launch import inline, local, slurm, task
from bench.launch.inline import Inline
from bench.launch.local import LocalPool
from bench.store import record
from bench.store.folder import RUN, RunLocked, claim, is_claimed
from bench.store.record import Failure, Record
from tests import records

TESTS = Path(__file__).parent
TARGET = "fake_runs:run"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """folders("good-1", ...) makes empty run folders; workers find the fake target."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def make(*names: str) -> list[Path]:
        for name in names:
            (tmp_path / "sweep" / name).mkdir(parents=True)
        return [tmp_path / "sweep" / name for name in names]

    return make


def command(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a stand-in for a command in front of the PATH."""
    file = folder / "bin" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{file.parent}{os.pathsep}{os.environ['PATH']}")


def results(runs: Sequence[Path]) -> list[Record]:
    found = [record.read(run) for run in runs]
    assert None not in found
    return [each for each in found if each]


def about_process(result: Record, key: str) -> Any:
    """What a fake run recorded about its process."""
    assert result.provenance is not None
    return result.provenance[key]


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process is there and more than a zombie that waits for a parent we don't have."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- the pool --------------------------------------------------------------------------------------------------------


def test_one_worker_does_many_runs(folders):
    runs = folders(*(f"good-{i}" for i in range(5)))
    LocalPool(1, TARGET).launch(runs)
    found = results(runs)
    assert [result.status for result in found] == ["finished"] * 5
    assert len({about_process(result, "pid") for result in found}) == 1
    assert about_process(found[0], "environment")["OMP_NUM_THREADS"] == str(local.cpu_cores())
    assert [(run / "log.txt").read_text() for run in runs] == [f"this is {run.name}\n" for run in runs]
    assert not alive(about_process(found[0], "pid"))


def test_a_dead_worker_fails_its_run_alone(folders, capfd):
    runs = folders("good-1", "killed", "bad", "crash", "good-2", "exits", "good-3")
    LocalPool(2, TARGET).launch(runs)
    found = dict(zip([run.name for run in runs], results(runs), strict=True))
    assert {name: result.status for name, result in found.items()} == {
        "good-1": "finished",
        "killed": "failed",
        "bad": "failed",
        "crash": "failed",
        "good-2": "finished",
        "exits": "failed",
        "good-3": "finished",
    }
    errors = {name: result.error for name, result in found.items() if result.error}
    assert errors["killed"].message == (
        "the process of this run was ended by SIGKILL (kill -9, or the machine ran out of memory)"
    )
    assert "SIGABRT" in errors["crash"].message
    assert "Fatal Python error: Aborted" in errors["crash"].traceback
    assert "code 3" in errors["exits"].message
    assert capfd.readouterr() == ("", "")


def test_a_run_held_elsewhere_is_tried_again(folders, monkeypatch):
    monkeypatch.setattr(local, "WAIT_SECONDS", 0.05)
    runs = folders("held", "good")
    LocalPool(1, TARGET).launch(runs)
    assert [result.status for result in results(runs)] == ["finished", "finished"]


def test_each_worker_has_its_gpu(folders, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    runs = folders("good-1", "good-2", "good-3")
    pool = LocalPool(None, TARGET)
    pool.launch(runs)
    where = [about_process(result, "environment") for result in results(runs)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in where[:2]] == ["3", "5"]  # the pool gives them out in order
    assert {each["PETL_BENCH_GPUS_HELD"] for each in where} == {"1.0"}


@pytest.mark.parametrize(
    ("job", "workers", "share"), [(None, 1, "1"), ("7", 1, "2.0"), ("7", 4, "0.5"), (None, 4, "0.5")]
)
def test_the_gpus_that_a_run_keeps(folders, monkeypatch, job, workers, share):
    """All of its job's are counted, divided among the runs side by side; without a job the one that it uses."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    else:
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    runs = folders(*(f"good-{number}" for number in range(workers)))
    LocalPool(workers, TARGET).launch(runs)
    where = [about_process(result, "environment") for result in results(runs)]
    assert {each["PETL_BENCH_GPUS_HELD"] for each in where} == {share}


@pytest.mark.parametrize(("workers", "spread"), [(3, {"3": 2, "5": 1}), (4, {"3": 2, "5": 2}), (5, {"3": 3, "5": 2})])
def test_workers_share_gpus_evenly(folders, monkeypatch, workers, spread):
    """More workers than GPUs: each has one GPU, no GPU has two workers more than another, and all shares are all GPUs.

    Real processes, each with its first run: a pool hands out runs before it looks for answers.
    """
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    runs = folders(*(f"good-{number}" for number in range(workers)))
    LocalPool(workers, TARGET).launch(runs)
    found = results(runs)
    assert len({about_process(result, "pid") for result in found}) == workers
    where = [about_process(result, "environment") for result in found]
    assert Counter(each["CUDA_VISIBLE_DEVICES"] for each in where) == spread
    assert sum(float(each["PETL_BENCH_GPUS_HELD"]) for each in where) == pytest.approx(2)


@pytest.mark.parametrize(
    ("listing", "gpus"),
    [
        ("GPU 0: NVIDIA H100 (UUID: GPU-1)\nGPU 1: NVIDIA H100 (UUID: GPU-2)\n", ["0", "1"]),
        ("GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-7)\n", ["MIG-7"]),
    ],
)
def test_gpus_are_counted(listing, gpus, tmp_path, monkeypatch):
    command(tmp_path, "nvidia-smi", f"printf '{listing}'", monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local.visible_gpus() == gpus


def pool_process(runs: Sequence[Path]) -> subprocess.Popen:
    """A process with a pool of two that computes `runs`; as a terminal would, it leads a process group."""
    code = (
        "import signal, sys\nfrom pathlib import Path\nfrom bench.launch.local import LocalPool\n"
        # A suite that was started in the background hands an ignored SIGINT down.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"try: LocalPool(2, '{TARGET}').launch([Path(a) for a in sys.argv[1:]])\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    return subprocess.Popen([sys.executable, "-c", code, *map(str, runs)], start_new_session=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_orphans(folders, number):
    runs = folders("slow-1", "slow-2")
    parent = pool_process(runs)
    until(lambda: all((run / "child").exists() and (run / "child").read_text() for run in runs))
    pids = [int((run / file).read_text()) for run in runs for file in ("pid", "child")]
    assert all(map(alive, pids))
    parent.send_signal(number)
    assert parent.wait(20) == (130 if number == signal.SIGINT else -number)
    until(lambda: not any(map(alive, pids)), 10)
    assert not any((run / "result.json").exists() for run in runs)


# --- in this process, and what all have in common --------------------------------------------------------------------


def test_inline_waits_for_held_runs(monkeypatch, tmp_path):
    answers = {"a": ["finished"], "b": ["locked", "locked", "finished"], "c": ["failed"]}
    calls: list[str] = []

    def run_one(run: Path) -> str:
        calls.append(run.name)
        return answers[run.name].pop(0)

    monkeypatch.setattr(inline, "run_one", run_one)
    monkeypatch.setattr(inline, "WAIT_SECONDS", 0.0)
    Inline().launch([tmp_path / name for name in answers])
    assert calls == ["a", "b", "c", "b", "b"]


def test_auto(monkeypatch, tmp_path):
    made = {}
    for found in (None, "/usr/bin/sbatch"):
        monkeypatch.setattr(slurm.shutil, "which", lambda name, found=found: found)
        made[found] = type(launch.make("auto", folder=tmp_path, reports=tmp_path, blocks={})).__name__
    assert made == {None: "LocalPool", "/usr/bin/sbatch": "SlurmLauncher"}


def test_a_failure_never_replaces_a_finished_result(folders):
    [run] = folders("x")
    records.finish(run)
    task.record_failure(run, Failure(type="WorkerDied", message="gone"))
    assert record.is_finished(run)


def test_an_unreadable_run_is_recorded(folders):
    [run] = folders("x")
    (run / RUN).write_text("a: [")
    task.record_failure(run, Failure(type="UserError", message="cannot be read", traceback="trace"))
    result = record.read(run)
    assert result is not None
    assert (result.status, result.spec, result.provenance) == ("failed", {}, None)


def test_looking_at_an_own_claim_keeps_it(folders):
    """The live view looks at runs that its own process computes; with POSIX locks, closing the file would end one."""
    [run] = folders("x")
    code = "import sys; from pathlib import Path; from bench.store.folder import is_claimed; "
    code += "print(is_claimed(Path(sys.argv[1])))"

    def seen_by_another_process() -> str:
        done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    with claim(run):
        assert is_claimed(run)
        assert seen_by_another_process() == "True"
        with pytest.raises(RunLocked), claim(run):
            pass
        assert seen_by_another_process() == "True"
    assert not is_claimed(run)
    assert seen_by_another_process() == "False"
