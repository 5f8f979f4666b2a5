"""The cluster's word on a sweep's jobs, from stand-ins for squeue, sacct and scancel that print what Slurm prints."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.config import files
from bench.config.errors import UserError
from bench.launch.slurm import queue
from bench.launch.slurm.queue import cancel, ends, jobs_of, look, submissions
from bench.store.cluster import Job

HEADER = "JOBID|STATE|TIME|START_TIME|END_TIME|REASON|TIME_LEFT|COMMENT"


def command(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in for a command in front of the PATH; it leaves what it was asked in the file returned."""
    file = folder / "bin" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(f'#!/bin/sh\necho "$*" >>"$0.asked"\n{script}\n')
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{file.parent}{os.pathsep}{os.environ['PATH']}")
    return file.with_name(f"{name}.asked")


def submission(sweep_dir: Path, stamp: str, tasks: dict[str, str], **more) -> None:
    content = {
        "schema": 1,
        "submitted": f"2026-11-21T15:0{stamp}:00+00:00",
        "token": f"petl-bench:demo:{stamp}",
        "tasks": tasks,
        "report_job": None,
    }
    (sweep_dir / queue.FOLDER).mkdir(parents=True, exist_ok=True)
    files.write_json(sweep_dir / queue.FOLDER / f"{stamp}.json", content | more)


def rows(*lines: str) -> str:
    return "cat <<'END'\n" + "\n".join(lines) + "\nEND"


def queued(*lines: str) -> str:
    """A script that prints what squeue prints for these jobs."""
    return rows(HEADER, *lines)


def test_one_look_answers_for_every_run(tmp_path, monkeypatch):
    submission(tmp_path, "1", {"a": "12_0", "b": "12_1", "c": "13"}, report_job="14")
    submission(tmp_path, "2", {"b": "15_0"})
    asked = command(
        tmp_path,
        "squeue",
        queued(
            "12_0|RUNNING|0:05|S|E|None|1-02:00:05|petl-bench:demo:1",
            "13_0|REQUEUED|0:05|S|E|BeginTime|UNLIMITED|petl-bench:demo:1",
            "15|PENDING|0:05|S|E|Resources|2:00:00|petl-bench:demo:2",
            "14|PENDING|0:05|S|E|Dependency|5:00|petl-bench:demo:1",
            "12_1|RUNNING|0:05|S|E|None|5:00|(null)",
            "16|RUNNING|0:05|S|E|None|INVALID|somebody's|own comment",
        ),
        monkeypatch,
    )
    found = look(submissions(tmp_path))
    assert found.known
    assert found.runs == {
        "a": Job("12_0", "petl-bench:demo:1", "running", None, 93605),
        "b": Job("15", "petl-bench:demo:2", "pending", "Resources", 7200),
        "c": Job("13_0", "petl-bench:demo:1", "requeued", "BeginTime", None),
    }
    assert {job.id for job in found.jobs} == {"12_0", "13_0", "14", "15"}
    assert (found.state("c"), found.state("d")) == ("requeued", None)
    assert asked.read_text() == f"-r -u {os.getuid()} -o %i|%T|%M|%S|%e|%r|%L|%k\n"


def test_a_job_id_used_again_is_not_ours(tmp_path, monkeypatch):
    submission(tmp_path, "1", {"old": "12_0", "gone": "12_1"})
    submission(tmp_path, "2", {"new": "12_0"})
    command(
        tmp_path,
        "squeue",
        queued("12_0|RUNNING|0:05|S|E|None|5:00|petl-bench:demo:2", "12_1|RUNNING|0:05|S|E|None|5:00|x"),
        monkeypatch,
    )
    assert list(look(submissions(tmp_path)).runs) == ["new"]


@pytest.mark.parametrize(
    "script",
    [
        "exec sleep 60",
        'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1',
        None,
    ],
)
def test_unknown_is_not_gone(script, tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "SECONDS", 0.2)
    if script:
        command(tmp_path, "squeue", script, monkeypatch)
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    submission(tmp_path, "1", {"a": "12_0"})
    found = look(submissions(tmp_path))
    assert (found.known, found.runs) == (False, {})


def test_without_a_submission_nothing_is_asked(tmp_path, monkeypatch):
    asked = command(tmp_path, "squeue", queued(), monkeypatch)
    assert look(submissions(tmp_path)).known
    assert not asked.exists()


def test_manifests_come_in_order_and_broken_ones_not_at_all(tmp_path):
    submission(tmp_path, "2", {"b": "2"})
    submission(tmp_path, "1", {"a": "1_0"}, report_job=7)
    submission(tmp_path, "3", {}, submitted="yesterday")
    files.write_json(tmp_path / queue.FOLDER / "4.json", ["no manifest"])
    (tmp_path / queue.FOLDER / "5.json").write_text('{"half":')
    found = submissions(tmp_path)
    assert [list(manifest.tasks) for manifest in found] == [["a"], ["b"]]
    assert found[0].submitted == datetime(2026, 11, 21, 15, 1, tzinfo=UTC)
    assert jobs_of(found[0]) == {"1", "7"}


def test_how_tasks_ended(tmp_path, monkeypatch):
    submission(tmp_path, "1", {"a": "12_0", "b": "12_1", "c": "13", "d": "12_2", "e": "14"})
    asked = command(
        tmp_path,
        "sacct",
        rows(
            "12_0|TIMEOUT|2026-11-23T15:01:00|",
            "12_1|CANCELLED by 1000|2026-11-23T15:01:00|petl-bench:demo:1",
            "12_2|FAILED|2026-11-23T15:01:00|somebody's",
            "14|RUNNING|2026-11-23T15:01:00|",
            "13|OUT_OF_MEMORY|2025-01-01T00:00:00|",
            "",
        ),
        monkeypatch,
    )
    manifests = submissions(tmp_path)
    token = manifests[0].token
    assert ends(manifests) == {(token, "12_0"): "TIMEOUT", (token, "12_1"): "CANCELLED"}
    assert asked.read_text() == "-X -n -P -j 12,13,14 -o JobID,State,Submit,Comment\n"
    command(tmp_path, "sacct", 'echo "Slurm accounting storage is disabled" >&2; exit 1', monkeypatch)
    assert ends(manifests) == {}
    assert ends([]) == {}


def test_cancel_names_each_job(tmp_path, monkeypatch):
    asked = command(tmp_path, "scancel", "", monkeypatch)
    cancel([Job("12_1", "t", "running", None, None), Job("12_0", "t", "pending", None, None)])
    assert asked.read_text() == "12_0 12_1\n"
    cancel([])
    assert asked.read_text() == "12_0 12_1\n"
    command(tmp_path, "scancel", 'echo "scancel: error: Kill job error: Access denied" >&2; exit 1', monkeypatch)
    with pytest.raises(UserError, match="scancel failed: scancel: error: Kill job error: Access denied"):
        cancel([Job("12_0", "t", "pending", None, None)])
