"""A report's figures and files beside the tables: every number against result.json and ranks.npz, and what is shown."""

from __future__ import annotations

import json
import re
import statistics
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from bench import report
from bench.config.errors import UserError
from bench.core.ranks import from_npz
from bench.reporting import bars, bundle, classes, curves, figures, options, sections, significance, summary, tables
from bench.reporting.build import build
from bench.store import testset
from bench.store.frame import RECALLS, Runs, collect, collect_all
from benchmarks import reports
from tests.test_report import done, failed, read_csv, spec, twelve, write
from tests.test_significance import CAPTIONS, IMAGES, ranks_of

SHA = "c" * 64


def scored(a_spec: dict[str, Any], val: float, mean: float, params: int, **costs: Any) -> Any:
    a_spec, result = done(a_spec, mean, params, dataset_sha256=SHA)
    result["metrics"]["val"] = result["metrics"]["val"] | {"mean_recall": val}
    result["cost"] |= {"flops_per_pair": 15_000_000_000 + params} | costs
    return a_spec, result


def rich(folder: Path) -> Path:
    """LoRA over rank and lr; a method with a failed and a missing run; zero-shot; ranks, classes, histories."""
    entries = [
        scored(
            spec("lora", seed, rank=rank, train={"lr": lr}), 30 + rank - 1e4 * lr, 40 - rank + seed + 1 / 3, 1000 * rank
        )
        for rank in (2, 8)
        for lr in (1e-4, 0.00013000000000000002)
        for seed in (0, 1)
    ]
    entries += [scored(spec("mrs_adapter", seed), 35, 36 + seed, 161_088) for seed in (0, 1)]
    entries += [failed(spec("mrs_adapter", 2), "CUDA out of memory"), (spec("mrs_adapter", 3), None)]
    entries += [scored(spec("zero_shot"), 20, 20, 0, train_seconds=None)]
    write(folder, entries)
    queries = (tuple(f"{i}.jpg" for i in range(IMAGES)), tuple(("port", "beach", None)[i % 3] for i in range(IMAGES)))
    testset.write(folder, "rsitmd", SHA, *queries, [["a"] * CAPTIONS] * IMAGES)
    for number, run in enumerate(sorted(folder.glob("*-s*"))):
        if json.loads((run / "result.json").read_text())["status"] == "finished":
            (run / "ranks.npz").write_bytes(ranks_of(1.0 + number / 10, number))
            if not run.name.startswith("zero"):
                lines = "".join(f"{epoch},1.0,{10 * epoch + number}\n" for epoch in (1, 2, 3, 4))
                (run / "history.csv").write_text(f"epoch,loss,val_mean_recall\n{lines}")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The results folder and the report's."""
    root = tmp_path_factory.mktemp("bundle")
    folder = rich(root / "r")
    return folder, build(folder, root / "out").out_dir


def test_each_number_is_that_of_the_runs_it_names(made: tuple[Path, Path]) -> None:
    folder, out = made
    origin, rows = json.loads((out / "provenance.json").read_text()), read_csv(out / "table.csv")
    assert len(origin["rows"]) == len(rows) == 6
    for row, said in zip(rows, origin["rows"], strict=True):
        found = [json.loads((folder / run / "result.json").read_text()) for run in said["runs"]]
        assert {each["spec"]["method"]["name"] for each in found} == {row["method"]}
        assert len(found) == int(row["seeds"])
        for recall in RECALLS:
            values = [each["metrics"]["test"][recall] for each in found]
            assert float(row[recall]) == pytest.approx(statistics.fmean(values), abs=1e-12)
        ranks = [from_npz(folder / run / "ranks.npz") for run in said["runs"]]
        hits = [100 * np.mean([(each.t2i.above < 5).mean() for each in ranks])]
        assert float(row["t2i_r5_low"]) <= hits[0] <= float(row["t2i_r5_high"])
    assert [len(row["left_out"]) for row in origin["rows"]] == [0, 0, 0, 0, 2, 0]
    run = origin["runs"][origin["rows"][0]["runs"][0]]
    assert (run["git_commit"], run["device"], run["weights"], run["dataset_sha256"]) == ("c0ffee", "cpu", "openai", SHA)


