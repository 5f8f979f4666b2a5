"""What the results support: intervals and ties of a report's rows, in columns, marks and words. No torch.

The statistics are `bench.evidence.statistics`, on the ranks that the runs saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bench.evidence import saved
from bench.evidence import statistics as evidence
from bench.reporting import options
from bench.store.frame import RECALLS, Runs

TIED = "≈"  # mark of a mean recall
MEANING = "can't be told apart from the best mean recall of the table: docs/protocol.md, and table.csv for intervals"
COLUMNS = (
    *(f"{recall}_{end}" for recall in RECALLS for end in ("low", "high")),
    *("tied_with_best", "best_rank", "worst_rank", "tie_groups"),
    *(f"{recall}_alike" for recall in RECALLS),
)
_MOST_ROWS = 100  # of a block: with more, fewer draws; and groups of ties would outgrow any table
_FEWER_DRAWS = 1_000
_MOST_COMPARED = 1_000  # rows of a block: with more, those that validation chose; all pairs would outgrow memory
_MOST_NAMED = 20  # rows of a block: with more, table.csv alone has the groups of ties
_MOST_LISTED = 8  # names in a sentence
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

Block = tuple[str, str]  # dataset and backbone
Facts = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Group:
    """The rows of a block that are compared, best first, with what is known of them."""

    rows: pd.DataFrame
    tables: saved.Tables
    comparison: evidence.Comparison
    compared: np.ndarray  # the places of the rows that are compared, all but in very long blocks
    intervals: np.ndarray  # (rows, recalls, 2)
    alike: np.ndarray  # (rows, recalls)
    names: tuple[str, ...]  # what papers call the rows
    seeds: tuple[int, ...]  # of each row that trains
    draws: int


def wanted(runs: Runs) -> bool:
    """Whether the sweep file asks for it: it does unless it says `report: {significance: off}`."""
    return options.of(runs).significance == "on"


def add(runs: Runs, rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[Block, Facts]]:
    """The rows with COLUMNS filled, and what the report says of each block's intervals and ranking.

    Empty where a row has no saved ranks. Rows are compared inside a block, if all its runs have one dataset.
    """
    rows = rows.copy()
    facts: dict[Block, Facts] = {}
    for block, part in rows.groupby(["dataset", "backbone"], sort=False):
        group = _measure(runs, part)
        if isinstance(group, str):
            facts[block] = (("Intervals", group),)
            continue
        _write(rows, group)
        facts[block] = tuple(_facts(group))
    return rows, facts


def blank(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with COLUMNS, all missing."""
    missing = {name: pd.Series(np.nan, index=rows.index, dtype=float) for name in COLUMNS}
    missing |= {name: pd.Series(None, index=rows.index, dtype=object) for name in ("tied_with_best", "tie_groups")}
    missing |= {name: pd.Series(pd.NA, index=rows.index, dtype="Int64") for name in ("best_rank", "worst_rank")}
    return rows.assign(**missing)


def _measure(runs: Runs, part: pd.DataFrame) -> _Group | str:
    """The statistics of a block; in words, why there are none."""
    finished = runs.finished[runs.finished["group"].isin(part["group"])]
    if len({origin.get("dataset_sha256") for origin in finished["provenance"]}) > 1:
        return "none: the runs are of differing data (see below)"
    tables = _tables(finished, "/".join(part.iloc[0][["dataset", "backbone"]]))
    if not tables.run_ids:
        return "none: no run has saved ranks with its images' captions; run the sweep again for them"
    place = {run_id: index for index, run_id in enumerate(tables.run_ids)}
    held = finished[finished["run_id"].isin(place)]
    runs_of = {group: [place[run] for run in ids] for group, ids in held.groupby("group", sort=False)["run_id"]}
    part = part[part["group"].isin(runs_of)].sort_values("mean_recall", ascending=False, kind="stable")
    chosen = [runs_of[group] for group in part["group"]]
    every = evidence.recalls(tables.tables, tables.captions)
    seeds = evidence.seed_error([every[indices] for indices in chosen])
    means = np.stack([tables.tables[indices].mean(axis=0) for indices in chosen])
    draws = evidence.DRAWS if len(part) <= _MOST_ROWS else _FEWER_DRAWS
    compared = _compared(part)
    few = evidence.SeedError(seeds.variance[compared], seeds.freedom[compared])
    return _Group(
        rows=part,
        tables=tables,
        comparison=evidence.compare(means[compared], tables.captions, few, draws=draws),
        compared=compared,
        intervals=evidence.intervals(means, tables.captions, seeds, draws=draws),
        alike=np.stack([tables.alike[indices].mean(axis=0) for indices in chosen]),
        names=tuple(options.rows(part, runs.titles)),
        seeds=tuple(len(indices) for indices, trains in zip(chosen, part["trains"], strict=True) if trains),
        draws=draws,
    )


