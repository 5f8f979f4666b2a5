"""Recall by class of the images, such as airport or beach, from the saved ranks and the test set's file. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from bench.evidence import saved
from bench.evidence.statistics import recalls
from bench.reporting import options
from bench.reporting.bars import Heat, draw_heat
from bench.reporting.further import Section
from bench.store import testset
from bench.store.frame import Runs

NAME = "recall_by_class"
MOST_METHODS = 12  # of a figure
NOTE = (
    "Mean recall of the queries of each class's images, over all images of the test set; the mean over seeds. Of each "
    "method the settings that validation chose."
)


def by_class(runs: Runs, rows: pd.DataFrame) -> list[Section]:
    """A table a block with labelled images: a row a class, its number of images, and each chosen row's mean recall."""
    found = []
    for number, ((dataset, backbone), part) in enumerate(rows.groupby(["dataset", "backbone"], sort=False), 1):
        chosen = part[part["mean_recall"].notna() & part["chosen"].map(lambda each: each is not False)]
        chosen = chosen.sort_values("mean_recall", ascending=False, kind="stable")[:MOST_METHODS]
        table = _table(runs, chosen)
        if table is not None:
            name = NAME + (f"_{number}" if rows["dataset"].nunique() * rows["backbone"].nunique() > 1 else "")
            words = table.map(lambda value: f"{value:.1f}" if isinstance(value, float) else str(value))
            title = f"Recall by class: {options.dataset(str(dataset))}, {backbone}"
            found.append(Section(name, title, NOTE, table, words, partial(draw_heat, heat(name, title, table))))
    return found


def heat(name: str, title: str, numbers: pd.DataFrame) -> Heat:
    """The figure of a table of `by_class`."""
    classes = tuple(f"{each} ({count})" for each, count in zip(numbers["class"], numbers["images"], strict=True))
    values = numbers.iloc[:, 2:].to_numpy(float)
    return Heat(name, title, "", "", tuple(map(str, numbers.columns[2:])), classes, values, "")


def _table(runs: Runs, rows: pd.DataFrame) -> pd.DataFrame | None:
    """class, images, then a column a row; None without ranks or labels, or where runs are of differing data."""
    finished = runs.finished[runs.finished["group"].isin(rows["group"])]
    hashes = {str(origin.get("dataset_sha256")) for origin in finished["provenance"]}
    if len(hashes) != 1:
        return None
    queries = next((q for f in dict.fromkeys(finished["folder"]) if (q := testset.read(Path(f), *hashes))), None)
    if queries is None or not any(queries.labels):
        return None
    tables = [_mean(finished[finished["group"] == group]) for group in rows["group"]]
    counts = np.array([len(each) for each in queries.captions])
    known = [table is not None and len(table) == len(counts) for table in tables]
    labels = np.array([label or "" for label in queries.labels])
    names = sorted(set(labels) - {""})
    out: dict[str, Sequence[object]] = {"class": names, "images": [int((labels == name).sum()) for name in names]}
    titles = options.rows(rows, runs.titles)
    for title, table, usable in zip(titles, tables, known, strict=True):
        if usable and table is not None:
            out[title] = [float(recalls(table[labels == name], counts[labels == name])[-1]) for name in names]
    return pd.DataFrame(out) if any(known) and len(names) > 1 else None


def _mean(finished: pd.DataFrame) -> np.ndarray | None:
    """What each image's queries hit, the mean over the runs: (images, 6); None if a run has no ranks."""
    found = []
    for run in finished[["folder", "run_id"]].itertuples():
        each = saved.read(Path(str(run.folder)), [str(run.run_id)], "")
        if not each.run_ids:
            return None
        found.append(each.tables[0])
    return np.mean(found, axis=0) if found else None
