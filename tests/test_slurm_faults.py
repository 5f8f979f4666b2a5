"""Faults that need a real Slurm, over light runs (tests/slurm_light); the first ones are in test_slurm_cluster.py."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator

import pytest

from bench import status
from bench.launch import overview
from bench.launch.slurm import queue
from bench.store import record
from bench.store.attempts import read_attempts
from bench.store.folder import read_progress
from tests.slurm_cluster import PATH, Cluster, until
from tests.test_plugins import block
from tests.test_slurm_cluster import User, _possible, cluster, preempt, user

__all__ = ["_possible", "cluster", "user"]  # fixtures


@pytest.fixture
def short(cluster) -> Iterator[None]:
    """A partition `short` whose jobs end after two minutes."""
    cluster.run("scontrol", "create", "partitionname=short", "nodes=ALL", "maxtime=2")
    yield
    cluster.run("scancel", "--user=root")
    cluster.wait_until_empty()
    cluster.run("scontrol", "delete", "partition=short")


def computed(user: User) -> list[int]:
    """How often each run was computed to its end."""
    return [(run / "computed").read_text().count("\n") for run in user.runs]


# --- what is submitted -----------------------------------------------------------------------------------------------


def test_the_same_command_right_after_a_cancel(cluster, user):
    user.write(job="LIGHT_STEPS=50 LIGHT_SECONDS=0.1 LIGHT_LINGER=3")
    user.sweep()
    run, job = user.wait_until_under_way()
    assert status.main([str(user.dir), "--cancel"]) == 0
    until(lambda: [job, "CG"] in cluster.queue(), "the job's end")
    assert user.sweep() == 0
    assert len(queue.submissions(user.dir)) == 2
    user.wait_for_results(60)
    assert user.outcomes() == ["stopped", "finished"]
    assert computed(user) == [1]
    assert user.tasks[run.name] != job


def test_an_sbatch_whose_answer_is_lost(cluster, user, monkeypatch, capsys):
    """Slurm takes each array, and the job for the report, but sbatch reports a time-out."""
    user.write(seeds=22, job="LIGHT_STEPS=1")
    folder = user.folder / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(f"""\
