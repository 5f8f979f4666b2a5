"""What is submitted and what a job decides, with stand-ins for Slurm; test_slurm_cluster.py has the real one."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import sweep
from bench.config import files
from bench.config.errors import UserError
from bench.config.settings import SlurmSettings
from bench.core.position import Position
from bench.launch.slurm import job as slurm_job
from bench.launch.slurm import launcher, queue, submission
from bench.launch.slurm.launcher import SlurmLauncher
from bench.launch.slurm.submission import NewSubmission
from bench.store import attempts, planned, provenance, record
from bench.store.cluster import Job, Queue
from bench.store.folder import RESULT
from bench.store.record import Failure
from tests import records
from tests.test_queue import queued


@pytest.fixture
def command(tmp_path, monkeypatch):
    """command(name, script) puts a stand-in in front of the PATH; it notes its arguments in `asked`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def put(name: str, script: str) -> None:
        file = folder / name
        file.write_text(f'#!/bin/sh\necho {name} "$@" >>{tmp_path / "asked"}\n{script}\n')
        file.chmod(0o755)

    return put


@pytest.fixture
def folders(tmp_path):
    """folders("a", "b") makes run folders of a sweep."""

    def make(*names: str) -> list[Path]:
        for name in names:
            (tmp_path / "results" / "x" / name).mkdir(parents=True)
        return [tmp_path / "results" / "x" / name for name in names]

    return make


def array(folder: Path, **settings: object) -> SlurmLauncher:
    return SlurmLauncher(folder, SlurmSettings(**settings), folder / "reports")  # type: ignore[arg-type]


def submitting(folder: Path, alive: Queue, **settings: object) -> NewSubmission:
    return NewSubmission(folder, SlurmSettings(**settings), folder / "reports", alive=alive)  # type: ignore[arg-type]


def asked(tmp_path: Path) -> list[str]:
    return (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []


# --- what is submitted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "at_once", "alive", "wanted"),
    [
        (60, 64, 0, [(20, 0, 20), (20, 1, 20), (20, 2, 20)]),
        (50, 7, 0, [(20, 0, 3), (20, 1, 2), (10, 2, 2)]),
        (60, 2, 0, [(20, 0, 1), (20, 1, 1), (20, 0, 1)]),  # the third follows the first
        (3, 64, 62, [(3, 0, 2)]),
        (3, 4, 9, [(3, 0, 3)]),  # behind those alive
    ],
)
def test_arrays_keep_together_to_the_parallelism(tmp_path, runs, at_once, alive, wanted):
    jobs = tuple(Job(f"1_{i}", "token", "running", None, None) for i in range(alive))
    new = submitting(tmp_path, Queue("Slurm", jobs=jobs), array_parallelism=at_once)
    arrays = new._arrays([Path(f"m-{i}") for i in range(runs)], 20)
    assert [(len(found.packets), found.lane, found.share) for found in arrays] == wanted


def test_a_jobs_name_says_what_differs(tmp_path):
    """In a name without "/": it is part of the log's path, and Slurm could not start the job."""
    runs = {
        f"lora-{index}": {"dataset": {"name": dataset}, "backbone": {"model": model, "weights": "openai"}}
        for index, (dataset, model) in enumerate(itertools.product(("rsicd", "ucm"), ("ViT-B-32", "hf-hub:a/b")))
    }
    launcher = SlurmLauncher(tmp_path, SlurmSettings(), tmp_path, plan=planned.Plan("s", runs))
    names = []
    for name in runs:
        [line] = [line for line in launcher.scripts([tmp_path / name])[0].splitlines() if "--job-name=" in line]
        names.append(line.partition("=")[2].removeprefix(f"{tmp_path.name}-lora@"))
    assert names == ["rsicd-ViT-B-32", "rsicd-hf-hub_a_b", "ucm-ViT-B-32", "ucm-hf-hub_a_b"]


def test_a_report_replaces_none_of_another_command(tmp_path):
    """A second command with the sweep's name, and another grid or another folder, leaves the first one's report job."""
    plans = [planned.Plan("x", {"a": {}}), planned.Plan("x", {"b": {}})]
    first = {"plan": plans[0].id, "reports": str(tmp_path / "reports")}
    (tmp_path / "slurm").mkdir()
    sent = {"submitted": "2026-01-01T00:00:00+00:00", "token": "t", "tasks": {"a": "5_0"}, "report_job": "6"}
    (tmp_path / "slurm" / "1.json").write_text(json.dumps(sent | first))
    jobs = (Job("5_0", "t", "running", None, None), Job("6", "t", "pending", None, None))
    for plan, reports, cancelled in ((plans[0], "reports", ["6"]), (plans[1], "reports", []), (plans[0], "other", [])):
        new = NewSubmission(tmp_path, SlurmSettings(), tmp_path / reports, alive=Queue("Slurm", jobs=jobs), plan=plan)
        assert [job.id for job in new.old_reports] == cancelled
        assert [job.id for job in new.before] == ["5_0"]  # a report is no run: it takes no place, and none waits for it


