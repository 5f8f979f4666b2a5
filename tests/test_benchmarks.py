"""The benchmarks run, at sizes that take no time: they compare what is equal, and print what they measured."""

from __future__ import annotations

import json

import pytest
import torch

from bench.config import files
from bench.config.settings import BackboneSettings
from bench.core.cost import flops_per_pair
from bench.core.weights import load_backbone
from bench.store import record
from bench.store.folder import RUN
from benchmarks import __main__, gpu, measure, pixels, retrieval, runs, steps, work
from benchmarks.measure import Row, Timing

TINY = {"model": "tiny-clip"}


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    """Measured rates are not the point here; what is drawn is cached in the test's own folder."""
    monkeypatch.setattr(measure, "matmul_rate", lambda *_: 1e9)
    monkeypatch.setattr(measure, "copy_rate", lambda *_: 1e9)
    for module in (steps, retrieval, pixels, gpu):
        for rate in ("matmul_rate", "copy_rate"):
            if hasattr(module, rate):
                monkeypatch.setattr(module, rate, lambda *_: 1e9)
    monkeypatch.setenv("PETL_BENCH_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("subject", steps.SUBJECTS, ids=lambda subject: subject.method["name"])
def test_step_compares_equal_trainings(subject):
    (row,) = steps.rows(work.captions_like_rsitmd(8), batch=4, rounds=1, subjects=[subject], **TINY)
    assert len(row.ours.seconds) == len(row.theirs.seconds) == 1
    assert row.limit_seconds > 0
    assert row.facts["loss"] > 0


def test_step_refuses_a_baseline_that_computes_something_else(monkeypatch):
    monkeypatch.setattr(steps, "stock_step", lambda *_, **__: lambda *_: 1.0)
    with pytest.raises(AssertionError, match="apart"):
        steps.rows(work.captions_like_rsitmd(8), batch=4, rounds=1, subjects=steps.SUBJECTS[:1], **TINY)


def test_retrieval_compares_equal_recalls():
    first, second = retrieval.rows(images=40, dim=16, rounds=2)
    large = retrieval.large_row(images=50, dim=8)
    assert first.ratio > 0
    assert 0 < first.facts["mean recall"] < 100
    assert second.theirs is not None
    assert large.theirs is None


def test_recall_by_sorting_is_the_literatures():
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.8, 0.7, 0.6, 0.1]]).numpy()
    assert retrieval.argsort_recall(scores, scores.T.copy()) == [50, 100, 100, 50, 100, 100]


def test_pixels_compares_equal_test_pictures():
    found = pixels.rows(pictures=3, size=32, edge=40, rounds=1)
    kinds = ("none", "clip", "harma", "harma, views: 8")
    assert [row.what for row in found] == [f"3 pictures, augment {each}" for each in kinds]


def test_gpu_without_one_is_a_mistake(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert __main__.main(["gpu"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_gpu_on_the_cpu_at_a_tiny_size(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "whole_row", lambda spec, run_dir: Row(f"{spec.train.epochs} epochs", Timing([1.0])))
    cases = [gpu.Case("LoRA", gpu.LORA, batch=8)]
    cpu = torch.device("cpu")
    epoch, whole = gpu.rows(device=cpu, images=8, cases=cases, workers=0, whole_epochs=3, **TINY)
    assert epoch.what == "LoRA, epoch of 40 pairs, bf16, batch 8"
    assert epoch.facts["pairs a second"] == pytest.approx(40 / epoch.ours.median)
    # Frozen weights take twice the forward's operations, less the first layers of each tower, and LoRA's own.
    assert 1.5 < epoch.facts["GFLOP a pair"] * 1e9 / forward_flops() < 2.5
    assert whole.what == "3 epochs"


def forward_flops() -> int:
    backbone = load_backbone(BackboneSettings(model="tiny-clip", weights="random"))
    size = backbone.model.image_size
    return flops_per_pair(backbone.model, torch.zeros(1, 3, size, size), backbone.tokenizer(["a road"]))


def test_fixed_costs_are_those_outside_of_training(tmp_path):
    dataset = work.draw_dataset(tmp_path / "data", 8, work.captions_like_rsitmd(8))
    run_dirs = [tmp_path / str(seed) for seed in range(2)]
    train = {"epochs": 1, "batch_size": 8, "workers": 0}
    for seed, run_dir in enumerate(run_dirs):
        run_dir.mkdir()
        spec = work.run_spec(dataset, {"name": "linear_probe"}, train, seed=seed, **TINY)
        (run_dir / RUN).write_text(spec.dump())
    runs.compute(tmp_path / "seconds.json", run_dirs)
    seconds = files.read_json(tmp_path / "seconds.json")
    trained = [record.read(run_dir).cost.train_seconds for run_dir in run_dirs]
    assert len(seconds) == 2
    assert all(each > 0 for each in [*seconds, *trained])


def test_captions_are_as_long_as_rsitmds():
    lengths = [len(caption.split()) + 2 for caption in work.captions_like_rsitmd(4000)]
    assert sum(lengths) / len(lengths) == pytest.approx(13, abs=0.5)
    assert max(lengths) == 42


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.json", '[{"caption": "a road"}, {"caption": ["two roads", "a river"]}]'),
        ("captions.txt", "a road\n\ntwo roads\na river\n"),
    ],
)
def test_captions_of_a_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert work.read_captions(tmp_path / name) == ["a road", "two roads", "a river"]


def test_table_and_data(monkeypatch, capsys):
    monkeypatch.setattr(measure, "working_memory", lambda before=None: 7_000_000)
    sides = measure.alternate(lambda: None, lambda: None, rounds=3)
    sides[0].seconds, sides[1].seconds = [1.0, 2.0, 4.0], [3.0, 4.0, 20.0]
    row = Row("work", sides[0], "others", sides[1], target=2.5, limit_seconds=0.5, facts={"loss": 0.25})
    assert row.ratio == 3.0
    alone = Row("alone", Timing([0.7]), target=0.5)
    lines = measure.table([row, alone]).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == ["work", "others", "2", "4", "3.00", "2.5", "7", "7", "25%"]
    assert lines[-1] == "work: loss 0.25"
    assert [each.as_data()["reached"] for each in (row, alone)] == [True, False]
    monkeypatch.setattr(retrieval, "rows", lambda **_: [row, alone])
    assert __main__.main(["retrieval", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["retrieval"][0]["ratio"] == 3.0
    assert printed["machine"]["torch"] == torch.__version__


def test_an_unknown_name_is_a_mistake(capsys):
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["steps"])
    assert "there are step" in capsys.readouterr().err


def test_results_that_differ_are_no_pair():
    measure.check_equal("equal", [1.0, 100.0], [1.000001, 100.0005])
    with pytest.raises(AssertionError, match=r"2\.0e-05 apart"):
        measure.check_equal("other", [1.0], [1.00002])
