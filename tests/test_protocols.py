"""How the epoch is chosen, the ledger of the test set's openings, and what reports make of both."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import bench
from bench import report
from bench.compute import execute as execution
from bench.compute.execute import execute
from bench.config.settings import EvaluationSettings
from bench.plan.spec import RunSpec
from bench.reporting import protocols, summary
from bench.reporting.build import build
from bench.store import folder, openings, record
from bench.store.frame import collect
from bench.store.planned import PLAN
from tests.test_report import done, read_csv, spec, write
from tests.test_run import make_run

PROBE = {"name": "linear_probe"}
SELECTED = {"evaluation": {"protocol": "test-selected"}}


def evaluated(run_dir: Path, **evaluation: Any) -> Path:
    """The run with these settings of its evaluation."""
    settings = RunSpec.load(run_dir / folder.RUN).to_dict() | {"evaluation": evaluation}
    (run_dir / folder.RUN).write_text(RunSpec.from_dict(settings).dump())
    return run_dir


def history(run_dir: Path) -> dict[str, list[float]]:
    with (run_dir / folder.HISTORY).open() as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows] for key in rows[0]}


@pytest.fixture(scope="module")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One training under each protocol, and as a trial; seven epochs at a rate that makes validation go up and down."""
    results = tmp_path_factory.mktemp("results")
    (results / PLAN).write_text("{}")
    made = {}
    ways: dict[str, dict[str, Any]] = {
        "strict": {},
        "test-selected": {"protocol": "test-selected"},
        "last-epoch": {"protocol": "last-epoch"},
        "trial": {"test": False},
    }
    for name, evaluation in ways.items():
        run_dir = make_run(root, results / name, PROBE, seed=5, epochs=7, lr=0.2, schedule="constant", augment="none")
        assert execute(evaluated(run_dir, **evaluation)).error is None
        made[name] = run_dir
    return made


def test_each_protocol_chooses_its_epoch(runs: dict[str, Path]) -> None:
    results = {name: record.read(run) for name, run in runs.items()}
    metrics = {name: found.metrics for name, found in results.items() if found and found.metrics}
    seen = history(runs["test-selected"])
    val, test = seen["val_mean_recall"], seen["test_mean_recall"]
    by_val, by_test = 1 + int(np.argmax(val)), 1 + int(np.argmax(test))
    assert len({by_val, by_test, 7}) == 3, "the runs must tell the protocols apart"
    assert {name: found.best_epoch for name, found in metrics.items()} == {
        "strict": by_val,
        "test-selected": by_test,
        "last-epoch": 7,
        "trial": by_val,
    }
    strict, selected, last, trial = (metrics[name] for name in runs)
    assert selected.test is not None
    assert selected.test.mean_recall == max(test)
    assert selected.selection is not None
    assert (selected.selection.validation_epoch, selected.selection.test_mean_recall) == (by_val, test[by_val - 1])
    assert strict.test is not None, "one test-selected run has the strict run's number, too"
    assert strict.test.mean_recall == selected.selection.test_mean_recall
    assert last.test is not None
    assert last.test.mean_recall == test[-1]
    assert (last.val and last.val.mean_recall, trial.val) == (val[-1], strict.val)
    assert history(runs["strict"])["val_mean_recall"] == val, "scoring the test set changes nothing in training"
    assert "test_mean_recall" not in history(runs["strict"])


def test_every_opening_is_in_the_ledger_and_a_trial_has_none(runs: dict[str, Path]) -> None:
    found = {name: openings.read(run) for name, run in runs.items()}
    assert [(each.why, each.protocol) for each in found["strict"]] == [(openings.SCORE, "strict")]
    assert [each.epoch for each in found["test-selected"]][:-1] == list(range(1, 8))
    assert [each.why for each in found["test-selected"]] == [openings.CHOOSE] * 7 + [openings.SCORE]
    assert len(openings.scorings(found["test-selected"])) == 1
    assert found["trial"] == []
    assert not (runs["trial"] / folder.RANKS).exists()
    ledger = runs["trial"].parent / openings.FOLDER
    assert sorted(path.stem for path in ledger.iterdir()) == ["last-epoch", "strict", "test-selected"]


