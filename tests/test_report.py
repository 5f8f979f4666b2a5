"""The report, on results made up here: statistics, names, tables, figure, page, and what it does with bad results."""

from __future__ import annotations

import csv
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.config.errors import UserError
from bench.reporting import figures, latex, options, published, summary, tables
from bench.reporting.build import build
from bench.store.frame import RECALLS, collect
from bench.store.naming import distinguish

FIGURES = ("recall_vs_params", "recall_vs_time", "recall_vs_memory", "recall_by_method")

Entry = tuple[dict[str, Any], Any]  # a spec, and its result: a dict, text as found on disk, or None

TWELVE = {
    ("zero_shot", None): (0, 23.9),
    ("full_finetune", None): (151_277_313, 45.3),
    ("linear_probe", None): (1_048_576, 36.2),
    ("coop", None): (98_304, 30.5),
    ("vpt", None): (460_800, 34.1),
    ("mrs_adapter", None): (161_088, 44.4),
    ("lora", 2): (307_200, 39.0),
    ("lora", 8): (1_228_800, 42.0),
    ("lora", 32): (4_915_200, 43.2),
    ("harma", None): (5_934_397, 46.5),
    ("clip_adapter", None): (524_288, 34.0),
    ("adaptformer", None): (165_250, 44.1),
}


def spec(method: str, seed: int = 0, *, train: dict[str, Any] | None = None, **parts: Any) -> dict[str, Any]:
    loss, dataset = parts.pop("loss", {"name": "info_nce", "targets": "pair"}), parts.pop("dataset", {})
    return {
        "sweep": "s",
        "dataset": {"name": "rsitmd", "root": "/data", "split": "pir", "annotations": None, **dataset},
        "backbone": {"model": "ViT-B-32-quickgelu", "weights": "openai", "seed": 0, **parts.pop("backbone", {})},
        "method": {"name": method, **parts},
        "loss": loss,
        "train": {"epochs": 20, "lr": 1e-4, "betas": [0.9, 0.98], "workers": 4, **(train or {})},
        "seed": seed,
    }


def done(a_spec: dict[str, Any], mean: float = 40.0, params: int = 1000, **provenance: Any) -> Entry:
    scores = dict.fromkeys(RECALLS, mean) | {"i2t_ties": 0, "t2i_ties": 0, "images": 452, "captions": 2260}
    scores |= {"mean_recall_optimistic": mean, "mean_recall_pessimistic": mean}
    return a_spec, {
        "schema": 1,
        "status": "finished",
        "error": None,
        "spec": a_spec,
        "metrics": {"best_epoch": 3, "val": scores, "test": scores},
        "cost": {
            "trainable_params": params,
            "total_params": 151_277_313,
            "train_seconds": 90.0,
            "peak_bytes": 2 * 10**9,
        },
        "provenance": {"git_commit": "c0ffee", "git_dirty": False, "packages": {"torch": "2.9"}, "split": "pir"}
        | {"weights": "openai", "device": "cpu", "finished": "2026-01-01T00:00:00Z"}
        | provenance,
    }


def failed(a_spec: dict[str, Any], message: str, kind: str = "RuntimeError") -> Entry:
    error = {"type": kind, "message": message, "traceback": "...", "user": False}
    empty = {"metrics": None, "cost": None, "provenance": None}
    return a_spec, {"schema": 1, "status": "failed", "error": error, "spec": a_spec, **empty}


def write(folder: Path, entries: Iterable[Entry], plan: bool = True) -> Path:
    """A results folder; run ids are made of the method, the seed and a count."""
    runs = []
    for i, (a_spec, result) in enumerate(entries):
        run_id = f"{a_spec['method']['name']}-s{a_spec['seed']}-{i:08x}".replace("/", "")
        runs.append({"run_id": run_id, "spec": a_spec})
        if result is not None:
            (folder / run_id).mkdir(parents=True)
            text = result if isinstance(result, str) else json.dumps({"run_id": run_id, "sweep": "s", **result})
            (folder / run_id / "result.json").write_text(text)
    folder.mkdir(exist_ok=True)
    if plan:
        content = {"sweep": folder.name, "file": f"sweeps/{folder.name}.yaml", "runs": runs}
        (folder / "plan.json").write_text(json.dumps(content))
    return folder


