"""Adapted models against the frozen backbone on further test sets: intervals, from saved ranks. No torch.

A run saves the ranks of both models on each test set that its section `behaviour` asks for. The images and the seeds
are the two sources of chance, as in `bench.evidence.statistics`; the backbone has no seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int64

from bench.evidence import saved
from bench.evidence import statistics as evidence
from bench.store.behaviour import ranks_file

Source = tuple[Path, str]  # a run's folder, and the hash of the test set
_MOST_DRAWN = 2**24  # images over all draws of the bootstrap: a number of 8 bytes each is in memory
_MOST_ROWS = 100  # of one test set: with more, fewer draws
_FEWEST_DRAWS = 1_000


@dataclass(frozen=True)
class Against:
    """Intervals of a row's seven recalls, in percent, and of their change from the frozen backbone, in points.

    The change is paired: both models answer the same queries, and are drawn with the same images.
    """

    before: Float64[np.ndarray, "7 2"]
    after: Float64[np.ndarray, "7 2"]
    change: Float64[np.ndarray, "7 2"]


@dataclass(frozen=True)
class _Run:
    """Both models' tables of one run (see `bench.evidence.statistics`)."""

    captions: Int64[np.ndarray, " images"]
    before: Float32[np.ndarray, "images 6"]
    after: Float32[np.ndarray, "images 6"]


def compare(rows: Sequence[Sequence[Source]]) -> list[Against | None]:
    """The intervals of rows of a report, each with its runs on one test set; rows of the same one are drawn together.

    None for a row of which any run lacks its ranks, or whose runs are of differing test sets.
    """
    read = [_read(sources) for sources in rows]
    found: list[Against | None] = [None] * len(rows)
    places: dict[str, list[int]] = {}
    for place, sources in enumerate(rows):
        if read[place]:
            places.setdefault(sources[0][1], []).append(place)
    for same in places.values():
        runs = [read[place] for place in same]
        if len({run.captions.tobytes() for row in runs for run in row}) == 1:
            for place, against in zip(same, _intervals(runs), strict=True):
                found[place] = against
    return found


def _read(sources: Sequence[Source]) -> list[_Run]:
    """The tables of a row's runs; [] if one is missing, or the runs are not of one test set."""
    if len({sha256 for _, sha256 in sources}) != 1:
        return []
    found = []
    for run_dir, sha256 in sources:
        before, after = (saved.read_entry(ranks_file(run_dir, sha256, side)) for side in ("before", "after"))
        if before is None or after is None or not np.array_equal(before[0], after[0]):
            return []
        found.append(_Run(before[0], before[1], after[1]))
    return found


def _intervals(rows: Sequence[Sequence[_Run]]) -> list[Against]:
    """The intervals of rows with one test set."""
    captions = rows[0][0].captions
    most = evidence.DRAWS if len(rows) <= _MOST_ROWS else _FEWEST_DRAWS
    draws = max(_FEWEST_DRAWS, min(most, _MOST_DRAWN // len(captions)))
    before = np.stack([np.mean([run.before for run in row], axis=0) for row in rows])
    after = np.stack([np.mean([run.after for run in row], axis=0) for row in rows])
    recalls = [np.stack([evidence.recalls(run.after, captions) for run in row]) for row in rows]
    frozen = [np.stack([evidence.recalls(run.before, captions) for run in row]) for row in rows]
    seeds = evidence.seed_error(recalls)
    none = evidence.SeedError(np.zeros_like(seeds.variance), np.full_like(seeds.freedom, np.inf))
    of_change = evidence.seed_error_of_differences(frozen, recalls, [True] * len(rows))
    ends = (
        evidence.intervals(before, captions, none, draws=draws),
        evidence.intervals(after, captions, seeds, draws=draws),
        evidence.moves(before, after, captions, of_change, draws=draws).intervals,
    )
    return [Against(*each) for each in zip(*ends, strict=True)]