def test_an_opening_is_recorded_before_scoring_or_nothing_is_scored(
    runs: dict[str, Path], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = make_run(root, tmp_path / "results" / "run", PROBE, epochs=1)
    (run_dir.parent / PLAN).write_text("{}")
    (run_dir.parent / openings.FOLDER).write_text("a file where the folder should be")
    scored = []
    monkeypatch.setattr(execution, "evaluate_alike", lambda *_: scored.append(1))
    result = execute(run_dir)
    assert result.error is not None
    assert result.error.user
    assert "can't be recorded in" in result.error.message
    assert not scored


def test_a_run_computed_again_after_deletion_or_loaded_shows_in_the_report(
    runs: dict[str, Path], root: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    made = RunSpec.load(runs["strict"] / folder.RUN)
    run_dir = results / made.run_id
    for _ in range(2):
        shutil.rmtree(run_dir, ignore_errors=True)
        shutil.copytree(runs["strict"], run_dir)
        (run_dir / folder.RESULT).unlink()
        content = {"runs": [{"run_id": run_dir.name, "spec": made.to_dict()}]}
        (results / PLAN).write_text(json.dumps(content))
        execute(run_dir)
    bench.load(run_dir).score("test")
    bench.load(run_dir).score("val")
    assert [each.why for each in openings.read(run_dir)] == [openings.SCORE, openings.SCORE, openings.LOADED]
    built = build(results, tmp_path / "out")
    text = (built.out_dir / "table.md").read_text()
    assert f"| 1{protocols.REOPENED} |".replace(" ", "") in text.replace(" ", "")
    assert "## Test sets opened more than once" in text
    assert len(read_csv(built.out_dir / "test_openings.csv")) == 3
    again = results.with_name("results" + openings.AGAIN) / run_dir.name
    assert openings.path_of(again) == openings.path_of(run_dir)


def test_the_ledger_survives_cut_off_lines_and_foreign_ones(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    openings.note(run_dir, protocol="strict", epoch=1, why=openings.SCORE)
    path = openings.path_of(run_dir)
    assert path == run_dir / openings.LONE
    whole = path.read_text()
    path.write_text("[]\nnonsense\n" + whole.replace('"run"', '"other"') + whole + whole[:30])
    openings.note(run_dir, protocol="strict", epoch=2, why=openings.SCORE)
    assert [each.epoch for each in openings.read(run_dir)] == [1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "test-selected", "test": False}, "needs the test set"),
        ({"protocol": "test-selected", "interpolate": (0.5,)}, "knows no interpolation"),
    ],
)
def test_contradicting_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**settings)


# --- the report -------------------------------------------------------------------------------------------------------


def selected(method: str, seed: int, mean: float, at_validation: float) -> Any:
    a_spec, result = done(spec(method, seed) | SELECTED, mean)
    result["metrics"]["selection"] = {"validation_epoch": 2, "test_mean_recall": at_validation}
    return a_spec, result


def mixed(results: Path) -> Path:
    """Strict rows, below all others, zero-shot, and rows of both other protocols; test-selected ones are best."""
    entries = [done(spec("lora", seed), 30.0 + seed) for seed in range(3)]
    entries += [done(spec("vpt", seed), 28.0 + seed) for seed in range(3)]
    entries += [selected("lora", seed, 40.0 + seed, 39.0 + 0.8 * seed) for seed in range(3)]
    entries += [done(spec("lora", seed) | {"evaluation": {"protocol": "last-epoch"}}, 35.0) for seed in range(3)]
    return write(results, [*entries, done(spec("zero_shot"), 20.0, 0)])