def _compared(rows: pd.DataFrame) -> np.ndarray:
    """The places of the rows that are compared: all, or in a very long block those that validation chose, best first.

    Where validation chose too many, or chose nothing, the best by mean recall.
    """
    if len(rows) <= _MOST_COMPARED:
        return np.arange(len(rows))
    return np.flatnonzero(rows["chosen"].map(lambda each: each is not False))[:_MOST_COMPARED]


def _tables(finished: pd.DataFrame, block: str) -> saved.Tables:
    """The tables of these runs; those of later folders count where they are of the first one's test set."""
    found = [
        saved.read(Path(folder), list(here["run_id"]), block) for folder, here in finished.groupby("folder", sort=False)
    ]
    found = [each for each in found if each.run_ids] or [saved.read(Path(), [], block)]
    same = [each for each in found if np.array_equal(each.captions, found[0].captions)]
    return saved.Tables(
        run_ids=tuple(run_id for each in same for run_id in each.run_ids),
        captions=found[0].captions,
        tables=np.concatenate([each.tables for each in same]),
        alike=np.concatenate([each.alike for each in same]),
    )


def _write(rows: pd.DataFrame, group: _Group) -> None:
    """Fill the columns of the group's rows."""
    index, better = group.rows.index, group.comparison.better
    for column, recall in enumerate(RECALLS):
        rows.loc[index, f"{recall}_low"] = group.intervals[:, column, 0]
        rows.loc[index, f"{recall}_high"] = group.intervals[:, column, 1]
        rows.loc[index, f"{recall}_alike"] = group.alike[:, column]
    index = index[group.compared]
    if len(index) < 2:
        return
    best, worst = evidence.rank_intervals(better)
    rows.loc[index, "best_rank"], rows.loc[index, "worst_rank"] = best, worst
    rows.loc[index, "tied_with_best"] = [not apart for apart in better[0]]
    if len(index) <= _MOST_ROWS:
        groups = evidence.tie_groups(better | better.T)
        names = [" ".join(str(n) for n, each in enumerate(groups, 1) if row in each) for row in range(len(index))]
        rows.loc[index, "tie_groups"] = names


def _facts(group: _Group) -> Iterator[tuple[str, str]]:
    """What the report says of a block: how far its numbers reach, and what they do not show."""
    images, captions = len(group.tables.captions), int(group.tables.captions.sum())
    unknown = ""
    if one_seed := group.seeds.count(1):
        rows = f"{one_seed} rows have" if one_seed > 1 else "one row has"
        unknown = f"; {rows} one seed: what another seed would give is unknown, and in no interval or test"
    yield (
        "Intervals",
        f"95%, in table.csv: {group.draws:,} bootstrap draws of the {images:,} test images with their {captions:,} "
        f"captions, and the error of the mean over seeds{unknown}",
    )
    count = len(group.compared)
    if count < len(group.rows):
        yield "Compared", f"{count:,} of {len(group.rows):,} rows: those that validation chose, or the best"
    if count < 2:
        return
    names = [group.names[place] for place in group.compared]
    yield "Smallest difference", _smallest(group.comparison)
    of = "methods" if group.rows["method"].iloc[group.compared].is_unique else "rows"
    shown = _could_show(names, group.comparison, group.seeds)
    yield "Ranking", f"{claim(names, group.comparison, of)}; {shown}"
    if 2 < count <= _MOST_NAMED and (ties := tied(names, group.comparison.better)):
        yield "Groups", ties


