"""Two sets of results compared row by row, on ranks made up here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench import report
from bench.config.errors import UserError
from bench.core.ranks import from_npz, metrics
from bench.evidence import statistics as evidence
from bench.evidence.saved import table_of
from bench.reporting import compare as comparing
from bench.reporting.compare import compare
from bench.store.frame import RECALLS
from tests.test_report import done, spec, write
from tests.test_significance import CAPTIONS, IMAGES, ranks_of

SHA = "ab" * 32


def results(folder: Path, quality: dict[str, float], seeds: int = 3, noise: int = 0, **parts) -> Path:
    """A results folder whose recalls are those of its ranks; the same `noise` gives the same ranks."""
    runs = [(method, seed) for method in quality for seed in range(seeds)]
    origin = {"dataset_sha256": parts.pop("sha256", SHA), "git_commit": parts.pop("commit", "c0ffee11")}
    entries = [done(spec(method, seed, **parts), **origin) for method, seed in runs]
    for (method, seed), (_, result) in zip(runs, entries, strict=True):
        path = folder.with_suffix(".npz")
        path.write_bytes(ranks_of(quality[method], 100 * noise + seed))
        saved = from_npz(path)
        result["metrics"]["test"] = metrics(saved.i2t, saved.t2i)
    write(folder, entries)
    for (method, seed), run in zip(runs, sorted(folder.glob("*-s*"), key=lambda path: path.name[-8:]), strict=True):
        (run / "ranks.npz").write_bytes(ranks_of(quality[method], 100 * noise + seed))
    return folder


BEFORE = {"lora": 1.6, "harma": 2.0, "vpt": 1.0}


def test_the_row_that_moved_is_found(tmp_path):
    a = results(tmp_path / "a", BEFORE)
    b = results(tmp_path / "b", BEFORE | {"lora": 2.3, "vpt": 0.5}, noise=1)
    found = {pair.a.method: pair for pair in compare(str(a), str(b)).pairs}
    assert {method: pair.moved for method, pair in found.items()} == {"lora": "up", "harma": "no", "vpt": "down"}
    for pair in found.values():
        assert pair.basis == "images"
        for name in RECALLS:
            means = [side.runs[:, RECALLS.index(name)].mean() for side in (pair.a, pair.b)]
            assert pair.difference[name] == pytest.approx(means[1] - means[0])
            assert pair.low[name] <= pair.difference[name] <= pair.high[name]
    reverse = {pair.a.method: pair for pair in compare(str(b), str(a)).pairs}
    assert reverse["lora"].difference["mean_recall"] == pytest.approx(-found["lora"].difference["mean_recall"])


def test_the_same_results_have_not_moved(tmp_path):
    a, b = (results(tmp_path / name, BEFORE) for name in "ab")
    for pair in compare(str(a), str(b)).pairs:
        assert (pair.difference["mean_recall"], pair.low["mean_recall"], pair.high["mean_recall"]) == (0, 0, 0)
        assert pair.moved == "no"


def test_changed_settings_are_named_and_rows_of_one_side_listed(tmp_path):
    a = results(tmp_path / "a", BEFORE, train={"epochs": 5})
    b = results(tmp_path / "b", {"lora": 1.6, "harma": 2.0, "reft": 1.0}, train={"epochs": 20})
    found = compare(str(a), str(b))
    assert {pair.changed for pair in found.pairs} == {"train.epochs 5 → 20"}
    assert ([row.method for row in found.only_a], [row.method for row in found.only_b]) == (["vpt"], ["reft"])
    assert "Only in A (1): vpt." in comparing.markdown(found)


def test_other_images_are_not_paired(tmp_path):
    a = results(tmp_path / "a", BEFORE)
    b = results(tmp_path / "b", BEFORE, noise=1, sha256="cd" * 32)
    for pair in compare(str(a), str(b)).pairs:
        assert (pair.basis, pair.moved) == ("seeds", "")
        assert pair.low["mean_recall"] < pair.difference["mean_recall"] < pair.high["mean_recall"]
    one = results(tmp_path / "one", BEFORE, seeds=1, sha256="cd" * 32)
    for row in comparing.cells(compare(str(a), str(one))):
        assert row[5:8] == ("—", "—", "—")


def test_welchs_interval_by_hand(tmp_path):
    """Means 50 and 53, variances 4 and 9 over 3 seeds each: error 2.0817, 3.4843 degrees of freedom, t 2.9458."""
    sides = []
    for name, values in (("a", (48, 50, 52)), ("b", (50, 53, 56))):
        sides.append(write(tmp_path / name, [done(spec("lora", seed), mean) for seed, mean in enumerate(values)]))
    (pair,) = compare(*map(str, sides)).pairs
    assert pair.difference["mean_recall"] == 3
    assert pair.low["mean_recall"] == pytest.approx(3 - 2.9458 * 2.0817, abs=2e-3)
    assert pair.high["mean_recall"] == pytest.approx(3 + 2.9458 * 2.0817, abs=2e-3)


def test_published_numbers_have_no_interval(tmp_path):
    ours = results(tmp_path / "ours", {"harma": 2.0, "lora": 1.0})
    found = compare(str(ours), "published")
    assert "harma" in {pair.a.method for pair in found.pairs}
    for pair in found.pairs:
        ours_, theirs = pair.a.found["mean_recall"], pair.b.found["mean_recall"]
        assert pair.difference["mean_recall"] == pytest.approx(theirs - ours_)
        assert pair.low["mean_recall"] is None
        assert pair.moved == ""
    assert "arXiv" in comparing.markdown(found)
    assert compare("published", str(ours)).pairs[0].difference["mean_recall"] == pytest.approx(
        -found.pairs[0].difference["mean_recall"]
    )
    with pytest.raises(UserError, match="give a results folder"):
        compare("published", "published")


def test_runs_of_one_commit(tmp_path):
    folder = results(tmp_path / "r", {"lora": 1.0}, commit="aaaa1111")
    other = results(tmp_path / "other", {"harma": 2.0}, commit="bbbb2222")
    for run in other.glob("*-s*"):
        run.rename(folder / run.name)
    (folder / "plan.json").unlink()
    assert [row.method for row in comparing.side(f"{folder}@aaaa").rows] == ["lora"]
    assert [row.method for row in comparing.side(f"{folder}@bbbb2222").rows] == ["harma"]
    for wrong, words in (("@main", "is no commit"), ("@cccc", "no finished run"), ("/no", "no results folder")):
        with pytest.raises(UserError, match=words):
            comparing.side(f"{folder}{wrong}")


def test_the_command(tmp_path, capsys):
    a = results(tmp_path / "a", BEFORE)
    b = results(tmp_path / "b", BEFORE | {"lora": 2.3}, noise=1)
    out = tmp_path / "out"
    assert report.main(["compare", str(a), str(b), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "B − A" in printed
    frame = pd.read_csv(out / "compare.csv").set_index("method")
    assert frame.loc["lora", "moved"] == "up"
    assert f"{frame.loc['lora', 'mean_recall_difference']:+.2f}" in printed
    assert "| up |" in (out / "compare.md").read_text()
    assert report.main(["compare", str(a), str(tmp_path / "none")]) == 2
    assert "no results folder" in capsys.readouterr().err


def test_names_of_others_are_escaped(tmp_path):
    own = {"name": "captions", "title": "<b>_x_ | [y](z)"}
    entries = [done(spec("lora", 0, dataset=own)), done(spec("vpt", 0))]
    a, b = (write(tmp_path / name, entries) for name in "ab")
    text = comparing.markdown(compare(str(a), str(b)))
    assert "<b>" not in text
    assert "&lt;b&gt;\\_x\\_ \\| \\[y\\](z)" in text


# --- the statistics ---------------------------------------------------------------------------------------------------


def test_intervals_of_differences_against_a_plain_bootstrap(tmp_path):
    tables = []
    for number, quality in enumerate((1.5, 1.8)):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(ranks_of(quality, number))
        tables.append(table_of(from_npz(path)))
    before, after = tables
    captions = np.full(IMAGES, CAPTIONS)
    none = evidence.SeedError(np.zeros((1, 7)), np.full((1, 7), np.inf))
    found = evidence.moves(before[None], after[None], captions, none)
    rng, drawn = np.random.default_rng(5), []
    for _ in range(2000):
        chosen = rng.integers(IMAGES, size=IMAGES)
        six = [100 * (side[chosen].sum(0) / np.repeat([IMAGES, IMAGES * CAPTIONS], 3)) for side in (before, after)]
        drawn.append(np.append(six[1] - six[0], (six[1] - six[0]).mean()))
    plain = np.quantile(drawn, [0.025, 0.975], axis=0)
    width = plain[1] - plain[0]
    assert (np.abs(found.intervals[0, :, 0] - plain[0]) < 0.12 * width).all()
    assert (np.abs(found.intervals[0, :, 1] - plain[1]) < 0.12 * width).all()


def test_equal_models_are_seldom_told_apart():
    """Two sides of one model, 300 times: at most 8% of the tests find a difference; with one row Holm does nothing."""
    rng, none = np.random.default_rng(0), evidence.SeedError(np.zeros((1, 7)), np.full((1, 7), np.inf))
    captions, found = np.full(100, 5), 0
    for _ in range(300):
        image = rng.uniform(0.2, 0.8, (100, 1))
        before, after = (
            np.hstack([rng.random((100, 3)) < image, rng.binomial(5, image, (100, 3))])[None].astype(np.float32)
            for _ in range(2)
        )
        found += evidence.moves(before, after, captions, none, draws=10).p[0] < 0.05
    assert found <= 24


def test_seeds_count_as_pairs_where_they_are_the_same():
    rng = np.random.default_rng(0)
    seeds = [rng.normal(0, 5, (4, 1)) + rng.normal(0, 0.1, (4, 7)) for _ in range(3)]
    after = [each + 1 + rng.normal(0, 0.1, (4, 7)) for each in seeds]
    paired, apart = (evidence.seed_error_of_differences(seeds, after, [same] * 3) for same in (True, False))
    assert (paired.variance < 0.05).all()
    assert (apart.variance > 1).all()
