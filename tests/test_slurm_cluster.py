"""Sweeps on a real Slurm: a throw-away cluster with two nodes, arrays of at most 20, and everything that goes wrong.

Where digits matter the runs are real ones; elsewhere they are light (tests/slurm_light), and all around them is real.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import status, sweep
from bench.launch.slurm import launcher, queue
from bench.plan.spec import RunSpec
from bench.store import record
from bench.store.attempts import read_attempts
from bench.store.folder import ADAPTER, HISTORY, PROGRESS, RUN, read_progress
from bench.store.record import Record
from tests import slurm_cluster
from tests.slurm_cluster import Cluster, until
from tests.test_report import read_csv

LIGHT = Path(__file__).parent / "slurm_light"
ROOT = Path(__file__).parents[1]

FILE = """\
name: s
dataset: {{name: ucm, root: {root}, split: karpathy}}
backbone: {{model: tiny-clip, weights: random}}
train: {{epochs: 8, batch_size: 8, lr: 1e-3, workers: {workers}}}
grid:
  seed: [{seeds}]
  method: [{{lora: {{rank: 2, dropout: 0.1}}}}]
slurm: {{cpus_per_task: 1, gpus_per_node: 1, {slurm}}}
"""


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    why = slurm_cluster.missing()
    if why and os.environ.get(slurm_cluster.REQUIRE):
        pytest.fail(why)
    if why:
        pytest.skip(why)


@pytest.fixture(scope="module")
def cluster(_possible, tmp_path_factory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm"), max_array=20) as found:
        yield found


class User:
    """Someone with a folder, a cluster, and the commands."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root

    def write(self, seeds: int = 1, job: str = "SLOW=0.1", slurm: str = "", workers: int = 0) -> None:
        """A sweep file; `job`: variables for tests/slurm_light, whose code goes before the jobs' own."""
        setup = f"setup: ['export PYTHONPATH={LIGHT} {job}']"
        listed = ", ".join(map(str, range(seeds)))
        memory = "mem_gb: 6" if job.startswith("SLOW") else "mem_gb: 0.5"
        settings = ", ".join(filter(None, [memory, setup, slurm]))
        text = FILE.format(root=self.root, workers=workers, seeds=listed, slurm=settings)
        self.folder.mkdir(exist_ok=True)
        (self.folder / "s.yaml").write_text(text)

    def sweep(self, *arguments: str) -> int:
        places = ["--results", str(self.folder / "results"), "--reports", str(self.folder / "reports")]
        return sweep.main([str(self.folder / "s.yaml"), "--executor", "slurm", *places, *arguments])

    @property
    def dir(self) -> Path:
        return self.folder / "results" / "s"

    @property
    def runs(self) -> list[Path]:
        return sorted(path.parent for path in self.dir.glob(f"*/{RUN}"))

    @property
    def tasks(self) -> dict[str, str]:
        """Run id -> the job it was last given to."""
        return {run: task for found in queue.submissions(self.dir) for run, task in found.tasks.items()}

    def results(self) -> list[Record | None]:
        """Each run's record so far."""
        return [record.read(run) for run in self.runs]

    def wait_for_results(self, seconds: float = 200) -> None:
        until(lambda: all(self.results()), "results", seconds)

    def wait_until_under_way(self, steps: int = 1) -> tuple[Path, str]:
        """Wait until a run has finished an epoch or so many steps; the run and its job."""
        run = self.runs[0]

        def under_way() -> bool:
            now = read_progress(run) or {}
            return now.get("phase") == "train" and (now.get("epoch", 0) > 2 or now.get("step", 0) >= steps)

        until(under_way, "a run under way", 150)
        return run, self.tasks[run.name]

    def outcomes(self) -> list[str | None]:
        return [attempt.outcome for attempt in read_attempts(self.runs[0])]


@pytest.fixture
def user(cluster, root, tmp_path, monkeypatch) -> Iterator[User]:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield User(tmp_path, root)
    cluster.run("scancel", "--user=root", check=False)
    cluster.wait_until_empty()


def digits(run: Path) -> tuple:
    """What must not depend on interruptions."""
    result = record.read(run)
    assert result is not None
    assert result.cost is not None
    with (run / HISTORY).open() as file:
        history = [{key: row[key] for key in row if key != "seconds"} for row in csv.DictReader(file)]
    return result.metrics, history, (run / ADAPTER).read_bytes(), result.cost.adapter_bytes


@pytest.fixture(scope="module")
def undisturbed(_possible, root, tmp_path_factory) -> tuple:
    """The digits of the real run that the faults hit, from a process that nothing disturbed."""
    user = User(tmp_path_factory.mktemp("undisturbed"), root)
    user.write()
    command = [sys.executable, "-m", "bench.sweep", "s.yaml", "--executor", "inline"]
    subprocess.run(
        command, cwd=user.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True
    )
    return digits(user.runs[0])


