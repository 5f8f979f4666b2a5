"""bench.status on a real Slurm (tests/slurm_cluster.py), over light runs (tests/slurm_light)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import status, sweep
from bench.launch import overview
from bench.launch.slurm import queue
from bench.store.attempts import read_attempts
from tests import slurm_cluster
from tests.slurm_cluster import Cluster, until

LIGHT = Path(__file__).parent / "slurm_light"
FILE = """\
name: s
dataset: {{name: ucm, root: {root}, split: karpathy}}
backbone: {{model: tiny-clip, weights: random}}
grid: {{seed: [0, 1, 2, 3], method: [{{lora: {{rank: 2}}}}]}}
slurm:
  mem_gb: 0.5
  array_parallelism: 2
  setup: ['export PYTHONPATH={light} LIGHT_STEPS=3000 LIGHT_SECONDS=0.1']
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Iterator[Cluster]:
    why = slurm_cluster.missing()
    if why and os.environ.get(slurm_cluster.REQUIRE):
        pytest.fail(why)
    if why:
        pytest.skip(why)
    (tmp_path / "slurm").mkdir()
    with Cluster(tmp_path / "slurm", nodes=1) as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PATH", slurm_cluster.PATH)
        yield found


def test_from_submission_to_cancellation(cluster, root, tmp_path, monkeypatch, capsys):
    """Waiting, running, lost after `scancel`, unknown while slurmctld is down, tried again, and cancelled."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(overview, "LOOK_AGAIN_SECONDS", 1.0)
    file = tmp_path / "s.yaml"
    file.write_text(FILE.format(root=root, light=LIGHT))
    assert sweep.main([str(file), "--executor", "slurm"]) == 0
    stranger = cluster.run("sbatch", "--parsable", "--comment=another", "--mem=10", "--wrap", "sleep 1000").strip()

    def looked(*more: str) -> dict[str, list[dict]]:
        capsys.readouterr()
        assert status.main([str(file), "--json", *more]) == 0
        found: dict[str, list[dict]] = {}
        for run in json.loads(capsys.readouterr().out)["runs"]:
            found.setdefault(run["state"], []).append(run)
        return found

    def counts() -> dict[str, int]:
        return {state: len(runs) for state, runs in looked().items()}

    until(lambda: counts() == {"running": 2, "waiting": 2}, "two runs at work", 60)
    assert [run["words"].partition(" pending")[2] for run in looked()["waiting"]] == [" (JobArrayTaskLimit)"] * 2
    [first, second] = looked()["running"]
    assert first["words"].startswith("epoch 1/1, step ")
    assert first["job"] == next(iter(queue.submissions(tmp_path / "results" / "s"))).tasks[first["run_id"]]

    cluster.run("scancel", first["job"])
    until(lambda: counts() == {"running": 2, "waiting": 1, "lost": 1}, "a lost run", 60)
    words = "its job ended: CANCELLED; saved at epoch 1, step "  # once the accounting has heard of it
    until(lambda: looked()["lost"][0]["words"].startswith(words), "the accounting's word")
    assert looked()["lost"][0]["run_id"] == first["run_id"]

    time.sleep(6)  # slurmctld saves its jobs every five seconds; those that it has not saved die with it
    cluster.kill("slurmctld")
    monkeypatch.setattr(queue, "SECONDS", 1.0)
    assert counts() == {"running": 2, "unknown": 2}
    monkeypatch.setattr(queue, "SECONDS", 20.0)
    cluster.start_slurmctld()
    # For some seconds after its start slurmctld says that no node could run anything.
    until(lambda: status.main([str(file), "--retry", "lost"]) == 0, "a cluster that takes jobs", 60, every=1)
    until(lambda: counts() == {"running": 2, "waiting": 1, "stopped": 1}, "the lost run in the queue", 60)
    assert looked()["stopped"][0]["words"].startswith("saved at epoch 1, step ")
    assert status.main([str(file), "--cancel"]) == 0
    until(lambda: cluster.queue("%i") == [[stranger]], "an end of all jobs but the stranger's", 60)
    assert counts() == {"lost": 4}
    assert read_attempts(tmp_path / "results" / "s" / second["run_id"])[-1].outcome == "stopped"
