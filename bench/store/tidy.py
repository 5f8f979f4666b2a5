"""The runs of several results folders as one tidy table, one row a run: what `bench.results(...)` gives. No torch."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.config.errors import UserError
from bench.config.files import is_folder
from bench.store.folder import is_run, runs_in
from bench.store.frame import collect
from bench.store.planned import PLAN
from bench.store.record import RECALLS

if TYPE_CHECKING:
    from os import PathLike

# Column -> (pandas' type, meaning). Behind them comes a column for each setting, by its dotted key: `method.rank`.
COLUMNS: dict[str, tuple[str, str]] = {
    "sweep": ("str", "name of the results folder"),
    "run_id": ("str", "name of the run's folder"),
    "folder": ("str", "path of the run's folder: what `bench.load` takes"),
    "status": ("str", "finished, failed, missing, superseded or unreadable"),
    "note": ("str", "why there is no result, in a line; empty for finished runs"),
    "dataset": ("str", "name or title of the dataset"),
    "backbone": ("str", "open_clip's name of the model"),
    "weights": ("str", "tag or file name of its weights"),
    "method": ("str", "name of the method"),
    "loss": ("str", "name of the loss"),
    "recipe": ("str", "recipe that the run was planned with; empty without one"),
    "seed": ("Int64", "seed of training"),
    **dict.fromkeys(RECALLS, ("float64", "test set, percent")),
    "mean_recall_pessimistic": ("float64", "mean recall if every tie were lost"),
    "mean_recall_optimistic": ("float64", "mean recall if every tie were won"),
    "val_mean_recall": ("float64", "mean recall of the chosen epoch on the validation split, percent"),
    "trained_share": ("float64", "chosen share of the trained weights, of interpolated runs"),
    "images": ("Int64", "images of the test set"),
    "captions": ("Int64", "captions of the test set"),
    "trainable_params": ("Int64", "trained parameters, the loss's own included"),
    "total_params": ("Int64", "all parameters"),
    "train_seconds": ("float64", "seconds in training steps"),
    "peak_bytes": ("Int64", "peak memory in training: the GPU's, on a CPU the process's"),
    "device": ("str", "name of the GPU or CPU"),
    "git_commit": ("str", "commit of the code"),
    "git_dirty": ("boolean", "whether the code differed from that commit"),
    "dataset_sha256": ("str", "hash of the dataset's file lists and captions"),
    "weights_sha256": ("str", "hash of the backbone's weights"),
    "finished": ("str", "when the run ended, ISO 8601, UTC"),
}
_FROM_SETTINGS = {"backbone": "backbone.model", "method": "method.name", "loss": "loss.name"}
_FROM_ORIGIN = ("device", "git_commit", "git_dirty", "dataset_sha256", "weights_sha256", "finished")


def results(
    folders: str | PathLike[str] | Sequence[str | PathLike[str]] = "results/*", *, unfinished: bool = False
) -> pd.DataFrame:
    """One row a run of the results folders that these paths or patterns name: COLUMNS, then one column a setting.

    Finished runs alone, unless `unfinished`: then also those that failed or were not run, with missing numbers. A run
    that is in two folders has two rows. Settings that a run does not have are missing. UserError where nothing matches.
    """
    rows = [row for folder in _matching(folders) for row in _rows(folder)]
    if not unfinished:
        rows = [row for row in rows if row["status"] == "finished"]
    settings = sorted({key for row in rows for key in row} - COLUMNS.keys())
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *settings])
    return frame.astype({name: kind for name, (kind, _) in COLUMNS.items() if kind != "str"})


def _matching(folders: str | PathLike[str] | Sequence[str | PathLike[str]]) -> list[Path]:
    """The results folders, each once, in order; UserError where a path or pattern names none."""
    given = [folders] if isinstance(folders, str) or not isinstance(folders, Sequence) else folders
    found: dict[Path, None] = {}
    for each in map(str, given):
        matches = [Path(each)] if is_folder(Path(each)) else [Path(path) for path in sorted(glob.glob(each))]  # noqa: PTH207
        matches = [path for path in matches if is_folder(path) and ((path / PLAN).exists() or runs_in(path))]
        if not matches:
            hint = "; that is a single run: give the folder above it" if is_run(Path(each)) else ""
            raise UserError(f"no results folder with runs at '{each}'{hint or ', such as results/demo or results/*'}")
        found |= dict.fromkeys(matches)
    return list(found)


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    runs = collect(folder)
    for run in runs.frame.to_dict("records"):
        origin, settings = run["provenance"], run["settings"]
        row = {key: value for key, value in run.items() if key in COLUMNS}
        row |= {key: settings.get(own) for key, own in _FROM_SETTINGS.items()}
        row |= {key: found if isinstance(found := origin.get(key), str | bool) else None for key in _FROM_ORIGIN}
        yield row | {
            "sweep": folder.resolve().name,
            "folder": str(folder / run["run_id"]),
            "dataset": settings.get("dataset.title") or settings.get("dataset.name"),
            "weights": Path(str(settings["backbone.weights"])).name if "backbone.weights" in settings else None,
            "trained_share": run["interpolation"]["share"] if isinstance(run["interpolation"], dict) else None,
            **{str(key): value for key, value in settings.items()},
        }
