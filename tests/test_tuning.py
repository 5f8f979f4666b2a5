"""Equal tuning: the same search for each method, trials that never open the test set, and the winners' runs."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import status, sweep
from bench.config.errors import UserError
from bench.launch.stages import staged
from bench.plan.grid import Sweep, expand
from bench.plan.spec import RunSpec
from bench.reporting import live
from bench.reporting.build import Report, build
from bench.store import planned as planned_store
from bench.store import record
from bench.store.folder import RUN
from bench.store.frame import collect
from bench.store.planned import PLAN
from bench.store.record import RECALLS, Cost, Failure, Metrics, Scores
from tests.test_report import read_csv

FILE = """name: x
dataset: {name: demo}
backbone: {model: tiny-clip, weights: random}
train: {epochs: 9}
tune: {lr: {log: [1e-4, 1e-1]}, trials: 6, seed: 5}
grid:
  seed: [0, 1, 2]
  method: [zero_shot, vpt, lora, linear_probe]
"""
Score = Callable[[RunSpec], float | None]


def nearest(spec: RunSpec) -> float:
    """Validation likes a learning rate of 1e-2 best."""
    return 50 - 10 * abs(math.log10(spec.train.lr) + 2)


class Launcher:
    """Finishes runs with a validation recall of its own making; None: the run fails."""

    detached = False

    def __init__(self, score: Score = nearest) -> None:
        self.score, self.launched = score, list[RunSpec]()

    def missing(self, runs: Sequence[Path]) -> list[Path]:
        return list(runs)

    def launch(self, runs: Sequence[Path]) -> None:
        for run_dir in runs:
            spec = RunSpec.load(run_dir / RUN)
            self.launched.append(spec)
            end(run_dir, spec, self.score(spec))

    @property
    def trials(self) -> list[RunSpec]:
        return [spec for spec in self.launched if not spec.evaluation.test]


def end(run_dir: Path, spec: RunSpec, score: float | None) -> None:
    """Write the run's result: of a trial without a test."""
    parts: dict[str, Any] = {"status": "failed", "error": Failure(message="diverged")}
    if score is not None:
        scores = Scores(**dict.fromkeys(RECALLS, score))
        metrics = Metrics(best_epoch=1, val=scores, test=scores if spec.evaluation.test else None)
        trained = Cost(trainable_params=spec.trainable_params(), total_params=10**7)
        parts = {"status": "finished", "metrics": metrics, "cost": trained}
    found = record.Record(run_id=run_dir.name, sweep="x", spec=spec.to_dict(), provenance={}, **parts)
    record.write(run_dir, found)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """run(launcher, *arguments) -> exit code of the command on x.yaml in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.compute.build.preflight", lambda runs, on_pixels: None)
    Path("x.yaml").write_text(FILE)

    def main(launcher: Launcher, *arguments: str) -> int:
        monkeypatch.setattr("bench.launch.start.make", lambda *_, **__: launcher)
        return sweep.main(["x.yaml", *arguments])

    return main


def planned(tmp_path: Path, tune: str, methods: str = "[vpt, lora, zero_shot]", **parts: str) -> Sweep:
    """The sweep with this search."""
    lines = [line for line in FILE.splitlines() if not line.startswith(("tune", "  method"))]
    path = tmp_path / "y.yaml"
    path.write_text("\n".join([*lines, f"  method: {methods}", f"tune: {tune}", *parts.values()]) + "\n")
    return expand(path)


def test_each_method_gets_the_same_trials_and_the_best_on_validation_is_tested(run: Any) -> None:
    launcher = Launcher()
    assert run(launcher) == 0
    rates = {
        method: [spec.train.lr for spec in launcher.trials if spec.method.name == method]
        for method in ("vpt", "lora", "linear_probe")
    }
    assert len(launcher.trials) == 18
    assert rates["vpt"] == rates["lora"] == rates["linear_probe"]
    assert len(set(rates["vpt"])) == 6
    strata = sorted(int(6 * (math.log10(rate) + 4) / 3) for rate in rates["vpt"])
    assert strata == list(range(6)), "one draw in each sixth of the span"
    assert {(spec.seed, spec.evaluation.test) for spec in launcher.trials} == {(5, False)}
    best = min(rates["vpt"], key=lambda rate: abs(math.log10(rate) + 2))
    tested = [spec for spec in launcher.launched if spec.evaluation.test and spec.method.trains]
    assert {(spec.method.name, spec.train.lr, spec.seed) for spec in tested} == {
        (method, best, seed) for method in rates for seed in (0, 1, 2)
    }
    assert launcher.launched[-9:] == tested, "behind all trials"
    again = Launcher()
    assert run(again) == 0
    assert again.launched == [], "never twice"


def test_the_report_says_trials_spread_winner_and_warns_of_edges(run: Any) -> None:
    def score(spec: RunSpec) -> float | None:
        if spec.method.name == "vpt":
            return None if spec.train.lr < 2e-4 else spec.train.lr
        return nearest(spec)

    launcher = Launcher(score)
    assert run(launcher) == 1, "a trial of vpt failed"
    rows = {row["method"]: row for row in read_csv(Path("reports/x/tuning.csv"))}
    assert set(rows) == {"vpt", "lora", "linear_probe"}
    scores = sorted(nearest(spec) for spec in launcher.trials if spec.method.name == "lora")
    assert [float(rows["lora"][f"val_{name}"]) for name in ("min", "max")] == [scores[0], scores[-1]]
    assert float(rows["lora"]["val_median"]) == pytest.approx(sum(scores[2:4]) / 2)
    assert (rows["lora"]["on_edge"], rows["lora"]["trials"], rows["lora"]["failed"]) == ("", "6", "0")
    rate = max(spec.train.lr for spec in launcher.trials)
    assert (rows["vpt"]["winner"], rows["vpt"]["on_edge"], rows["vpt"]["failed"]) == (f"lr={rate:g}", "lr", "1")
    text = Path("reports/x/table.md").read_text()
    assert "## Tuning" in text
    assert "6, 1 failed" in text
    table = read_csv(Path("reports/x/table.csv"))
    assert [row["method"] for row in table] == ["zero_shot", "vpt", "lora", "linear_probe"], "no trial is a row"
    assert all(row["seeds"] == ("1" if row["method"] == "zero_shot" else "3") for row in table)


def test_a_grid_of_lists_is_searched_whole_or_in_part(tmp_path: Path) -> None:
    whole = planned(tmp_path, "{lr: [1e-4, 1e-3], n_ctx: [4, 8], trials: 4}")
    tried = [[(t.train.lr, getattr(t.method, "n_ctx", None)) for t in each.trials] for each in whole.tuned]
    assert tried == [[(1e-4, 4), (1e-4, 8), (1e-3, 4), (1e-3, 8)], [(1e-4, None), (1e-3, None)]]
    assert any("lora has 2 trials, not 4" in note for note in whole.notes)
    part = [planned(tmp_path, f"{{lr: [1e-4, 1e-3, 1e-2, 1e-1], trials: 2, seed: {seed}}}") for seed in range(9)]
    drawn = [[t.train.lr for t in each.tuned[0].trials] for each in part]
    assert all(len(set(each)) == 2 for each in drawn)
    assert len({tuple(each) for each in drawn}) > 1
    assert part[0].tuned[0].trials == planned(tmp_path, "{lr: [1e-4, 1e-3, 1e-2, 1e-1], trials: 2}").tuned[0].trials
    assert any("seed 0, which is also a seed of the grid" in note for note in part[0].notes)


def test_spans_take_whole_numbers_where_the_setting_does(tmp_path: Path) -> None:
    found = planned(tmp_path, "{rank: 'log(1, 64)', lr: [1e-4, 1e-3], trials: 8}", "[{lora: {rank: 2}}]").tuned[0]
    ranks = [getattr(trial.method, "rank", None) for trial in found.trials]
    assert all(isinstance(rank, int) and 1 <= rank <= 64 for rank in ranks)
    assert len(set(ranks)) > 4
    assert [trial.train.lr for trial in found.trials].count(1e-4) == 4, "a list's values come equally often"
    assert found.keys == ("method.rank", "train.lr")


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ("{lr: [1e-4], trials: 2, bottlenek: [1]}", "no method of this grid has a setting 'bottlenek'"),
        ("{trials: 2}", "give the settings to tune"),
        ("{lr: [1e-4]}", "'trials' is missing"),
        ("{lr: [-1], trials: 1}", "lr: expected"),
        ("{lr: {log: [0, 1]}, trials: 1}", "0 < low < high"),
        ("{lr: {log: [1e-1, 1e-3]}, trials: 1}", "0 < low < high"),
        ("{lr: log(1e-3, 1e-1), trials: 1}", "inside braces write it as {log: [1e-3, 1e-1]}"),
        ("{lr: 1e-3, trials: 1}", "expected a list of values"),
        ("{lr: [], trials: 1}", "expected a list of values"),
        ("{lr: [1e-3], trails: 6}", "got 6; did you mean 'trials'?"),
        ("{lr: [1e-3], trials: 99}", None),
        ("{lr: {log: [1e-4, 1e-1]}, trials: 6000}", "more than 10,000"),
        ("{lr: [1e-3], trials: 1, halving: 1}", "halving: expected"),
    ],
)
def test_mistakes_are_one_clear_error(tmp_path: Path, tune: str, message: str | None) -> None:
    if message is None:
        assert len(planned(tmp_path, tune).tuned[0].trials) == 1
        return
    with pytest.raises(UserError) as error:
        planned(tmp_path, tune)
    assert message in str(error.value)
    assert "y.yaml:" in str(error.value)


def test_a_sweep_without_tests_is_refused(tmp_path: Path) -> None:
    (tmp_path / "y.yaml").write_text(FILE.replace("tune:", "evaluation: {test: false}\ntune:"))
    with pytest.raises(UserError, match="for trials alone"):
        expand(tmp_path / "y.yaml")


def test_halving_trains_a_part_for_long(run: Any) -> None:
    launcher = Launcher()
    assert run(launcher, "--set", "tune.halving=3") == 0
    for method in ("vpt", "lora"):
        own = [spec for spec in launcher.trials if spec.method.name == method]
        short, whole = ([spec for spec in own if spec.train.epochs == epochs] for epochs in (3, 9))
        assert len(short) == 6
        best = sorted(short, key=nearest)[-2:]
        assert {spec.train.lr for spec in whole} == {spec.train.lr for spec in best}
    row = read_csv(Path("reports/x/tuning.csv"))[0]
    assert (row["trials"], row["whole_trials"]) == ("6", "2")
    assert row["on_edge"] == "", "it lies between rates that were tried for a short time"
    assert "6, 2 at full length" in Path("reports/x/table.md").read_text()


def test_a_winner_at_the_lowest_value_lies_on_the_edge(run: Any) -> None:
    assert run(Launcher(lambda spec: 50 - 400 * spec.train.lr)) == 0
    assert {row["on_edge"] for row in read_csv(Path("reports/x/tuning.csv"))} == {"lr"}


def test_the_winner_is_known_when_all_trials_are_over_and_by_validation_alone(tmp_path: Path) -> None:
    """Trials of other versions may hold a test score: here it would choose another winner."""
    found = planned(tmp_path, "{lr: [1e-4, 1e-3, 1e-2], trials: 3}", "[lora]")
    trials, results = found.tuned[0].trials, tmp_path / "results"
    for number, trial in enumerate(trials):
        assert found.tuned[0].planned({each.run_id: 50.0 for each in trials[:number]})[1] is None
        (results / trial.run_id).mkdir(parents=True)
        scores = [Scores(**dict.fromkeys(RECALLS, mean)) for mean in (40.0 + number, 60.0 - number)]
        metrics = Metrics(best_epoch=1, val=scores[0], test=scores[1])
        cost = Cost(trainable_params=1, total_params=2)
        parts: dict[str, Any] = {"metrics": metrics, "cost": cost, "provenance": {}}
        made = record.Record(run_id=trial.run_id, sweep="x", spec=trial.to_dict(), status="finished", **parts)
        record.write(results / trial.run_id, made)
    assert {run.train.lr for run in staged(found, results).runs if run.evaluation.test} == {1e-2}


def test_a_scheduler_is_asked_twice_and_the_first_report_has_no_rows_yet(run: Any, capsys: Any, tmp_path: Path) -> None:
    Path("x.yaml").write_text(FILE.replace("zero_shot, ", ""))

    class Detached(Launcher):
        detached = True

    first, second = Detached(), Detached()
    assert run(first) == 0
    assert len(first.launched) == len(first.trials) == 18
    assert "the same command goes on with what the trials decide" in capsys.readouterr().out
    built = build(Path("results/x"), tmp_path / "out")
    assert read_csv(built.out_dir / "table.csv") == []
    assert len(read_csv(built.out_dir / "tuning.csv")) == 3
    assert run(second) == 0
    assert (len(second.launched), second.trials) == (9, [])
    assert len(read_csv(build(Path("results/x"), tmp_path / "out").out_dir / "table.csv")) == 3


def test_the_state_of_a_sweep_says_that_the_winners_runs_follow(run: Any, capsys: Any) -> None:
    Path("x.yaml").write_text(FILE.replace("zero_shot, ", ""))

    class Detached(Launcher):
        detached = True

    def state() -> tuple[str, int]:
        capsys.readouterr()
        assert status.main(["results/x", "--watch"]) == 0, "it ends: the next step is the user's"
        text = capsys.readouterr().out
        status.main(["results/x", "--json"])
        return text, json.loads(capsys.readouterr().out)["later"]

    command = ["--executor", "slurm", "--set", "tune.halving=3"]
    said = f"9 test runs of the winners follow when all trials are over and this is given again: {sweep.PROG} x.yaml"
    for finished, later in ((18, 9), (24, 9), (33, 0)):
        assert run(Detached(), *command) == 0
        text, count = state()
        assert f"x: {finished} of {finished} finished" in text
        assert (said in text, count) == (later > 0, later)
    assert "follow" not in text


def staged_launcher(after: Callable[[Launcher], None]) -> Launcher:
    """A launcher of this process that calls `after` when a stage is over, before the next one is planned."""

    class Staged(Launcher):
        def launch(self, runs: Sequence[Path]) -> None:
            super().launch(runs)
            after(self)

    return Staged()


def test_watching_goes_on_from_the_trials_to_the_winners_runs(
    run: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "WATCH_SECONDS", 0.05)
    watching = threading.Thread(target=status.main, args=(["results/x", "--watch", "--json"],), daemon=True)
    done = threading.Event()

    def after(launcher: Launcher) -> None:
        if len(launcher.launched) == 19:
            capsys.readouterr()
            watching.start()
            done.wait(0.5)
            assert watching.is_alive(), "the trials are over, the sweep is not"

    assert run(staged_launcher(after), "--executor", "local") == 0
    watching.join(20)
    assert not watching.is_alive()
    looks = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"schema"')]
    assert (len(looks[0]["runs"]), looks[0]["later"]) == (19, 9)
    assert (len(looks[-1]["runs"]), looks[-1]["later"]) == (28, 0)


def test_a_live_report_goes_on_from_the_trials_to_the_winners_runs(run: Any, capsys: Any) -> None:
    folder, rows, said = Path("results/x"), list[int](), list[str]()

    def write(seconds: int | None) -> Report:
        built = build(folder, Path("live"), live=seconds)
        rows.append(len(read_csv(built.out_dir / "table.csv")))
        return built

    def sleep(seconds: float) -> None:
        """Meanwhile the sweep goes on with what follows."""
        said.append(capsys.readouterr().out)
        assert run(Launcher()) == 0

    def after(launcher: Launcher) -> None:
        raise KeyboardInterrupt

    assert run(staged_launcher(after), "--executor", "local") == 130
    live.follow([folder], write, lambda report: None, sleep)
    assert rows == [1, 4], "zero-shot alone beside the trials, then all"
    assert "9 test runs of the winners follow when all trials are over\n" in said[0]
    assert len(said) == 1


def test_a_configuration_whose_trials_all_fail_has_no_winner(run: Any) -> None:
    launcher = Launcher(lambda spec: None if spec.method.name == "vpt" else nearest(spec))
    assert run(launcher) == 1
    plan = planned_store.read(Path("results/x"))
    assert plan is not None
    assert plan.later == 0, "nothing follows from them"
    assert not [spec for spec in launcher.launched if spec.method.name == "vpt" and spec.evaluation.test]
    rows = {row["method"]: row for row in read_csv(Path("reports/x/tuning.csv"))}
    assert (rows["vpt"]["failed"], rows["vpt"]["winner"], rows["vpt"]["val_max"]) == ("6", "", "")


def test_tuning_under_a_protocol_that_sees_the_test_set_still_does_not(tmp_path: Path) -> None:
    found = planned(tmp_path, "{lr: [1e-3], trials: 1}", evaluation="evaluation: {protocol: test-selected}")
    [trial] = found.tuned[0].trials
    assert (trial.evaluation.protocol, trial.evaluation.test) == ("strict", False)
    assert {run.evaluation.protocol for run in found.tuned[0].finals(trial)} == {"test-selected"}


def test_a_tuned_run_departs_from_its_recipe_in_what_was_tuned(tmp_path: Path) -> None:
    found = planned(tmp_path, "{lr: [7e-3], trials: 1}", "[lora]", recipe="recipe: common")
    results = tmp_path / "results"
    stage = staged(found, results)
    [trial] = [run for run in stage.runs if not run.evaluation.test]
    (results / trial.run_id).mkdir(parents=True)
    end(results / trial.run_id, trial, 40.0)
    finals = [run for run in staged(found, results).runs if run.evaluation.test]
    assert len(finals) == 3
    assert all("train.lr" in staged(found, results).recipes[run.run_id][1] for run in finals)


def test_trials_of_other_commands_are_in_no_table(run: Any) -> None:
    run(Launcher())
    run(Launcher(), "--set", "tune.trials=2")
    runs = collect(Path("results/x"))
    assert len(runs.trials) == 6, "of this command, three methods with two trials each"
    assert not runs.frame["settings"].map(lambda flat: "evaluation.test" in flat).any()
    assert len(json.loads(Path("results/x", PLAN).read_text())["runs"]) == 1 + 6 + 9