def claim(names: Sequence[str], comparison: evidence.Comparison, of: str = "rows") -> str:
    """What the ranking of rows by mean recall supports, in words. `names`: of the rows, best first."""
    best, better = names[0], comparison.better
    level, cited = _level(comparison), _cited(comparison)
    apart = _apart(comparison, cited)
    below = len(names) - 1 - len(level)
    if not better.any():
        if len(names) == 2:
            return f"{best} and {names[1]} can't be told apart on this test set ({apart})"
        return (
            f"these {_number(len(names))} {of} can't be told apart on this test set: {_listed(names)} "
            f"(the first and the last: {apart})"
        )
    rest = f"the other {of[:-1]}" if below == 1 else f"each of the other {_number(below)} {of}"
    if not level:
        closest = f"the closest is {names[cited]} ({apart})"
        return f"{best} has a higher mean recall than {rest}, told apart at 5% over all pairs; {closest}"
    others = _listed([names[row] for row in level])
    furthest = "" if len(level) == 1 else f"{names[cited]}: "
    higher = f"; it is higher than {rest}, told apart at 5% over all pairs" if below else ""
    return (
        f"{best} has the highest mean recall, but {others} can't be told apart from it on this test set "
        f"({furthest}{apart}){higher}"
    )


def _level(comparison: evidence.Comparison) -> list[int]:
    """The rows that can't be told apart from the first, which is not among them."""
    return [int(row) for row in np.flatnonzero(~comparison.better[0]) if row]


def _cited(comparison: evidence.Comparison) -> int:
    """The row whose difference from the first is said: the last that can't be told apart from it, else the second."""
    return max(_level(comparison), default=1)


def tied(names: Sequence[str], better: np.ndarray) -> str:
    """The groups of rows of which no two can be told apart, in words; empty where these are all rows."""
    groups = [[names[row] for row in group] for group in evidence.tie_groups(better | better.T)]
    if len(groups) == 1:
        return ""
    several = [group for group in groups if len(group) > 1]
    alone = [group[0] for group in groups if len(group) == 1]
    said = [
        f"{_listed(group)} can't be told apart" + (" from each other" if len(group) > 2 else "") for group in several
    ]
    if alone and several:
        said.append(f"{_listed(alone)} {'is' if len(alone) == 1 else 'are'} told apart from every other row")
    return "; ".join(said) or "every row is told apart from every other"


def _apart(comparison: evidence.Comparison, row: int) -> str:
    """By how much the first row and this one differ."""
    low, high = (f"{each + 0.0:.1f}".replace("-", "−") for each in comparison.interval(0, row))
    alone = " for this pair alone" if len(comparison.p) > 2 else ""
    return f"difference {comparison.difference[0, row]:.1f} points, 95% interval {low} to {high}{alone}"


def _smallest(comparison: evidence.Comparison) -> str:
    pairs = len(comparison.p) * (len(comparison.p) - 1) // 2
    corrected = ""
    if pairs > 1:
        corrected = f", {evidence.detectable(comparison, pairs):.1f} points once corrected for {pairs:,} pairs"
    return (
        f"with this test set and these seeds, two rows that differ by {evidence.detectable(comparison):.1f} points of "
        f"mean recall are told apart with 80% chance{corrected} (the median pair)"
    )


def _could_show(names: Sequence[str], comparison: evidence.Comparison, seeds: Sequence[int]) -> str:
    """What the first and the cited row must differ by to be told apart. `seeds`: how many each row that trains has."""
    cited, pairs = _cited(comparison), len(comparison.p) * (len(comparison.p) - 1) // 2
    counts = sorted(set(seeds))
    some = " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]]))) if counts else ""
    given = f" with {some} {'seed' if some == '1' else 'seeds'}" if some else ""
    among = f", corrected for {pairs:,} pairs" if pairs > 1 else ""
    least = evidence.detectable(comparison, pairs, (0, cited))
    return (
        f"the smallest difference between {names[0]} and {names[cited]} that this test set{given} could show is "
        f"{least:.1f} points (80% chance{among})"
    )


def _listed(names: Sequence[str]) -> str:
    """A, B and C."""
    shown = [*names[:_MOST_LISTED], *([f"{len(names) - _MOST_LISTED} more"] if len(names) > _MOST_LISTED else [])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else f"{count:,}"