def test_runs_csv_has_every_run_once_and_no_number_of_a_failed_one(made: tuple[Path, Path]) -> None:
    folder, out = made
    runs = read_csv(out / "runs.csv")
    assert [run["run_id"] for run in runs] == [
        run["run_id"] for run in json.loads((folder / "plan.json").read_text())["runs"]
    ]
    assert [run["status"] for run in runs].count("finished") == 11
    lost = [run for run in runs if run["status"] != "finished"]
    assert [(run["status"], run["seed"], run["mean_recall"], run["row"]) for run in lost] == [
        ("failed", "2", "", "5"),
        ("missing", "3", "", "5"),
    ]
    assert "CUDA out of memory" in lost[0]["note"]
    for run in runs[:8]:
        result = json.loads((folder / run["run_id"] / "result.json").read_text())
        assert float(run["mean_recall"]) == result["metrics"]["test"]["mean_recall"]
        assert (run["method.rank"], run["git_dirty"]) == (str(result["spec"]["method"]["rank"]), "false")
    assert not any(key.startswith("dataset.root") for key in runs[0])
    assert "2 of 4†" in (out / "table.md").read_text()


def test_a_cost_that_one_run_lacks_is_missing_not_the_mean_of_the_others(tmp_path: Path) -> None:
    entries = [scored(spec("lora", seed), 1, 40, 10, train_seconds=None if seed else 9.0) for seed in (0, 1)]
    [row] = summary.summarise(collect(write(tmp_path / "r", entries))).to_dict("records")
    assert row["mean_recall"] == 40
    assert np.isnan(row["train_seconds"])
    assert row["peak_bytes"] == 2 * 10**9


def test_rows_of_other_commits_hardware_or_weights_are_marked(tmp_path: Path) -> None:
    entries = [done(spec(name)) for name in ("lora", "vpt", "coop")]
    entries += [done(spec("harma"), device="H100"), done(spec("ssf"), git_commit="beef", weights_sha256="1")]
    entries += [done(spec("bitfit", 0)), done(spec("bitfit", 1), git_dirty=True)]
    runs = collect(write(tmp_path / "r", entries))
    rows = summary.summarise(runs)
    assert dict(zip(rows["method"], rows["origin_differs"], strict=True)) == {
        **dict.fromkeys(("lora", "vpt", "coop"), ""),
        **{"harma": "hardware", "ssf": "commit weights", "bitfit": "commit"},
    }
    marked = [line.method for line in tables.blocks(runs, rows)[0].lines if "‖" in line.marks]
    assert marked == ["harma", "ssf", "bitfit"]


def test_several_folders_make_one_table_and_a_run_in_two_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    one = [done(spec("lora", seed), 40 + seed) for seed in (0, 1)] + [done(spec("vpt"), 30)]
    write(tmp_path / "results" / "one", one)
    write(tmp_path / "results" / "two", [one[0], done(spec("lora", dataset={"name": "ucm"}), 60)])
    (tmp_path / "one.yaml").write_text("name: one\n")
    assert report.main(["one.yaml", "results/two"]) == 0
    rows = read_csv(tmp_path / "reports" / "one+two" / "table.csv")
    assert [(row["dataset"], row["method"], row["seeds"], row["mean_recall"]) for row in rows] == [
        ("rsitmd", "lora", "2", "40.5"),
        ("rsitmd", "vpt", "1", "30.0"),
        ("ucm", "lora", "1", "60.0"),
    ]
    overview = (tmp_path / "reports" / "one+two" / "overview.tex").read_text()
    assert "LoRA & 40.50 $\\pm$ 0.71 & 60.00" in overview
    assert "VPT & 30.00 & --" in overview
    assert "python -m bench.report results/one results/two" in (tmp_path / "reports/one+two/index.html").read_text()
    capsys.readouterr()
    for bad, words in (("absent.yaml", "no results folder"), ("two.yaml", "no results of"), ("odd.yaml", "no usable")):
        (tmp_path / "two.yaml").write_text("name: three\n")
        (tmp_path / "odd.yaml").write_text("name: ../x\n")
        assert report.main([bad]) == 2
        assert words in capsys.readouterr().err


def test_intervals_of_several_folders_are_those_of_one(tmp_path: Path) -> None:
    entries = [done(spec(name, seed), 40, dataset_sha256=SHA) for name in ("lora", "vpt") for seed in (0, 1)]
    for name, part in (("all", entries), ("a", entries[:2]), ("b", entries[2:])):
        folder = write(tmp_path / name, part)
        for run in folder.glob("*-s*"):
            (run / "ranks.npz").write_bytes(ranks_of(2.0 - run.name.startswith("vpt"), int(run.name.split("-s")[1][0])))
    whole, parts = collect(tmp_path / "all"), collect_all([tmp_path / "a", tmp_path / "b"])
    first, second = (significance.add(runs, summary.summarise(runs))[0] for runs in (whole, parts))
    for column in ("mean_recall_low", "mean_recall_high", "tied_with_best", "best_rank"):
        assert first[column].tolist() == second[column].tolist()


def test_a_plan_with_wrong_report_settings_is_a_users_mistake(tmp_path: Path) -> None:
    runs = collect(write(tmp_path / "r", twelve(1)))
    with pytest.raises(UserError, match=r"report\.columns"):
        options.of(Runs(**{**vars(runs), "content": {"report": {"columns": ["speed"]}}}))


