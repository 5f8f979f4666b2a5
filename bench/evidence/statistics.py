"""Intervals and tests of recalls from what each image's queries hit. numpy and scipy, no torch.

The unit of evidence is the image with its captions: both directions of an image's queries move together, so an image is
drawn, or its sign flipped, as a whole. Seeds are the second source of chance. They are crossed with the images (every
seed is scored on every image), and the two errors add up. The queries that change from seed to seed count in both, so
intervals are a little too wide and tests a little too careful (Owen 2007, "The pigeonhole bootstrap").

A *table* holds, for each image, what a row of the report hits: for image-to-text R@1, R@5 and R@10 the chance of a hit
(it is between 0 and 1 under ties), for text-to-image the sum of these chances over the image's captions; averaged over
the row's seeds. Recalls are sums over images, divided by the number of images or of captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int
from scipy import optimize, special, stats

DRAWS = 10_000
LEVEL = 0.95  # of intervals; tests are made at 1 - LEVEL
POWER = 0.8  # of `detectable`
RECALLS = 7  # i2t R@1, R@5, R@10, t2i R@1, R@5, R@10, and their mean
_MOST_FLIPPED = 100  # rows of which all pairs are tested by flips; among more, by the tail that flips have
_FEWEST = 10  # of the draws that must reach a difference before their share is taken for its p
_CHUNK = 64  # rows whose draws are in memory at once


@dataclass(frozen=True)
class SeedError:
    """The error that few seeds leave in a row's seven recalls: the variance of their mean, and its degrees of freedom.

    Variance 0 where nothing varies (a method that trains nothing) and where nothing is known (one seed).
    """

    variance: Float64[np.ndarray, "rows 7"]
    freedom: Float64[np.ndarray, "rows 7"]


@dataclass(frozen=True)
class Comparison:
    """Every row against every other: p[i, j] is Holm's, over all pairs, that i and j have the same mean recall.

    difference[i, j]: mean recall of i less that of j, in points. error: its standard error, from images and seeds.
    """

    difference: Float64[np.ndarray, "rows rows"]
    error: Float64[np.ndarray, "rows rows"]
    freedom: Float64[np.ndarray, "rows rows"]
    p: Float64[np.ndarray, "rows rows"]

    @property
    def better(self) -> Bool[np.ndarray, "rows rows"]:
        """better[i, j]: row i is told apart from row j, and above it."""
        found: np.ndarray = (self.p < 1 - LEVEL) & (self.difference > 0)
        return found

    def interval(self, i: int, j: int) -> tuple[float, float]:
        """Lower and upper end, at LEVEL, of the difference of rows i and j, as if it were the only pair.

        By Student's t, with the variance and the degrees of freedom of the test.
        """
        half = float(stats.t.isf((1 - LEVEL) / 2, self.freedom[i, j]) * self.error[i, j])
        return float(self.difference[i, j] - half), float(self.difference[i, j] + half)

    @cached_property
    def median_pair(self) -> tuple[float, float]:
        """The median standard error of the pairs, and their median degrees of freedom; NaN for fewer than two rows."""
        pairs = np.triu_indices(len(self.p), 1)
        if not len(pairs[0]):
            return float("nan"), float("nan")
        return float(np.median(self.error[pairs])), float(np.median(self.freedom[pairs]))


def recalls(
    table: Float[np.ndarray, "*rows images 6"], captions: Int[np.ndarray, " images"]
) -> Float64[np.ndarray, "*rows 7"]:
    """The six recalls and their mean, in percent; `captions` counts each image's."""
    six = 100 * table.sum(axis=-2) / _sizes(captions)
    return np.concatenate([six, six.mean(axis=-1, keepdims=True)], axis=-1)


def _sizes(captions: Int[np.ndarray, " images"]) -> Float64[np.ndarray, " 6"]:
    return np.repeat([len(captions), captions.sum()], 3).astype(float)


# --- seeds ------------------------------------------------------------------------------------------------------------


