"""Mean recall of each method on every dataset and backbone of a report, side by side. No torch."""

from __future__ import annotations

import pandas as pd

from bench.reporting import options
from bench.reporting.further import Section
from bench.store.frame import Runs

NOTE = (
    "Test mean recall in percent, mean ± sample standard deviation over seeds. Of each method the settings that "
    "validation chose on that dataset and backbone; recalls of different datasets can't be compared."
)


def overview(runs: Runs, rows: pd.DataFrame) -> list[Section]:
    """One table: a row a method, a column a dataset and backbone; none where there is one of them."""
    blocks = list(rows.groupby(["dataset", "backbone"], sort=False))
    if len(blocks) < 2:
        return []
    asked = options.of(runs)
    if asked.group == "backbone":
        blocks.sort(key=lambda block: block[0][1])
    one = {part: len({block[0][i] for block in blocks}) == 1 for i, part in enumerate(("dataset", "backbone"))}
    methods = list(dict.fromkeys(rows["method"]))
    numbers = pd.DataFrame({"method": methods})
    shown = pd.DataFrame({"Method": [options.title(method, runs.titles) for method in methods]})
    for (dataset, backbone), part in blocks:
        best = part[part["chosen"].map(lambda each: each is not False)].drop_duplicates("method").set_index("method")
        name = f"{dataset}, {backbone}"
        head = [options.dataset(str(dataset))] * (not one["dataset"]) + [str(backbone)] * (not one["backbone"])
        for column in ("config", "mean_recall", "mean_recall_std"):
            numbers[f"{name}: {column}"] = [best[column].get(method) for method in methods]
        shown[", ".join(head)] = [_cell(best, method, asked.precision) for method in methods]
    return [Section("overview", "All datasets and backbones", NOTE, numbers, shown)]


def _cell(rows: pd.DataFrame, method: str, precision: int) -> str:
    if method not in rows.index or pd.isna(rows["mean_recall"][method]):
        return "–"
    std = rows["mean_recall_std"][method]
    return f"{rows['mean_recall'][method]:.{precision}f}" + ("" if pd.isna(std) else f" ± {std:.{precision}f}")