def test_rows_of_other_protocols_are_marked_and_in_no_ranking_with_strict_ones(tmp_path: Path) -> None:
    built = build(mixed(tmp_path / "r"), tmp_path / "out")
    rows = {(row["method"], row["protocol"]): row for row in read_csv(built.out_dir / "table.csv")}
    assert rows["lora", "test-selected"]["dataset"] == "rsitmd (test-selected)"
    assert rows["lora", "strict"]["dataset"] == rows["zero_shot", "strict"]["dataset"] == "rsitmd"
    assert all(row["chosen"] == "" for row in rows.values()), "validation chooses among rows of one protocol"
    assert all(row["config"] == "" for row in rows.values())
    text = (built.out_dir / "table.md").read_text()
    strict, chosen, last = text.split("\n## ")[1:4]
    assert "**31.00**" in strict, "the best strict row, although others are higher"
    assert protocols.SELECTED not in strict + last
    assert protocols.LAST in last
    assert f"{protocols.SELECTED} {protocols.MEANINGS[protocols.SELECTED]}" in chosen
    assert protocols.TEX[protocols.SELECTED] in (built.out_dir / "table.tex").read_text()


def test_a_method_without_training_is_the_baseline_of_the_one_protocol_there_is(tmp_path: Path) -> None:
    entries = [selected("lora", 0, 40.0, 39.0), done(spec("zero_shot"), 20.0, 0)]
    rows = summary.summarise(collect(write(tmp_path / "r", entries)))
    assert set(rows["dataset"]) == {"rsitmd (test-selected)"}
    assert list(rows["protocol"]) == ["test-selected", "strict"]


def test_what_test_selection_is_worth(tmp_path: Path) -> None:
    entries = [selected("lora", seed, 40.0 + gain, 40.0) for seed, gain in enumerate([0.2, 0.5, 1.1])]
    entries += [selected("vpt", 0, 41.0, 40.0), selected("coop", 0, 30.0, 30.0), selected("coop", 1, 30.0, 30.0)]
    built = build(write(tmp_path / "r", entries), tmp_path / "out")
    rows = {row["method"]: row for row in read_csv(built.out_dir / "test_selection.csv")}
    gains = np.array([0.2, 0.5, 1.1])
    low, high = stats.t.interval(0.95, 2, gains.mean(), stats.sem(gains))
    assert float(rows["lora"]["gain"]) == pytest.approx(gains.mean())
    assert float(rows["lora"]["low"]) == max(0, low) == 0
    assert float(rows["lora"]["high"]) == pytest.approx(high)
    assert (rows["vpt"]["gain"], rows["vpt"]["low"], rows["vpt"]["high"]) == ("1.0", "", ""), "one seed: no interval"
    assert (rows["coop"]["gain"], rows["coop"]["high"]) == ("0.0", "")
    assert rows["all of them"]["high"] == "", "one of them has one seed"


def test_the_mean_over_methods_has_the_interval_of_their_mean(tmp_path: Path) -> None:
    found = protocols._intervals([np.array([0.2, 0.5, 1.1]), np.array([1.0, 2.0, 2.5])])
    means, total = np.array([0.6, 5.5 / 3]), sum(np.var(each, ddof=1) / 3 for each in ([0.2, 0.5, 1.1], [1, 2, 2.5]))
    assert found[-1][0] + found[-1][1] == pytest.approx(2 * means.mean())
    half = stats.t.isf(0.025, 4) * np.sqrt(total) / 2  # the two variances agree: drawn together, with all 4 degrees
    assert found[-1][1] - means.mean() == pytest.approx(half)


def test_the_command_compares_protocols(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = mixed(tmp_path / "r")
    out = ["--out", str(tmp_path / "out")]
    assert report.main([str(results), *out, "--compare-protocols"]) == 0
    printed = capsys.readouterr().out
    assert "What test selection is worth" in printed
    assert "41.00 1.20" in " ".join(printed.split())
    strict = write(tmp_path / "s", [done(spec("lora"))])
    assert report.main([str(strict), *out, "--compare-protocols"]) == 2
    assert "evaluation.protocol=test-selected" in capsys.readouterr().err


def test_run_ids_say_the_protocol_and_stay_as_they_were_at_the_default(root: Path, tmp_path: Path) -> None:
    plain = RunSpec.load(make_run(root, tmp_path / "run", PROBE) / folder.RUN)
    assert "evaluation" not in plain.to_dict()
    said = RunSpec.from_dict(plain.to_dict() | SELECTED)
    assert "test-selected" in said.run_id
    assert "trial" in RunSpec.from_dict(plain.to_dict() | {"evaluation": {"test": False}}).run_id