def seed_error(values: Sequence[Float64[np.ndarray, "_ 7"]]) -> SeedError:
    """The error that seeds leave in each row's mean, from the recalls of its runs.

    Two or three seeds measure a variance badly: alone they would make intervals five times too wide, or far too narrow
    by luck. The variances of a block's rows are therefore drawn towards their common one, as far as they agree with one
    (`moderated`; Smyth 2004, for the same trouble with few arrays a gene).
    """
    counts = np.array([len(each) for each in values])
    variance = np.zeros((len(values), RECALLS))
    freedom = np.full((len(values), RECALLS), np.inf)
    several = [row for row, each in enumerate(values) if len(each) > 1]
    for column in range(RECALLS) if several else ():
        found = np.array([values[row][:, column].var(ddof=1) for row in several])
        moderate, df = moderated(found, counts[several] - 1.0)
        variance[several, column] = moderate / counts[several]
        freedom[several, column] = df
    return SeedError(variance, freedom)


def moderated(
    variances: Float64[np.ndarray, " rows"], freedom: Float64[np.ndarray, " rows"]
) -> tuple[Float64[np.ndarray, " rows"], Float64[np.ndarray, " rows"]]:
    """(variances, degrees of freedom) after drawing each variance towards a common one by empirical Bayes.

    The true variances are taken to scatter around the common one as a scaled inverse chi-square with d0 degrees of
    freedom; both follow from mean and variance of the logarithms. A row then has (d0 * common + d * own) / (d0 + d)
    with d0 + d degrees, at most those of all rows together. Rows without any variance are left alone.
    Smyth 2004 (Stat. Appl. Genet. Mol. Biol. 3, article 3), section 6.2.
    """
    some = variances > 0
    if some.sum() < 2:
        return variances, freedom
    s2, d = variances[some], freedom[some]
    logs = np.log(s2) - special.digamma(d / 2) + np.log(d / 2)
    scatter = logs.var(ddof=1) - special.polygamma(1, d / 2).mean()
    if scatter > 0:
        d0 = 2 * optimize.brentq(lambda x: special.polygamma(1, x) - scatter, 1e-8, 1e8)
        common = np.exp(logs.mean() + special.digamma(d0 / 2) - np.log(d0 / 2))
    else:  # they agree better than chance would have it: one variance for all
        d0, common = d.sum(), (d * s2).sum() / d.sum()
    out, df = variances.copy(), freedom.copy()
    out[some] = (d0 * common + d * s2) / (d0 + d)
    df[some] = np.minimum(d0 + d, d.sum())
    return out, df


# --- intervals --------------------------------------------------------------------------------------------------------


def intervals(
    tables: Float[np.ndarray, "rows images 6"],
    captions: Int[np.ndarray, " images"],
    seeds: SeedError,
    *,
    draws: int = DRAWS,
) -> Float64[np.ndarray, "rows 7 2"]:
    """Lower and upper end of each row's seven recalls, in percent, at LEVEL.

    As `_percentiles`, but between 0 and 100.
    """
    return np.clip(_percentiles(tables, captions, seeds, draws), 0, 100)


def _percentiles(
    tables: Float[np.ndarray, "rows images 6"], captions: Int[np.ndarray, " images"], seeds: SeedError, draws: int
) -> Float64[np.ndarray, "rows 7 2"]:
    """Lower and upper end of seven recalls, or of differences of recalls where the tables are differences.

    Percentiles of a bootstrap over images: a draw has as many images as the test set, with replacement, the same ones
    for every row and recall. Text-to-image recalls are ratios, since a draw's number of captions varies. Each draw adds
    the error of the seeds from Student's t. The same tables give the same ends.
    """
    rng = np.random.default_rng(0)
    images = len(captions)
    weights = _drawn_images(images, draws)
    drawn_captions = weights @ captions.astype(np.float32)
    sizes = np.stack([np.full(draws, images), drawn_captions], axis=1).repeat(3, axis=1)
    outside = (1 - LEVEL) / 2
    ends = np.empty((len(tables), RECALLS, 2))
    for start in range(0, len(tables), _CHUNK):
        part = slice(start, start + _CHUNK)
        flat = np.moveaxis(tables[part].astype(np.float32), 1, 0)
        six = 100 * (weights @ flat.reshape(images, -1)).reshape(draws, -1, 6) / sizes[:, None, :]
        seven = np.concatenate([six, six.mean(axis=2, keepdims=True)], axis=2)
        seven += _noise(rng, seeds.variance[part], seeds.freedom[part], draws)
        ends[part] = np.moveaxis(np.quantile(seven, [outside, 1 - outside], axis=0), 0, 2)
    return ends


