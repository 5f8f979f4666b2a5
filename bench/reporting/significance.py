"""What the results support: intervals and ties of a report's rows, in columns, marks and words. No torch.

The statistics are `bench.evidence.statistics`, on the ranks that the runs saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    one_seed: int  # rows that train, of one seed
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
        one_seed=sum(len(indices) == 1 and trains for indices, trains in zip(chosen, part["trains"], strict=True)),
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
    if group.one_seed:
        rows = f"{group.one_seed} rows have" if group.one_seed > 1 else "one row has"
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
    pairs = count * (count - 1) // 2
    one = evidence.detectable(group.comparison)
    all_ = evidence.detectable(group.comparison, pairs)
    corrected = f", {all_:.1f} points once corrected for {pairs:,} pairs" if pairs > 1 else ""
    yield (
        "Smallest difference",
        f"with this test set and these seeds, two rows that differ by {one:.1f} points of mean recall are told apart "
        f"with 80% chance{corrected} (the median pair)",
    )
    yield (
        "Ranking",
        claim([_name(row) for row in group.rows.iloc[group.compared].to_dict("records")], group.comparison.better),
    )


def claim(names: Sequence[str], better: np.ndarray) -> str:
    """What the ranking of rows by mean recall supports, in words. `names`: best first; `better`: of `Comparison`."""
    tied = [name for name, apart in zip(names, better[0], strict=True) if not apart]
    others = len(names) - len(tied)
    if len(tied) == 1:
        rest = "the other row" if others == 1 else f"each of the other {_number(others)} rows"
        return f"{tied[0]} has the highest mean recall, and is told apart from {rest} (5%, Holm)"
    if not others:
        return f"these {_number(len(tied))} rows can't be told apart on this test set"
    shown = ", ".join(tied[:8]) + (f" and {len(tied) - 8} more" if len(tied) > 8 else "")
    rest = "the other row is" if others == 1 else f"the other {_number(others)} rows are"
    return (
        f"the best {_number(len(tied))} rows can't be told apart from the first on this test set: {shown}; {rest} below"
    )


def _name(row: dict[str, Any]) -> str:
    return f"{row['method']} ({options.short(row['config'])})" if row["config"] else str(row["method"])


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else f"{count:,}"
