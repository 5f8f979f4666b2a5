"""A second scheduler is a folder in bench/launch and a block of settings; no plan, store or command knows its name."""

from __future__ import annotations

import inspect
import json
import pkgutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from bench import launch, status, sweep
from bench.config.settings import SCHEDULERS, Settings
from bench.launch import overview, schedulers
from bench.store import planned
from bench.store.cluster import Job, Queue, Submission

FILE = """name: x
dataset: {name: demo}
backbone: {model: tiny-clip, weights: random}
grid: {seed: [0, 1], method: [vpt]}
fake: {queue: fast}
"""


class FakeSettings(Settings):
    queue: str = "any"


class Fake:
    """A cluster in memory: `jobs` are alive; its submissions are files in the sweep's folder, as for any scheduler."""

    detached = True

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.answers, self.ended = True, ""

    # --- bench.launch.schedulers.Scheduler ---

    def available(self) -> bool:
        return True

    def current_job(self) -> str | None:
        return "fake-7"

    def submissions(self, folder: Path) -> list[Submission]:
        found = []
        for path in sorted((folder / "fake").glob("*.json")):
            content = json.loads(path.read_text())
            submitted = datetime.fromtimestamp(content["submitted"], UTC)
            found.append(Submission(path, submitted, path.stem, content["tasks"], content=content))
        return found

    def look(self, submissions: Sequence[Submission]) -> Queue:
        if not self.answers:
            return Queue("Fake", known=False)
        alive = {job.id: job for job in self.jobs}
        runs = {run: alive[task] for each in submissions for run, task in each.tasks.items() if task in alive}
        return Queue("Fake", jobs=tuple(self.jobs), runs=runs)

    def ends(self, submissions: Sequence[Submission]) -> dict[tuple[str, str], str]:
        return {(each.token, task): self.ended for each in submissions for task in each.tasks.values()}

    def cancel(self, jobs: Sequence[Job]) -> None:
        self.jobs = [job for job in self.jobs if job not in jobs]

    def make_launcher(
        self, folder: Path, settings: FakeSettings, reports: Path, *, detached: bool, plan: planned.Plan | None
    ) -> Fake:
        self.folder, self.settings, self.reports = folder, settings, reports
        return self

    def at_once(self, settings: FakeSettings, runs: int) -> int:
        return runs

    def scripts(self, folder: Path, settings: FakeSettings, reports: Path, *, runs: Sequence[Path], plan) -> list[str]:
        return [f"fake-submit --queue={settings.queue} {run.name}" for run in runs]

    # --- bench.launch.schedulers.Launcher ---

    def missing(self, runs: Sequence[Path]) -> list[Path]:
        alive = self.look(self.submissions(self.folder)).runs
        return [run for run in runs if run.name not in alive]

    def launch(self, runs: Sequence[Path]) -> None:
        number = len(self.submissions(self.folder))
        tasks = {run.name: f"{number}.{index}" for index, run in enumerate(runs)}
        self.jobs += [Job(job, str(number), "pending", "Busy") for job in tasks.values()]
        (self.folder / "fake").mkdir(exist_ok=True)
        content = {"submitted": datetime.now(UTC).timestamp(), "tasks": tasks, "fake": self.settings.model_dump()}
        (self.folder / "fake" / f"{number}.json").write_text(json.dumps(content))


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Fake:
    """The scheduler `fake`, and a folder with a sweep file that has a block for it."""
    cluster, module = Fake(), ModuleType("bench.launch.fake")
    for name in protocol():
        setattr(module, name, getattr(cluster, name))
    monkeypatch.setitem(sys.modules, "bench.launch.fake", module)
    monkeypatch.setitem(SCHEDULERS, "fake", FakeSettings)
    monkeypatch.setattr("bench.launch.slurm.available", lambda: False)
    monkeypatch.setattr("bench.compute.build.preflight", lambda runs, on_pixels: None)
    monkeypatch.setattr(overview, "LOOK_AGAIN_SECONDS", 0.05)
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(FILE)
    return cluster


def protocol() -> list[str]:
    """The functions of a scheduler."""
    return [name for name in vars(schedulers.Scheduler) if name[0] != "_"]


def looked(capsys, *more: str) -> dict[str, str]:
    """What bench.status says of each run."""
    capsys.readouterr()
    assert status.main(["x.yaml", "--json", *more]) == 0
    return {run["run_id"][:6]: f"{run['state']}: {run['words']}" for run in json.loads(capsys.readouterr().out)["runs"]}


def test_from_a_sweep_file_to_cancelled_jobs(fake, capsys):
    assert sweep.main(["x.yaml", "--executor", "fake", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("fake-submit --queue=fast vpt-s") == 2
    assert looked(capsys) == {"vpt-s0": "waiting: not submitted", "vpt-s1": "waiting: not submitted"}
    assert sweep.main(["x.yaml", "--executor", "fake"]) == 0
    assert (fake.settings.queue, fake.reports) == ("fast", Path("reports/x"))
    assert looked(capsys) == {"vpt-s0": "waiting: job 0.0 pending (Busy)", "vpt-s1": "waiting: job 0.1 pending (Busy)"}
    del fake.jobs[0]
    fake.ended = "EVICTED"
    lost = "lost: its job ended: EVICTED; it never started"
    assert looked(capsys) == {"vpt-s0": lost, "vpt-s1": "waiting: job 0.1 pending (Busy)"}
    assert status.main(["results/x", "--retry", "lost"]) == 0
    assert fake.settings.queue == "fast"  # as it was submitted
    assert looked(capsys)["vpt-s0"] == "waiting: job 1.0 pending (Busy)"
    assert sweep.main(["x.yaml", "--executor", "fake"]) == 0
    assert len(fake.jobs) == 2  # nothing was submitted twice
    assert status.main(["x.yaml", "--cancel"]) == 0
    assert "cancelled 2 jobs with 2 runs" in capsys.readouterr().out
    assert fake.jobs == []


def test_without_an_answer_nothing_is_lost(fake, capsys):
    assert sweep.main(["x.yaml", "--executor", "fake"]) == 0
    fake.answers = False
    assert set(looked(capsys).values()) == {"unknown: Fake does not answer"}
    assert status.main(["x.yaml", "--cancel"]) == 2
    assert "Fake gave no answer, so nothing was cancelled" in capsys.readouterr().err


def test_its_block_is_checked_like_any_other(fake, capsys):
    Path("x.yaml").write_text(FILE.replace("queue", "qeue"))
    assert sweep.main(["x.yaml", "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith("error: x.yaml:5: fake: unknown key 'qeue'; did you mean 'queue'?")


def test_auto_and_the_current_job(fake, monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert launch.scheduler_for("auto") == "fake"
    assert launch.current_job() == "fake-7"
    assert launch.executors() == ("auto", "inline", "local", "slurm", "fake")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_has_all_functions(name):
    """With their parameters, and none of them replaced by a module of the same name once all modules are imported."""
    package = import_module(f"bench.launch.{name}")
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    for function in protocol():
        _, *wanted = inspect.signature(getattr(schedulers.Scheduler, function)).parameters.values()
        found = inspect.signature(getattr(package, function)).parameters.values()
        assert [(each.name, each.kind) for each in found] == [(each.name, each.kind) for each in wanted], function
