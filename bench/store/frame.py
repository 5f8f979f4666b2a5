"""A results folder as a table with one row a run. No torch."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bench.config import backbones, hub
from bench.config.document import read_yaml
from bench.config.errors import UserError
from bench.config.files import is_folder
from bench.config.settings import BehaviourSettings, CoreSettings
from bench.store import behaviour, openings, planned, record
from bench.store.folder import PROGRESS, RESULT, RUN, runs_in
from bench.store.naming import canonical, distinguish, flatten
from bench.store.record import RECALLS, Record

COLUMNS = {
    "run_id": "str",
    "folder": "str",  # the results folder that the run lies in
    "planned": "bool",  # whether it is in the grid of the plan, false for finished runs of other commands
    "status": "str",  # finished, failed, missing, superseded; unreadable: also a result of other settings than planned
    "note": "str",  # one line: why there is no result
    "group": "str",  # canonical JSON of the settings without the seed; "" where the settings are unknown
    "settings": "object",  # the same as a dict with dotted keys
    "own": "object",  # keys of the method's and the loss's settings that are not defaults, where the plan says so
    "recipe": "str",  # the recipe that the run was planned with; "" without one
    "recipe_departs": "object",  # dotted keys in which the run departs from it
    "seed": "Int64",
    "dataset": "str",
    "backbone": "str",
    "method": "str",
    **dict.fromkeys(RECALLS, "float64"),  # of the test set
    "mean_recall_optimistic": "float64",
    "mean_recall_pessimistic": "float64",
    "val_mean_recall": "float64",
    "protocol": "str",  # what chose the epoch: bench.config.settings.Protocol
    "selection": "object",  # dict as in result.json, of test-selected runs; None without
    "openings": "object",  # a dict for each time that the ledger has its test set scored; () without a ledger
    "best_epoch": "Int64",  # the chosen one, from 1; missing for methods that do not train
    "interpolation": "object",  # dict as in result.json, None without
    "i2t_ties": "Int64",  # queries whose rank is tied
    "t2i_ties": "Int64",
    "images": "Int64",  # of the test set
    "captions": "Int64",
    "trainable_params": "Int64",
    "total_params": "Int64",
    "train_seconds": "float64",
    "peak_bytes": "Int64",
    "flops_per_pair": "Int64",
    "behaviour": "object",  # `bench.store.behaviour.Behaviour`; None where nothing was measured
    "provenance": "object",  # dict as in result.json; empty where there is no result
}

# Not part of a group: names, paths, the number of loaders and `core`. Data and weights differ by their hashes.
_APART = (
    *("sweep", "seed", "train.workers"),
    *(f"core.{key}" for key in CoreSettings.model_fields),
    *(f"behaviour.{key}" for key in BehaviourSettings.model_fields),
)
_PATHS = (
    *("dataset.root", "dataset.annotations", "dataset.title"),
    *("dataset.file", *(f"dataset.file.{split}" for split in ("train", "val", "test"))),
)


@dataclass(frozen=True)
class Runs:
    """The runs of a plan in its order, then other finished runs of the results folder by name; without a plan, all.

    command: it started the sweep, or would start it again; None where the plan does not say. frame: one row a run,
    columns as in COLUMNS. ignored: run folders that are left out. content: the sweep file with all overrides, empty
    where the plan has none. plugins: the files of the plan's plug-ins. titles: method -> what papers call it, as far as
    the plan says. folders: all results folders that the runs are of; `folder` is the first. trials: the plan's runs
    that never open the test set, with the same columns; they are in no other table.
    """

    folder: Path
    sweep: str
    command: str | None
    frame: pd.DataFrame
    ignored: tuple[str, ...]
    content: dict[str, Any] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    trials: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(COLUMNS)))
    titles: dict[str, str] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()

    @property
    def finished(self) -> pd.DataFrame:
        return self.frame[self.frame["status"] == "finished"]

    @property
    def unfinished(self) -> pd.DataFrame:
        return self.frame[self.frame["status"] != "finished"]


def collect(folder: Path, plan: planned.Plan | None = None, *, only: bool = False) -> Runs:
    """The runs of `results/<sweep>` by this plan (default: its newest), else every run folder. UserError without any.

    Other finished runs are kept, unless `only` or the plan says to leave them out. A run that failed, was not run or
    cannot be read becomes a row with a status and a note, never an exception.
    """
    return _named(_collect(folder, plan, only))


def collect_all(folders: Sequence[Path], *, only: bool = False) -> Runs:
    """The runs of several results folders in one table, each by its newest plan; see `collect`.

    A run that lies in two folders counts once. `content` is the first folder's; there is no one command.
    """
    parts = [_collect(folder, None, only) for folder in dict.fromkeys(folders)]
    if len(parts) == 1:
        return _named(parts[0])
    merged = Runs(
        folder=parts[0].folder,
        sweep="+".join(dict.fromkeys(part.sweep for part in parts)),
        command=None,
        frame=pd.concat([part.frame for part in parts], ignore_index=True),
        ignored=tuple(name for part in parts for name in part.ignored),
        content=parts[0].content,
        plugins=tuple(dict.fromkeys(file for part in parts for file in part.plugins)),
        titles={name: title for part in reversed(parts) for name, title in part.titles.items()},
        folders=tuple(part.folder for part in parts),
    )
    return _named(merged)


def _collect(folder: Path, plan: planned.Plan | None, only: bool) -> Runs:
    """The runs of one folder, their blocks not yet named."""
    if not is_folder(folder):
        raise UserError(f"no results folder at '{folder}'; give the folder that a sweep wrote, such as results/demo")
    plan = plan or planned.read(folder)
    specs: dict[str, Any] = dict.fromkeys(runs_in(folder)) if plan is None else dict(plan.runs)
    if not specs:
        raise UserError(f"no runs in '{folder}': neither a plan.json with runs nor a folder with a result.json")
    others = runs_in(folder, besides=specs)
    rows = [_read_run(folder / run_id, spec) | {"planned": True} for run_id, spec in specs.items()]
    if not only and not (plan and plan.start and plan.start.only):
        more = [_read_run(folder / run_id, None) | {"planned": False} for run_id in others]
        rows += [row for row in more if row["status"] == "finished"]
    plans = [plan] if plan else []
    if not all(row["planned"] for row in rows):
        plans = [*planned.every(folder), *plans]
    rows = [row | _said(row["run_id"], plans) | {"folder": str(folder)} for row in rows]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return Runs(
        folder=folder,
        sweep=plan.sweep if plan else folder.resolve().name,
        command=_command(plan),
        frame=frame,
        ignored=tuple(sorted(set(others) - set(frame["run_id"]))),
        content=plan.content if plan else {},
        plugins=tuple(plan.start.plugins) if plan and plan.start else (),
        titles=dict(plan.titles) if plan else {},
        folders=(folder,),
    )


def _named(runs: Runs) -> Runs:
    """The runs with names of datasets and backbones that say what varies, no seed twice, and columns of their types."""
    frame = runs.frame
    _name_blocks(frame)
    _part_duplicates(frame)
    frame = frame.astype({name: kind for name, kind in COLUMNS.items() if kind not in ("object", "str")})
    trial = frame["settings"].map(lambda flat: flat.get("evaluation.test") is False)
    trials = frame[trial & frame["planned"]].reset_index(drop=True)
    return replace(runs, frame=frame[~trial].reset_index(drop=True), trials=trials)


def _said(run_id: str, plans: Sequence[planned.Plan]) -> dict[str, Any]:
    """What the plans say of a run beside its settings; the last plan that says it counts."""
    found: dict[str, Any] = {"own": (), "recipe": "", "recipe_departs": ()}
    for plan in plans:
        if run_id in plan.own:
            found["own"] = tuple(plan.own[run_id])
        if run_id in plan.recipes:
            found |= {"recipe": plan.recipes[run_id], "recipe_departs": tuple(plan.departs.get(run_id, ()))}
    return found


def _command(plan: planned.Plan | None) -> str | None:
    if plan and plan.start and plan.start.command:
        return plan.start.command
    return f"python -m bench.sweep {shlex.quote(plan.file)}" if plan and plan.file else None


def _read_run(run_dir: Path, spec: dict[str, Any] | None) -> dict[str, Any]:
    """One row. The plan's settings win over the result's: data and weights may have moved since it ran."""
    row: dict[str, Any] = {
        "run_id": run_dir.name,
        "status": "missing",
        "note": "not run",
        "provenance": {},
        "openings": (),
    }
    try:
        result = record.load(run_dir)
        if result is not None:
            row |= _outcome(result, spec) | _opened(run_dir)
            row["behaviour"] = behaviour.read(run_dir) if row["status"] == "finished" else None
            spec = spec or result.spec
        elif (run_dir / PROGRESS).exists():
            row["note"] = "no result yet: still running, or interrupted"
    except record.Unreadable as error:
        row |= {"status": "unreadable", "note": str(error)}
    except OSError as error:
        row |= {"status": "unreadable", "note": f"{RESULT}: {error.strerror}"}
    try:
        spec = spec or read_yaml(run_dir / RUN)[0]
        return row | _identity(spec or {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        note = f"the run's settings cannot be read ({type(error).__name__}: {one_line(str(error))})"
        note = note if row["status"] == "finished" else f"{row['note']}; {note}"
        row |= {"status": "unreadable", "note": note, "group": "", "settings": {}}
        return row | {"dataset": "", "backbone": "", "method": "", "protocol": "strict"}


def _opened(run_dir: Path) -> dict[str, Any]:
    return {"openings": tuple(each.model_dump() for each in openings.scorings(openings.read(run_dir)))}


def _outcome(result: Record, spec: dict[str, Any] | None) -> dict[str, Any]:
    """What the result says of the row. It must be of the settings that the plan has for the run (`spec`), if any."""
    provenance = result.provenance or {}
    if not result.finished:
        error = result.error or record.Failure(message="no error was recorded")
        message = one_line(error.message)
        note = message if error.user else f"{error.type}: {message}"
        return {"status": "failed", "note": note, "provenance": provenance}
    assert result.metrics is not None
    if differing := _differing(result.spec, spec or result.spec):
        note = f"{RESULT}: made with other settings than the plan's: {differing}; delete the folder to run it again"
        return {"status": "unreadable", "note": note}
    val, cost, between = result.metrics.val, result.cost or record.Cost(), result.metrics.interpolation
    test, selection = result.metrics.test, result.metrics.selection
    found = (test.model_dump() if test else {}) | cost.model_dump()
    return {
        "status": "finished",
        "note": "",
        **{key: value for key, value in found.items() if key in COLUMNS},
        "val_mean_recall": math.nan if val is None else val.mean_recall,
        "best_epoch": result.metrics.best_epoch,
        "interpolation": between and between.model_dump(),
        "selection": selection and selection.model_dump(),
        "provenance": provenance,
    }


def _differing(made: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The settings of a result that are not the plan's, in words; paths may differ, since the id covers the content."""
    a, b = flatten(made), flatten(wanted)
    weights = "backbone.weights"
    moved = all(backbones.is_file(str(flat.get(weights))) for flat in (a, b))
    folders = all(_model(flat) != flat.get("backbone.model") for flat in (a, b))
    apart = (*_APART, *_PATHS, *([weights] if moved else []), *(["backbone.model"] if folders else []))
    keys = [key for key in dict.fromkeys((*a, *b)) if key not in apart or key == "seed"]
    return one_line(", ".join(f"{key} {a.get(key)} (plan: {b.get(key)})" for key in keys if a.get(key) != b.get(key)))