#!/bin/sh
case "$*" in *test-only*) exec {shutil.which("sbatch", path=PATH)} "$@";; esac
{shutil.which("sbatch", path=PATH)} "$@" && echo x >>"$0.taken"
echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
exit 1
""")
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{PATH}")
    assert user.sweep() == 0
    assert "submitted: 22 runs" in capsys.readouterr().out
    [sent] = queue.submissions(user.dir)
    assert ([array["size"] for array in sent.content["arrays"]], len(sent.tasks)) == ([20, 2], 22)
    assert sent.report_job
    assert (folder / "sbatch.taken").read_text() == "x\n" * 3
    cluster.wait_until_empty(120)
    assert [result.status for result in user.results()] == ["finished"] * 22
    assert computed(user) == [1] * 22
    assert (user.folder / "reports" / "s" / "index.html").is_file()


# --- time limits -----------------------------------------------------------------------------------------------------


def test_a_time_limit_beyond_the_partitions_is_refused(user, short, capsys):
    user.write(job="LIGHT_STEPS=1", slurm="partition: short, timeout_min: 5")
    assert user.sweep() == 2
    assert "error: slurm.timeout_min (5) is above the limit of partition 'short' (2)" in capsys.readouterr().err
    assert not queue.submissions(user.dir)


@pytest.mark.parametrize("entity", ["user root", "qos normal"])
def test_a_time_limit_beyond_the_accounts_is_refused(cluster, user, capsys, entity):
    user.write(job="LIGHT_STEPS=1", slurm="timeout_min: 5")
    cluster.run("sacctmgr", "-i", "modify", *entity.split(), "set", "MaxWall=3")
    try:
        assert user.sweep() == 2
    finally:
        cluster.run("sacctmgr", "-i", "modify", *entity.split(), "set", "MaxWall=-1")
    assert "error: slurm.timeout_min (5) is above the limit of " in capsys.readouterr().err
    assert not queue.submissions(user.dir)


def test_a_job_that_will_never_start_and_a_report_that_does(cluster, user, short, capsys):
    """The report's job keeps to the partition's two minutes; and the limit falls while jobs wait."""
    user.write(job="LIGHT_STEPS=1", slurm="partition: short, timeout_min: 2, signal_seconds: 10")
    assert user.sweep() == 0
    until((user.folder / "reports" / "s" / "index.html").is_file, "a report", 110)  # less than its limit
    cluster.run("scontrol", "update", "partition=short", "state=down")
    user.write(seeds=2, job="LIGHT_STEPS=1", slurm="partition: short, timeout_min: 2, signal_seconds: 10")
    assert user.sweep() == 0
    cluster.run("scontrol", "update", "partition=short", "state=up", "maxtime=1")

    def words() -> str:
        capsys.readouterr()
        assert status.main([str(user.dir), "--all"]) == 0
        return capsys.readouterr().out

    until(lambda: "pending (will never start: lower slurm.timeout_min; PartitionTimeLimit)" in words(), "words")


# --- signals and preemption ------------------------------------------------------------------------------------------


def test_a_sigterm_from_elsewhere(cluster, user):
    user.write(job="LIGHT_STEPS=50 LIGHT_SECONDS=0.1")
    user.sweep()
    run, job = user.wait_until_under_way()
    os.kill((read_progress(run) or {})["pid"], signal.SIGTERM)
    user.wait_for_results(60)
    assert user.outcomes() == ["stopped", "finished"]
    assert {attempt.job for attempt in read_attempts(run)} == {job}
    assert computed(user) == [1]


def test_preemption_that_cancels_without_grace(cluster, user):
    user.write(job="LIGHT_STEPS=50 LIGHT_SECONDS=0.1")
    cluster.run("scontrol", "update", "partition=debug", "preemptmode=cancel", "gracetime=0")
    try:
        user.sweep()
        run, job = user.wait_until_under_way()
        preempt(cluster)
        user.wait_for_results(60)
    finally:
        cluster.run("scontrol", "update", "partition=debug", "preemptmode=requeue", "gracetime=20")
    assert user.outcomes() == ["stopped", "finished"]
    assert {attempt.job for attempt in read_attempts(run)} == {job}


# --- a retry, and a node without its slurmd --------------------------------------------------------------------------


def test_a_retry_by_folder_is_the_sweep_again(cluster, user, monkeypatch, tmp_path):
    """Its report's folder, its plug-in and `--set` of the first command, from another folder."""
    monkeypatch.setattr(overview, "LOOK_AGAIN_SECONDS", 1.0)
    plugin = user.folder / "side_adapter.py"
    user.write(job="LIGHT_STEPS=50 LIGHT_SECONDS=0.1")
    plugin.write_text(block("python"))
    memory = "slurm.mem_gb=2"  # the plug-in imports torch
    user.sweep("--plugin", str(plugin), "--set", memory, "slurm.cpus_per_task=2", "grid.method=[side_adapter]")
    run, _ = user.wait_until_under_way()
    cluster.run("scancel", "--user=root")
    cluster.wait_until_empty()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert status.main([str(user.dir), "--retry", "lost"]) == 0
    [_, again] = queue.submissions(user.dir)
    assert again.content["slurm"]["cpus_per_task"] == 2
    cluster.wait_until_empty(90)
    assert record.is_finished(run)
    assert (user.folder / "reports" / "s" / "index.html").is_file()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_process_that_outlives_its_slurmd(cluster: Cluster, user):
    """The job runs again on the other node while its first process still computes: it waits, and computes nothing."""
    user.write(job="LIGHT_STEPS=200 LIGHT_SECONDS=0.1 LIGHT_HELD=2")
    user.sweep()
    _, job = user.wait_until_under_way()
    [[_, node]] = [line for line in cluster.queue("%t %N") if line[0] == "R"]
    cluster.kill(f"slurmd-{node}")
    cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
    try:
        user.wait_for_results(90)
        cluster.wait_until_empty(60)
    finally:
        cluster.restore_node(node)
    assert user.outcomes() == ["finished"]
    assert computed(user) == [1]
    restarts = cluster.run("sacct", "-X", "-n", "-D", "-P", "-o", "State", "-j", job).split()
    assert len(restarts) > 2  # it went back into the queue while the claim was held
