"""What a sweep's tuning found: the trials of each configuration, their spread, and the winner. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from bench.config.settings import TuneSettings
from bench.reporting import options
from bench.reporting.further import Section
from bench.store.frame import Runs
from bench.store.naming import canonical, distinguish, shown

_DASH = "–"
_APART = ("dataset.", "backbone.", "evaluation.test")
_LINES = ("dataset", "backbone", "method")


def tuning(runs: Runs, rows: pd.DataFrame) -> list[Section]:
    """One row a configuration that was tuned; none if the sweep's file does not tune."""
    written = runs.content.get("tune")
    if runs.trials.empty or not isinstance(written, dict):
        return []
    keys = [key for key in written if key not in TuneSettings.model_fields]
    trials = runs.trials.assign(keys=[_dotted(flat, keys) for flat in runs.trials["settings"]])
    trials["base"] = [
        canonical({key: value for key, value in flat.items() if key not in (*own, "train.epochs")})
        for flat, own in zip(trials["settings"], trials["keys"], strict=True)
    ]
    listed = [part for _, part in trials.groupby("base", sort=False)]
    found = [
        {name: part[name].iloc[0] for name in _LINES} | _facts(part, bool(written.get("halving"))) for part in listed
    ]
    for line, config in zip(found, _configs(listed), strict=True):
        line["config"] = config
    numbers = pd.DataFrame(found)[[*_LINES, "config", *(key for key in found[0] if key not in (*_LINES, "config"))]]
    note = (
        "Each configuration had the same search, with the same draws of a setting; the best mean recall on the "
        f"validation split won, and trained with the seeds of the grid. Trials were trained with seed "
        f"{written.get('seed', 0)} and never opened the test set. Spread: validation mean recall of the trials at full "
        "length. A winner on the edge of what was tried may have a better neighbour outside: widen the search."
    )
    return [Section("tuning", "Tuning", note, numbers, _shown(numbers))]


def _dotted(flat: dict[str, Any], keys: Iterable[str]) -> tuple[str, ...]:
    """The tuned settings as a run's settings have them: of the method, else of training, else of the loss."""
    found = []
    for key in keys:
        names = [key] if "." in key else [f"{part}.{key}" for part in ("method", "train", "loss")]
        found += [name for name in names if name in flat][:1]
    return tuple(found)


def _facts(part: pd.DataFrame, halving: bool) -> dict[str, Any]:
    """Counts, spread and winner of one configuration's trials; with halving some are short."""
    keys = part["keys"].iloc[0]
    values = pd.DataFrame([{key: flat[key] for key in keys} for flat in part["settings"]], index=part.index)
    epochs = pd.Series([flat["train.epochs"] for flat in part["settings"]], index=part.index)
    whole = part[epochs == epochs.max()]
    done = whole[whole["status"] == "finished"]
    scores = done["val_mean_recall"]
    open_ = part["status"].eq("missing").any()
    all_short = halving and epochs.nunique() == 1
    winner = None if open_ or all_short or done.empty else values.loc[scores.idxmax()]
    return {
        "trials": values.map(canonical).drop_duplicates().shape[0],
        "whole_trials": len(whole),
        "failed": int((~part["status"].isin(["finished", "missing"])).sum()),
        "val_min": scores.min(),
        "val_median": scores.median(),
        "val_max": scores.max(),
        "winner": "" if winner is None else ", ".join(f"{_name(key)}={shown(winner[key])}" for key in keys),
        "on_edge": "" if winner is None else _edges(winner, values),
    }


def _edges(winner: pd.Series, values: pd.DataFrame) -> str:
    return ", ".join(_name(key) for key in values if _is_edge(winner[key], values[key]))


def _is_edge(value: Any, tried: pd.Series) -> bool:
    """Whether a number is the smallest or the largest that was tried, of several."""
    numbers = [each for each in tried if isinstance(each, int | float) and not isinstance(each, bool)]
    return len(set(numbers)) > 1 and len(numbers) == len(tried) and value in (min(numbers), max(numbers))


def _name(key: str) -> str:
    return key.partition(".")[2]


def _configs(listed: list[pd.DataFrame]) -> list[str]:
    """What tells the configurations of one method apart, beside what was tuned."""
    bases = [
        {
            key: value
            for key, value in part["settings"].iloc[0].items()
            if key not in (*part["keys"].iloc[0], "train.epochs") and not key.startswith(_APART)
        }
        for part in listed
    ]
    methods = [str(part["method"].iloc[0]) for part in listed]
    texts = [""] * len(listed)
    for method in dict.fromkeys(methods):
        places = [i for i, each in enumerate(methods) if each == method]
        for i, text in zip(places, distinguish([bases[i] for i in places]), strict=True):
            texts[i] = text
    return texts


def _shown(numbers: pd.DataFrame) -> pd.DataFrame:
    def points(value: float) -> str:
        return _DASH if pd.isna(value) else f"{value:.2f}"

    columns: dict[str, list[str]] = {"Method": list(numbers["method"])}
    if numbers["config"].any():
        columns["Config"] = [options.short(each) for each in numbers["config"]]
    if numbers[["dataset", "backbone"]].drop_duplicates().shape[0] > 1:
        columns["Dataset"] = list(numbers["dataset"] + ", " + numbers["backbone"])
    columns["Trials"] = [
        f"{row.trials}"
        + (f", {row.whole_trials} at full length" if row.whole_trials != row.trials else "")
        + (f", {row.failed} failed" if row.failed else "")
        for row in numbers.itertuples()
    ]
    for name in ("min", "median", "max"):
        columns[f"Validation mR, {name}"] = list(map(points, numbers[f"val_{name}"]))
    columns["Winner"] = [options.short(each) or "not known yet" for each in numbers["winner"]]
    columns["On the edge"] = [f"⚠ {each}" if each else _DASH for each in numbers["on_edge"]]
    return pd.DataFrame(columns)