def _identity(spec: dict[str, Any]) -> dict[str, Any]:
    flat = flatten(spec)
    json.dumps(flat, ensure_ascii=False, allow_nan=False).encode()  # ValueError for what no page can show
    settings = {key: value for key, value in flat.items() if key not in _APART}
    model, weights, seed = flat["backbone.model"], str(flat["backbone.weights"]), int(flat["seed"])
    if not -(2**62) < seed < 2**62 or not isinstance(model, str):
        raise ValueError(f"seed {seed}, model {model}")
    return {
        "seed": seed,
        "settings": settings,
        "group": canonical({key: value for key, value in settings.items() if key not in _PATHS}),
        "dataset": str(flat.get("dataset.title") or flat["dataset.name"]),
        "backbone": f"{_model(flat)}/{Path(weights).name}",
        "method": str(flat["method.name"]),
        "protocol": str(flat.get("evaluation.protocol", "strict")),
    }


def _model(flat: dict[str, Any]) -> str:
    """The model's name; of one in a folder, the folder's."""
    model = str(flat.get("backbone.model", ""))
    return Path(model).name if hub.scheme(model) == hub.LOCAL else model


def _name_blocks(frame: pd.DataFrame) -> None:
    """Make the dataset's and the backbone's names say what varies: `rsitmd (split=pir)` where there are two splits.

    The dataset's also says the protocol, unless it is strict: `rsitmd (test-selected)`. So its rows are in no ranking
    with others, whatever table or figure it is.
    """
    for block in ("dataset", "backbone"):
        parts = [
            {k: v for k, v in settings.items() if k.startswith(f"{block}.") and k not in _PATHS}
            for settings in frame["settings"]
        ]
        keys = pd.Series([canonical(part) for part in parts], index=frame.index)
        first = keys.drop_duplicates().index
        for name, rows in frame.loc[first].groupby(block, sort=False).groups.items():
            texts = distinguish([parts[i] for i in rows])
            for i, text in zip(rows, texts, strict=True):
                frame.loc[keys == keys[i], block] = f"{name} ({text})" if text else name
    for _, rows in frame.groupby(["dataset", "backbone"], sort=False):
        protocols = rows["protocol"].where(rows["trainable_params"] != 0)  # without training, any is the same
        found = protocols.dropna().unique()
        only = found[0] if len(found) == 1 else "strict"
        for i, protocol in protocols.fillna(only).items():
            if protocol != "strict":
                name = str(frame.loc[i, "dataset"])
                more = name.endswith(")") and " (" in name
                frame.loc[i, "dataset"] = f"{name[:-1]}, {protocol})" if more else f"{name} ({protocol})"


def _part_duplicates(frame: pd.DataFrame) -> None:
    """Never average two runs of one seed: they differ in their paths, or else the later one counts."""
    known = frame[frame["group"] != ""]
    twice = known[known.duplicated(["group", "seed"], keep=False)]
    same = frame["group"].isin(twice["group"])
    frame.loc[same, "group"] = frame.loc[same, "settings"].map(canonical)
    known = frame[same & (frame["status"] == "finished")]
    known = known.assign(finished=known["provenance"].map(lambda p: str(p.get("finished") or "")))
    order = known.sort_values(["planned", "finished"], kind="stable").index
    old = known.loc[order].duplicated(["group", "seed"], keep="last")
    late = old[old].index
    frame.loc[late, ["status", "note"]] = ["superseded", "the same settings and seed were run again later"]


def one_line(text: str) -> str:
    """The text without line breaks and half characters, at most 300 characters."""
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    return line if len(line) <= 300 else line[:299] + "…"
