"""Line figures of a report: recall over a numeric setting of the data, and over the share of trained weights. No torch.

A report has them where a sweep varies such a setting or interpolates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.reporting import protocols
from bench.reporting.figures import COLOURS, COLUMN, MARKERS, Ink, style
from bench.store.frame import Runs
from bench.store.naming import canonical

# What runs without shuffling have left out of their settings.
_LEFT_OUT = {"dataset.shuffle_captions": 0.0, "dataset.shuffle_seed": 0}
_WORDS = {"shuffle_captions": "share of training captions paired wrongly"}


@dataclass(frozen=True)
class Curve:
    """One line: its points from left to right with their spread, and at which x a ring marks a choice."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: tuple[float, ...]
    chosen: tuple[float, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A figure of lines: its file's name, its axes, what it shows in words, and the curves of each panel by title."""

    name: str
    xlabel: str
    ylabel: str
    caption: str
    panels: Mapping[str, Sequence[Curve]]


def charts(runs: Runs, rows: pd.DataFrame) -> list[Chart]:
    """The figures of lines that these runs give; `rows` is their summary."""
    return [*_over_data(rows), *_over_share(runs, rows)]


def _over_data(rows: pd.DataFrame) -> Iterator[Chart]:
    """Test mean recall over each number of the dataset's settings that a sweep varies, seeds excepted.

    A curve joins rows that differ in this number alone; a row that no other joins is left out.
    """
    known = rows[rows["mean_recall"].notna()]
    full = [_LEFT_OUT | flat for flat in known["settings"]]
    numbers = {k for flat in full for k, v in flat.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    for key in sorted(k for k in numbers if k.startswith("dataset.") and not k.endswith("seed")):
        name = key.removeprefix("dataset.")
        rest = [canonical({k: v for k, v in flat.items() if k != key}) for flat in full]
        panels: dict[str, list[Curve]] = {}
        points = known.assign(at=[flat.get(key, math.nan) for flat in full]).dropna(subset="at")
        for _, line in points.groupby([pd.Series(rest, index=known.index), "backbone"], sort=False):
            if line["at"].nunique() > 1:
                line = line.sort_values("at")
                first = line.iloc[0]
                spread = line["mean_recall_std"].fillna(0)
                curve = Curve(_label(first), tuple(line["at"]), tuple(line["mean_recall"]), tuple(spread))
                panels.setdefault(f"{_without(first['dataset'], name)}, {first['backbone']}", []).append(curve)
        if panels:
            words = _WORDS.get(name, name)
            caption = f"Test mean recall over {name} of the dataset. Bars: sample standard deviation over seeds."
            yield Chart(f"recall_vs_{name}", words, "test mean recall (%)", caption, panels)


def _over_share(runs: Runs, rows: pd.DataFrame) -> Iterator[Chart]:
    """Validation mean recall over the share of the trained weights, the mean over seeds."""
    panels: dict[str, list[Curve]] = {}
    mixed = runs.finished[runs.finished["interpolation"].notna()]
    named = rows.set_index("group")
    for group, seeds in mixed.groupby("group", sort=False):
        found = list(seeds["interpolation"])
        recalls = np.array([each["val_mean_recall"] for each in found])
        spread = recalls.std(axis=0, ddof=1) if len(found) > 1 else np.zeros(recalls.shape[1])
        row = named.loc[group]
        chosen = tuple(sorted({each["share"] for each in found}))
        curve = Curve(_label(row), tuple(found[0]["shares"]), tuple(recalls.mean(axis=0)), tuple(spread), chosen)
        panels.setdefault(f"{row['dataset']}, {row['backbone']}", []).append(curve)
    if panels:
        caption = (
            "Validation mean recall over the share of the trained weights, the rest being the backbone's: 0 is the "
            "backbone, 1 the trained model. Rings: the share that a seed chose, at which it was tested. "
            "Bars: sample standard deviation over seeds."
        )
        yield Chart(
            "validation_vs_share", "share of the trained weights", "validation mean recall (%)", caption, panels
        )


def _label(row: pd.Series) -> str:
    return f"{row['curve']} {row['point']}".strip()


def _without(dataset: str, name: str) -> str:
    """A dataset's name in reports without the setting that is an axis: `demo (shuffle_captions=0.2)` is `demo`."""
    short = re.sub(rf"\b{name}=[^,)]*(, )?", "", dataset)
    return short.replace(", )", ")").removesuffix(" ()")


def draw(chart: Chart, dark: bool = False) -> Figure:
    """The figure: a panel beside or below the other, one colour and marker a label, one legend."""
    ink, rc = style(dark)
    across = min(2, len(chart.panels))
    down = math.ceil(len(chart.panels) / across)
    labels = list(dict.fromkeys(curve.label for curves in chart.panels.values() for curve in curves))
    with matplotlib.rc_context(rc):
        figure = Figure(figsize=(COLUMN * across, 2.4 * down + 0.2 * math.ceil(len(labels) / across)))
        figure.set_layout_engine("constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat)
        for panel, (title, curves) in zip(axes, chart.panels.items(), strict=False):
            _panel(panel, curves, labels, ink)
            if len(chart.panels) > 1 or protocols.named(title):
                panel.set_title(title, loc="left")
        for empty in axes[len(chart.panels) :]:
            empty.set_visible(False)
        figure.supxlabel(chart.xlabel, fontsize=7.5)
        figure.supylabel(chart.ylabel, fontsize=7.5)
        handles = {
            text: handle for each in axes for handle, text in zip(*each.get_legend_handles_labels(), strict=True)
        }
        shown = [text.replace("$", r"\$") for text in labels]
        figure.legend([handles[each] for each in labels], shown, loc="outside upper left", ncols=across, frameon=False)
        seaborn.despine(figure)
    return figure


def _panel(axes: Axes, curves: Sequence[Curve], labels: Sequence[str], ink: Ink) -> None:
    axes.set_axisbelow(True)
    for curve in curves:
        at = labels.index(curve.label)
        look: dict[str, Any] = {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at % len(MARKERS)]}
        look |= {"ms": 3.5, "mec": ink.paper, "mew": 0.4, "lw": 1.0, "elinewidth": 0.8, "capsize": 1.5, "zorder": 3}
        axes.errorbar(curve.x, curve.y, curve.spread, label=curve.label, **look)
        rings = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if x in curve.chosen]
        if rings:
            axes.plot(
                *zip(*rings, strict=True), ls="", marker="o", ms=8, mfc="none", mec=look["color"], mew=1.0, zorder=4
            )
    axes.set_xticks(sorted({x for curve in curves for x in curve.x}))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
