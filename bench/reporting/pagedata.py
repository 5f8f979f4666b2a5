"""The data of a report's page as plain lists: its rows with settings and costs, and training curves. No torch."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bench.config.errors import UserError
from bench.reporting import tables
from bench.reporting.summary import CHOSEN, DEPARTS, ROW_COLUMNS
from bench.reporting.tables import Block
from bench.store.folder import HISTORY
from bench.store.frame import RECALLS, Runs
from bench.store.naming import canonical

MOST_CURVES = 600  # runs whose training curves are on the page
_NAMES = dict(zip(RECALLS, ("I2T R@1", "I2T R@5", "I2T R@10", "T2I R@1", "T2I R@5", "T2I R@10", "mR"), strict=True))
_COSTS = {  # title, unit, and a line of help; the unit says how the browser prints the number
    "trainable_params": ("Params", "count", "trained parameters"),
    "share": ("% of model", "percent", "trained parameters as a share of all that the model has"),
    "train_seconds": ("Train time", "seconds", "time in training steps, mean over seeds"),
    "peak_bytes": ("Peak memory", "bytes", "peak memory in training, maximum over seeds"),
    "flops_per_pair": ("FLOPs a pair", "flops", "floating-point operations to encode one image and one caption"),
}


@dataclass(frozen=True)
class Row:
    """A row of the page: its group of runs, and the folders of its finished runs by seed.

    sha256: of the dataset that its first finished run was scored on, "" where it is unknown.
    """

    group: str
    dataset: str
    backbone: str
    method: str
    chosen: bool
    sha256: str
    settings: dict[str, Any]
    runs: tuple[tuple[int, Path], ...]


def rows(runs: Runs, parts: Sequence[Block]) -> list[Row]:
    """The rows of all blocks, in the tables' order."""
    folders: dict[str, list[tuple[int, Path]]] = {}
    hashes: dict[str, str] = {}
    for run in runs.finished[["folder", "run_id", "group", "seed", "provenance"]].to_dict("records"):
        place = Path(run.get("folder") or runs.folder) / str(run["run_id"])
        folders.setdefault(run["group"], []).append((int(run["seed"]), place))
        hashes.setdefault(run["group"], str(run["provenance"].get("dataset_sha256") or ""))
    return [
        Row(
            group=row["group"],
            dataset=part.dataset,
            backbone=part.backbone,
            method=row["method"],
            chosen=row["chosen"] is True,
            sha256=hashes.get(row["group"], ""),
            settings=row["settings"],
            runs=tuple(sorted(folders.get(row["group"], ()))),
        )
        for part in parts
        for row in part.rows.to_dict("records")
    ]


def table(runs: Runs, parts: Sequence[Block]) -> dict[str, Any]:
    """The rows by column, for the page's script.

    `columns`: key, title, kind (text or number), unit, help, and whether it is shown at first. `values`: by key, one
    value a row; numbers are None where they are missing. `spread`: standard deviations by key of a recall. `best`: by
    key, the rows that are best in their block. `marks`: by key, the marks of each row. `passed_over`: rows in whose
    place validation chose another of their method. `settings`: `common` ones of most rows, and for each row what
    differs from them.
    """
    lines = [line for part in parts for line in part.lines]
    nothing = pd.DataFrame(columns=list(ROW_COLUMNS))
    frame = pd.concat([part.rows for part in parts], ignore_index=True) if parts else nothing
    done = runs.finished.groupby("group")
    extra = {name: done[name].max() for name in ("flops_per_pair", "total_params")}
    flops, total = (frame["group"].map(extra[name]) for name in ("flops_per_pair", "total_params"))
    numbers: dict[str, pd.Series] = {name: frame[name] for name in ("mean_recall", *RECALLS[:-1], "val_mean_recall")}
    share = 100 * frame["trainable_params"].astype("Float64") / total.astype("Float64")
    numbers |= {name: frame[name] for name in ("trainable_params", "train_seconds", "peak_bytes")}
    numbers |= {"share": share, "flops_per_pair": flops}
    texts = {
        "dataset": [part.dataset for part in parts for _ in part.lines],
        "backbone": [part.backbone for part in parts for _ in part.lines],
        "method": [line.title for line in lines],
        "config": [line.config.removesuffix(CHOSEN) for line in lines],
        "recipe": [line.recipe.removesuffix(DEPARTS) for line in lines],
        "seeds": [line.seeds for line in lines],
    }
    return {
        "columns": list(_columns(texts)),
        "values": texts | {name: [_number(value) for value in each] for name, each in numbers.items()},
        "spread": {name: [_number(value) for value in frame[f"{name}_std"]] for name in RECALLS},
        "best": {name: [i for i, line in enumerate(lines) if line.recalls[at].best] for at, name in enumerate(RECALLS)},
        "marks": {
            "config": [CHOSEN * line.chosen for line in lines],
            "recipe": [DEPARTS * line.recipe.endswith(DEPARTS) for line in lines],
            "seeds": [line.marks for line in lines],
            "mean_recall": ["≈" * line.tied for line in lines],
        },
        "passed_over": [i for i, chosen in enumerate(frame["chosen"]) if chosen is False],
        "settings": _settings(list(frame["settings"])),
    }