def test_packets(tmp_path):
    new = submitting(tmp_path, Queue("Slurm"), runs_per_job=4, parallel_runs=2)
    [found] = new._arrays([Path(f"m-{i}") for i in range(10)], 20)
    assert [len(packet) for packet in found.packets] == [4, 4, 2]
    with pytest.raises(UserError, match=r"slurm.parallel_runs \(4\) is more than slurm.runs_per_job \(1\)"):
        array(tmp_path, parallel_runs=4)


def test_a_warning_that_comes_too_early_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"slurm.signal_seconds \(120\) is more than half of slurm.timeout_min \(3\)"):
        array(tmp_path, timeout_min=3)


def test_settings_reach_the_script(tmp_path):
    settings = array(
        tmp_path,
        partition="gpu",
        account="lab",
        qos="long",
        constraint="a100",
        gres="gpu:1",
        mem_gb=1.5,
        timeout_min=70,
        signal_seconds=33,
        cpus_per_task=3,
        setup=("module load x",),
        extra={"nice": 3, "exclude": "n7"},
    )
    [script] = settings.scripts([Path("lora-1"), Path("vpt-1"), Path("lora-2")])
    lines = script.splitlines()
    for line in (
        "partition=gpu",
        "account=lab",
        "qos=long",
        "constraint=a100",
        "gres=gpu:1",
        "mem=1536M",
        "time=70",
        "signal=USR2@33",
        "cpus-per-task=3",
        "nice=3",
        "exclude=n7",
        "array=0-2%3",
        "requeue",
        f"job-name={tmp_path.name}-lora+vpt",
        f"output={tmp_path}/slurm/logs/%x-%A_%a.log",
    ):
        assert f"#SBATCH --{line}" in lines
    assert lines.index("module load x") < lines.index("export OMP_NUM_THREADS=3")
    assert sum(line.startswith("#SBATCH --comment=petl-bench:") for line in lines) == 1
    assert "wckey" not in script
    syntax = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (syntax.returncode, syntax.stderr) == (0, "")
    assert not (tmp_path / "slurm").exists()