# --- figures ----------------------------------------------------------------------------------------------------------


def parts_of(folder: Path) -> tuple[Runs, Any, list[tables.Block]]:
    runs = collect(folder)
    rows = summary.summarise(runs)
    return runs, rows, tables.blocks(runs, rows)


def test_of_equal_sizes_a_figure_shows_what_validation_chose(made: tuple[Path, Path]) -> None:
    _, _, parts = parts_of(made[0])
    figure = figures.recall_vs_params(parts)
    assert {text.get_text() for text in figure.axes[0].texts} == {
        "r=8",
        "LoRA r=2",
        "MRS-Adapter†",
        "Zero-shot CLIP 20.0",
    }
    shown = figures.marks(parts[0].rows)
    assert shown.loc[shown["method"] == "lora", "config"].tolist() == ["rank=2, lr=0.0001", "rank=8, lr=0.0001"]


def test_the_front_is_what_no_cheaper_one_beats() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 9, 12).astype(float), rng.integers(0, 9, 12).astype(float)
        found = figures.pareto(x, y)
        points = {(x[i], y[i]) for i in found}
        beaten = [
            any((x[j] <= x[i] and y[j] > y[i]) or (x[j] < x[i] and y[j] >= y[i]) for j in range(12)) for i in range(12)
        ]
        assert points == {(x[i], y[i]) for i in range(12) if not beaten[i]}
        assert [x[i] for i in found] == sorted(x[i] for i in found)


def test_published_numbers_are_hollow_and_only_for_the_same_kind_of_backbone(tmp_path: Path) -> None:
    entries = [done(spec("harma"), 45, 5_934_397), done(spec("harma", backbone={"model": "RN50"}), 40, 5_000_000)]
    _, _, parts = parts_of(write(tmp_path / "r", entries))
    assert [figures._published(part) for part in parts] == [[("harma", 5_930_000.0, 46.53)], []]
    here, other = figures.recall_vs_params(parts).axes
    hollow = [[line.get_xydata().tolist() for line in axes.lines if line.get_mfc() == "none"] for axes in (here, other)]
    assert hollow == [[[[5_930_000.0, 46.53]]], []]


@pytest.mark.parametrize("kind", ["paper", "slides"])
def test_figures_fit_a_column_and_can_be_read(made: tuple[Path, Path], kind: figures.Style) -> None:
    runs, rows, parts = parts_of(made[0])
    charts, more = curves.charts(runs, rows), sections.sections(runs, rows)
    names = set()
    for drawn in bundle.drawn(runs, rows, parts, charts, more, kind):
        names.add(drawn.name)
        assert drawn.caption
        assert drawn.figure.get_figwidth() <= figures.LOOKS[kind].column
        drawn.figure.draw_without_rendering()
        renderer = drawn.figure.canvas.get_renderer()  # type: ignore[attr-defined]
        texts = [text for text in drawn.figure.findobj(Text) if text.get_visible() and text.get_text()]
        assert min(text.get_fontsize() for text in texts) >= 6.5 * figures.LOOKS[kind].scale
        for axes in drawn.figure.axes:
            boxes = [text.get_window_extent(renderer) for text in axes.texts]
            assert not any(a.overlaps(b) for a, b in combinations(boxes, 2)), drawn.name
    assert names == {
        *("recall_vs_params", "recall_vs_time", "recall_vs_memory", "recall_vs_flops"),
        *("recall_by_method", "training_curves", "grid_1", "recall_by_class"),
    }


def test_figures_are_vectors_with_embedded_fonts(made: tuple[Path, Path]) -> None:
    paths = list(made[1].glob("*.pdf"))
    assert len(paths) == 8
    for path in paths:
        content = path.read_bytes()
        assert b"/Type3" not in content
        assert b"/FontFile2" in content
        assert not re.search(rb"/Subtype\s*/Image", content), path.name


def seen(colour: str, kind: str) -> np.ndarray:
    """A colour in CIELAB as people see it who lack a cone (Machado, Oliveira, Fernandes 2009, severity 1)."""
    matrices = {
        "normal": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    }
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(
        np.array(matrices[kind]) @ linear, 0, 1
    )
    f = np.cbrt(xyz / np.array([0.9505, 1, 1.089]))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", ["normal", "protan", "deutan"])
def test_colours_differ_for_colour_blind_readers(kind: str) -> None:
    labs = [seen(colour, kind) for colour in figures.COLOURS]
    nearest = min(float(np.linalg.norm(a - b)) for a, b in combinations(labs, 2))
    assert nearest > 9, nearest
    assert len({(figures.COLOURS[i % 7], figures.MARKERS[i % 11]) for i in range(77)}) == 77


