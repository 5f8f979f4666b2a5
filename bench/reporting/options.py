"""What a report is asked for (`report:` in the sweep file), and what papers call methods and datasets. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache

import pandas as pd
from pydantic import ValidationError

import methods
from bench.config.errors import UserError
from bench.config.settings import ReportSettings
from bench.store.frame import Runs
from methods.base import readable

_DATASETS = {
    **{"rsitmd": "RSITMD", "rsicd": "RSICD", "ucm": "UCM", "sydney": "Sydney", "nwpu": "NWPU"},
    "demo": "demo world",
}
_SHORT = {"rank": "r"}  # settings as papers write them
_LAYERS = {  # `methods.base.Target`, as papers name them
    **{"attn.q": "q", "attn.k": "k", "attn.v": "v", "attn.out": "out"},
    **{"mlp.c_fc": "fc", "mlp.c_proj": "proj"},
}
_GROUPS = {"q+k+v+out": "attention", "fc+proj": "MLP", "q+k+v+out+fc+proj": "all linear"}


def of(runs: Runs) -> ReportSettings:
    """The settings of the report; UserError if the plan's are none."""
    try:
        return ReportSettings.model_validate_json(json.dumps(runs.content.get("report") or {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("report", *first["loc"])))
        raise UserError(f"the plan in '{runs.folder}': {where}: {first['msg']}; correct the sweep file") from error


def title(method: str, titles: Mapping[str, str]) -> str:
    """What papers call a method: as its plan says (`Runs.titles`), else its class, else by its name."""
    return titles.get(method) or _registered(method)


@cache
def _registered(method: str) -> str:
    try:
        return methods.get(method).called()
    except UserError:
        return readable(method)


def dataset(name: str) -> str:
    """What papers call a dataset: RSITMD (split=pir) for `rsitmd (split=pir)`."""
    first, space, rest = name.partition(" ")
    return f"{_DATASETS.get(first, first)}{space}{rest}"


def config(text: str) -> str:
    """A row's settings as papers write them: `r=8, all linear` for `rank=8, targets=["attn.q",...]`."""
    return re.sub(r"\b(\w+)=", lambda found: f"{_SHORT.get(found[1], found[1])}=", short(text))


def short(text: str) -> str:
    """Settings with the targeted layers in words: `q+v`, `attention`, `MLP`, `all linear`; the rest as it is.

    Different lists have different words: layers are named in the list's order, and only a group in its own order has a
    word. A list that names anything else stays as it is.
    """
    return re.sub(r"\b(?:method\.)?targets=(\[[^\[\]]*\])", lambda found: _targets(found[1]) or found[0], text)


def _targets(listed: str) -> str:
    """The words for a JSON list of layers; "" where one of them is no layer that papers name."""
    try:
        names = [_LAYERS[each] for each in json.loads(listed)]
    except (ValueError, KeyError, TypeError):
        return ""
    joined = "+".join(names)
    return _GROUPS.get(joined, joined)


def rows(table: pd.DataFrame, titles: Mapping[str, str]) -> list[str]:
    """What papers call each row of `summary.summarise`: the method, with its settings where it has several rows."""
    configs = table.groupby("method", sort=False)["config"].nunique()
    return [
        named(title(method, titles), config if configs[method] > 1 else "")
        for method, config in zip(table["method"], table["config"], strict=True)
    ]


def named(name: str, text: str) -> str:
    """A method with its settings: LoRA (r=8)."""
    return f"{name} ({config(text)})" if text else name
