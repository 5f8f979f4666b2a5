"""Slurm's answers that are wrong, late or cut off, from stand-ins for its commands."""

from __future__ import annotations

from math import inf

import pytest

from bench.config import files
from bench.config.errors import UserError
from bench.launch import overview
from bench.launch.overview import Status
from bench.launch.slurm import queue
from bench.launch.slurm import submission as slurm_submission
from bench.launch.slurm.limits import Limits
from bench.launch.slurm.queue import look, submissions
from tests.test_queue import HEADER, queued, submission
from tests.test_queue import command as put
from tests.test_slurm import array, asked, command, folders

__all__ = ["command", "folders"]  # fixtures

TOKEN = "petl-bench:demo:1"


# --- a submission that fails half way --------------------------------------------------------------------------------


def test_what_slurm_took_is_named_and_gets_its_report(folders, command, tmp_path, capsys):
    """sbatch takes the first array of two, refuses the second for good, and takes the job for the report."""
    runs = folders("a", "b", "c", "d")
    command("squeue", queued())
    command("srun", "")
    command("scontrol", "echo 'MaxArraySize = 2'")
    command(
        "sbatch",
        'case "$*" in *test-only*) exit 0;; esac; echo x >>"$0.calls"; n=$(wc -l <"$0.calls"); '
        '[ "$n" = 2 ] && { echo no idea >&2; exit 1; }; echo Submitted batch job 1$n',
    )
    with pytest.raises(UserError) as caught:
        array(runs[0].parent).launch(runs)
    assert str(caught.value) == (
        "Slurm did not take all jobs: no idea; 2 runs are queued as jobs 11, 2 are not submitted; "
        "the same command submits these"
    )
    [sent] = submissions(runs[0].parent)
    assert (sent.tasks, sent.report_job) == ({"a": "11_0", "b": "11_1"}, "13")
    printed = capsys.readouterr().out
    assert "submitted: 2 runs as jobs 11" in printed
    assert "report:    job 13" in printed


# --- an answer that is none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    ["", f"printf '{HEADER}'", f"printf '{HEADER}\\n12_1|RUNNING|0:05|S|E|None|1:00|{TOKEN}\\n12_0|RUNN'"],
    ids=["nothing", "half a header", "a line cut off"],
)
def test_half_an_answer_is_none(script, tmp_path, monkeypatch):
    monkeypatch.setattr(overview, "LOOK_AGAIN_SECONDS", 0.05)
    sweep = tmp_path / "demo"
    submission(sweep, "1", {"a": "12_0", "b": "12_1"})
    plan = {"sweep": "demo", "runs": [{"run_id": run, "spec": {}} for run in ("a", "b")]}
    files.write_json(sweep / "plan.json", plan)
    put(tmp_path, "squeue", script, monkeypatch)
    assert not look(submissions(sweep)).known
    assert [run.state for run in Status(sweep).look_twice().runs] == ["unknown", "unknown"]


def test_no_job_at_all_is_an_answer(tmp_path, monkeypatch):
    submission(tmp_path, "1", {"a": "12_0"})
    put(tmp_path, "squeue", queued(), monkeypatch)
    found = look(submissions(tmp_path))
    assert (found.known, found.jobs) == (True, ())


def test_a_run_is_submitted_again_only_if_two_looks_miss_it(folders, command, tmp_path):
    [run] = folders("a")
    manifest = {"submitted": "2026-01-01T00:00:00+00:00", "token": "t", "tasks": {"a": "1"}}
    (run.parent / queue.FOLDER).mkdir()
    files.write_json(run.parent / queue.FOLDER / "1.json", manifest)
    once = queued("1|RUNNING|0:05|S|E|None|1:00|t")
    command("squeue", f'[ -e "$0.once" ] && {{ {once}\n}} || {{ touch "$0.once"; {queued()}\n}}')
    command("sbatch", "exit 1")
    array(run.parent).launch([run])
    assert not any(line.startswith("sbatch") for line in asked(tmp_path))


