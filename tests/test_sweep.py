from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import sweep
from bench.config import files
from bench.config.errors import UserError
from bench.launch import follow
from bench.launch.follow import Watch, doing
from bench.plan.spec import RunSpec
from bench.store import planned
from bench.store.folder import PROGRESS, RUN
from bench.store.frame import collect
from tests import records

FILE = """name: x
dataset: {name: demo}
backbone: {model: tiny-clip, weights: random}
grid:
  seed: [0, 1]
  method: [zero_shot, vpt]
"""
HEAVY = ("torch", "numpy", "pandas", "matplotlib", "rich", "submitit", "open_clip")


class FakeLauncher:
    detached = False

    def __init__(self, fails: Sequence[str] = (), error: BaseException | None = None) -> None:
        self.fails, self.error, self.launched = fails, error, 0

    def missing(self, runs: Sequence[Path]) -> list[Path]:
        return list(runs)

    def launch(self, runs: Sequence[Path]) -> None:
        for run in runs:
            self.launched += 1
            if self.error:
                raise self.error
            failed = any(run.name.startswith(name) for name in self.fails)
            spec = RunSpec.load(run / RUN).to_dict()
            _ = records.fail(run) if failed else records.finish(run, spec=spec)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(launcher, *arguments) -> exit code of the command in an empty folder; preflight and report do nothing."""

    class Report:
        index = "index.html"

        def print_table(self) -> None:
            print("the table")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.compute.build.preflight", lambda runs, on_pixels: None)
    monkeypatch.setattr("bench.reporting.build.build", lambda results, out, plan: Report())
    Path("x.yaml").write_text(FILE)

    def main(launcher: FakeLauncher, *arguments: str) -> int:
        monkeypatch.setattr("bench.launch.start.make", lambda *_, **__: launcher)
        return sweep.main(["x.yaml", *arguments])

    return main


def test_planning_is_light(tmp_path):
    (tmp_path / "x.yaml").write_text(FILE)
    code = "import sys; from bench.sweep import main; main(['x.yaml', '--dry-run', '--executor', 'local']); "
    code += f"print([m for m in {HEAVY} if m in sys.modules and m != 'numpy'])"  # which measures the CPU's rate
    environment = {"PYTHONPATH": str(Path(sweep.__file__).parents[1]), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    assert "x: 3 runs, 0 finished, 3 to run" in lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.yaml"]


def test_help_needs_no_settings():
    code = (
        "import sys\nfrom bench.sweep import main\ntry: main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
    )
    code += "assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(sweep.__file__).parents[1], capture_output=True, check=True)


def test_runs_once(run, capsys):
    launcher = FakeLauncher()
    assert run(launcher) == 0
    assert launcher.launched == 3
    plan = json.loads(Path("results/x/plan.json").read_text())
    assert (plan["sweep"], plan["file"], len(plan["runs"])) == ("x", "x.yaml", 3)
    for entry in plan["runs"]:
        spec = RunSpec.load(Path("results/x", entry["run_id"], "run.yaml"))
        assert spec == RunSpec.from_dict(entry["spec"])
        assert spec.run_id == entry["run_id"]
    assert run(launcher) == 0
    assert launcher.launched == 3
    assert "x: 3 runs, 3 finished, 0 to run" in capsys.readouterr().out
    assert run(launcher, "--set", "grid.seed=[0,1,2]") == 0
    assert launcher.launched == 4


def test_a_failed_run_fails_alone_and_is_tried_again(run, capsys):
    assert run(FakeLauncher(fails=["vpt-s1"])) == 1
    printed = capsys.readouterr()
    assert "the table" in printed.out
    assert "failed: vpt-s1-" in printed.err
    assert "ValueError: broke" in printed.err
    assert run(FakeLauncher(), "--dry-run", "--executor", "local") == 0
    assert "failed, to run again" in capsys.readouterr().out
    again = FakeLauncher()
    assert run(again) == 0
    assert again.launched == 1


def test_ctrl_c(run, capsys):
    assert run(FakeLauncher(error=KeyboardInterrupt())) == 130
    assert "stopped; the same command continues" in capsys.readouterr().err


def test_a_path_that_cannot_be_printed_is_refused(run, capsys):
    for option in ("--results", "--reports"):
        with pytest.raises(SystemExit) as stop:
            run(FakeLauncher(), option, "a\nb")
        assert stop.value.code == 2
        assert "a\\nb" in capsys.readouterr().err


def test_another_command_takes_nothing_from_the_first(run, monkeypatch, capsys):
    """Two commands with one sweep's name: each reports its own grid and keeps the other's runs."""
    reported = []

    class Report:
        index = "index.html"

        def print_table(self) -> None:
            print("the table")

    def build(results: Path, out: Path, plan: planned.Plan) -> Report:
        reported.append((plan, collect(results, plan)))
        return Report()

    monkeypatch.setattr("bench.reporting.build.build", build)

    class Slow(FakeLauncher):
        def launch(self, runs: Sequence[Path]) -> None:
            assert run(FakeLauncher(), "--set", "grid.method=zero_shot") == 0
            super().launch(runs)

    assert run(Slow()) == 0
    (second, _), (first, runs) = reported
    assert len(first.runs) == 3
    assert len(second.runs) == 1
    assert runs.frame["planned"].tolist() == [True] * 3
    assert planned.read(Path("results/x")) == second  # the newest
    assert planned.read(Path("results/x"), first.id) == first
    capsys.readouterr()
    assert run(FakeLauncher(), "--set", "grid.method=zero_shot") == 0
    assert "2 finished runs of other commands" in capsys.readouterr().out
    assert reported[-1][1].frame["planned"].tolist() == [True, False, False]
    assert run(FakeLauncher(), "--set", "grid.method=zero_shot", "--only") == 0
    assert reported[-1][1].frame["planned"].tolist() == [True]


def test_mistakes_are_one_message(run, capsys):
    assert run(FakeLauncher(), "--set", "train.epocs=1") == 2
    assert run(FakeLauncher(error=UserError("no image a.png"))) == 2
    Path("file").touch()
    assert run(FakeLauncher(), "--results", "file") == 2
    printed = capsys.readouterr().err.splitlines()
    assert printed[0].startswith("error: --set train.epocs=1: train: unknown key 'epocs'; did you mean 'epochs'?")
    assert printed[1:] == [
        "error: no image a.png",
        "error: cannot write results to file/x: Not a directory; choose another --results",
    ]


@pytest.mark.parametrize(
    "arguments",
    ["x.yaml --set a=1 b=2 --workers 3", "--workers 3 --set a=1 b=2 x.yaml", "--set a=1 --set b=2 x.yaml --workers 3"],
)
def test_arguments_in_any_order(arguments):
    given = sweep._arguments(arguments.split(), sweep.PROG)
    assert (given.file, given.overrides, given.workers) == (Path("x.yaml"), ["a=1", "b=2"], 3)


@pytest.mark.parametrize("arguments", ["", "--set a=1", "x.yaml --workers 0", "x.yaml --executor cloud"])
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        sweep.main(arguments.split())
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_detached_launchers_return_at_once(run, capsys):
    launcher = FakeLauncher()
    launcher.detached = True
    launcher.missing = lambda runs: list(runs)[:1]  # type: ignore[method-assign]
    assert run(launcher) == 0
    assert launcher.launched == 1
    assert "the table" not in capsys.readouterr().out


# --- the live view ---------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(tmp_path):
    """Three run folders; `old` has failed before, and a process that is gone has left its progress there."""
    runs = [tmp_path / name for name in ("old", "new", "gone")]
    for path in runs:
        path.mkdir()
    records.fail(runs[0])
    files.write_json(runs[0] / PROGRESS, {"phase": "train", "epoch": 2, "epochs": 4, "updated": 1.0})
    return runs


@pytest.fixture
def claimed(monkeypatch) -> set[Path]:
    """The runs that a process holds."""
    found: set[Path] = set()
    monkeypatch.setattr("bench.store.standing.is_claimed", lambda run: run in found)
    return found


def train(path: Path, epoch: int, step: int) -> None:
    state = {"phase": "train", "epoch": epoch, "epochs": 4, "step": step, "steps": 10, "loss": 1.25}
    files.write_json(path / PROGRESS, state | {"val_mean_recall": 7.0, "eta_seconds": 75.5, "updated": time.time()})


def test_what_was_there_before_does_not_count(watched, claimed):
    watch = Watch(watched)
    assert watch.update() == []
    assert watch.count("waiting") == 3
    claimed.add(watched[0])
    assert watch.update() == [watched[0]]
    assert doing(watch.runs[watched[0]]) == "start"
    train(watched[0], 3, 5)
    assert watch.update() == []
    look = watch.runs[watched[0]]
    assert look.share == pytest.approx(2.5 / 4)
    assert doing(look) == "epoch 3/4, loss 1.25, val 7.0, 1:15 left"
    records.finish(watched[0], recall=12.34)
    records.fail(watched[1])
    assert watch.update() == watched[:2]
    assert watch.runs[watched[0]].words == "mean recall 12.3"
    assert watch.runs[watched[1]].words == "ValueError: broke"
    watch.started -= 60
    assert watch.left_seconds == pytest.approx(30, abs=1)


def test_plain_lines(watched, claimed, monkeypatch):
    monkeypatch.setattr(follow, "STATUS_SECONDS", 0.0)
    out = io.StringIO()
    with follow.follow(watched, out):
        claimed.add(watched[0])
        train(watched[0], 1, 0)
        deadline = time.monotonic() + 10
        while "epoch 1/4" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
        records.finish(watched[0], recall=12.34)
        records.fail(watched[1])
    text = out.getvalue()
    assert text.isascii()
    for line in ("start old", "done  old  mean recall 12.3", "FAILED new  ValueError: broke", "1/3 finished;"):
        assert line in text


def test_live_view(watched, claimed):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with follow.follow(watched, out):
        claimed.add(watched[0])
        train(watched[0], 2, 5)
        records.fail(watched[1])
    text = out.getvalue()
    for words in ("epoch 2/4", "ValueError: broke", "0/3 finished", "1 failed"):
        assert words in text
