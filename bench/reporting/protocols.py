"""How epochs were chosen: marks and words, what test selection is worth, and repeated openings. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bench.config.settings import Protocol
from bench.evidence.statistics import LEVEL, moderated
from bench.reporting import options
from bench.reporting.further import Section
from bench.store.frame import Runs

SELECTED, LAST, REOPENED = "♯", "♭", "∗"  # marks of a row
MEANINGS = {
    SELECTED: "the epoch was chosen on the test set, which favours the row: in no ranking with others",
    LAST: "the last epoch, whatever validation says",
    REOPENED: "the test set was opened again after a run of this row had been scored: see the ledger, test_openings",
}
TEX = {SELECTED: "$^\\sharp$", LAST: "$^\\flat$", REOPENED: "$^\\ast$"}
CHOICE: dict[Protocol, str] = {
    "strict": "epoch chosen on the validation split, test set scored once",
    "test-selected": f"{SELECTED} epoch chosen on the test set (protocol test-selected): in no ranking with other rows",
    "last-epoch": "the last epoch, test set scored once (protocol last-epoch)",
}
COMPARISON = "test_selection"  # name of the section
_EVERY = "all of them"
_DASH = "–"


def marks(row: Mapping[str, Any]) -> str:
    """The marks of a row of `summary.summarise`."""
    return {"test-selected": SELECTED, "last-epoch": LAST}.get(row["protocol"], "") + REOPENED * bool(row["reopened"])


def named(title: str) -> bool:
    """Whether a panel's title has a protocol that is not strict, as `bench.store.frame` names datasets."""
    return any(f"{each})" in title for each in CHOICE)


def of_block(found: Iterable[Protocol]) -> Protocol:
    """The protocol of a block's rows; those of methods that train nothing are strict in a block of any."""
    return next((each for each in found if each != "strict"), "strict")


def comparison(runs: Runs, rows: pd.DataFrame) -> list[Section]:
    """What test selection is worth: recall at the epoch that the test set chose, less that at validation's epoch."""
    selected = runs.finished[runs.finished["selection"].notna()]
    if selected.empty:
        return []
    gains = selected.assign(
        validation_epoch=[each["validation_epoch"] for each in selected["selection"]],
        strict=[each["test_mean_recall"] for each in selected["selection"]],
    )
    gains["gain"] = gains["mean_recall"] - gains["strict"]
    found = []
    for (dataset, backbone), block in rows.groupby(["dataset", "backbone"], sort=False):
        listed = {group: gains.loc[gains["group"] == group] for group in block["group"]}
        listed = {group: part for group, part in listed.items() if len(part)}
        if listed:
            named = block.set_index("group")
            lines = [
                {"method": named["method"][group], "config": named["config"][group], **_means(part)}
                for group, part in listed.items()
            ]
            ends = _intervals([part["gain"].to_numpy(float) for part in listed.values()])
            if len(lines) > 1:
                lines.append({"method": _EVERY, "config": "", **_overall(lines)})
            first = {"dataset": dataset, "backbone": backbone}
            found += [first | line | {"low": low, "high": high} for line, (low, high) in zip(lines, ends, strict=False)]
    numbers = pd.DataFrame(found).astype({"runs": "Int64"})
    note = (
        "Test mean recall at the epoch that the test set chose, less that at the epoch that validation would have "
        "chosen in the same training: what test selection adds without a better model. The mean over seeds; the 95% "
        "interval covers other seeds of the same training on this test set, not other test images (Student's t, each "
        "row's variance drawn towards the common one; no interval with one seed, or where no seed differs)."
    )
    return [Section(COMPARISON, "What test selection is worth", note, numbers, _shown(numbers))]


def _means(part: pd.DataFrame) -> dict[str, Any]:
    return {
        "runs": len(part),
        "at_validation_epoch": part["strict"].mean(),
        "at_test_epoch": part["mean_recall"].mean(),
        "gain": part["gain"].mean(),
    }


def _overall(lines: list[dict[str, Any]]) -> dict[str, Any]:
    keys = ("at_validation_epoch", "at_test_epoch", "gain")
    return {"runs": sum(line["runs"] for line in lines)} | {
        key: float(np.mean([line[key] for line in lines])) for key in keys
    }


def _intervals(gains: list[np.ndarray]) -> list[tuple[float, float]]:
    """The interval of each row's mean gain, then of the mean of all rows; NaN where seeds say nothing.

    A gain is never negative, and no interval reaches below 0.
    """
    counts = np.array([len(each) for each in gains])
    own = np.array([each.var(ddof=1) if len(each) > 1 else 0.0 for each in gains])
    own[own < 1e-18] = 0  # rounding
    variance, freedom = moderated(own, np.maximum(counts - 1.0, 1.0))
    of_mean, known = variance / counts, own > 0
    means = np.array([each.mean() for each in gains])
    ends = [
        _ends(mean, var, df) if some else (np.nan, np.nan)
        for mean, var, df, some in zip(means, of_mean, freedom, known, strict=True)
    ]
    total, rows = of_mean.sum(), len(gains)
    whole = known.any() and (counts > 1).all()
    df = min(total**2 / (of_mean[known] ** 2 / freedom[known]).sum(), (counts - 1).sum()) if whole else np.nan
    return [*ends, _ends(means.mean(), total / rows**2, df) if whole else (np.nan, np.nan)]


def _ends(mean: float, variance: float, freedom: float) -> tuple[float, float]:
    half = float(stats.t.isf((1 - LEVEL) / 2, freedom) * np.sqrt(variance))
    return max(0.0, mean - half), mean + half


def _shown(numbers: pd.DataFrame) -> pd.DataFrame:
    def points(value: float) -> str:
        return _DASH if pd.isna(value) else f"{value:.2f}"

    several = numbers[["dataset", "backbone"]].drop_duplicates().shape[0] > 1
    columns: dict[str, list[str]] = {"Method": [str(each) for each in numbers["method"]]}
    if numbers["config"].any():
        columns["Config"] = [options.short(str(each)) for each in numbers["config"]]
    if several:
        columns["Dataset"] = list(numbers["dataset"] + ", " + numbers["backbone"])
    columns["Runs"] = [str(each) for each in numbers["runs"]]
    columns["mR at validation's epoch"] = list(map(points, numbers["at_validation_epoch"]))
    columns["mR at the test set's epoch"] = list(map(points, numbers["at_test_epoch"]))
    columns["Gain"] = list(map(points, numbers["gain"]))
    columns["95% interval"] = [
        _DASH if pd.isna(low) else f"{low:.2f} to {high:.2f}"
        for low, high in zip(numbers["low"], numbers["high"], strict=True)
    ]
    return pd.DataFrame(columns)


def reopened(runs: Runs, rows: pd.DataFrame) -> list[Section]:
    """The openings of the test set by runs that scored it more than once."""
    numbers = pd.DataFrame([each for found in runs.finished["openings"] if len(found) > 1 for each in found])
    if numbers.empty:
        return []
    note = (
        "Each finished run is to score the test set once. These did so more often: computed again, loaded and scored, "
        "or stopped between scoring and writing the result. The ledger in the results folder has every opening."
    )
    shown = numbers.rename(
        columns={"run_id": "Run", "time": "Time (UTC)", "why": "Why", "protocol": "Protocol", "host": "Host"}
    )
    epochs = [_DASH if pd.isna(each) else str(int(each)) for each in numbers["epoch"]]
    shown = shown.drop(columns="epoch").assign(Epoch=epochs)
    return [Section("test_openings", "Test sets opened more than once", note, numbers, shown)]
