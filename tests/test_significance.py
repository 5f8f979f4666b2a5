"""What the report says of its rows: marks, intervals, ranks and words, on ranks made up here; and tuned weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.config.errors import UserError
from bench.core.ranks import Ranks, Saved, to_npz
from bench.plan.grid import expand
from bench.reporting import contamination, significance
from bench.reporting.build import build
from bench.store.frame import RECALLS
from bench.store.planned import read as read_plan
from tests.test_report import done, read_csv, spec, write

ROOT = Path(__file__).parents[1]
QUALITY = {"lora": 2.2, "harma": 2.2, "vpt": 1.6, "zero_shot": 0.0}
IMAGES, CAPTIONS = 200, 5


def ranks_of(quality: float, seed: int) -> bytes:
    """Ranks of a run: a query's rank is the more often small, the higher the quality; all runs share the images."""
    image = np.random.default_rng(0).normal(0, 1, IMAGES)
    rng = np.random.default_rng(seed)
    own = image + rng.normal(0, 0.3, IMAGES)

    def above(latent: np.ndarray) -> Ranks:
        count = np.floor(40 / (1 + np.exp(latent + rng.normal(0, 0.5, len(latent)) + quality))).astype(int)
        return Ranks(count, np.zeros_like(count), np.ones_like(count))

    i2t, t2i = above(own), above(own.repeat(CAPTIONS))
    return to_npz(Saved(i2t, t2i, np.full(IMAGES, CAPTIONS), i2t, t2i))


def results(folder: Path, seeds: int = 3, **parts) -> Path:
    entries = []
    for method in QUALITY:
        for seed in range(1 if method == "zero_shot" else seeds):
            mean = 40 + 5 * QUALITY[method] - (method == "harma")
            entries.append(done(spec(method, seed, **parts), mean, 0 if method == "zero_shot" else 10))
    write(folder, entries)
    for number, run in enumerate(sorted(folder.glob("*-s*"))):
        (run / "ranks.npz").write_bytes(ranks_of(QUALITY[run.name.partition("-")[0]], number))
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("significance")
    return build(results(root / "r"), root / "out")


def test_what_ties_with_the_best_is_marked_in_every_format(report):
    rows = {row["method"]: row for row in read_csv(report.out_dir / "table.csv")}
    assert {name: row["tied_with_best"] for name, row in rows.items()} == {
        "lora": "true", "harma": "true", "vpt": "false", "zero_shot": "false",
    }  # fmt: skip
    for name in ("table.md", "index.html"):
        assert "≈" in (report.out_dir / name).read_text()
    assert "can't be told apart from the best mean recall" in (report.out_dir / "table.md").read_text()
    assert "$^\\approx$" in (report.out_dir / "table.tex").read_text()
    assert "the best two rows can't be told apart" in report.text
    again = build(report.paths[0].parent.parent / "r", report.out_dir.parent / "again")
    assert (again.out_dir / "table.csv").read_bytes() == (report.out_dir / "table.csv").read_bytes()


def test_intervals_and_ranks_are_in_the_csv(report):
    for row in read_csv(report.out_dir / "table.csv"):
        for recall in RECALLS:
            low, high, alike = (float(row[f"{recall}_{end}"]) for end in ("low", "high", "alike"))
            assert 0 <= low <= alike <= high <= 100  # alike is the plain recall here
            assert low < high or alike in (0, 100)
    ranks = {
        row["method"]: (row["best_rank"], row["worst_rank"], row["tie_groups"]) for row in read_csv(report.paths[0])
    }
    assert ranks == {
        "lora": ("1", "2", "1"),
        "harma": ("1", "2", "1"),
        "vpt": ("3", "3", "2"),
        "zero_shot": ("4", "4", "3"),
    }


def test_the_report_says_how_far_its_numbers_reach(report):
    text = (report.out_dir / "table.md").read_text()
    assert "10,000 bootstrap draws of the 200 test images with their 1,000 captions" in text
    assert "points of mean recall are told apart with 80% chance" in text
    assert "once corrected for 6 pairs" in text
    assert "one seed" not in text


