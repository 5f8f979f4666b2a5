"""Where numbers come from: which rows were made in other ways than the rest, runs.csv and provenance.json. No torch."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pandas as pd

from bench.store.frame import RECALLS, Runs
from bench.store.naming import canonical

DIFFERS = "‖"  # mark of a row
MEANING = (
    "made by another commit, on other hardware or with other weights than most runs of this table: "
    "origin_differs in table.csv says which, provenance.json has each run's"
)
_KINDS = {"commit": ("git_commit", "git_dirty"), "hardware": ("device",), "weights": ("weights_sha256", "weights")}
_ORIGIN = (
    *("git_commit", "git_dirty", "lock_sha256", "lock_differs", "device", "device_count", "threads", "hostname"),
    *("weights", "weights_sha256", "dataset_sha256", "split", "packages", "finished"),
)
_RUN = ("run_id", "folder", "status", "note", "planned", "dataset", "backbone", "method")
_NUMBERS = (
    *RECALLS,
    *("mean_recall_optimistic", "mean_recall_pessimistic", "val_mean_recall", "i2t_ties", "t2i_ties"),
    *("images", "captions", "trainable_params", "total_params", "train_seconds", "peak_bytes", "flops_per_pair"),
)
_FACTS = ("git_commit", "git_dirty", "device", "device_count", "weights_sha256", "dataset_sha256", "lock_sha256")
_PATHS = ("dataset.root", "dataset.annotations", "dataset.file")  # say where files lie, not what was run


def differing(runs: Runs, rows: pd.DataFrame) -> pd.Series:
    """For each row (index: groups; with dataset, backbone), of commit, hardware, weights what differs, as a text.

    A row differs if one of its runs is not as most runs of its block; of equally many, as the first.
    """
    found: dict[str, dict[str, None]] = {group: {} for group in rows.index}
    for _, block in runs.finished.groupby(["dataset", "backbone"], sort=False):
        for kind, keys in _KINDS.items():
            values = [canonical([origin.get(key) for key in keys]) for origin in block["provenance"]]
            usual = Counter(values).most_common(1)[0][0]
            for group, value in zip(block["group"], values, strict=True):
                if value != usual:
                    found[group][kind] = None
    return pd.Series({group: " ".join(kinds) for group, kinds in found.items()}, dtype=object).reindex(rows.index)


def runs_csv(runs: Runs, rows: pd.DataFrame) -> str:
    """Every run of the plan, one row each: its row of table.csv, status, settings, numbers in full, and origin.

    A run without a result has a status and a note, and no numbers. `row` counts from 1. Settings are columns with
    dotted keys; paths are left out.
    """
    frame = runs.frame
    place = _place(rows)
    head = frame[list(_RUN)].assign(row=frame["group"].map(place).astype("Int64"))
    head["config"] = frame["group"].map(dict(zip(rows["group"], rows["config"], strict=True))).fillna("")
    flat = [{} if isinstance(each, float) else each for each in frame["settings"]]
    keys = [k for k in dict.fromkeys(key for each in flat for key in each) if not k.startswith(_PATHS)]
    settings = pd.DataFrame({key: [_cell(each.get(key)) for each in flat] for key in keys}, frame.index, dtype=object)
    origin = pd.DataFrame({key: [_cell(each.get(key)) for each in frame["provenance"]] for key in _FACTS})
    lead = ["row", "run_id", "folder", "status", "dataset", "backbone", "method", "config"]
    table = pd.concat(
        [head[lead], frame["seed"], frame[list(_NUMBERS)], origin.set_index(frame.index), settings, head["note"]],
        axis=1,
    )
    return table.loc[:, ~table.columns.duplicated()].to_csv(index=False, lineterminator="\n")


def provenance(runs: Runs, rows: pd.DataFrame) -> str:
    """provenance.json: from a row of table.csv to its runs, and from a run to code, machine, data and weights."""
    by_group: dict[str, dict[str, list[str]]] = {}
    for run in runs.frame[["run_id", "group", "status"]].itertuples():
        kind = "runs" if run.status == "finished" else "left_out"
        by_group.setdefault(str(run.group), {"runs": [], "left_out": []})[kind].append(str(run.run_id))
    content = {
        "report": runs.sweep,
        "command": runs.command,
        "cells": {
            "how": "A cell of row n of table.csv, which every other table shows, is made of the runs of rows[n - 1].",
            "mean": [*RECALLS, "val_mean_recall", "train_seconds"],
            "sample standard deviation": [f"{recall}_std" for recall in RECALLS],
            "maximum": ["peak_bytes"],
            "the one value of all": ["trainable_params", "flops_per_pair"],
            "bootstrap and tests on ranks.npz of the table's rows": ["*_low", "*_high", "tied_with_best", "*_rank"],
        },
        "rows": [
            {key: row[key] for key in ("dataset", "backbone", "method", "config", "origin_differs")}
            | by_group[row["group"]]
            for row in rows.to_dict("records")
        ],
        "runs": {
            str(run.run_id): {"folder": run.folder, "status": run.status, "note": run.note, "seed": _plain(run.seed)}
            | {key: origin[key] for key in _ORIGIN if key in (origin := run.provenance)}
            for run in runs.frame[["run_id", "folder", "status", "note", "seed", "provenance"]].itertuples()
        },
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _place(rows: pd.DataFrame) -> dict[str, int]:
    return {group: number for number, group in enumerate(rows["group"], 1)}


def _plain(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)


def _cell(value: Any) -> Any:
    """A setting in a csv: true and false in lower case, lists as JSON."""
    return canonical(value) if isinstance(value, bool | list | tuple | dict) else value
