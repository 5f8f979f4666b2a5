"""Where runs stand, with stand-ins for Slurm's commands and real claims, held by another process."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from bench import status
from bench.config import files
from bench.config.errors import UserError
from bench.launch import overview
from bench.launch.display import plain, render, summary
from bench.launch.overview import Status
from bench.launch.slurm import queue
from bench.status import main
from bench.store import planned, record, standing
from bench.store.folder import ATTEMPTS, LOCK, PROGRESS, RESULT, RUN
from bench.store.planned import PLAN
from methods import registry
from tests import records
from tests.test_queue import command, queued, rows

TOKEN = "petl-bench:demo:1"
LONG = "mrs_adapter-bottleneck32-shared_dim32-adaptive_triplet-margin0.25-lr0.0005-s{}-1a2b3c4d"


class Folder:
    """A sweep's results, made up run by run."""

    def __init__(self, root: Path) -> None:
        self.path = root / "demo"
        self.path.mkdir()
        self.now = time.time()
        self.plan: list[dict] = []

    def run(self, run_id: str, method: str = "lora", planned: bool = True) -> Path:
        if planned:
            self.plan.append({"run_id": run_id, "spec": {"method": {"name": method}, "train": {"epochs": 10}}})
            files.write_json(self.path / PLAN, {"sweep": "demo", "runs": self.plan})
        (self.path / run_id).mkdir()
        (self.path / run_id / LOCK).touch()
        return self.path / run_id

    def attempt(self, run: Path, started: float, end: tuple | None = None, job: str | None = None, **more) -> None:
        line = {"started": self.now + started, "job": job, "host": "node1", "gpus": 1, "epoch": 0, "step": 0} | more
        lines = [json.dumps(line)]
        if end:
            seconds, outcome, epoch, step = end
            lines.append(json.dumps({"ended": self.now + seconds, "outcome": outcome, "epoch": epoch, "step": step}))
        with (run / ATTEMPTS).open("a") as file:
            file.write("\n".join(lines) + "\n")

    def progress(self, run: Path, updated: float = 0, **more) -> None:
        state = {"phase": "train", "epoch": 4, "epochs": 10, "step": 50, "steps": 100, "eta_seconds": 100.0}
        files.write_json(run / PROGRESS, state | {"updated": self.now + updated} | more)

    def result(self, run: Path, ok: bool = True, age: float = 0.0) -> None:
        if ok:
            records.finish(run, recall=33.21)
        else:
            records.fail(run, "first line\nthe reason")
        os.utime(run / RESULT, (self.now - age, self.now - age))

    def submit(self, tasks: dict[str, str], age: float = 1000.0, token: str = TOKEN, **more) -> None:
        submitted = datetime.fromtimestamp(self.now, UTC) - timedelta(seconds=age)
        content = {"submitted": submitted.isoformat(), "token": token, "tasks": tasks, "report_job": None}
        (self.path / queue.FOLDER).mkdir(exist_ok=True)
        files.write_json(self.path / queue.FOLDER / f"{token[-1]}.json", content | more)

    def look(self) -> dict[str, tuple[str, str]]:
        return {run.run_id: (run.state, run.words) for run in Status(self.path).look_twice().runs}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Folder:
    monkeypatch.setattr(overview, "LOOK_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(queue, "SECONDS", 5.0)
    command(tmp_path, "sacct", 'echo "Slurm accounting storage is disabled" >&2; exit 1', monkeypatch)
    command(tmp_path, "squeue", queued(), monkeypatch)
    return Folder(tmp_path)


@pytest.fixture
def held() -> Iterator:
    """held(run) claims a run for another process, until the test is over."""
    others = []

    def hold(run: Path) -> None:
        code = "import pathlib, sys; from bench.store import folder\nwith folder.claim(pathlib.Path(sys.argv[1])): "
        code += "print('held', flush=True); input()"
        command = [sys.executable, "-c", code, str(run)]
        others.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert others[-1].stdout.readline() == b"held\n"

    yield hold
    for other in others:
        with other:
            other.kill()


def test_every_state(folder, held, tmp_path, monkeypatch):
    names = ("done", "bad", "again", "here", "there", "stopped", "killed", "queued", "packed", "new", "gone", "ended")
    runs = {name: folder.run(name) for name in names}
    tasks = {name: f"12_{i}" for i, name in enumerate(names) if name not in ("done", "bad", "new", "packed")}
    folder.submit(tasks | {"packed": tasks["there"]})
    folder.attempt(runs["done"], -900, (-500, "finished", 10, 0))
    folder.result(runs["done"])
    folder.result(runs["bad"], ok=False)
    folder.result(runs["again"], ok=False, age=2000)
    held(runs["here"])
    folder.attempt(runs["here"], -900, job=tasks["here"])
    folder.progress(runs["here"], updated=-20, loss=1.5)
    folder.attempt(runs["there"], -900, job=tasks["there"])
    folder.progress(runs["there"], updated=-600, phase="validate", eta_seconds=None)
    folder.attempt(runs["stopped"], -900, (-800, "stopped", 3, 40), job=tasks["stopped"])
    folder.attempt(runs["killed"], -900, job=tasks["killed"], epoch=2, step=0)
    folder.attempt(runs["ended"], -900, (-800, "stopped", 3, 0), job=tasks["ended"])
    command(
        tmp_path,
        "squeue",
        queued(
            f"{tasks['again']}|PENDING|0:05|S|E|Priority|1:00|{TOKEN}",
            f"{tasks['here']}|RUNNING|0:05|S|E|None|1:00|{TOKEN}",
            f"{tasks['there']}|RUNNING|0:05|S|E|None|1:00|{TOKEN}",
            f"{tasks['stopped']}|PENDING|0:05|S|E|BeginTime|1:00|{TOKEN}",
            f"{tasks['killed']}|REQUEUED|0:05|S|E|None|1:00|{TOKEN}",
            f"{tasks['queued']}|PENDING|0:05|S|E|Resources|1:00|{TOKEN}",
        ),
        monkeypatch,
    )
    command(tmp_path, "sacct", rows(f"{tasks['ended']}|CANCELLED by 0|2099-01-01T00:00:00|"), monkeypatch)
    found = folder.look()
    eta = found["here"][1].rpartition("1:")[2]
    assert int(eta.removesuffix(" left")) in range(10, 21)  # 100 s left, as of 20 s ago
    assert found == {
        "done": ("finished", "mean recall 33.2"),
        "bad": ("failed", "ValueError: the reason"),
        "again": ("waiting", f"job {tasks['again']} pending (Priority)"),
        "here": ("running", f"epoch 4/10, step 50/100, 1:{eta}"),
        "there": ("running", "epoch 4/10, validate"),
        "stopped": ("stopped", f"saved at epoch 4, step 40; job {tasks['stopped']} pending (BeginTime)"),
        "killed": ("stopped", f"saved at the end of epoch 2; job {tasks['killed']} requeued"),
        "queued": ("waiting", f"job {tasks['queued']} pending (Resources)"),
        "packed": ("waiting", f"its turn will come, in job {tasks['there']}"),
        "new": ("waiting", "not submitted"),
        "gone": ("lost", "its job is gone; it never started"),
        "ended": ("lost", "its job ended: CANCELLED; saved at the end of epoch 3"),
    }


def test_accounting_off(folder):
    """It adds a word to lost runs, no more."""
    folder.attempt(folder.run("a"), -900, job="12_0")
    folder.submit({"a": "12_0"})
    assert folder.look() == {"a": ("lost", "its process is gone; nothing saved yet")}


@pytest.mark.parametrize("script", ["exec sleep 60", 'echo "Unable to contact slurm controller" >&2; exit 1'])
def test_controller_down(script, folder, held, tmp_path, monkeypatch, capsys):
    """What the folders say still counts; what only the queue could say is unknown, not lost; nothing is touched."""
    monkeypatch.setattr(queue, "SECONDS", 0.3)
    command(tmp_path, "squeue", script, monkeypatch)
    folder.result(folder.run("done"))
    at_work = folder.run("here")
    held(at_work)
    folder.progress(at_work)
    folder.run("queued")
    folder.submit({"here": "12_0", "queued": "12_1"})
    started = time.monotonic()
    found = Status(folder.path).look_twice()
    assert time.monotonic() - started < 3
    assert [run.state for run in found.runs] == ["finished", "running", "unknown"]
    assert "Slurm did not answer: what is in its queue is not known" in summary(found)
    assert not found.to_dict()["queue_known"]
    assert main([str(folder.path), "--retry", "lost"]) == 2
    assert main([str(folder.path), "--cancel"]) == 2
    assert "nothing was cancelled; try again later" in capsys.readouterr().err


def test_job_ids_used_again(folder, tmp_path, monkeypatch):
    """The same id, alive in the queue, with another sweep's mark on it."""
    folder.run("a")
    folder.submit({"a": "12_0"})
    command(tmp_path, "squeue", queued("12_0|RUNNING|0:05|S|E|None|1:00|petl-bench:other:9"), monkeypatch)
    assert folder.look() == {"a": ("lost", "its job is gone; it never started")}


def test_a_run_is_lost_only_if_two_looks_miss_it(folder, tmp_path, monkeypatch):
    folder.run("a")
    folder.submit({"a": "12_0"})
    one = Status(folder.path)
    monkeypatch.setattr(overview, "LOOK_AGAIN_SECONDS", 60)
    assert one.look().runs[0].state == "unknown"
    assert one.look().runs[0].state == "unknown"  # too soon after the first to be another
    command(tmp_path, "squeue", queued(f"12_0|REQUEUED|0:05|S|E|None|1:00|{TOKEN}"), monkeypatch)
    time.sleep(0.06)
    assert one.look().runs[0].state == "waiting"
    command(tmp_path, "squeue", queued(), monkeypatch)
    assert one.look().runs[0].state == "unknown"
    monkeypatch.setattr(overview, "LOOK_AGAIN_SECONDS", 0.05)
    time.sleep(0.06)
    assert one.look().runs[0].state == "lost"


def test_without_slurm(folder, tmp_path, monkeypatch):
    """Local runs: no scheduler is asked. A killed run is lost once its process is gone, or silent on another host."""
    asked = command(tmp_path, "squeue", queued(), monkeypatch)
    folder.run("new")
    folder.attempt(folder.run("elsewhere"), -900)
    folder.progress(folder.path / "elsewhere", updated=-10)
    folder.attempt(folder.run("silent"), -900, epoch=1)
    folder.progress(folder.path / "silent", updated=-800)
    found = folder.look()
    assert found["new"] == ("waiting", "not submitted")
    assert found["elsewhere"][0] == "running"
    assert found["silent"] == ("lost", "its process is gone; saved at the end of epoch 3")
    assert not asked.exists()


def test_where_claims_are_not_seen_fresh_progress_counts(folder, monkeypatch):
    """As on systems other than Linux: a run of this host is running as long as it writes its progress."""
    for name, updated in (("busy", -10), ("silent", -800)):
        folder.attempt(folder.run(name), -900, host=socket.gethostname())
        folder.progress(folder.path / name, updated=updated)
    assert [state for state, _ in folder.look().values()] == ["lost", "lost"]
    monkeypatch.setattr(standing, "CLAIMS_ARE_SEEN", False)
    assert [state for state, _ in folder.look().values()] == ["running", "lost"]


def test_json_from_anywhere(folder, tmp_path, monkeypatch):
    """A fresh process in another folder, which knows nothing but the path."""
    folder.attempt(folder.run("done"), -7200, (-3600, "finished", 10, 0))
    folder.result(folder.path / "done")
    folder.run("queued")
    folder.submit({"queued": "12_0"}, report_job="13")
    listed = queued(f"12_0|PENDING|0:05|S|E|Resources|1:00|{TOKEN}", f"13|PENDING|0:05|S|E|Dependency|1:00|{TOKEN}")
    command(tmp_path, "squeue", listed, monkeypatch)
    (tmp_path / "else").mkdir()
    environment = os.environ | {"PYTHONPATH": str(Path(status.__file__).parents[1])}
    call = [sys.executable, "-m", "bench.status", str(folder.path), "--json"]
    done = subprocess.run(call, cwd=tmp_path / "else", env=environment, capture_output=True, text=True, check=True)
    printed = json.loads(done.stdout)
    assert printed.pop("time") >= folder.now
    nothing = dict.fromkeys(("epoch", "step", "steps", "eta_seconds")) | {"label": ""}
    first = {"run_id": "done", "method": "lora", "state": "finished", "words": "mean recall 33.2", "job": None}
    second = {"run_id": "queued", "method": "lora", "state": "waiting", "words": "job 12_0 pending (Resources)"}
    assert printed == {
        "schema": 1,
        "sweep": "demo",
        "folder": str(folder.path),
        "queue_known": True,
        "later": 0,
        "counts": {"finished": 1, "running": 0, "stopped": 0, "waiting": 1, "unknown": 0, "failed": 0, "lost": 0},
        "total": {"hours": 1.0, "gpu_hours": 1.0, "hours_left": 1.0, "gpu_hours_left": 1.0},
        "runs": [
            first | nothing | {"epochs": 10, "mean_recall": 33.21, "attempts": 1, "hours": 1.0, "gpu_hours": 1.0},
            second
            | nothing
            | {"job": "12_0", "epochs": 10, "mean_recall": None, "attempts": 0, "hours": 0.0, "gpu_hours": 0.0},
        ],
    }


def test_hours(folder, held):
    """Finished lora: 2 h on half a GPU; another: at half of it, 0.5 h to go by its own word; harma: no idea."""
    folder.attempt(folder.run("a"), -9000, (-5400, "killed", 5, 0), gpus=0.5)
    folder.attempt(folder.path / "a", -5000, (-1400, "finished", 10, 0), gpus=0.5)
    folder.result(folder.path / "a")
    folder.run("b")
    at_work = folder.run("c")
    held(at_work)
    folder.attempt(at_work, -3600)
    folder.progress(at_work, eta_seconds=1800.0, updated=time.time() - folder.now)
    total = Status(folder.path).look().total
    assert (total.hours, total.gpu_hours) == (pytest.approx(3, abs=0.01), pytest.approx(2, abs=0.01))
    assert (total.hours_left, total.gpu_hours_left) == (pytest.approx(2.5, abs=0.01), pytest.approx(1.5, abs=0.01))
    assert "2.0 GPU-hours used, about 1.5 left" in summary(Status(folder.path).look())
    folder.run("d", method="harma")
    total = Status(folder.path).look().total
    assert (total.hours_left, total.gpu_hours_left) == (None, None)


def test_in_a_terminal_of_a_hundred_columns(folder, held):
    for index in range(30):
        run = folder.run(LONG.format(index))
        if index < 3:
            folder.attempt(run, -900, (-800, "stopped", 3, 0))
        elif index < 28:
            folder.result(run, ok=False)
    held(run)
    folder.progress(run, loss=1.5, val_mean_recall=30.1)
    picture = Status(folder.path).look_twice()

    def drawn(height: int | None = None) -> list[str]:
        out = io.StringIO()
        Console(file=out, width=100, force_terminal=True, color_system=None).print(render(picture, 100, height=height))
        return out.getvalue().splitlines()

    assert len(drawn(24)) <= 24
    assert "of 30 finished" in drawn(24)[-2]
    lines = drawn()
    assert max(map(len, lines)) <= 100
    assert sum("ValueError: the reason" in line for line in lines) == 20
    assert "and 5 more (--all)" in [line.strip() for line in lines]
    [running] = [line for line in lines if "epoch 4/10" in line]
    assert running.startswith("mrs_adapter-bott")
    assert "-s29-1a2b3c4d" in running
    [whole] = [line for line in lines if "of 30 finished" in line]
    assert whole.endswith("demo: 0 of 30 finished, 1 running, 1 waiting, 25 failed, 3 lost")
    everything = plain(picture, True).splitlines()
    assert f"failed    {LONG.format(5)}  ValueError: the reason" in everything


def test_runs_of_other_commands_are_shown_while_they_matter(folder, held, tmp_path, monkeypatch):
    """Finished, at work, or with a job; what another command left unfinished is not this sweep's affair."""
    folder.result(folder.run("a"))
    for name in ("old-finished", "old-queued", "old-held", "old-failed", "old-left"):
        (folder.run(name, planned=False) / RUN).touch()
    folder.result(folder.path / "old-finished")
    folder.result(folder.path / "old-failed", ok=False)
    folder.submit({"old-queued": "12_0"})
    held(folder.path / "old-held")
    command(tmp_path, "squeue", queued(f"12_0|PENDING|0:00|S|E|None|1:00|{TOKEN}"), monkeypatch)
    picture = Status(folder.path).look()
    assert [run.run_id for run in picture.runs] == ["a", "old-finished", "old-held", "old-queued"]
    lines = summary(picture)
    assert lines[0].startswith("demo: 2 of 4 finished")
    assert "3 of these runs are of other commands, not in the last one's grid" in lines


def test_dataset_and_backbone_are_shown_where_they_differ(folder):
    for name, dataset in (("a", "rsicd"), ("b", "rsitmd")):
        folder.run(name)
        folder.plan[-1]["spec"] |= {
            "dataset": {"name": dataset, "root": f"/data/{name}"},
            "backbone": {"model": "ViT-B-32", "weights": "openai"},
        }
    files.write_json(folder.path / PLAN, {"sweep": "demo", "runs": folder.plan})
    picture = Status(folder.path).look()
    assert plain(picture, True).splitlines()[:2] == [
        "waiting   a  dataset=rsicd  not submitted",
        "waiting   b  dataset=rsitmd  not submitted",
    ]
    assert [run["label"] for run in picture.to_dict()["runs"]] == ["dataset=rsicd", "dataset=rsitmd"]


def test_watch_ends_with_the_sweep(folder, monkeypatch, capsys):
    monkeypatch.setattr(status, "WATCH_SECONDS", 0.01)
    run = folder.run("a")
    sleep, looks = time.sleep, []

    def later(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            folder.result(run)
        sleep(seconds)

    monkeypatch.setattr(status.time, "sleep", later)
    assert main([str(folder.path), "--watch", "--json"]) == 0
    states = [json.loads(line)["runs"][0]["state"] for line in capsys.readouterr().out.splitlines()]
    assert states == ["waiting", "waiting", "finished"]


# --- doing something about it ----------------------------------------------------------------------------------------


class Recorder:
    detached = True

    def __init__(self, executor, **given) -> None:
        self.executor, self.given, self.launched = executor, given, []

    def missing(self, runs):
        return [run for run in runs if run.name != "busy"]

    def launch(self, runs):
        self.launched += runs


def test_retry_takes_the_asked_states_and_the_sweeps_own_settings(folder, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(overview, "make", lambda *what, **given: made.append(Recorder(*what, **given)) or made[-1])
    folder.result(folder.run("done"))
    for name in ("bad", "busy"):
        folder.result(folder.run(name), ok=False)
    folder.run("gone")
    folder.submit({"gone": "12_0"}, slurm={"partition": "gpu", "setup": ["module load x"]})
    assert main([str(folder.path), "--retry", "failed", "--reports", "elsewhere"]) == 0
    assert [run.name for run in made[0].launched] == ["bad"]
    assert (made[0].executor, made[0].given["folder"]) == ("slurm", folder.path)
    settings = made[0].given["blocks"]["slurm"]
    assert (settings.partition, settings.setup) == ("gpu", ("module load x",))
    assert made[0].given["reports"] == Path("elsewhere/demo").absolute()
    assert main([str(folder.path), "--retry", "failed", "--retry", "lost"]) == 0
    assert [run.name for run in made[1].launched] == ["bad", "gone"]
    assert capsys.readouterr().out.splitlines() == ["tried again: 1 runs", "tried again: 2 runs"]
    assert record.read(folder.path / "bad").status == "failed"  # nothing is cleared


def test_retry_starts_the_sweep_as_it_was_started(tmp_path, monkeypatch, capsys):
    """A local sweep stays local where Slurm is; overrides, workers, plug-ins and the folder of the report are kept."""
    made = []
    monkeypatch.setattr(overview, "make", lambda *what, **given: made.append(Recorder(*what, **given)) or made[-1])
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    plugin = tmp_path / "mine.py"
    plugin.write_text("from methods.bitfit import BitFit\n\n\nclass Mine(BitFit):\n    name = 'mine'\n")
    monkeypatch.setenv(registry.PLUGINS, "")
    run_dir = tmp_path / "demo" / "bad"
    run_dir.mkdir(parents=True)
    records.fail(run_dir)
    how = planned.Start(
        executor="local",
        reports=str(tmp_path / "out"),
        workers=3,
        blocks={"slurm": {"partition": "short"}},
        plugins=[str(plugin)],
    )
    planned.write(tmp_path / "demo", planned.Plan("demo", {"bad": {}}, None, how))
    assert main([str(tmp_path / "demo"), "--retry", "failed"]) == 0
    given = made[0].given
    assert (made[0].executor, given["workers"], given["reports"]) == ("local", 3, tmp_path / "out")
    assert given["blocks"]["slurm"].partition == "short"
    assert registry.plugins() == [plugin]


def test_cancel_ends_this_sweeps_jobs_alone(folder, tmp_path, monkeypatch, capsys):
    folder.run("a")
    folder.submit({"a": "12_0"}, report_job="13")
    listed = (
        f"12_0|RUNNING|0:05|S|E|None|1:00|{TOKEN}",
        "12_1|RUNNING|0:05|S|E|None|1:00|else",
        f"13|PENDING|0:05|S|E|None|1:00|{TOKEN}",
    )
    command(tmp_path, "squeue", queued(*listed), monkeypatch)
    asked = command(tmp_path, "scancel", "", monkeypatch)
    assert main([str(folder.path), "--cancel"]) == 0
    assert asked.read_text() == "12_0 13\n"
    assert "cancelled 2 jobs with 1 runs" in capsys.readouterr().out


def test_a_sweep_file_names_its_folder(folder, tmp_path, monkeypatch, capsys):
    file = tmp_path / "any.yaml"
    file.write_text(
        "name: demo\ndataset: {name: demo}\nbackbone: {model: tiny-clip, weights: demo}\ngrid: {method: zero_shot}\n"
    )
    os.utime(file, (folder.now - 1000, folder.now - 1000))
    folder.result(folder.run("a"))
    assert main([str(file), "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "demo: 1 of 1 finished"
    assert main([str(file), "--results", str(tmp_path / "empty")]) == 0  # before its first start
    assert capsys.readouterr().out.splitlines()[-1] == "demo: 0 of 1 finished, 1 waiting"
    os.utime(file)
    main([str(file), "--results", str(tmp_path)])
    assert "has changed since the sweep was started" in capsys.readouterr().out


def test_what_is_no_sweep(tmp_path, capsys):
    with pytest.raises(UserError, match=r"has no plan\.json"):
        Status(tmp_path)
    (tmp_path / "list.yaml").write_text("- a")
    assert main([str(tmp_path / "list.yaml")]) == 2
    assert main([str(tmp_path / "missing.yaml")]) == 2
    assert "no such sweep file or results folder" in capsys.readouterr().err


ODD = ["x", -1, float("inf"), None, [], {}, True, "\ud800", 2**70]


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("file", [PROGRESS, ATTEMPTS, PLAN])
def test_one_odd_value_is_one_runs_own_affair(folder, capsys, file, odd):
    """Whatever a value of one run's files is, every run is listed, and the others are as they were."""
    sound = folder.run("sound")
    folder.attempt(sound, -100)
    folder.progress(sound)
    known = [sound.name]
    contents = {
        PROGRESS: json.loads((sound / PROGRESS).read_text()),
        ATTEMPTS: json.loads((sound / ATTEMPTS).read_text()),
    }
    for key in ("method", "train") if file == PLAN else contents[file]:
        run = folder.run(f"odd-{key}")
        known.append(run.name)
        for name, content in contents.items():
            (run / name).write_text(json.dumps(content | ({key: odd} if name == file else {})) + "\n")
    plan = [{**row, "spec": dict(row["spec"])} for row in folder.plan]
    for row in plan[1:] if file == PLAN else []:
        row["spec"][row["run_id"].removeprefix("odd-")] = odd
    files.write_bytes(folder.path / PLAN, json.dumps({"sweep": "demo", "runs": plan}).encode())
    assert main([str(folder.path), "--all"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in known)
    assert "running   sound  epoch 4/10, step 50/100" in shown


def test_a_folder_that_cannot_be_read_is_one_runs_own_affair(folder, capsys, monkeypatch):
    folder.run("sound")
    broken = folder.run("broken")
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.parent == broken:
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert main([str(folder.path), "--all"]) == 0
    shown = capsys.readouterr().out
    assert f"unknown   broken  {broken} can't be read: Permission denied" in shown
    assert "waiting   sound" in shown


def test_a_run_whose_folder_was_deleted_while_it_was_computed_has_failed(tmp_path):
    record.write_failure(tmp_path / "gone", {}, record.Failure(type="WorkerDied", message="its folder was deleted"))
    assert record.read(tmp_path / "gone").status == "failed"