def _columns(texts: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Any]]:
    """The columns from left to right; those that say the same in every row are not shown at first."""
    helps = {"config": "what differs between the rows of a method", "seeds": "finished runs"}
    for name in ("dataset", "backbone", "method", "config", "recipe"):
        shown = name == "method" or len(set(texts[name])) > 1
        yield _column(name, name.title(), "text", helps.get(name, ""), shown)
    yield _column("trainable_params", *_COSTS["trainable_params"])
    yield _column("seeds", "Seeds", "text", helps["seeds"])
    for name in ("mean_recall", *RECALLS[:-1]):
        yield _column(name, _NAMES[name], "recall", "recall on the test set in percent")
    yield _column("val_mean_recall", "Val mR", "recall", "mean recall on the validation split", False)
    for name in ("train_seconds", "peak_bytes"):
        yield _column(name, *_COSTS[name])
    for name in ("share", "flops_per_pair"):
        yield _column(name, *_COSTS[name], shown=False)


def _column(key: str, title: str, unit: str, about: str, shown: bool = True) -> dict[str, Any]:
    return {"key": key, "title": title, "unit": unit, "about": about, "shown": shown}


def _settings(flats: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings as text: those that most rows have, and for each row its others; None: it lacks a common one."""
    worded = [{key: value if isinstance(value, str) else canonical(value) for key, value in f.items()} for f in flats]
    counts = Counter(item for flat in worded for item in flat.items())
    common = {key: value for (key, value), count in sorted(counts.items()) if 2 * count > len(flats)}
    rows = [
        {key: flat.get(key) for key in sorted({*flat, *common}) if flat.get(key) != common.get(key)} for flat in worded
    ]
    return {"common": common, "rows": rows}


def curves(found: Sequence[Row]) -> dict[str, Any]:
    """The training curves of at most MOST_CURVES runs: for each row its seeds' [seed, epochs, validation, loss].

    Rows that validation chose come first, then the others in the table's order. `left_out`: rows with runs whose curves
    are not here. A run without a history, or with a broken one, has no curve.
    """
    order = sorted(range(len(found)), key=lambda i: not found[i].chosen)
    curves: dict[int, list[Any]] = {}
    count = left_out = 0
    for i in order:
        if count + len(found[i].runs) > MOST_CURVES:
            left_out += bool(found[i].runs)
            continue
        drawn = [[seed, *history] for seed, place in found[i].runs if (history := _history(place / HISTORY))]
        count += len(drawn)
        if drawn:
            curves[i] = drawn
    return {"rows": {str(i): curves[i] for i in sorted(curves)}, "left_out": left_out}


def _history(path: Path) -> tuple[list[int], list[float | None], list[float | None]] | None:
    """(epochs, validation mean recall, training loss) of a history.csv."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        epochs = [int(line["epoch"]) for line in lines]
        validation, loss = ([_rounded(line[key], n) for line in lines] for key, n in _DIGITS.items())
    except (OSError, ValueError, KeyError, TypeError, csv.Error, UserError):
        return None
    return (epochs, validation, loss) if epochs else None


_DIGITS = {"val_mean_recall": 3, "train_loss": 5}


def _rounded(text: str, digits: int) -> float | None:
    value = float(text)
    return round(value, digits) if math.isfinite(value) else None


def _number(value: Any) -> float | int | None:
    """A number for JSON: whole ones stay whole, others have 6 significant digits."""
    if value is None or pd.isna(value):
        return None
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(value) if number.is_integer() and abs(number) < 2**53 else float(f"{number:.7g}")


def failures(runs: Runs) -> list[tuple[str, str, list[str]]]:
    """(status, why, run ids) of the runs without a result in the table, equal reasons together."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for run in tables.unfinished(runs):
        grouped.setdefault((run.status, run.note), []).append(run.run_id)
    return [(*key, ids) for key, ids in grouped.items()]
