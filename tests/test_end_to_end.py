"""The command as a user gives it: a sweep file, real runs, a report; and what bad input gets."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import sweep
from bench.store import folder, record

FILE = """\
name: small
dataset: {{name: ucm, root: {root}, split: karpathy}}
backbone: {{model: tiny-clip, weights: random}}
train: {{epochs: 1, batch_size: 8, lr: 1e-3, workers: 0}}
grid:
  seed: [0, 1]
  method:
    - zero_shot
    - lora: {{rank: [1, 2]}}
    - mrs_adapter: {{bottleneck: 8, shared_dim: 8, loss: [hmmc, info_nce]}}
"""


@pytest.fixture
def file(root, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(FILE.format(root=root))
    return path


def test_from_a_grid_to_a_report_and_nothing_twice(file, capsys):
    assert sweep.main([str(file), "--executor", "inline"]) == 0
    told = capsys.readouterr().out
    assert "9 runs, 0 finished, 9 to run" in told
    with Path("reports/small/table.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["method"], row["config"], row["seeds"]) for row in rows] == [
        ("zero_shot", "", "1"),
        ("lora", "rank=1", "2"),
        ("lora", "rank=2", "2"),
        ("mrs_adapter", "bottleneck=8, shared_dim=8, loss=hmmc", "2"),
        ("mrs_adapter", "bottleneck=8, shared_dim=8, loss=info_nce", "2"),
    ]
    for row in rows:
        six = [float(row[f"{side}_r{k}"]) for side in ("i2t", "t2i") for k in (1, 5, 10)]
        assert float(row["mean_recall"]) == pytest.approx(sum(six) / 6)
        assert (row["mean_recall_std"] == "") == (row["seeds"] == "1")
    names = {path.name for path in Path("reports/small").iterdir()}
    assert {"table.md", "table.tex", "table.csv", "recall_vs_params.png", "recall_vs_params.pdf", "index.html"} <= names
    stamps = {path: path.stat().st_mtime_ns for path in Path("results/small").glob(f"*/{folder.RESULT}")}
    assert len(stamps) == 9
    assert sweep.main([str(file), "--executor", "inline"]) == 0
    assert "9 runs, 9 finished, 0 to run" in capsys.readouterr().out
    assert stamps == {path: path.stat().st_mtime_ns for path in Path("results/small").glob(f"*/{folder.RESULT}")}


def test_local_workers_and_a_run_that_fails_alone(file, capsys):
    overrides = ["grid.seed=[0]", "grid.method=[zero_shot, {full_finetune: {train: {lr: [1e-4, 1e12]}}}]"]
    overrides += ["train.clip_grad_norm=null"]
    assert sweep.main([str(file), "--executor", "local", "--workers", "2", "--set", *overrides]) == 1
    told = capsys.readouterr()
    assert re.search(r"failed: full_finetune-lr1e\+12-s0-\w+: FloatingPointError: .*lower train.lr", told.err)
    states = [record.read(path.parent).status for path in Path("results/small").glob(f"*/{folder.RESULT}")]
    assert sorted(states) == ["failed", "finished", "finished"]
    assert "lower train.lr" in Path("reports/small/table.md").read_text()


BAD = {
    "unknown key": (lambda text: text.replace("batch_size", "batchsize"), r"small.yaml:4: .*batchsize.*batch_size"),
    "unknown setting of a method": (
        lambda text: text.replace("bottleneck", "bottlneck"),
        r"small.yaml:10: .*bottleneck",
    ),
    "unknown method": (lambda text: text.replace("lora:", "lroa:"), r"small.yaml:9: .*lroa.*lora"),
    "wrong type": (lambda text: text.replace("epochs: 1", "epochs: many"), r"small.yaml:4: .*epochs.*many"),
    "missing root": (lambda text: re.sub("root: [^,]*", "root: /no/such/folder", text), r"no folder /no/such/folder"),
    "missing weights": (lambda text: text.replace("random", "gone.pt"), r"no file .*gone.pt.*put its path there"),
    "not YAML": (lambda text: text.replace("grid:", "grid: ["), r"small.yaml:\d+"),
    "not a sweep": (lambda text: "just words", r"small.yaml: .*expected a sweep file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_exit_code_2(file, capsys, case):
    change, wanted = BAD[case]
    file.write_text(change(file.read_text()))
    assert sweep.main([str(file), "--executor", "inline"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("error:") == 1
    assert "Traceback" not in message
    assert re.search(wanted, message), message
    assert not list(Path("results").glob("*/*/result.json"))


@pytest.mark.parametrize("kind", ["missing", "corrupt"])
def test_a_bad_image_stops_the_sweep_before_any_run(file, root, tmp_path, capsys, kind):
    images = tmp_path / "images"
    shutil.copytree(root, images)
    if kind == "missing":
        (images / "5.png").unlink()
    else:
        (images / "5.png").write_bytes((images / "5.png").read_bytes()[:60])
    file.write_text(FILE.format(root=images))
    assert sweep.main([str(file), "--executor", "inline"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: 1 of ")
    assert "5.png" in message
    assert "bench.data check" in message
    assert not list(Path("results").glob("*/*/result.json"))


def test_the_module_runs_as_a_command(file):
    done = subprocess.run(
        [sys.executable, "-m", "bench.sweep", str(file), "--dry-run", "--set", "grid.method=[nothing]"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(sweep.__file__).parents[1],
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "unknown method 'nothing'" in done.stderr
