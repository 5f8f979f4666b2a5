"""What a kill leaves in a run's folder: the hours of the killed attempt, and files that the next command deletes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import sweep
from bench.core.position import Position
from bench.store import attempts, record
from bench.store.attempts import read_attempts
from bench.store.cluster import Queue
from bench.store.folder import ADAPTER, LOCK, RESULT, RUN, STATE, claim
from bench.store.standing import Facts, judge
from tests import records

AT_WORK = """
import pathlib, sys, time
from bench.core.position import Position
from bench.store import folder
from bench.store.attempts import start_attempt
folder.BEAT_SECONDS = 0.1
run = pathlib.Path(sys.argv[1])
with folder.claim(run):
    start_attempt(run, gpus=1.0, job=None, at=Position())
    print("begun", flush=True)
    input()
"""


@pytest.mark.parametrize("ending", ["killed", "let end"])
def test_a_killed_attempt_counts_to_its_end(tmp_path, ending):
    """Although it wrote no progress: an evaluation takes long, and so may the loading of data."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", AT_WORK, str(tmp_path)], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        time.sleep(1)
        process.kill() if ending == "killed" else process.communicate(b"\n")
    if ending == "let end":
        assert sorted(path.name for path in tmp_path.iterdir()) == ["attempts.jsonl", LOCK]
        return
    time.sleep(0.5)
    hours = judge("a", {}, Facts.read(tmp_path), alive=Queue(), given=None, now=time.time()).hours
    assert 0.7 < hours * 3600 < 1.3
    with claim(tmp_path):
        attempts.start_attempt(tmp_path, gpus=1.0, job=None, at=Position())
    [first, _] = read_attempts(tmp_path)
    assert first.ended is not None
    assert 0.7 < first.ended - first.started < 1.3
    assert first.outcome == "killed"


def test_files_of_a_node_lost_right_behind_the_result(tmp_path, monkeypatch, capsys):
    """It died between writing result.json and deleting what only an unfinished run needs."""
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(
        "name: s\ndataset: {name: demo}\nbackbone: {model: tiny-clip, weights: demo}\n"
        "grid: {seed: [0, 1], method: bitfit}\n"
    )
    from bench.plan.grid import expand

    done, held = (tmp_path / "results" / "s" / run.run_id for run in expand(Path("s.yaml")).runs)
    for run in (done, held):
        run.mkdir(parents=True)
        records.finish(run)
        for name in (ADAPTER, STATE, "best-0003.safetensors", ".state.pt.part"):
            (run / name).touch()
    with claim(held):  # a process that has just written its result deletes them itself
        assert sweep.main(["s.yaml", "--executor", "local"]) == 0
    assert {path.name for path in done.iterdir()} == {ADAPTER, RESULT, LOCK}
    assert (held / STATE).exists()
    assert record.is_finished(done)
    assert not (done / RUN).exists()