def twelve(seeds: int = 3) -> list[Entry]:
    return [
        done(spec(method, seed, **dict[str, Any]({"rank": rank} if rank else {})), mean + 0.7 * seed, params)
        for (method, rank), (params, mean) in TWELVE.items()
        for seed in range(seeds if params else 1)
    ]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rows_of(folder: Path) -> Any:
    return summary.summarise(collect(folder))


def test_statistics_over_seeds(tmp_path: Path) -> None:
    means = [40.0, 41.0, 43.5]
    entries = [done(spec("lora", seed, train={"workers": seed}), mean) for seed, mean in enumerate(means)]
    entries.append(done(spec("zero_shot"), 20.125, 0))
    built = build(write(tmp_path / "r", entries), tmp_path / "out")
    lora, zero = read_csv(built.out_dir / "table.csv")
    assert tuple(lora) == summary.TABLE_COLUMNS
    assert (lora["trainable_params"], lora["seeds"], lora["config"], lora["peak_bytes"]) == (
        "1000",
        "3",
        "",
        "2000000000",
    )
    for name in RECALLS:
        assert float(lora[name]) == pytest.approx(statistics.mean(means), abs=1e-12)
        assert float(lora[f"{name}_std"]) == pytest.approx(statistics.stdev(means), abs=1e-12)
    assert (zero["trainable_params"], zero["mean_recall"], zero["mean_recall_std"]) == ("0", "20.125", "")
    table = (built.out_dir / "table.md").read_text()
    assert "**41.50** ± 1.80" in table
    assert "split pir: 452 test images, 2,260 captions" in table
    assert "no query tied in any run" in table


def test_missing_numbers_are_dashes(tmp_path: Path) -> None:
    a_spec, result = done(spec("lora"))
    result["cost"] = None
    built = build(write(tmp_path / "r", [(a_spec, result), (spec("vpt"), None)]), tmp_path / "out")
    lora, vpt = read_csv(built.out_dir / "table.csv")
    assert lora["trainable_params"] == lora["train_seconds"] == vpt["mean_recall"] == ""
    assert (vpt["seeds"], vpt["method"]) == ("0", "vpt")
    line = next(line for line in (built.out_dir / "table.md").read_text().splitlines() if line.startswith("| vpt"))
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["–", "0 of 1†", *["–"] * 9]
    assert "nan" not in "".join(
        path.read_text().lower() for path in built.paths if path.suffix in (".md", ".tex", ".csv")
    )


def test_bad_results_are_named_not_fatal(tmp_path: Path) -> None:
    broken = done(spec("coop"))[1] | {"metrics": None}
    nan = json.dumps(done(spec("vpt"))[1]).replace("40.0", "NaN")
    entries = [done(spec("lora")), failed(spec("lora", 1), "CUDA out of memory\nTried 2 GiB")]
    entries += [
        (spec("lora", 2), '{"schema": 1, "st'),
        (spec("harma"), None),
        (spec("coop"), broken),
        (spec("vpt"), nan),
    ]
    built = build(write(tmp_path / "r", entries), tmp_path / "out")
    assert (built.runs, built.unfinished) == (6, 5)
    for text in ((built.out_dir / "table.md").read_text(), (built.out_dir / "index.html").read_text(), built.text):
        for part in ("RuntimeError: CUDA out of memory Tried 2 GiB", "unreadable", "not run", "needs metrics"):
            assert part in text
    assert "1 of 3†" in (built.out_dir / "table.md").read_text()
    assert "1 of 3$^\\dagger$" in (built.out_dir / "table.tex").read_text()


def test_plan_decides_which_runs_count(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", [done(spec("lora"), 40), done(spec("lora", 1), 50)])
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"runs": plan["runs"][:1]}))
    assert summary.summarise(collect(folder, only=True))["mean_recall"].tolist() == [40]
    assert len(collect(folder, only=True).ignored) == 1
    (folder / "plan.json").unlink()
    assert rows_of(folder)["mean_recall"].tolist() == [45]
    (folder / "plan.json").write_text('{"runs": [{"run_id": "../x", "spec": {}}]}')
    with pytest.raises(UserError, match=r"plan\.json"):
        collect(folder)