@cache
def _drawn_images(images: int, draws: int) -> Float32[np.ndarray, "draws images"]:
    """How often each draw has each image: the counts of a multinomial, by counting (numpy's own takes 0.9 s)."""
    drawn = np.random.default_rng(1).integers(images, size=(draws, images))
    places = drawn + images * np.arange(draws)[:, None]
    return np.bincount(places.ravel(), minlength=draws * images).reshape(draws, images).astype(np.float32)


def _noise(
    rng: np.random.Generator, variance: Float64[np.ndarray, " ..."], freedom: Float64[np.ndarray, " ..."], draws: int
) -> Float[np.ndarray, " ..."]:
    """Student's t with these degrees of freedom and scales; 0 where the variance is."""
    out = np.zeros((draws, *variance.shape), np.float32)
    some = variance > 0
    if some.any():
        out[:, some] = rng.standard_t(freedom[some], size=(draws, some.sum())) * np.sqrt(variance[some])
    return out


# --- tests ------------------------------------------------------------------------------------------------------------


def shares(
    tables: Float[np.ndarray, "rows images 6"], captions: Int[np.ndarray, " images"]
) -> Float64[np.ndarray, "images rows"]:
    """What each image gives to a row's mean recall, in points: the sum over images is the mean recall."""
    return (100 * tables.astype(float) / _sizes(captions)).mean(axis=2).T