# --- a sweep ---------------------------------------------------------------------------------------------------------


def test_sixty_runs_in_arrays_of_twenty_and_nothing_twice(cluster, user, capsys):
    user.write(seeds=60, job="LIGHT_SECONDS=0.1", slurm="array_parallelism: 7")
    assert user.sweep() == 0
    printed = capsys.readouterr().out
    assert "submitted: 60 runs" in printed
    [first] = queue.submissions(user.dir)
    assert [array["size"] for array in first.content["arrays"]] == [20, 20, 20]
    most = set()

    def some_done() -> bool:
        most.add(sum(line[1] == "R" for line in cluster.queue("%i %t") if line[0] != first.report_job))
        return sum(map(bool, user.results())) >= 10

    until(some_done, "ten runs", 120)
    assert user.sweep() == 0
    printed = capsys.readouterr().out
    assert "in the queue: " in printed
    assert "submitted: " not in printed
    assert len(queue.submissions(user.dir)) == 1
    cluster.wait_until_empty(240)
    assert max(most) <= 7
    results = user.results()
    assert [result.status for result in results] == ["finished"] * 60
    assert {result.provenance["code"] for result in results} == {first.content["snapshot"]}
    done = [(run / "computed").read_text().split("\n") for run in user.runs]
    assert all(len(lines) == 2 for lines in done)
    assert {line.split()[1] for [line, _] in done} <= {"0", "1", "2", "3"}
    asked = ("sacct", "-X", "-n", "-P", "-o", "JobID", "-j", ",".join(queue.jobs_of(first)))
    until(lambda: len(cluster.run(*asked).split()) == 61, "61 jobs in the accounting, which lags behind", 60)
    nodes = cluster.run("sacct", "-X", "-n", "-P", "-o", "NodeList", "-j", ",".join(queue.jobs_of(first))).split()
    assert set(nodes) == {"n1", "n2"}
    assert (user.folder / "reports" / "s" / "index.html").is_file()
    assert user.sweep() == 0
    assert "60 runs, 60 finished, 0 to run" in capsys.readouterr().out


