"""Intervals, tests and ties: against scipy, by hand, and on experiments whose truth is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bench.config.errors import UserError
from bench.core.ranks import Ranks, Saved, from_npz, to_npz
from bench.evidence import saved
from bench.evidence import statistics as evidence
from benchmarks.statistics import World, experiment, outcome

NO_SEEDS = evidence.SeedError(np.zeros((2, 7)), np.full((2, 7), np.inf))


def two_rows(effect: float = 0.0, images: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """(tables of two methods of one seed, captions of each image: 2 to 6)."""
    world = World(effects=(0.0, effect), seeds=1, seed=0.0, images=images)
    tables = np.stack([each[0] for each in experiment(world, np.random.default_rng(3))])
    captions = np.random.default_rng(4).integers(2, 7, images)
    tables[:, :, 3:] = np.minimum(tables[:, :, 3:], captions[:, None])
    return tables, captions


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_holds_chances_by_image():
    # Image 0 has one caption, image 1 two. A tie of two items is won with chance 1/2.
    i2t = Ranks(above=np.array([0, 3]), tied=np.array([1, 0]), own=np.array([1, 1]))
    t2i = Ranks(above=np.array([0, 0, 7]), tied=np.array([0, 1, 0]), own=np.array([1, 1, 1]))
    table = saved.table_of(Saved(i2t, t2i, np.array([1, 2])))
    assert table is not None
    assert table.tolist() == [[0.5, 1, 1, 1, 1, 1], [0, 1, 1, 0.5, 1, 2]]
    expected = [ranks.recall(k) for ranks in (i2t, t2i) for k in (1, 5, 10)]
    assert evidence.recalls(table, np.array([1, 2])) == pytest.approx([*expected, np.mean(expected)])


def test_ranks_are_saved_with_the_captions_of_each_image(tmp_path):
    one = Ranks(np.array([2]), np.array([0]), np.array([1]))
    path = tmp_path / "ranks.npz"
    path.write_bytes(to_npz(Saved(one, one, np.array([1]), one, Ranks(np.array([0]), np.array([0]), np.array([1])))))
    found = from_npz(path)
    assert found.captions is not None
    assert found.alike_t2i is not None
    assert (found.captions.tolist(), found.alike_t2i.above.tolist()) == ([1], [0])
    path.write_bytes(to_npz(Saved(one, one)))  # as older versions wrote it
    assert from_npz(path).captions is None
    assert saved.table_of(from_npz(path)) is None


def test_damaged_ranks_are_refused_or_unharmed(tmp_path):
    """Whichever byte is another, or from wherever the file is cut off: the same numbers, or one message."""
    side = Ranks(np.arange(9), np.arange(9) % 2, np.ones(9, int))
    path, whole = tmp_path / "ranks.npz", to_npz(Saved(side, side))
    refused = 0
    for place in range(len(whole)):
        for damaged in (whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :], whole[:place]):
            path.write_bytes(damaged)
            try:
                found = from_npz(path)
            except UserError:
                refused += 1
            else:
                assert to_npz(found) == whole
    assert refused > len(whole)


def write_ranks(folder: Path, run_id: str, above: int, captions: int = 2) -> None:
    one = Ranks(np.array([above] * 3), np.zeros(3, int), np.ones(3, int))
    many = Ranks(np.array([above] * 3 * captions), np.zeros(3 * captions, int), np.ones(3 * captions, int))
    (folder / run_id).mkdir(parents=True, exist_ok=True)
    (folder / run_id / "ranks.npz").write_bytes(to_npz(Saved(one, many, np.full(3, captions), one, many)))


def test_runs_of_another_test_set_or_without_ranks_are_left_out(tmp_path):
    for run_id, above, captions in (("a", 0, 2), ("b", 4, 2), ("c", 0, 3)):
        write_ranks(tmp_path, run_id, above, captions)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "ranks.npz").write_bytes(b"broken")
    found = saved.read(tmp_path, ["a", "b", "c", "d", "e"], "block")
    assert found.run_ids == ("a", "b")
    assert found.alike[:, 0].tolist() == [100, 0]
    assert saved.read(tmp_path, ["d"], "block").run_ids == ()


def test_unchanged_ranks_are_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PETL_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(saved, "_REMEMBERED", 2)
    for run_id in ("a", "b"):
        write_ranks(tmp_path, run_id, 0)
    first = saved.read(tmp_path, ["a", "b"], "block")
    read: list[Path] = []
    entry = saved.read_entry
    monkeypatch.setattr(saved, "read_entry", lambda path: read.append(path) or entry(path))
    again = saved.read(tmp_path, ["a", "b"], "block")
    assert (again.tables == first.tables).all()
    assert read == []
    write_ranks(tmp_path, "b", 17)
    assert saved.read(tmp_path, ["a", "b"], "block").tables[1].sum() == 0
    assert read == [tmp_path / "b" / "ranks.npz"]


# --- against scipy and statsmodels ------------------------------------------------------------------------------------


def test_intervals_are_those_of_scipys_bootstrap():
    tables, captions = two_rows()
    found = evidence.intervals(tables, captions, NO_SEEDS)[0]

    def recall(indices: np.ndarray, axis: int) -> np.ndarray:  # a ratio: the captions of a draw vary
        drawn = tables[0][indices.astype(int)]
        sizes = captions[indices.astype(int)].sum(axis=axis)
        i2t = drawn[..., :3].sum(axis=axis if axis >= 0 else axis - 1) / indices.shape[axis]
        t2i = drawn[..., 3:].sum(axis=axis if axis >= 0 else axis - 1) / sizes[..., None]
        return 100 * np.concatenate([i2t, t2i], axis=-1).mean(axis=-1)

    theirs = stats.bootstrap(
        (np.arange(80),), recall, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert found[6] == pytest.approx([theirs.low, theirs.high], abs=0.4)
    assert (found[:, 0] < evidence.recalls(tables[0], captions)).all()


def test_text_to_image_recall_is_a_ratio_in_every_draw():
    captions = np.array([2, 4, 8, 2, 6])  # half of each image's captions are answered: 50% whatever is drawn
    tables = np.repeat(captions[:, None] / 2, 6, axis=1)[None]
    ends = evidence.intervals(tables, captions, evidence.SeedError(np.zeros((1, 7)), np.ones((1, 7))))
    assert ends[0, 3:6] == pytest.approx(np.full((3, 2), 50.0))


def test_flips_are_scipys_permutation_test():
    tables, captions = two_rows(0.15)
    y = evidence.shares(tables, captions)
    theirs = stats.permutation_test(
        (y[:, 0], y[:, 1]),
        lambda a, b, axis: (a - b).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    )
    found = evidence.compare(tables, captions, NO_SEEDS)
    assert found.p[0, 1] == pytest.approx(theirs.pvalue, abs=0.01)
    assert 0.01 < found.p[0, 1] < 0.9
    assert found.difference[0, 1] == pytest.approx(y[:, 0].sum() - y[:, 1].sum())


def test_the_tail_agrees_with_the_flips(monkeypatch):
    tables, captions = two_rows(0.15)
    flipped = evidence.compare(tables, captions, NO_SEEDS).p[0, 1]
    monkeypatch.setattr(evidence, "_MOST_FLIPPED", 1)
    assert evidence.compare(tables, captions, NO_SEEDS).p[0, 1] == pytest.approx(flipped, abs=0.02)


def test_the_interval_of_a_pair_is_that_of_a_paired_t_test():
    tables, captions = two_rows(0.3)
    none = evidence.SeedError(np.zeros((2, 7)), np.full((2, 7), np.inf))
    found = evidence.compare(tables, captions, none).interval(0, 1)
    y = evidence.shares(tables, captions)
    change = len(captions) * (y[:, 0] - y[:, 1])
    low, high = stats.ttest_1samp(change, 0).confidence_interval(0.95)
    assert found == pytest.approx((low, high), abs=0.05 * (high - low)), "the null's variance is a little larger"
    assert (found[0] + found[1]) / 2 == pytest.approx(change.mean())


def test_differences_beyond_all_draws_have_a_p_below_their_number():
    tables, captions = two_rows(1.5)
    assert evidence.compare(tables, captions, NO_SEEDS, draws=200).p[0, 1] < 1e-4


def test_holm_is_that_of_statsmodels():
    """Figures of statsmodels 0.15.0, `multipletests(p, method="holm")`: six packages more, to compute seven numbers."""
    p = np.array([0.001, 0.04, 0.04, 0.0, 0.5, 0.012, 1.0])
    assert evidence.holm(p) == pytest.approx([0.006, 0.16, 0.16, 0.0, 1.0, 0.06, 1.0])
    assert evidence.holm(np.array([])).tolist() == []


def test_pooled_and_own_variances_are_the_ends_of_moderation():
    rng = np.random.default_rng(0)
    alike = 0.25 * rng.chisquare(2, 12) / 2
    found, df = evidence.moderated(np.full(12, alike.mean()), np.full(12, 2.0))
    assert found == pytest.approx(np.full(12, alike.mean()))
    assert df.tolist() == [24] * 12
    apart = 10.0 ** np.arange(-6, 7, 2)  # no common variance: each keeps its own, nearly
    found, df = evidence.moderated(apart, np.full(7, 30.0))
    assert found[2:] == pytest.approx(apart[2:], rel=0.1)
    assert (np.diff(found) > 0).all()
    assert found[0] > apart[0]  # drawn towards the others
    assert (df < 31).all()
    assert (df > 30).all()
    one, df = evidence.moderated(np.array([0.3, 0.0]), np.array([2.0, 2.0]))
    assert (one.tolist(), df.tolist()) == ([0.3, 0.0], [2.0, 2.0])


# --- seeds, ranks, ties -----------------------------------------------------------------------------------------------


def test_seeds_widen_intervals_and_tests():
    tables, captions = two_rows(0.3)
    wide = evidence.SeedError(np.full((2, 7), 4.0), np.full((2, 7), 6.0))
    narrow = np.diff(evidence.intervals(tables, captions, NO_SEEDS), axis=2)
    wider = np.diff(evidence.intervals(tables, captions, wide), axis=2)
    expected = np.hypot(narrow / 3.92, 2 * math.sqrt(6 / 4)) * 3.92  # t of 6 degrees has the variance 6 / 4
    assert wider == pytest.approx(expected, rel=0.1)
    p, with_seeds = (evidence.compare(tables, captions, each).p[0, 1] for each in (NO_SEEDS, wide))
    assert p < 0.05 < with_seeds


def test_one_seed_leaves_no_error_and_two_do():
    values = [np.full((1, 7), 40.0), np.array([[40.0] * 7, [42.0] * 7]), np.full((3, 7), 41.0)]
    found = evidence.seed_error(values)
    assert found.variance[:, 6].tolist() == [0, 1, 0]  # 2 / 2 seeds


def test_ranks_follow_from_the_pairs_told_apart():
    better = np.zeros((3, 3), bool)
    better[0, 2] = True
    best, worst = evidence.rank_intervals(better)
    assert (best.tolist(), worst.tolist()) == ([1, 1, 2], [2, 3, 3])
    assert evidence.tie_groups(better | better.T) == [[0, 1], [1, 2]]
    assert evidence.tie_groups(~np.eye(3, dtype=bool)) == [[0], [1], [2]]
    assert evidence.tie_groups(np.zeros((3, 3), bool)) == [[0, 1, 2]]


def test_tie_groups_are_the_largest_ones():
    rng = np.random.default_rng(0)
    upper = np.triu(rng.random((9, 9)) < 0.4, 1)
    apart = upper | upper.T
    groups = [set(group) for group in evidence.tie_groups(apart)]
    subsets = [[i for i in range(9) if n >> i & 1] for n in range(1, 2**9)]
    tied = [set(subset) for subset in subsets if not apart[np.ix_(subset, subset)].any()]
    largest = [each for each in tied if not any(each < other for other in tied)]
    assert sorted(map(sorted, groups)) == sorted(map(sorted, largest))


def test_equal_rows_are_not_told_apart():
    tables, captions = two_rows()
    same = evidence.compare(np.stack([tables[0], tables[0]]), captions, NO_SEEDS)
    assert same.p[0, 1] == 1
    assert not same.better.any()


# --- experiments with a known truth; all of them: python -m benchmarks.statistics ------------------------------------


def test_equal_methods_are_rarely_called_different():
    found = outcome(World(effects=(0.0,) * 4, images=150), 100, draws=400)
    assert found.any_false <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 100)
    assert 0.92 <= found.covered <= 0.985


def test_without_the_error_of_seeds_equal_methods_are_called_different():
    """What the seeds' error is for: one seed of methods that vary by seed."""
    found = outcome(World(seeds=1, seed=0.1, images=150), 60, draws=400)
    assert found.any_false > 0.15
    assert found.covered < 0.9


def test_a_true_difference_is_found_as_often_as_said():
    world = World(effects=(0.0, 0.35), seeds=3, images=150)
    found = outcome(world, 40, draws=400)
    assert 0.6 < found.found <= 1
    rng, captions = np.random.default_rng(0), np.full(150, 5)
    tables = experiment(world, rng)
    errors = evidence.seed_error([evidence.recalls(each, captions) for each in tables])
    compared = evidence.compare(np.stack([each.mean(axis=0) for each in tables]), captions, errors)
    smallest = evidence.detectable(compared)
    assert 2.5 * compared.error[0, 1] < smallest < 4 * compared.error[0, 1]
    assert evidence.detectable(compared, 10) > smallest