def compare(
    tables: Float[np.ndarray, "rows images 6"],
    captions: Int[np.ndarray, " images"],
    seeds: SeedError,
    *,
    draws: int = DRAWS,
) -> Comparison:
    """Paired tests of mean recall between all rows, corrected for their number by Holm's method.

    The rows' seeds are averaged, then paired by image. If two rows were equal, an image's difference would as likely
    have the other sign: a draw flips the signs of whole images at random, the same for all pairs, and adds the error of
    either row's seeds from Student's t, since other seeds would give other differences. p is the share of draws that
    reach the difference seen, two-sided. Where too few draws do to measure a share, and among more than 100 rows, p is
    that of Student's t with the draws' variance and the degrees of freedom of Welch and Satterthwaite.
    """
    y = shares(tables, captions)
    images, rows = y.shape
    mean = y.sum(axis=0)
    difference = mean[:, None] - mean[None, :]
    products = y.T @ y
    square = np.diag(products)
    of_images = np.clip(square[:, None] + square[None, :] - 2 * products, 0, None)
    of_images[of_images < 1e-12 * square.max(initial=0)] = 0  # rounding between equal rows
    of_seeds, freedom = seeds.variance[:, -1], seeds.freedom[:, -1]
    variance = of_images + of_seeds[:, None] + of_seeds[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        own = of_seeds**2 / freedom
        df = variance**2 / (of_images**2 / max(images - 1, 1) + own[:, None] + own[None, :])
        df = np.where(variance > 0, df, np.inf)
        t = np.where(variance > 0, np.abs(difference) / np.sqrt(variance), 0)
    i, j = np.triu_indices(rows, 1)
    p = 2 * special.stdtr(df[i, j], -t[i, j])  # Student's t; a tenth of the time of stats.t.sf
    if rows <= _MOST_FLIPPED:
        rng = np.random.default_rng(0)
        signs = rng.choice(np.array([-1, 1], np.float32), size=(draws, images))
        drawn = signs @ y.astype(np.float32) + _noise(rng, of_seeds, freedom, draws)
        for pair, (a, b) in enumerate(zip(i, j, strict=True)):
            reached = int((np.abs(drawn[:, a] - drawn[:, b]) >= abs(difference[a, b]) - 1e-4).sum())
            if reached >= _FEWEST:
                p[pair] = (reached + 1) / (draws + 1)
    square_p = np.ones((rows, rows))
    square_p[i, j] = square_p[j, i] = holm(p)
    return Comparison(difference, np.sqrt(variance), df, square_p)


@dataclass(frozen=True)
class Moves:
    """What changed from each row's before to its after, in points of recall: the intervals at LEVEL, paired by image.

    p: Holm's, over all rows, that the mean recall has not changed.
    """

    difference: Float64[np.ndarray, "rows 7"]
    intervals: Float64[np.ndarray, "rows 7 2"]
    p: Float64[np.ndarray, " rows"]


def moves(
    before: Float[np.ndarray, "rows images 6"],
    after: Float[np.ndarray, "rows images 6"],
    captions: Int[np.ndarray, " images"],
    seeds: SeedError,
    *,
    draws: int = DRAWS,
) -> Moves:
    """Each row's after against its before, on the same images. `seeds`: the error that they leave in the difference.

    Intervals are as in `intervals`, of the difference. p is that of Student's t with the variance that flips of whole
    images' signs have, as `compare` has it for many rows.
    """
    change = after.astype(float) - before
    y = shares(change, captions)
    of_images, of_seeds, freedom = (y**2).sum(axis=0), seeds.variance[:, -1], seeds.freedom[:, -1]
    variance = of_images + of_seeds
    with np.errstate(divide="ignore", invalid="ignore"):
        df = variance**2 / (of_images**2 / max(len(captions) - 1, 1) + of_seeds**2 / freedom)
        t = np.where(variance > 0, np.abs(y.sum(axis=0)) / np.sqrt(variance), 0)
    p = 2 * special.stdtr(np.where(variance > 0, df, np.inf), -t)
    return Moves(recalls(change, captions), _percentiles(change, captions, seeds, draws), holm(p))


def seed_error_of_differences(
    before: Sequence[Float64[np.ndarray, "_ 7"]],
    after: Sequence[Float64[np.ndarray, "_ 7"]],
    same_seeds: Sequence[bool],
) -> SeedError:
    """The error that few seeds leave in each row's difference, from the recalls of its runs before and after.

    Where the runs of both have the same seeds, in the same order, it is that of the differences seed by seed; else both
    sides' errors add up.
    """
    shape = (len(before), RECALLS)
    variance, freedom = np.zeros(shape), np.full(shape, np.inf)
    paired = [row for row, same in enumerate(same_seeds) if same]
    others = [row for row, same in enumerate(same_seeds) if not same]
    if paired:
        found = seed_error([after[row] - before[row] for row in paired])
        variance[paired], freedom[paired] = found.variance, found.freedom
    if others:
        a, b = (seed_error([side[row] for row in others]) for side in (before, after))
        variance[others] = a.variance + b.variance
        with np.errstate(divide="ignore", invalid="ignore"):
            df = variance[others] ** 2 / (a.variance**2 / a.freedom + b.variance**2 / b.freedom)
        freedom[others] = np.where(variance[others] > 0, df, np.inf)
    return SeedError(variance, freedom)


def holm(p: Float64[np.ndarray, " tests"]) -> Float64[np.ndarray, " tests"]:
    """p-values corrected so that the chance of any false finding keeps its level (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty_like(p)
    out[order] = np.clip(stepped, None, 1)
    return out


def rank_intervals(better: Bool[np.ndarray, "rows rows"]) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
    """Best and worst rank that each row may have: 1 + the rows above it, and all but the rows below it.

    All at once they hold with the tests' level, since they follow from the pairs that are told apart
    (Mogstad, Romano, Shaikh, Wilhelm 2024, Rev. Econ. Stud. 91).
    """
    return 1 + better.sum(axis=0), len(better) - better.sum(axis=1)


def tie_groups(apart: Bool[np.ndarray, "rows rows"]) -> list[list[int]]:
    """The largest groups of rows of which no two are told apart; every row is in one or more.

    By insertion and absorption (Piepho 2004, J. Comput. Graph. Stat. 13). Rows 0 and 2 apart, 1 from neither:
    [[0, 1], [1, 2]].
    """
    groups = [frozenset(range(len(apart)))]
    for i, j in zip(*np.nonzero(np.triu(apart)), strict=True):
        both = [group for group in groups if {i, j} <= group]
        new = dict.fromkeys(group - {each} for group in both for each in (int(i), int(j)))
        kept = [group for group in groups if group not in both]
        whole = [group for group in new if not any(group < other for other in (*kept, *new))]
        groups = list(dict.fromkeys(kept + whole))
    return sorted(sorted(group) for group in groups)


def detectable(comparison: Comparison, tests: int = 1, pair: tuple[int, int] | None = None) -> float:
    """The smallest difference of mean recall, in points, that is found with the chance POWER at 5% over `tests` tests.

    For this pair of rows or, without one, the median pair, with this test set and as many seeds. NaN for fewer than two
    rows.
    """
    error, df = comparison.median_pair if pair is None else (comparison.error[pair], comparison.freedom[pair])
    return float((stats.t.isf((1 - LEVEL) / 2 / tests, df) + stats.t.isf(1 - POWER, df)) * error)