def test_finished_runs_of_other_commands_stay_and_are_marked(tmp_path: Path) -> None:
    """A plan that has shrunk, as by `--set grid.method=...`, takes no finished run out of the report."""
    entries = [done(spec("lora"), 40), done(spec("lora", 1), 50), done(spec("vpt"), 30)]
    entries += [failed(spec("coop"), "no"), done(spec("bitfit"), 35)]
    folder = write(tmp_path / "r", entries)
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"runs": [plan["runs"][0], plan["runs"][4]]}))
    built = build(folder, tmp_path / "out")
    rows = read_csv(tmp_path / "out" / "table.csv")
    assert [(row["method"], row["seeds"], row["outside_grid"], float(row["mean_recall"])) for row in rows] == [
        ("lora", "2", "1", 45.0),
        ("bitfit", "1", "0", 35.0),
        ("vpt", "1", "1", 30.0),
    ]
    meaning = summary.MEANINGS[summary.OUTSIDE]
    for text in ((tmp_path / "out" / "table.md").read_text(), (tmp_path / "out" / "index.html").read_text()):
        assert meaning in text
        assert "2‡" in text
    assert "2$^\\ddagger$" in (tmp_path / "out" / "table.tex").read_text()
    assert "2‡" in built.text
    assert "2 of 2 runs finished, and 2 of other commands" in (tmp_path / "out" / "index.html").read_text()
    assert collect(folder).ignored == ("coop-s0-00000003",)


def test_a_result_with_other_settings_than_its_run_makes_no_row(tmp_path: Path) -> None:
    """An edited run.yaml: the run was computed with another learning rate than the plan has for it."""
    wanted, edited = spec("lora"), spec("lora", train={"lr": 0.1})
    elsewhere = spec("lora", 1, dataset={"root": "/elsewhere"}, train={"workers": 9})
    folder = write(tmp_path / "r", [(wanted, done(edited)[1]), (spec("lora", 1), done(elsewhere)[1])])
    runs = collect(folder)
    assert runs.frame["status"].tolist() == ["unreadable", "finished"]
    assert "train.lr 0.1 (plan: 0.0001)" in runs.frame["note"][0]


def test_a_result_whose_settings_lack_a_part_makes_no_row(tmp_path: Path) -> None:
    broken = done(spec("lora"))[1]
    broken["spec"] = {"method": {"name": "lora"}}
    folder = write(tmp_path / "r", [(spec("lora"), broken), done(spec("vpt"))])
    assert collect(folder).frame["status"].tolist() == ["unreadable", "finished"]