def test_a_plan_with_scripts_needs_no_slurm(tmp_path):
    (tmp_path / "x.yaml").write_text(
        "name: x\ndataset: {name: demo}\nbackbone: {model: tiny-clip, weights: random}\ngrid: {method: zero_shot}\n"
    )
    code = "from bench.sweep import main; main(['x.yaml', '--dry-run', '--executor', 'slurm'])"
    environment = {"PYTHONPATH": str(Path(sweep.__file__).parents[1]), "PATH": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "x: 1 runs, 0 finished, 1 to run" in done.stdout
    assert f"#SBATCH --output={tmp_path}/results/x/slurm/logs/%x-%j.log" in done.stdout


def test_only_what_is_nowhere_is_missing(folders, monkeypatch):
    queued, finished, held, new = runs = folders("queued", "finished", "held", "new")
    records.finish(finished)
    alive = Queue("Slurm", runs={"queued": Job("1_0", "t", "pending", "Priority")})
    monkeypatch.setattr(queue, "look", lambda manifests: alive)
    monkeypatch.setattr(launcher, "is_claimed", lambda run: run == held)
    assert array(queued.parent).missing(runs) == [new]


def test_nothing_is_submitted_while_the_queue_is_unknown(folders, command, tmp_path):
    [run] = folders("a")
    (run.parent / "slurm").mkdir()
    manifest = {"submitted": "2026-01-01T00:00:00+00:00", "token": "t", "tasks": {"a": "1"}}
    files.write_json(run.parent / "slurm" / "1.json", manifest)
    command("squeue", "exit 1")
    command("sbatch", "")
    with pytest.raises(UserError, match="squeue gave no answer, so nothing was submitted; try again later"):
        array(run.parent).launch([run])
    assert not any(line.startswith("sbatch") for line in asked(tmp_path))


def test_a_killed_submission_is_made_up_for(folders, command, capsys):
    """sbatch took the first array and then fails for good: what it took is in a manifest, no run is forgotten."""
    runs = folders("a", "b", "c")
    command("squeue", queued())
    command("srun", "")
    command("scontrol", "echo 'MaxArraySize = 2'")
    command(
        "sbatch",
        'case "$*" in *test-only*) ;; *) [ -e "$0.once" ] && { echo no idea >&2; exit 1; }; '
        'touch "$0.once"; echo Submitted batch job 7;; esac',
    )
    with pytest.raises(UserError, match="Slurm did not take all jobs: no idea; 2 runs are queued as jobs 7, 1 are not"):
        array(runs[0].parent).launch(runs)
    [manifest] = queue.submissions(runs[0].parent)
    assert manifest.tasks == {"a": "7_0", "b": "7_1"}
    left = {path.name for path in (runs[0].parent / "slurm" / "jobs").glob("*/*")}
    assert left == {"7_0_submitted.pkl", "7_1_submitted.pkl", "7_submission.sh"}


@pytest.mark.parametrize(("refusals", "taken"), [(2, True), (3, False)])
def test_no_is_asked_again_before_it_is_believed(refusals, taken, folders, command, tmp_path, monkeypatch):
    """For some seconds after its start a controller says that no node could run anything."""
    [run] = folders("a")
    monkeypatch.setattr(submission, "FIT_PAUSES", (0.0, 0.0, 0.0))
    command("squeue", queued())
    command("srun", "")
    command("scontrol", "")
    no = "echo Requested node configuration is not available >&2; exit 1"
    command(
        "sbatch",
        f'case "$*" in *test-only*) echo x >>"$0.no"; [ $(wc -l <"$0.no") -le {refusals} ] && {{ {no}; }};; '
        "*) echo Submitted batch job 7;; esac; exit 0",
    )
    if taken:
        array(run.parent).launch([run])
        assert queue.submissions(run.parent)[-1].tasks == {"a": "7"}
    else:
        with pytest.raises(UserError, match="no node could run such a job"):
            array(run.parent).launch([run])
        assert queue.submissions(run.parent) == []


def test_ctrl_c_leaves_the_jobs_running(folders, command, tmp_path, monkeypatch):
    [run] = folders("a")
    (run.parent / "slurm").mkdir()
    manifest = {"submitted": "2026-01-01T00:00:00+00:00", "token": "t", "tasks": {"a": "1"}}
    files.write_json(run.parent / "slurm" / "1.json", manifest)
    command("squeue", queued("1|RUNNING|0:05|S|E|None|1:00|t"))

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launcher, "time", SimpleNamespace(sleep=interrupted, monotonic=time.monotonic))
    attached = array(run.parent)
    attached.detached = False
    with pytest.raises(KeyboardInterrupt, match="no longer following; the jobs continue"):
        attached.launch([run])
    assert {line.split()[0] for line in asked(tmp_path)} == {"squeue"}