def test_training_curves_have_rings_at_the_chosen_epochs(made: tuple[Path, Path]) -> None:
    runs, rows, _ = parts_of(made[0])
    [chart] = curves.training(runs, rows)
    [lines] = chart.panels.values()
    assert [line.label for line in lines] == ["LoRA", "MRS-Adapter"]
    assert lines[0].x == (1.0, 2.0, 3.0, 4.0)
    assert lines[0].chosen == (3.0,)
    ids = [run.name for run in sorted(made[0].glob("*-s*"))]
    chosen = [ids.index(run) for run in runs.frame.loc[[4, 5], "run_id"]]
    assert lines[0].y == pytest.approx([10 * epoch + np.mean(chosen) for epoch in (1, 2, 3, 4)])
    (made[0] / ids[chosen[0]] / "history.csv").write_text("epoch,val_mean_recall\n1,nan\nx,2\n")
    assert [line.label for line in curves.training(runs, rows)[0].panels[next(iter(chart.panels))]] == ["MRS-Adapter"]


def test_a_grid_of_two_numbers_is_a_heat_map(made: tuple[Path, Path]) -> None:
    [heat] = bars.grids(parts_of(made[0])[2])
    assert (heat.ylabel, heat.xlabel, heat.rows, heat.columns) == ("rank", "lr", ("2", "8"), ("0.0001", "0.00013"))
    assert heat.values == pytest.approx(np.array([[31.0, 30.7], [37.0, 36.7]]))
    assert heat.ring == (1, 0)
    [axes] = bars.draw_heat(heat).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["2", "8"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.0001", "0.00013"]
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(0.5, 0.5): "31.0", (1.5, 0.5): "30.7", (0.5, 1.5): "37.0", (1.5, 1.5): "36.7"}
    assert axes.yaxis_inverted()  # the first row is on top, as in a table
    [frame] = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert frame.get_xy() == (0, 1)  # rank 8 at the lower rate, which validation chose
    [cells] = axes.collections
    assert np.array(cells.get_array()).ravel() == pytest.approx(heat.values.ravel())


def test_recall_by_class_is_that_of_the_class_queries(made: tuple[Path, Path]) -> None:
    runs, rows, _ = parts_of(made[0])
    [section] = classes.by_class(runs, rows)
    assert section.numbers["class"].tolist() == ["beach", "port"]
    assert section.numbers["images"].tolist() == [67, 67]
    ids = runs.frame.loc[runs.frame["method"] == "mrs_adapter", "run_id"][:2]
    for row, start in ((0, 1), (1, 0)):
        values = []
        for run in ids:
            saved = from_npz(made[0] / run / "ranks.npz")
            sides = (saved.i2t.above[start::3], saved.t2i.above.reshape(IMAGES, CAPTIONS)[start::3])
            values += [100 * (above < k).mean() for above in sides for k in (1, 5, 10)]
        assert section.numbers["MRS-Adapter"][row] == pytest.approx(np.mean(values))


def test_many_runs_are_summarised_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without figures: processor time, since other tests run beside; long blocks compare what validation chose."""
    monkeypatch.setattr(significance, "_MOST_COMPARED", 100)
    reports.write(tmp_path / "r", 900, images=40)
    start = time.process_time()
    runs = collect(tmp_path / "r")
    rows, said = significance.add(runs, summary.summarise(runs))
    parts = tables.blocks(runs, rows, said)
    assert ("Compared", "10 of 300 rows: those that validation chose, or the best") in parts[0].facts
    assert rows["mean_recall_low"].notna().all()
    assert rows["best_rank"].notna().sum() == 10
    assert set(rows.loc[rows["best_rank"].notna(), "chosen"]) == {True}
    assert len(figures.recall_vs_params(parts).axes[0].texts) <= figures.MOST_LABELS
    assert time.process_time() - start < 10


def test_the_benchmarks_check_finds_a_wrong_number_and_a_shorter_mean(tmp_path: Path) -> None:
    reports.write(tmp_path / "r", 99, images=40)
    table = build(tmp_path / "r", tmp_path / "out", plain=True).out_dir / "table.csv"
    numbers, difference = reports.check(tmp_path / "r", table)
    assert numbers > 33 * 17
    assert difference < 1e-9
    rows = read_csv(table)
    assert [row["seeds"] for row in rows].count("2") == 1
    for column, value, least in (("t2i_r5", "1.5", 1.0), ("seeds", "9", 6.0), ("train_seconds", "", 1e300)):
        wrong = tmp_path / "wrong.csv"
        wrong.write_text(as_csv([rows[0] | {column: value}, *rows[1:]]))
        assert reports.check(tmp_path / "r", wrong)[1] >= least


def as_csv(rows: list[dict[str, str]]) -> str:
    return "\n".join([",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)])