def test_a_result_in_another_runs_folder_makes_no_row(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", [done(spec("lora"), 40), done(spec("vpt"), 50)])
    one, other = sorted(folder.glob("*/result.json"))
    one.write_bytes(other.read_bytes())
    assert collect(folder).frame["status"].tolist() == ["unreadable", "finished"]


def test_one_seed_run_twice_counts_once(tmp_path: Path) -> None:
    entries = [done(spec("lora"), 40, finished="2026-01-02"), done(spec("lora"), 50, finished="2026-01-01")]
    runs = collect(write(tmp_path / "r", entries, plan=False))
    assert runs.frame["status"].tolist() == ["finished", "superseded"]
    assert summary.summarise(runs)["mean_recall"].tolist() == [40]


def test_config_says_what_differs(tmp_path: Path) -> None:
    hmmc = {"name": "hmmc", "margin": 0.2}
    entries = [done(spec("lora", rank=r)) for r in (2, 8)] + [
        done(spec("vpt", train={"lr": lr})) for lr in (1e-4, 4e-4)
    ]
    entries += [done(spec("coop")), done(spec("coop", loss=hmmc)), done(spec("harma"))]
    entries += [done(spec("bias", dataset={"root": root})) for root in ("/a", "/b")]
    rows = rows_of(write(tmp_path / "r", entries))
    assert rows["config"].tolist() == [
        *("rank=2", "rank=8", "lr=0.0001", "lr=0.0004", "loss=info_nce", "loss=hmmc", "", "root=/a", "root=/b")
    ]


def test_configs_never_collide() -> None:
    assert distinguish([{"a.x": 1, "b.x": 1}, {"a.x": 2, "b.x": 1}, {"a.x": 1, "b.x": 2}]) == [
        *("a.x=1, b.x=1", "a.x=2, b.x=1", "a.x=1, b.x=2")
    ]
    assert distinguish([{"n": 1}, {"n": 1, "k": True}]) == ["", "k=true"]
    assert len(set(distinguish([{"v": 1}, {"v": "1"}, {"v": True}, {"v": "true"}, {"v": None}, {"v": "none"}]))) == 6
    assert distinguish([{"lr": 0.1}, {"lr": 0.10000000001}]) == ["lr=0.1", "lr=0.10000000001"]


def test_blocks_of_datasets_splits_and_backbones(tmp_path: Path) -> None:
    specs = [spec("lora"), spec("lora", dataset={"split": "karpathy"}), spec("lora", dataset={"name": "ucm"})]
    specs += [spec("lora", backbone={"weights": f"/{folder}/model.pt"}) for folder in "ab"]
    runs = collect(write(tmp_path / "r", [done(s) for s in specs]))
    parts = tables.blocks(runs, summary.summarise(runs))
    assert [part.title for part in parts] == [
        "rsitmd (split=pir), ViT-B-32-quickgelu/openai",
        "rsitmd (split=karpathy), ViT-B-32-quickgelu/openai",
        "ucm, ViT-B-32-quickgelu/openai",
        "rsitmd (split=pir), ViT-B-32-quickgelu/model.pt (weights=/a/model.pt)",
        "rsitmd (split=pir), ViT-B-32-quickgelu/model.pt (weights=/b/model.pt)",
    ]
    assert len(figures.recall_vs_params(parts).axes) == 6
    assert latex.tables(runs, parts).count("\\begin{tabular}") == 1
    assert latex.tables(runs, parts).count("\\textit{") == 5
    assert published.of_dataset(parts[0].dataset)[0]["dataset"] == "RSITMD"


NASTY = 'a_b&c%d$#{e}~^\\ <script>alert("1")</script> | [x] *y* `z`'


def test_tex_is_escaped_and_balanced(tmp_path: Path) -> None:
    runs = collect(write(tmp_path / "r", [*twelve(), done(spec("nasty", note=NASTY)), done(spec("nasty", note="n"))]))
    text = latex.tables(runs, tables.blocks(runs, summary.summarise(runs))).replace(r"\hspace{0pt}", "")
    assert r"note=a\_b\&c\%d\$\#\{e\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in text
    bare = text.replace("\\\\", "").replace("\\{", "").replace("\\}", "")
    assert bare.count("{") == bare.count("}")
    assert text.count("\\begin{") == text.count("\\end{") == 2
    for command in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{command}") == 1
    body = text.split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines()
    assert len(body) == 14
    assert all(line.endswith("\\\\") and line.replace("\\&", "").count("&") == 16 for line in body)
    assert sum("\\petlbest{" in line for line in body) == sum("\\petlsecond{" in line for line in body) == 1


def test_page_and_markdown_escape_everything(tmp_path: Path) -> None:
    sweep = tmp_path / "<b>r"
    entries = [
        done(spec(NASTY, note=NASTY), device=NASTY),
        done(spec(NASTY, note="n")),
        failed(spec("x"), NASTY, "<i>"),
    ]
    built = build(write(sweep, entries), tmp_path / "out")
    page, table = ((built.out_dir / name).read_text() for name in ("index.html", "table.md"))
    assert "<script>alert" not in page + table
    assert "<b>r" not in page + table
    assert "<i>" not in page + table
    assert page.count("&lt;script&gt;alert(&#34;1&#34;)") >= 4
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)  # the libraries name XML's namespaces
    own = re.sub(r'<section id="licences">.*?</section>', "", own, flags=re.DOTALL)  # texts of licences
    for outside in ("http://", "https://", "//cdn", "@import"):
        assert outside not in own