def test_started_twice_at_the_same_second_is_computed_once(cluster, user):
    user.write(seeds=12, job="LIGHT_SECONDS=0.1")
    command = [sys.executable, "-m", "bench.sweep", "s.yaml", "--executor", "slurm"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(command, cwd=user.folder, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(queue.submissions(user.dir)) == 1
    cluster.wait_until_empty(120)
    assert [result.status for result in user.results()] == ["finished"] * 12
    assert [(run / "computed").read_text().count("\n") for run in user.runs] == [1] * 12


def test_a_tuned_sweep_submits_trials_and_then_the_runs_of_the_winners(cluster, user, capsys, monkeypatch):
    """Two methods: three short trials each, then the best third of them at full length, then two seeds of a winner."""
    monkeypatch.setattr(launcher, "POLL_SECONDS", 0.5)
    user.write(seeds=2, job="LIGHT_STEPS=5 LIGHT_SECONDS=0.1")
    file = user.folder / "s.yaml"
    text = file.read_text().replace("dropout: 0.1}}]", "dropout: 0.1}}, linear_probe]")
    file.write_text(text + "tune: {lr: [1e-4, 1e-3, 1e-2], trials: 3, halving: 3, seed: 7}\n")
    assert user.sweep() == 0
    printed = capsys.readouterr().out
    assert "submitted: 6 runs" in printed
    assert "the same command goes on with what the trials decide" in printed
    assert status.main([str(user.dir)]) == 0
    assert "4 test runs of the winners follow when all trials are over" in capsys.readouterr().out
    assert user.sweep() == 0
    assert "submitted: " not in capsys.readouterr().out, "they are in the queue"
    assert user.sweep("--follow") == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("submitted: ")] == [
        line for line in printed.splitlines() if line.startswith(("submitted: 2 runs", "submitted: 4 runs"))
    ]
    assert "12 runs, 8 finished, 4 to run" in printed
    cluster.wait_until_empty(120)
    specs = {run: RunSpec.load(run / RUN) for run in user.runs}
    trials = [spec for spec in specs.values() if not spec.evaluation.test]
    assert Counter((spec.method.name, spec.train.epochs, spec.seed) for spec in trials) == {
        (method, epochs, 7): count for method in ("lora", "linear_probe") for epochs, count in ((3, 3), (8, 1))
    }
    tested = sorted((spec.method.name, spec.seed, spec.train.lr) for spec in specs.values() if spec.evaluation.test)
    assert tested == [(method, seed, 1e-3) for method in ("linear_probe", "lora") for seed in (0, 1)]
    assert [(run / "computed").read_text().count("\n") for run in user.runs] == [1] * 12
    reports = user.folder / "reports" / "s"
    tuning = {row["method"]: row for row in read_csv(reports / "tuning.csv")}
    for row in tuning.values():
        assert (row["trials"], row["whole_trials"], row["winner"], row["on_edge"]) == ("3", "1", "lr=0.001", "")
        assert float(row["val_min"]) == float(row["val_max"]) == 50
    assert [(row["method"], row["seeds"]) for row in read_csv(reports / "table.csv")] == [
        ("lora", "2"),
        ("linear_probe", "2"),
    ]
    assert user.sweep() == 0
    assert "12 runs, 12 finished, 0 to run" in capsys.readouterr().out


# --- what a cluster allows -------------------------------------------------------------------------------------------


def test_at_a_submit_limit_the_rest_follows_later(cluster, user, capsys, monkeypatch):
    monkeypatch.setattr(launcher, "POLL_SECONDS", 0.5)
    monkeypatch.setattr(launcher, "RETRY_SECONDS", 2.0)
    user.write(seeds=9, job="LIGHT_STEPS=1")
    cluster.run("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=5")
    try:
        until(lambda: "5" in cluster.run("sacctmgr", "-n", "-P", "show", "assoc", "format=MaxSubmitJobs"), "the limit")
        assert user.sweep() == 0
        printed = capsys.readouterr().out
        assert "submitted: 5 runs" in printed
        assert "no job for the report: " in printed
        assert "not submitted: 4 runs, for Slurm takes no more now" in printed
        assert user.sweep("--follow") == 0
    finally:
        cluster.run("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=-1")
    assert "submitted: " in capsys.readouterr().out
    assert [(run / "computed").read_text().count("\n") for run in user.runs] == [1] * 9


def test_what_fits_no_node_is_refused(user, capsys):
    user.write(slurm="constraint: quantum")
    assert user.sweep() == 2
    assert "error: " in capsys.readouterr().err
    user.write(job="LIGHT_STEPS=1", slurm="gres: 'gpu:9'")
    assert user.sweep() == 2
    assert "error: no node could run such a job: " in capsys.readouterr().err
    assert not queue.submissions(user.dir)


def test_a_new_report_job_takes_the_place_of_the_old(cluster, user):
    user.write(seeds=1, job="LIGHT_STEPS=40 LIGHT_SECONDS=0.1")
    user.sweep()
    user.write(seeds=2, job="LIGHT_STEPS=40 LIGHT_SECONDS=0.1")
    user.sweep()
    first, second = (found.report_job for found in queue.submissions(user.dir))
    until(lambda: first not in [line[0] for line in cluster.queue()], "the old report job's end")
    assert second in [line[0] for line in cluster.queue()]
    cluster.wait_until_empty()
    assert "Seeds: 0, 1" in (user.folder / "reports" / "s" / "table.md").read_text()


# --- ten faults ------------------------------------------------------------------------------------------------------


def test_requeue(cluster, user, undisturbed):
    user.write(workers=2)
    user.sweep()
    run, job = user.wait_until_under_way()
    cluster.run("scontrol", "requeue", job)
    user.wait_for_results()
    assert digits(run) == undisturbed
    assert user.outcomes() == ["stopped", "finished"]
    assert {attempt.job for attempt in read_attempts(run)} == {job}


def test_requeue_of_a_packed_job(cluster, user):
    """Four runs in one job, two at a time in workers of their own: both save, and none is computed again."""
    user.write(seeds=4, job="LIGHT_STEPS=40 LIGHT_SECONDS=0.1", slurm="runs_per_job: 4, parallel_runs: 2")
    user.sweep()
    _, job = user.wait_until_under_way()
    phases = lambda: [(read_progress(run) or {}).get("phase") for run in user.runs]  # noqa: E731
    until(lambda: phases().count("train") == 2, "two runs under way")
    assert set(user.tasks.values()) == {job}
    cluster.run("scontrol", "requeue", job)
    user.wait_for_results()
    attempts = [read_attempts(run) for run in user.runs]
    assert sorted(len(found) for found in attempts) == [1, 1, 2, 2]
    assert {found[0].outcome for found in attempts if len(found) == 2} == {"stopped"}
    assert {found[-1].outcome for found in attempts} == {"finished"}
    assert [(run / "computed").read_text().count("\n") for run in user.runs] == [1] * 4


def preempt(cluster: Cluster) -> None:
    """A job of a higher partition takes both nodes for two seconds."""
    cluster.run("sbatch", "-p", "high", "--exclusive", "-N2", "-o", "/dev/null", "--wrap", "sleep 2")


def test_preemption(cluster, user, undisturbed):
    user.write()
    user.sweep()
    run, job = user.wait_until_under_way()
    preempt(cluster)
    user.wait_for_results()
    assert digits(run) == undisturbed
    assert user.outcomes() == ["stopped", "finished"]
    assert {attempt.job for attempt in read_attempts(run)} == {job}


def test_time_outs_with_and_without_progress(cluster, user, undisturbed):
    hanging = User(user.folder / "hanging", user.root)
    user.write(job="SLOW=1", slurm="timeout_min: 1, signal_seconds: 10")
    hanging.write(job="LIGHT_FAULT=hang", slurm="timeout_min: 1, signal_seconds: 10")
    user.sweep()
    hanging.sweep()
    hanging.wait_for_results()
    user.wait_for_results()
    assert digits(user.runs[0]) == undisturbed
    *before, last = user.outcomes()
    assert before
    assert set(before) == {"stopped"}
    assert last == "finished"
    [result] = hanging.results()
    assert (result.status, result.error.type) == ("failed", "TimedOut")
    assert result.error.message == (
        "timed out after 1 min at epoch 1 without finishing a step since it last started; raise slurm.timeout_min"
    )
    assert hanging.outcomes() == [None]


def test_kill(cluster, user, undisturbed):
    user.write()
    user.sweep()
    run, _ = user.wait_until_under_way()
    os.kill((read_progress(run) or {})["pid"], signal.SIGKILL)
    user.wait_for_results()
    [result] = user.results()
    assert result.error.message.startswith("the process of this run was ended by SIGKILL (kill -9, or more memory")
    cluster.wait_until_empty()
    user.sweep()
    until(lambda: record.is_finished(run), "a result", 60)
    assert digits(run) == undisturbed
    assert user.outcomes() == ["killed", "finished"]


def test_memory_limit(cluster, user):
    user.write(job="LIGHT_FAULT=memory LIGHT_STEPS=100 LIGHT_SECONDS=0.5")
    user.sweep()
    user.wait_for_results()
    [result] = user.results()
    assert "more memory than slurm.mem_gb" in result.error.message


def test_node_down(cluster, user, undisturbed):
    user.write()
    user.sweep()
    run, job = user.wait_until_under_way()
    [[_, node]] = [line for line in cluster.queue("%t %N") if line[0] == "R"]
    cluster.lose_node(node)
    try:
        user.wait_for_results()
    finally:
        cluster.restore_node(node)
    assert digits(run) == undisturbed
    assert user.outcomes() == ["killed", "finished"]
    assert {attempt.job for attempt in read_attempts(run)} == {job}


def test_controller_killed_and_restarted(cluster, user):
    user.write(seeds=8, job="LIGHT_STEPS=150 LIGHT_SECONDS=0.1", slurm="array_parallelism: 6")
    user.sweep()
    until(lambda: len(list(user.dir.glob(f"*/{PROGRESS}"))) == 6, "six runs under way")
    now = time.time()  # what Slurm has not written down yet is lost to it with a kill, and it saves every few seconds
    until(lambda: (cluster.folder / "state" / "job_state").stat().st_mtime > now, "a saved state")
    cluster.kill("slurmctld")
    assert user.sweep() == 2
    until(lambda: any(user.results()), "a run that ends meanwhile")
    cluster.start_slurmctld()
    user.wait_for_results()
    assert [result.status for result in user.results()] == ["finished"] * 8
    assert [(run / "computed").read_text().count("\n") for run in user.runs] == [1] * 8


def test_scancel(cluster, user):
    user.write(seeds=3, job="LIGHT_STEPS=1000 LIGHT_SECONDS=0.1")
    user.sweep()
    run, job = user.wait_until_under_way()
    cluster.run("scancel", job)
    until(lambda: user.outcomes() == ["stopped"], "a stop")
    until(lambda: job not in [line[0] for line in cluster.queue()], "the end of the job")
    assert record.read(run) is None
    assert len(cluster.queue()) == 3
    user.write(seeds=3, job="LIGHT_STEPS=1000 LIGHT_SECONDS=0")
    user.sweep()
    until(lambda: record.is_finished(run), "a result")
    assert user.tasks[run.name] != job
    assert user.outcomes() == ["stopped", "finished"]


def test_without_accounting_and_preempted_without_a_warning(tmp_path, root, monkeypatch, undisturbed):
    folder = tmp_path / "slurm"
    folder.mkdir()
    with Cluster(folder, accounting=False, warns=False) as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        user = User(tmp_path, root)
        user.write()
        user.sweep()
        run, job = user.wait_until_under_way()
        preempt(cluster)
        assert "accounting storage is disabled" in cluster.run("sh", "-c", "sacct 2>&1", check=False)
        assert user.sweep() == 0
        user.wait_for_results()
        assert digits(run) == undisturbed
        assert user.outcomes() == ["stopped", "finished"]
        assert {attempt.job for attempt in read_attempts(run)} == {job}
        cluster.wait_until_empty()
        assert len(queue.submissions(user.dir)) == 1
        assert (tmp_path / "reports" / "s" / "index.html").is_file()