# --- jobs that are ending --------------------------------------------------------------------------------------------


def test_a_completing_job_lives_only_if_slurm_requeues_it(tmp_path, monkeypatch):
    """squeue gives all as COMPLETING; a requeued one waits already, with its next start and end."""
    submission(tmp_path, "1", {"cancelled": "12_0", "requeued": "12_1", "at once": "12_2", "endless": "12_3"})
    listed = queued(
        f"12_0|COMPLETING|0:02|2026-11-24T17:36:31|2026-11-24T17:36:33|None|4:58|{TOKEN}",
        f"12_1|COMPLETING|0:00|2026-11-24T17:39:11|2026-11-24T17:44:11|None|5:00|{TOKEN}",
        f"12_2|COMPLETING|0:00|2026-11-24T17:36:31|2026-11-24T17:36:31|None|5:00|{TOKEN}",
        f"12_3|COMPLETING|0:00|2026-11-24T17:36:34|NONE|None|UNLIMITED|{TOKEN}",
    )
    put(tmp_path, "squeue", listed, monkeypatch)
    found = look(submissions(tmp_path))
    assert (list(found.runs), found.ending) == (["requeued", "endless"], {"12_0", "12_2"})


# --- the cluster's limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("partition", "enforced", "minutes", "owner"),
    [
        (None, "associations", 60, "partition 'all'"),
        ("short", "associations", 15, "partition 'short'"),
        ("short,all", "associations", 60, "partition 'all'"),  # a job starts in either
        (None, "associations,limits,qos", 30, "account 'lab'"),
        ("long", "none", inf, "partition 'long'"),
        ("hidden", "associations,limits", None, None),
    ],
)
def test_the_limit_of_a_jobs_time(partition, enforced, minutes, owner, command):
    command(
        "scontrol",
        f'case "$*" in *config*) echo "AccountingStorageEnforce = {enforced}"; exit;; esac\n'
        "echo 'PartitionName=all Default=YES MaxTime=01:00:00 QoS=N/A'\n"
        "echo 'PartitionName=short Default=NO MaxTime=00:15:00'\n"
        "echo 'PartitionName=long Default=NO MaxTime=UNLIMITED'",
    )
    command("sacctmgr", 'case "$*" in *user*) echo "lab|lab||00:30:00|normal|";; *) echo "normal|";; esac')
    found = Limits.ask({"partition": partition}).time
    assert (found and found.minutes, found and found.owner) == (minutes, owner)


@pytest.mark.parametrize(
    ("squeue", "words"),
    [
        (queued(), "Slurm did not take the jobs: .*Socket timed out"),
        ("exit 1", "squeue gave no answer, so Slurm may have taken jobs"),
    ],
)
def test_an_sbatch_that_times_out_in_vain(squeue, words, folders, command, monkeypatch):
    """Slurm took nothing, as far as squeue says, or squeue gives no answer."""
    monkeypatch.setattr(slurm_submission, "UNSEEN_PAUSES", (0.0, 0.0))
    [run] = folders("a")
    command("squeue", squeue)
    command("srun", "")
    command("scontrol", "")
    command(
        "sbatch", 'case "$*" in *test-only*) ;; *) echo "Socket timed out on send/recv operation" >&2; exit 1;; esac'
    )
    with pytest.raises(UserError, match=words):
        array(run.parent).launch([run])
    assert submissions(run.parent) == []


@pytest.mark.parametrize("name", ["%j", "100%", "%A_%a"])
def test_a_results_folder_with_a_pattern_of_slurms_is_refused(tmp_path, name):
    """Slurm and submitit replace patterns such as %j in paths, so that logs and jobs' files would be elsewhere."""
    with pytest.raises(UserError, match=f"'%' in the results folder .*{name}/x: .*choose another --results"):
        array(tmp_path / name / "x")