def test_page_shows_differing_and_dirty_provenance(tmp_path: Path) -> None:
    entries = [done(spec("lora"), git_dirty=True), done(spec("vpt"), git_commit="beef", packages={"torch": "2.8"})]
    page = (build(write(tmp_path / "r", entries), tmp_path / "out").out_dir / "index.html").read_text()
    assert 'class="bad">Some runs were made with uncommitted changes' in page
    assert "c0ffee (1 run), beef (1 run)" in page
    assert "2.9 (1 run), 2.8 (1 run)" in page
    assert "python -m bench.sweep sweeps/r.yaml" in page
    assert "other protocols, for orientation" in page


@pytest.mark.parametrize("seeds", [1, 3])
def test_figure_labels_do_not_overlap(tmp_path: Path, seeds: int) -> None:
    runs = collect(write(tmp_path / "r", twelve(seeds)))
    figure = figures.recall_vs_params(tables.blocks(runs, summary.summarise(runs)))
    axes = figure.axes[0]
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = {text.get_text(): text.get_window_extent(renderer) for text in axes.texts}
    lone = {options.title(method, {}) for method, rank in TWELVE if not rank and method != "zero_shot"}
    assert set(boxes) == lone | {"Zero-shot CLIP 23.9", "r=2", "r=8", "LoRA r=32"}
    for (a, first), (b, second) in combinations(boxes.items(), 2):
        assert not first.overlaps(second), f"{a} on {b}"
    points = axes.transData.transform(
        [(params, mean + 0.35 * (seeds - 1)) for params, mean in TWELVE.values() if params]
    )
    for name, box in boxes.items():
        assert not any(box.contains(x, y) for x, y in points), name
        assert figure.bbox.contains(box.x0, box.y0), name
        assert figure.bbox.contains(box.x1, box.y1), name


@pytest.mark.parametrize("entries", [twelve()[:1], [(spec("lora"), None)], twelve(1)[1:2]], ids=["flat", "none", "one"])
def test_figure_of_few_runs(tmp_path: Path, entries: list[Entry]) -> None:
    built = build(write(tmp_path / "r", entries), tmp_path / "out")
    assert all(path.stat().st_size > 100 for path in built.paths)


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", twelve()[:8])
    first, second = (build(folder, tmp_path / name) for name in "ab")
    for one, other in zip(first.paths, second.paths, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    pdf = next(path for path in first.paths if path.suffix == ".pdf").read_bytes()
    assert b"/Type3" not in pdf
    assert b"/Image" not in pdf.replace(b"/ImageC", b"").replace(b"/ImageB", b"").replace(b"/ImageI", b"")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "r", [done(spec("lora"))])
    assert report.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "lora" in out
    assert Path("reports/r/index.html").is_file()
    assert {path.name for path in Path("reports/r").iterdir()} == {
        *("table.csv", "table.md", "table.tex", "table_notes.tex", "supplement.tex", "runs.csv", "provenance.json"),
        *(f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")),
        "index.html",
    }
    (tmp_path / "empty").mkdir()
    for bad in ("empty", "absent"):
        assert report.main([bad]) == 2
        assert capsys.readouterr().err.startswith("error: no r")


def test_reporting_imports_no_torch() -> None:
    check = "import sys, bench.report, bench.reporting.page; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
    light = "import sys, bench.report; sys.exit(any(m in sys.modules for m in ('pandas', 'matplotlib', 'numpy')))"
    subprocess.run([sys.executable, "-c", light], check=True)


def test_many_runs_in_seconds(tmp_path: Path) -> None:
    entries = [done(spec("lora", seed, rank=rank), 30 + rank % 17) for rank in range(1, 201) for seed in range(10)]
    folder = write(tmp_path / "r", entries)
    start = time.perf_counter()
    runs = collect(folder)
    parts = tables.blocks(runs, summary.summarise(runs))
    texts = [
        tables.csv(parts[0].rows),
        tables.markdown(runs, parts),
        latex.tables(runs, parts),
        tables.terminal(runs, parts),
    ]
    assert time.perf_counter() - start < 8
    assert texts[0].count("\n") == 201
