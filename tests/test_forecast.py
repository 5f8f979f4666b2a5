"""What `--dry-run` says before anything runs: what would fail at once, and what the sweep will cost."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from bench import data, sweep
from bench.config.backbones import model_shape
from bench.config.settings import SlurmSettings
from bench.launch import forecast, slurm
from bench.launch.faults import faults
from bench.launch.forecast import flops
from bench.plan.grid import expand
from bench.store import attempts
from tests import records

HEAD = "name: x\ndataset: {name: demo}\nbackbone: {model: tiny-clip, weights: demo}\n"


def runs_of(text: str):
    Path("x.yaml").write_text(HEAD + text)
    return expand(Path("x.yaml")).runs


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forecast, "cpu_rate", lambda: 100e9)


def test_flops_by_hand():
    shape = model_shape("ViT-B-32")
    image, text = forecast.tower_flops(shape.image), forecast.tower_flops(shape.text)
    ends = 2 * 768 * 512 + 2 * 512 * 512  # the projections, which the estimate leaves out
    assert image + text + 2 * 49 * 3 * 32 * 32 * 768 + ends == 14_777_163_776


def test_flops_of_runs():
    grid = "train: {epochs: 4, captions_per_epoch: one}\ngrid:\n  method: [zero_shot, linear_probe, coop, vpt, lora, "
    grid += "full_finetune, mrs_adapter]\n"
    found = {run.method.name: flops(run) for run in runs_of(grid)}
    shape, items = model_shape("tiny-clip"), data.load(runs_of(grid)[0].dataset)
    text = forecast.tower_flops(shape.text)
    image = forecast.tower_flops(shape.image) + 2 * (shape.image.tokens - 1) * 3 * shape.patch**2 * shape.image.width
    captions = {split: len({c for item in getattr(items, split) for c in item.captions}) for split in ("val", "test")}
    val, test = (len(getattr(items, split)) * image + captions[split] * text for split in ("val", "test"))
    trained, scored = 4 * len(items.train), 4 * val + test
    assert found == pytest.approx(
        {
            "zero_shot": val + test,
            "linear_probe": scored + trained * (image + text),
            "coop": scored + trained * (image + 2 * text),
            "vpt": scored + trained * (2 * image + text),
            "lora": scored + trained * 2 * (image + text),
            "full_finetune": scored + trained * 3 * (image + text),
            "mrs_adapter": scored + trained * 2 * 2 * (image + text),
        }
    )


def test_finished_runs_correct_the_estimate():
    runs = runs_of("grid: {seed: [0, 1], method: [lora, vpt]}\n")
    plain = forecast.forecast(runs, Path("results"), finished=[], gpu=False, slots=2)
    assert plain.unknown == 0
    assert "GFLOP/s" in plain.basis
    assert plain.wall_seconds == pytest.approx(plain.total_seconds / 2)
    done, rest = runs[0], runs[1:]
    run_dir = Path("results") / done.run_id
    run_dir.mkdir(parents=True)
    line = {"job": None, "host": "h", "gpus": 0, "epoch": 0, "step": 0}
    end = {"ended": time.time(), "outcome": "finished", "epoch": 1, "step": 0}
    took = 3 * plain.seconds[done.run_id]
    lines = [line | {"started": end["ended"] - took}, end]
    (run_dir / "attempts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert len(attempts.read_attempts(run_dir)) == 1
    records.finish(run_dir)
    found = forecast.forecast(rest, Path("results"), finished=[done], gpu=False, slots=2)
    assert found.basis == "from FLOPs and the time of 1 finished runs"
    for run in rest:
        assert found.seconds[run.run_id] == pytest.approx(3 * plain.seconds[run.run_id], rel=1e-3)


def test_what_would_fail_is_named_before_anything_runs(capsys, monkeypatch):
    root = Path("data")
    root.mkdir()
    names = [f"{number}.png" for number in range(6)]
    splits = ["train"] * 4 + ["val", "test"]
    listed = [
        {"filename": name, "split": split, "sentences": [{"raw": f"a {name}"}]}
        for name, split in zip(names, splits, strict=True)
    ]
    (root / "dataset.json").write_text(json.dumps({"images": listed}))
    for name in names[1:]:
        (root / name).touch()
    Path("bad.pt").write_bytes(b"no checkpoint")
    Path("x.yaml").write_text(
        "name: x\ndataset: {name: ucm, root: data, split: karpathy}\n"
        "backbone: {model: ViT-B-32, weights: [bad.pt, openai]}\n"
        "train: {batch_size: 5}\ngrid: {method: [lora, zero_shot]}\n"
    )
    assert sweep.main(["x.yaml", "--dry-run", "--executor", "local"]) == 2
    said = capsys.readouterr()
    assert "lora" in said.out
    lines = said.err.splitlines()
    assert all(line.startswith("would fail: ") for line in lines)
    for part in (
        "ucm: 1 of 6 images are missing",
        "train.batch_size 5 exceeds the 4 pairs of an epoch",
        "bad.pt can't be read as a checkpoint",
        "weights 'openai' were trained with QuickGELU",
    ):
        assert sum(part in line for line in lines) >= 1, part
    assert not Path("results").exists()


def test_the_hint_at_missing_images_is_a_command(capsys):
    root = Path("my data")
    root.mkdir()
    (root / "captions.csv").write_text("filepath,title,split\na.png,x,train\nb.png,y,val\nc.png,z,test\n")
    Path("x.yaml").write_text(
        "name: x\ndataset: {name: captions, root: my data, title: Mine}\n"
        "backbone: {model: tiny-clip, weights: random}\ntrain: {batch_size: 1}\ngrid: {method: zero_shot}\n"
    )
    assert sweep.main(["x.yaml", "--dry-run", "--executor", "local"]) == 2
    said = capsys.readouterr().err
    assert "Mine: 2 of 2 images are missing" in said
    assert f"`petl-bench data check captions --root '{root.absolute()}'` lists them" in said


def test_unreadable_data_does_not_hide_the_plan(capsys):
    root = Path("data")
    root.mkdir()
    listed = [{"filename": "a.png", "split": "test", "sentences": [{"raw": "a"}]}]
    (root / "dataset.json").write_text(json.dumps({"images": listed}))
    Path("x.yaml").write_text(
        "name: x\ndataset: {name: ucm, root: data, split: karpathy}\n"
        "backbone: {model: tiny-clip, weights: random}\ngrid: {method: lora}\n"
    )
    assert sweep.main(["x.yaml", "--dry-run", "--executor", "local"]) == 2
    said = capsys.readouterr()
    assert "lora-s0-" in said.out
    assert "no estimate for 1 runs" in said.out
    assert said.err.startswith("would fail: ucm, split karpathy: no train images")


def test_packed_jobs_are_computed_one_after_another():
    for runs, settings, together in ((20, {"runs_per_job": 20}, 1), (20, {"runs_per_job": 20, "parallel_runs": 4}, 4)):
        assert slurm.at_once(SlurmSettings(**settings), runs) == together
    assert slurm.at_once(SlurmSettings(array_parallelism=8), 20) == 8


def test_the_plan_calls_datasets_by_their_titles(capsys):
    for name in ("A", "B"):
        Path(name).mkdir()
        text = f"filepath,title,split\na.png,{name},train\nb.png,y,val\nc.png,z,test\n"
        (Path(name) / "captions.csv").write_text(text)
    Path("x.yaml").write_text(
        "name: x\ndataset: {name: captions, root: [A, B]}\n"
        "backbone: {model: tiny-clip, weights: random}\ntrain: {batch_size: 1}\ngrid: {method: zero_shot}\n"
    )
    sweep.main(["x.yaml", "--dry-run", "--executor", "local"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("zero_shot")]
    assert [row[1] for row in rows] == ["A", "B"]


def test_a_sound_sweep_has_no_fault(capsys):
    assert faults(runs_of("grid: {method: [lora, zero_shot]}\n")) == []
    assert sweep.main(["x.yaml", "--dry-run", "--executor", "local"]) == 0
    said = capsys.readouterr()
    assert "estimate: " in said.out
    assert said.err == ""


def test_the_plan_shows_dataset_and_backbone_where_they_differ(capsys):
    runs_of("grid: {method: zero_shot}\n")
    sweep.main(["x.yaml", "--dry-run", "--executor", "local"])
    assert "tiny-clip" not in capsys.readouterr().out
    sweep.main(["x.yaml", "--dry-run", "--executor", "local", "--set", "backbone.weights=[demo, random]"])
    said = capsys.readouterr().out
    assert "tiny-clip/demo" in said
    assert "tiny-clip/random" in said
