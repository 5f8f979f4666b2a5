"""The rows of a report with what their runs measured of one test set, beside the frozen backbone's. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from bench.evidence import frozen
from bench.reporting import options
from bench.store.behaviour import Behaviour, Measured, TestSet
from bench.store.frame import RECALLS, Runs

FROZEN = "frozen backbone"
Numbers = Mapping[str, float]
Ends = tuple[float, float]  # of a 95% interval; NaN where there is none
UNKNOWN = (math.nan, math.nan)


@dataclass(frozen=True)
class Row:
    """A row of the main table with what its runs measured of one test set. `finished`: how many runs it has.

    `before` and `after`: by name, of each run; empty where nothing was measured. `sources`: where these ranks are.
    main: the interval of the main table's mean recall. against: the intervals on this test set.
    """

    dataset: str
    backbone: str
    method: str
    config: str
    title: str  # what papers call both
    base: str  # the dataset without what tells it from others of its name
    place: int  # in the main table
    trains: bool
    finished: int
    mean_recall: float
    std: float
    tested: str = ""
    before: tuple[Numbers, ...] = ()
    after: tuple[Numbers, ...] = ()
    sources: tuple[frozen.Source, ...] = ()
    own: bool = False  # the test set is that of the main table
    main: Ends = UNKNOWN
    against: frozen.Against | None = None

    @property
    def name(self) -> str:
        """The method with its settings, and of how many runs the numbers are, where some lack them."""
        some = f" ({len(self.after)} of {self.finished} runs)" if 0 < len(self.after) < self.finished else ""
        return self.title + some

    def mean(self, key: str) -> float:
        """Over the runs that have it; NaN where none has."""
        return mean_of([each.get(key, math.nan) for each in self.after])

    def deviation(self, key: str) -> float:
        """The sample standard deviation over the runs; NaN for fewer than two."""
        values = [each[key] for each in self.after if key in each]
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    @property
    def is_frozen(self) -> bool:
        """Whether it is the backbone's."""
        return self.method == FROZEN

    def frozen(self) -> Row:
        """The row of the backbone as this row's runs saw it."""
        row = replace(self, method=FROZEN, config="", title=FROZEN, place=-1, finished=1)
        return replace(row, before=(), after=self.before[:1], main=UNKNOWN)

    def ends(self, key: str) -> Ends:
        """The interval of one of RECALLS."""
        if self.against is None:
            return UNKNOWN
        low, high = (self.against.before if self.is_frozen else self.against.after)[RECALLS.index(key)]
        return float(low), float(high)

    def change_ends(self) -> Ends:
        """The interval of the mean recall's change from the frozen backbone, paired; none for the backbone."""
        if self.against is None or self.is_frozen:
            return UNKNOWN
        low, high = self.against.change[-1]
        return float(low), float(high)

    def change(self, key: str) -> float:
        """The mean over runs of what the adapted model has more than the frozen backbone; NaN for the backbone."""
        pairs = zip(self.before, self.after, strict=False)
        return mean_of([b.get(key, math.nan) - a.get(key, math.nan) for a, b in pairs])

    def origin(self) -> dict[str, object]:
        """What every csv file says of a row first."""
        trained_on = "" if self.is_frozen else self.dataset
        found = {"trained_on": trained_on, "backbone": self.backbone, "method": self.method, "config": self.config}
        return {**found, "tested_on": self.tested, "runs": len(self.after)}


def rows_of(runs: Runs, rows: pd.DataFrame, role: str) -> list[Row]:
    """Each row of the main table with each test set of this role that its runs measured; without one, with none.

    The frozen backbone's rows come first: in place of those of methods that train nothing.
    """
    measured = runs.finished[runs.finished["behaviour"].notna()]
    by_group: dict[str, list[tuple[Path, Behaviour]]] = {}
    for run in measured.to_dict("records"):
        by_group.setdefault(run["group"], []).append((Path(run["folder"]) / run["run_id"], run["behaviour"]))
    found: list[Row] = []
    titles = options.rows(rows, runs.titles)
    for place, row in enumerate(rows.to_dict("records")):
        settings = row["settings"]
        base = str(settings.get("dataset.title") or settings.get("dataset.name"))
        plain = Row(
            dataset=row["dataset"],
            backbone=row["backbone"],
            method=row["method"],
            config=row["config"],
            title=titles[place],
            base=base,
            place=place,
            trains=bool(row["trains"]),
            finished=int(row["seeds"]),
            mean_recall=row["mean_recall"],
            std=row["mean_recall_std"],
            own=role == "own",
            main=(row.get("mean_recall_low", math.nan), row.get("mean_recall_high", math.nan)),
        )
        sets: dict[str, list[tuple[Path, TestSet]]] = {}
        for run_dir, behaviour in by_group.get(row["group"], ()):
            for test in behaviour.sets:
                if test.role == role and test.after and test.before:
                    sets.setdefault(test.dataset, []).append((run_dir, test))
        found += [_on(plain, name, each) for name, each in sets.items()] or [plain]
    found = _with_intervals(found)
    return [*_frozen(found), *(each for each in found if each.trains)]


def _on(row: Row, tested: str, measured: Sequence[tuple[Path, TestSet]]) -> Row:
    """The row with what its runs measured of one test set."""
    before, after = (tuple(side(test) for _, test in measured) for side in (_before, _after))
    sources = tuple((run_dir, test.sha256) for run_dir, test in measured)
    return replace(row, tested=tested, before=before, after=after, sources=sources)


def _with_intervals(found: Sequence[Row]) -> list[Row]:
    """The rows with the intervals on their test sets, where all their runs have saved the ranks."""
    rows, places = list(found), dict[tuple[str, str], list[int]]()
    for place, row in enumerate(rows):
        if row.sources:
            places.setdefault((row.backbone, row.tested), []).append(place)
    for same in places.values():
        for place, against in zip(same, frozen.compare([rows[place].sources for place in same]), strict=True):
            rows[place] = replace(rows[place], against=against)
    return rows


def _frozen(found: Sequence[Row]) -> list[Row]:
    """The frozen backbone's row of each backbone and test set."""
    first: dict[tuple[str, str], Row] = {}
    for each in found:
        if each.before:
            first.setdefault((each.backbone, each.tested), each.frozen())
    return list(first.values())


def _before(test: TestSet) -> dict[str, float]:
    return _flat(test.before)


def _after(test: TestSet) -> dict[str, float]:
    drifts = {"drift_image": test.drift_image, "drift_text": test.drift_text}
    return _flat(test.after) | {key: value for key, value in drifts.items() if value is not None}


def _flat(measured: Measured | None) -> dict[str, float]:
    """All numbers of one model on one test set by name, such as uniformity_image."""
    assert measured is not None
    found = dict(measured.scores.model_dump(exclude_none=True))
    if measured.geometry:
        parts = measured.geometry.model_dump(exclude_none=True)
        sides = {side: parts.pop(side, {}) for side in ("image", "text")}
        found |= parts | {f"{key}_{side}": value for side, each in sides.items() for key, value in each.items()}
    return found | (measured.classification.model_dump() if measured.classification else {})


def mean_of(values: Sequence[float]) -> float:
    known = [each for each in values if not math.isnan(each)]
    return float(np.mean(known)) if known else math.nan
