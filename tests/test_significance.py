"""What the report says of its rows: marks, intervals, ranks and words, on ranks made up here; and tuned weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bench.config.errors import UserError
from bench.core.ranks import Ranks, Saved, to_npz
from bench.evidence.statistics import Comparison
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
    assert "LoRA has the highest mean recall, but HarMA can't be told apart from it on this test set" in report.text
    assert "it is higher than each of the other two methods, told apart at 5% over all pairs" in report.text
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
    assert "the smallest difference between LoRA and HarMA that this test set with 3 seeds could show is " in text
    assert "Groups: LoRA and HarMA can't be told apart; VPT and Zero-shot CLIP are told apart from every other" in text
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


def comparison(differences: dict[tuple[int, int], float], apart: Sequence[tuple[int, int]], rows: int) -> Comparison:
    """Rows whose pairs have these differences and a standard error of 0.5, of which these pairs are told apart."""
    difference, p = np.zeros((rows, rows)), np.ones((rows, rows))
    for (i, j), value in differences.items():
        difference[i, j], difference[j, i] = value, -value
    for i, j in apart:
        p[i, j] = p[j, i] = 0.01
    return Comparison(difference, np.full((rows, rows), 0.5), np.full((rows, rows), np.inf), p)


THREE = {(0, 1): 0.4, (0, 2): 2.0, (1, 2): 1.6}


@pytest.mark.parametrize(
    ("apart", "words"),
    [
        (
            [],
            "these three methods can't be told apart on this test set: A, B and C (the first and the last: difference "
            "2.0 points, 95% interval 1.0 to 3.0 for this pair alone)",
        ),
        (
            [(0, 2)],
            "A has the highest mean recall, but B can't be told apart from it on this test set (difference 0.4 points, "
            "95% interval −0.6 to 1.4 for this pair alone); it is higher than the other method, told apart at 5% over "
            "all pairs",
        ),
        (
            [(0, 1), (0, 2)],
            "A has a higher mean recall than each of the other two methods, told apart at 5% over all pairs; the "
            "closest is B (difference 0.4 points, 95% interval −0.6 to 1.4 for this pair alone)",
        ),
        (
            [(1, 2)],
            "A has the highest mean recall, but B and C can't be told apart from it on this test set (C: difference "
            "2.0 points, 95% interval 1.0 to 3.0 for this pair alone)",
        ),
    ],
)
def test_claims_in_words(apart, words):
    assert significance.claim(["A", "B", "C"], comparison(THREE, apart, 3), "methods") == words


def test_two_methods_have_one_difference():
    found = significance.claim(["LoRA (r=8)", "LoRA (r=2)"], comparison({(0, 1): 0.4}, [], 2))
    assert found == (
        "LoRA (r=8) and LoRA (r=2) can't be told apart on this test set (difference 0.4 points, 95% interval "
        "−0.6 to 1.4)"
    )


def test_what_could_be_shown_is_that_of_the_pair_that_is_cited():
    found = comparison(THREE, [(0, 2)], 3)
    found.error[0, 1] = found.error[1, 0] = 0.25
    words = significance._could_show(["A", "B", "C"], found, [3, 1, 3])
    least = 0.25 * (stats.norm.isf(0.025 / 3) + stats.norm.isf(0.2))
    assert words == (
        f"the smallest difference between A and B that this test set with 1 to 3 seeds could show is {least:.1f} "
        "points (80% chance, corrected for 3 pairs)"
    )


@pytest.mark.parametrize(
    ("apart", "words"),
    [
        ([], ""),
        ([(0, 2)], "A and B can't be told apart; B and C can't be told apart"),
        ([(0, 1), (0, 2)], "B and C can't be told apart; A is told apart from every other row"),
        ([(0, 1), (0, 2), (1, 2)], "every row is told apart from every other"),
    ],
)
def test_ties_in_words(apart, words):
    assert significance.tied(["A", "B", "C"], comparison(THREE, apart, 3).better) == words


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
