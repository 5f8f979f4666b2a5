"""The recipe of a block: the settings of training that most of its rows share, and what a row departs in. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from bench.config.settings import TrainSettings
from bench.store.naming import Flat, canonical, shown

# What the report says of a block's training, in this order; then settings that are not the default, or that a row
# departs in.
STATED = (
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "weight_decay",
    "schedule",
    "warmup",
    "loss",
    "augment",
    "captions",
    "precision",
)
SHORTEST = ("epochs", "batch_size", "lr", "loss")  # in the terminal

# What evaluation reads, also of a method that does not train.
_EVALUATION = ("train.augment", "train.captions")

_TRAIN = tuple(key for key in TrainSettings.model_fields if key != "workers")
COLUMNS = (*_TRAIN, "loss", "loss_settings")  # of table.csv


def trained(rows: pd.DataFrame) -> pd.Series:
    """Whether each row's method trains: by its parameters, else by those of other rows of the method; else it does."""
    count = rows["trainable_params"].astype("Float64")
    return count.fillna(count.groupby(rows["method"]).transform("max")).fillna(1) > 0


def common(settings: Iterable[Flat]) -> dict[str, Any]:
    """Each setting of training as most of these rows have it; of equally many, the first row's. The loss is one value.

    {"train.lr": 0.001, "loss": {"loss.name": "hmmc", "loss.margin": 0.2}} with a key for each setting of any row.
    """
    votes: dict[str, dict[str, list[Any]]] = {}
    for flat in settings:
        values = {key: value for key, value in flat.items() if key.startswith("train.")} | {"loss": _loss(flat)}
        for key, value in values.items():
            votes.setdefault(key, {}).setdefault(canonical(value), []).append(value)
    return {key: max(found.values(), key=len)[0] for key, found in votes.items()}


def departures(flat: Flat, shared: Mapping[str, Any], trains: bool) -> list[str]:
    """The keys of the settings in which a row differs from the block's common recipe."""
    keys = [key for key in flat if key.startswith("train.")] if trains else list(_EVALUATION)
    found = [key for key in keys if key in flat and key in shared and canonical(flat[key]) != canonical(shared[key])]
    loss = shared.get("loss") or {}
    if not trains or not loss or _loss(flat) == loss:
        return found
    if flat.get("loss.name") != loss.get("loss.name"):
        return ["loss.name", *found]
    return [*(key for key, value in _loss(flat).items() if value != loss.get(key)), *found]


def stated(shared: Mapping[str, Any], keys: Sequence[str], also: Iterable[str] = ()) -> str:
    """The recipe as text: `epochs 20, batch 128 (64 x 2), lr 0.001`, then the settings in `also` that `keys` lack."""
    more = [key.removeprefix("train.") for key in dict.fromkeys(also) if not key.startswith("loss.")]
    wanted = dict.fromkeys((*keys, *(key for key in more if key != "accumulate")))
    return ", ".join(text for key in wanted if (text := _text(key, shared)))


def unusual(shared: Mapping[str, Any]) -> list[str]:
    """The keys of a recipe's settings that are not the defaults of training."""
    defaults = {f"train.{key}": field.default for key, field in TrainSettings.model_fields.items()}
    return [key for key in shared if key in defaults and canonical(shared[key]) != canonical(defaults[key])]


def columns(flat: Flat, trains: bool) -> dict[str, Any]:
    """A row's recipe for table.csv, a list or a mapping as JSON; without what does not matter to it."""
    keys = [f"train.{key}" for key in _TRAIN]
    found = {key.removeprefix("train."): flat.get(key) for key in keys if trains or key in _EVALUATION}
    if trains:
        found["loss"] = flat.get("loss.name")
        found["loss_settings"] = {
            key.removeprefix("loss."): value for key, value in _loss(flat).items() if key != "loss.name"
        }
    written = {key: canonical(v) if isinstance(v, list | tuple | dict) else v for key, v in found.items()}
    return dict.fromkeys(COLUMNS) | written


def _loss(flat: Flat) -> dict[str, Any]:
    return {key: value for key, value in flat.items() if key.startswith("loss.")}


def _text(key: str, shared: Mapping[str, Any]) -> str:
    """One setting as text; empty where no result says it."""
    if key == "loss":
        return _loss_text(shared.get("loss") or {})
    if f"train.{key}" not in shared:
        return ""
    value, times = shared[f"train.{key}"], shared.get("train.accumulate", 1)
    if key != "batch_size":
        return f"{key} {shown(value)}"
    return f"batch {value}" if times == 1 else f"batch {value * times} ({value} x {times})"


def _loss_text(loss: Flat) -> str:
    inner = ", ".join(f"{key.removeprefix('loss.')}={shown(loss[key])}" for key in loss if key != "loss.name")
    return " ".join(["loss", str(loss["loss.name"]), *([f"({inner})"] if inner else [])]) if "loss.name" in loss else ""