def test_one_seed_is_said_to_leave_its_spread_unknown(tmp_path):
    text = (build(results(tmp_path / "r", seeds=1), tmp_path / "out").out_dir / "table.md").read_text()
    assert "3 rows have one seed: what another seed would give is unknown" in text


def test_it_can_be_switched_off(tmp_path):
    folder = results(tmp_path / "r", seeds=1)
    plain = build(folder, tmp_path / "plain", plain=True)
    assert "≈" not in plain.text
    assert read_csv(plain.out_dir / "table.csv")[0]["mean_recall_low"] == ""
    plan = read_plan(folder)
    assert plan is not None
    off = plan.__class__(**{**vars(plan), "content": {"report": {"significance": "off"}}})
    assert (build(folder, tmp_path / "off", off).out_dir / "table.csv").read_bytes() == plain.paths[0].read_bytes()


def test_the_sweep_file_says_whether_it_is_on():
    sweep = expand(ROOT / "sweeps" / "demo.yaml", ["report.significance=off"])
    assert sweep.content["report"] == {"significance": "off"}
    with pytest.raises(UserError, match=r"report\.significance"):
        expand(ROOT / "sweeps" / "demo.yaml", ["report.significance=maybe"])


def test_runs_of_differing_data_are_not_compared(tmp_path):
    entries = [done(spec("lora"), dataset_sha256="a"), done(spec("vpt"), dataset_sha256="b")]
    folder = write(tmp_path / "r", entries)
    for run in folder.glob("*-s*"):
        (run / "ranks.npz").write_bytes(ranks_of(1.0, 1))
    text = (build(folder, tmp_path / "out").out_dir / "table.md").read_text()
    assert "Intervals: none: the runs are of differing data" in text


def test_results_without_ranks_still_make_a_report(tmp_path):
    built = build(write(tmp_path / "r", [done(spec("lora")), done(spec("vpt"))]), tmp_path / "out")
    assert "none: no run has saved ranks" in (built.out_dir / "table.md").read_text()


@pytest.mark.parametrize(
    ("better", "words"),
    [
        ([], "these three rows can't be told apart on this test set"),
        (
            [(0, 2)],
            "the best two rows can't be told apart from the first on this test set: a, b; the other row is below",
        ),
        (
            [(0, 1), (0, 2)],
            "a has the highest mean recall, and is told apart from each of the other two rows (5%, Holm)",
        ),
    ],
)
def test_claims_in_words(better, words):
    matrix = np.zeros((3, 3), bool)
    for pair in better:
        matrix[pair] = True
    assert significance.claim(["a", "b", "c"], matrix) == words


@pytest.mark.parametrize(
    ("weights", "dataset", "seen"),
    [
        ("/w/RS5M_ViT-B-32_RET-2.pt", "rsitmd", "RET-2"),
        ("/w/RS5M_ViT-B-32_RET-2.pt", "ucm", None),
        ("/w/RS5M_ViT-B-32.pt", "rsitmd", None),
        ("/w/RemoteCLIP-ViT-B-32.pt", "ucm", "RET-3"),
        ("/w/RemoteCLIP-ViT-B-32.pt", "nwpu", None),
        ("openai", "rsicd", None),
    ],
)
def test_weights_known_to_be_tuned_on_the_dataset(weights, dataset, seen):
    found = contamination.contaminated({"backbone.weights": weights, "dataset.name": dataset})
    assert (found is None) if seen is None else (found is not None and seen in found)


def test_tuned_weights_are_marked(tmp_path):
    backbone = {"weights": "/w/RemoteCLIP-ViT-B-32.pt", "model": "ViT-B-32"}
    built = build(write(tmp_path / "r", [done(spec("lora", backbone=backbone))]), tmp_path / "out")
    for name in ("table.md", "index.html"):
        text = (built.out_dir / name).read_text()
        assert "1¶" in text
        assert "RET-3" in text
        assert contamination.MEANING in text
