"""Runs to rows: one a group of runs that differ in nothing but the seed, with statistics over seeds. No torch."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.reporting import contamination, origin, protocols, significance, training
from bench.store.frame import RECALLS, Runs
from bench.store.naming import distinguish

TABLE_COLUMNS = (
    *("dataset", "backbone", "method", "config", "recipe", "recipe_departs", "trainable_params", "seeds"),
    *(name for recall in RECALLS for name in (recall, f"{recall}_std")),
    *("val_mean_recall", "protocol", "reopened", "chosen", "interpolated"),
    *("train_seconds", "peak_bytes", "flops_per_pair", "outside_grid", "origin_differs"),
    *training.COLUMNS,
    *significance.COLUMNS,
)
ROW_COLUMNS = (*TABLE_COLUMNS, "group", "known", "whole", "curve", "point", "settings", "departs", "trains")
SHORT, OUTSIDE, CHOSEN, DEPARTS = "†", "‡", "◆", "§"  # marks of a row
MEANINGS = {
    **protocols.MEANINGS,
    SHORT: "fewer finished runs than planned",
    OUTSIDE: "runs of other commands: not, or not with all these seeds, in the grid of this command",
    DEPARTS: "other settings than the recipe's",
    origin.DIFFERS: origin.MEANING,
    contamination.SEEN: contamination.MEANING,
    significance.TIED: significance.MEANING,
    CHOSEN: "the row that validation chooses among those of the method: highest mean recall on the validation split",
}


_OF_BLOCKS = ("dataset.", "backbone.", "evaluation.protocol")  # settings that the names of blocks say


def summarise(runs: Runs) -> pd.DataFrame:
    """One row a group of runs that differ in nothing but the seed: TABLE_COLUMNS, then what the report needs besides.

    `seeds` counts the finished runs, `outside_grid` those of them that are not in the plan's grid. Recalls (of
    validation in val_mean_recall) and train_seconds are their means, `_std` the sample standard deviation (n - 1;
    missing for one seed), peak_bytes their maximum; a number that a finished run lacks is missing, never the mean of
    the others. `origin_differs`: of commit, hardware, weights, what is not as in most runs of the block. `chosen`: as
    in `_chosen`. `interpolated`: the shares of trained weights that the seeds chose, as text; they are in the config,
    too.
    `recipe`: the named one that the row was planned with, `recipe_departs` the keys in which it departs from it.
    The columns of `significance` are missing until it fills them.
    `reopened` counts the runs whose test set was scored more than once.
    Besides: `group`, `known` (seeds, finished or not), `whole` (the method trains the backbone itself), `curve` (the
    method and its settings that are not numbers, such as LoRA's targets: rows of one curve differ in numbers alone),
    `point` (those numbers), `settings`, `trains` (whether the method does), and `departs` (the keys in which the row
    differs from its block's recipe).
    """
    known = runs.frame[(runs.frame["group"] != "") & (runs.frame["status"] != "superseded")]
    rows = known.groupby("group", sort=False).agg(
        {
            "dataset": "first",
            "backbone": "first",
            "method": "first",
            "settings": "first",
            "own": "first",
            "recipe": "first",
            "recipe_departs": "first",
            "protocol": "first",
            "seed": "nunique",
        }
    )
    rows = rows.rename(columns={"seed": "known"})
    rows["curve"], rows["point"] = _curves(rows)
    done = runs.finished.groupby("group")
    rows["seeds"] = done.size().reindex(rows.index, fill_value=0)
    for name in RECALLS:
        rows[name] = done[name].mean()
        rows[f"{name}_std"] = done[name].std()
    # One configuration has one count; were there two, no number would be right.
    rows["trainable_params"] = done["trainable_params"].first().where(done["trainable_params"].nunique() == 1)
    _add_recipes(rows)
    rows["interpolated"] = _shares(runs).reindex(rows.index, fill_value="")
    rows["config"] = _configs(rows)
    mixed = rows["interpolated"] != ""
    rows.loc[mixed, "config"] += ", interpolated=" + rows.loc[mixed, "interpolated"]
    rows["config"] = rows["config"].str.removeprefix(", ")
    rows["whole"] = (
        (rows["trainable_params"] > 0.99 * done["total_params"].max().reindex(rows.index)).fillna(False).astype(bool)
    )
    rows["val_mean_recall"] = _of_all(done["val_mean_recall"], "mean")
    rows["chosen"] = _chosen(rows)
    rows["train_seconds"] = _of_all(done["train_seconds"], "mean")
    rows["peak_bytes"] = _of_all(done["peak_bytes"], "max")
    rows["flops_per_pair"] = done["flops_per_pair"].first().where(done["flops_per_pair"].nunique() == 1)
    again = runs.finished.loc[runs.finished["openings"].map(len) > 1, "group"].value_counts()
    rows["reopened"] = again.reindex(rows.index, fill_value=0)
    others = runs.finished.loc[~runs.finished["planned"], "group"].value_counts()
    rows["outside_grid"] = others.reindex(rows.index, fill_value=0)
    rows["origin_differs"] = origin.differing(runs, rows)
    kinds: dict[str, Any] = dict.fromkeys(("seeds", "known", "outside_grid", "reopened"), int)
    kinds |= dict.fromkeys(("trainable_params", "peak_bytes", "flops_per_pair"), "Int64")
    rows = significance.blank(rows).reset_index().astype(kinds)
    return rows[list(ROW_COLUMNS)]


def _of_all(groups: Any, how: str) -> pd.Series:
    """A statistic of each group; missing where one of its runs lacks the number."""
    return groups.agg(how).where(groups.count() == groups.size())


def _shares(runs: Runs) -> pd.Series:
    """The shares that the runs of each interpolated group chose, each once, as text."""
    mixed = runs.finished[runs.finished["interpolation"].notna()]
    chosen = {group: {each["share"] for each in found} for group, found in mixed.groupby("group")["interpolation"]}
    return pd.Series(
        {group: " or ".join(f"{share:g}" for share in sorted(each)) for group, each in chosen.items()}, dtype=str
    )


def _chosen(rows: pd.DataFrame) -> pd.Series:
    """True for the row that validation would choose among those of its method and block, False for the others.

    It has the highest mean recall on the validation split; of equal ones, the first. No test score counts. None where
    there is nothing to choose: rows without a validation recall, and the only one of a method.
    """
    chosen = pd.Series([None] * len(rows), index=rows.index, dtype=object)
    scored = rows[rows["val_mean_recall"].notna()]
    for _, siblings in scored.groupby(["dataset", "backbone", "method"], sort=False):
        if len(siblings) > 1:
            chosen[siblings.index] = False
            chosen[siblings["val_mean_recall"].idxmax()] = True
    return chosen


def _add_recipes(rows: pd.DataFrame) -> None:
    """Add each row's recipe, and in `departs` the keys in which it differs from the common one of its block."""
    trains = training.trained(rows)
    recipes = [training.columns(flat, each) for flat, each in zip(rows["settings"], trains, strict=True)]
    for name in training.COLUMNS:  # as objects: whole numbers stay whole beside missing ones
        rows[name] = pd.Series([each[name] for each in recipes], index=rows.index, dtype=object)
    departs = pd.Series([[] for _ in rows.index], index=rows.index, dtype=object)
    for _, block in rows.groupby(["dataset", "backbone"], sort=False):
        shared = training.common(block.loc[trains, "settings"])
        for i in block.index:
            departs[i] = training.departures(rows["settings"][i], shared, bool(trains[i]))
    rows["departs"], rows["trains"] = departs, trains


def _configs(rows: pd.DataFrame) -> pd.Series:
    """The settings in which a row differs from the others of its method, from its defaults and its block's recipe.

    Unique within a dataset and backbone.
    """
    config = pd.Series("", index=rows.index)
    for _, siblings in rows.groupby("method", sort=False):
        own = [{k: v for k, v in s.items() if not k.startswith(_OF_BLOCKS)} for s in siblings["settings"]]
        config[siblings.index] = distinguish(own, _always(siblings))
    keys = [rows["dataset"], rows["backbone"], rows["method"], config]
    for _, same in rows.groupby(keys, sort=False):
        if len(same) > 1:  # only the paths differ
            texts = pd.Series(distinguish(list(same["settings"])), index=same.index)
            config[same.index] = [
                f"{a}, {b}".removeprefix(", ") for a, b in zip(config[same.index], texts, strict=True)
            ]
    return config


def _always(siblings: pd.DataFrame) -> list[list[str]]:
    """For each row of one method, the keys to name even where all rows agree.

    They are what it departs in from the recipe, the settings that any row of the method has not left at their defaults,
    and those of a loss that is not the recipe's.
    """
    method = {key for own in siblings["own"] for key in own if key.startswith("method.")}
    found = []
    for flat, own, departs in zip(siblings["settings"], siblings["own"], siblings["departs"], strict=True):
        loss = [key for key in own if key.startswith("loss.") and "loss.name" in departs]
        inside = tuple(f"{key}." for key in (*method, *loss))  # a mapping's settings have keys of their own
        found.append([*departs, *(key for key in flat if f"{key}.".startswith(inside))])
    return found


def _curves(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The name of each row's curve, and the settings in which the row differs from others on that curve."""
    curve, point = pd.Series("", index=rows.index), pd.Series("", index=rows.index)
    for method, siblings in rows.groupby("method", sort=False):
        own = [{k: v for k, v in s.items() if not k.startswith(_OF_BLOCKS)} for s in siblings["settings"]]
        words = [{k: v for k, v in s.items() if isinstance(v, bool) or not isinstance(v, int | float)} for s in own]
        curve[siblings.index] = [f"{method} {text}".strip() for text in distinguish(words)]
        numbers = pd.Series(
            [{k: v for k, v in s.items() if k not in w} for s, w in zip(own, words, strict=True)], index=siblings.index
        )
        for _, same in siblings.groupby(curve[siblings.index], sort=False):
            point[same.index] = distinguish(list(numbers[same.index]))
    return curve, point