# --- the code --------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_the_code_and_knows_its_commit(tmp_path):
    copy = provenance.snapshot(tmp_path / "code")
    assert provenance.snapshot(tmp_path / "code") == copy
    assert [path.name for path in (tmp_path / "code").iterdir()] == [provenance.digest()]
    code = "import bench.store.provenance as r, json; print(json.dumps([str(r.ROOT), r.commit(), r.is_dirty()]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=provenance.ROOT,
        env={"PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [str(copy), provenance.commit(), provenance.is_dirty()]


# --- what a job decides ----------------------------------------------------------------------------------------------


def orders_for(run: Path, max_timeouts: int) -> slurm_job.Orders:
    return slurm_job.Orders(
        run_dirs=(str(run),),
        parallel=1,
        timeout_min=60,
        signal_seconds=120,
        max_timeouts=max_timeouts,
        submitted=time.time() - 5,
    )


@pytest.fixture
def job(tmp_path, folders, command, monkeypatch):
    """job(state, preempted) makes this process the job 5_1 with the run `a`, as far as Slurm's commands tell."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    [run] = folders("a")

    def make(state: str = "RUNNING", preempted: bool = False, max_timeouts: int = 2) -> slurm_job.Orders:
        when = "2026-11-21T16:00:00" if preempted else "None"
        command("scontrol", f"echo JobId=6 ArrayJobId=5 JobState={state} Reason=None PreemptTime={when}")
        return orders_for(run, max_timeouts=max_timeouts)

    return make


def requeues(tmp_path: Path) -> int:
    return asked(tmp_path).count("scontrol requeue 5_1")


@pytest.mark.parametrize(
    ("state", "preempted", "warned", "again"),
    [
        ("RUNNING", False, True, True),  # near its time limit
        ("RUNNING", True, True, True),
        ("RUNNING", True, False, True),  # preempted without a warning: SIGTERM, and a grace time
        ("RUNNING", False, False, True),  # someone sent it a SIGTERM
        ("COMPLETING", False, False, False),  # scancel, or scontrol requeue
        ("COMPLETING", False, True, False),
        ("COMPLETING", True, False, True),  # preempted by PreemptMode=CANCEL, which requeues nothing
    ],
)
def test_who_requeues(job, tmp_path, state, preempted, warned, again):
    slurm_job._requeue_if_needed(job(state, preempted), warned)
    assert requeues(tmp_path) == again


def stop(run: Path, at: tuple[int, int], reached: tuple[int, int]) -> None:
    attempts.start_attempt(run, gpus=1.0, job="5_1", at=Position(*at))
    attempts.end_attempt(run, "stopped", reached=Position(*reached))


def error(run: Path) -> Failure:
    """The error of a run that has failed."""
    found = record.read(run)
    assert found is not None
    assert found.error is not None
    return found.error


def test_time_outs_that_get_on_go_on_so_many_times(job, tmp_path):
    orders = job()
    [run] = map(Path, orders.run_dirs)
    for count in range(2):
        stop(run, (count, 0), (count + 1, 0))
        slurm_job._requeue_if_needed(orders, True)
        assert (requeues(tmp_path), record.read(run)) == (count + 1, None)
    stop(run, (2, 0), (2, 5))
    slurm_job._requeue_if_needed(orders, True)
    assert requeues(tmp_path) == 2
    assert error(run).message == (
        "timed out after 60 min at epoch 3, 3 times by now; the same command goes on from there, "
        "or raise slurm.max_timeouts"
    )


def test_a_failed_run_does_not_take_its_packet_along(job, tmp_path, folders):
    [other] = folders("b")
    orders = job()
    orders = replace(orders, run_dirs=(*orders.run_dirs, str(other)))
    run = Path(orders.run_dirs[0])
    stop(run, (1, 4), (1, 4))
    slurm_job._requeue_if_needed(orders, True)
    assert "without finishing a step" in error(run).message
    assert orders.unsettled() == [other]
    assert requeues(tmp_path) == 1


def test_failures_from_before_are_tried_again(job):
    orders = job()
    [run] = map(Path, orders.run_dirs)
    records.fail(run)
    assert orders.unsettled() == []
    os.utime(run / RESULT, (1, 1))
    assert orders.unsettled() == [run]


@pytest.mark.parametrize("left", [0, 1])
def test_a_dead_process_is_accounted_for(job, tmp_path, folders, left):
    [other] = folders("b")
    job()
    run = other.with_name("a")
    tasks = {"a": "5_1", "b": "5_1"} if left else {"a": "5_1", "b": "5_2"}
    manifest = {"submitted": "2026-01-01T00:00:00+00:00", "token": "t", "tasks": tasks}
    (run.parent / "slurm").mkdir()
    files.write_json(run.parent / "slurm" / "1.json", manifest)
    attempts.start_attempt(run, gpus=1.0, job="5_1", at=Position())
    (run / "log.txt").write_text("the last words\n")
    assert slurm_job.main([str(run.parent), "137"]) == 137
    assert error(run).message == (
        "the process of this run was ended by SIGKILL (kill -9, or more memory than slurm.mem_gb)"
    )
    assert error(run).traceback == "the last words"
    assert record.read(other) is None
    assert requeues(tmp_path) == left


def test_a_job_that_slurm_ends_is_no_failure(job, tmp_path, folders):
    job("COMPLETING")
    assert slurm_job.main([str(tmp_path / "results" / "x"), "143"]) == 143
    assert not list(tmp_path.glob("results/x/*/result.json"))


LISTEN = """
import os, sys, time, threading
from bench.launch.slurm.job import Warnings
with Warnings({seconds}, lambda: (print("too late", flush=True), os._exit(7))) as warnings:
    print("ready", flush=True)
    {work}
    print(warnings.asked.is_set(), warnings.warned, flush=True)
"""


def listen(work: str, number: signal.Signals, seconds: float = 60) -> tuple[str, int]:
    """What a process prints that gets the signal while at this work, and its exit code."""
    code = LISTEN.format(seconds=seconds, work=work)
    environment = os.environ | {"PYTHONPATH": str(provenance.ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        return process.stdout.read().strip(), process.wait(30)


@pytest.mark.parametrize(("number", "warned"), [(signal.SIGUSR2, True), (signal.SIGTERM, False)])
def test_signals_are_heard_at_once(number, warned):
    # The main thread never gets to a Python signal handler before the answer is there.
    assert listen("warnings.asked.wait(20)", number) == (f"True {warned}", 0)


def test_a_step_without_end_is_given_up_in_time():
    assert listen("time.sleep(20)", signal.SIGUSR2, seconds=0.5) == ("too late", 7)


def test_a_child_that_ends_is_no_warning():
    work = "child = os.fork() or time.sleep(20); time.sleep(0.3); os.kill(child, 15); os.waitpid(child, 0)"
    assert listen(work, signal.SIGCONT) == ("False False", 0)
