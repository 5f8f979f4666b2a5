"""Line figures of a report: recall over a numeric setting of the data, and over the share of trained weights. No torch.

A report has them where a sweep varies such a setting or interpolates.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.reporting import options, protocols
from bench.reporting.figures import COLOURS, LOOKS, MARKERS, Ink, Style, curve_title, printable, style
from bench.store.folder import HISTORY
from bench.store.frame import Runs
from bench.store.naming import canonical

# What runs without shuffling have left out of their settings.
_LEFT_OUT = {"dataset.shuffle_captions": 0.0, "dataset.shuffle_seed": 0}
MOST_CURVES = 10  # of a panel of training curves
_WORDS = {"shuffle_captions": "share of training captions paired wrongly"}


Looks = Mapping[str, tuple[str, str]]  # colour and marker by label


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
    return [*_over_data(runs, rows), *_over_share(runs, rows)]


def training(runs: Runs, rows: pd.DataFrame) -> list[Chart]:
    """Validation mean recall over the epochs, of each method the settings that validation chose; none without history.

    The mean over seeds, as far as all of them got.
    """
    panels: dict[str, list[Curve]] = {}
    shown = rows[
        rows["trains"] & rows["val_mean_recall"].notna() & (rows["chosen"].map(lambda each: each is not False))
    ]
    for (dataset, backbone), part in shown.groupby(["dataset", "backbone"], sort=False):
        found = []
        for _, row in part.sort_values("val_mean_recall", ascending=False, kind="stable")[:MOST_CURVES].iterrows():
            seeds = runs.finished[runs.finished["group"] == row["group"]]
            if curve := _epochs(curve_title(row, {row["method"]: options.title(row["method"], runs.titles)}), seeds):
                found.append(curve)
        if found:
            panels[f"{options.dataset(str(dataset))}, {backbone}"] = found
    if not panels:
        return []
    caption = (
        "Validation mean recall over the epochs, the mean over seeds; of each method the settings that validation "
        f"chose, at most {MOST_CURVES} methods. Rings: the epoch that a seed chose. Bars: sample standard deviation "
        "over seeds."
    )
    return [Chart("training_curves", "epoch", "validation mean recall (%)", caption, panels)]


def _epochs(label: str, runs: pd.DataFrame) -> Curve | None:
    """The curve of the runs of one row; None where one has no history of two epochs."""
    found = [_history(Path(str(run.folder)) / str(run.run_id)) for run in runs[["folder", "run_id"]].itertuples()]
    last = min(map(len, found), default=0)
    if last < 2:
        return None
    recalls = np.array([each[:last] for each in found])
    spread = recalls.std(axis=0, ddof=1) if len(found) > 1 else np.zeros(last)
    chosen = tuple(sorted({float(epoch) for epoch in runs["best_epoch"].dropna() if epoch <= last}))
    at = tuple(float(epoch) for epoch in range(1, last + 1))
    return Curve(label, at, tuple(recalls.mean(axis=0)), tuple(spread), chosen)


def _history(run_dir: Path) -> list[float]:
    """Validation mean recall after epoch 1, 2, ... from history.csv; [] where it is absent or broken."""
    try:
        with (run_dir / HISTORY).open(encoding="utf-8", newline="") as file:
            rows = [(int(row["epoch"]), float(row["val_mean_recall"])) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    values = [value for epoch, value in rows]
    fits = [epoch for epoch, _ in rows] == list(range(1, len(rows) + 1)) and all(0 <= each <= 100 for each in values)
    return values if fits else []


def _over_data(runs: Runs, rows: pd.DataFrame) -> Iterator[Chart]:
    """Test mean recall over each number of the dataset's settings that a sweep varies, seeds excepted.

    A curve joins rows that differ in this number alone; a row that no other joins is left out.
    """
    known = rows[rows["mean_recall"].notna()]
    full = [_LEFT_OUT | flat for flat in known["settings"]]
    numbers = {k for flat in full for k, v in flat.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    for key in sorted(k for k in numbers if k.startswith("dataset.") and not k.endswith("seed")):
        if len({flat.get(key) for flat in full}) < 2:
            continue
        name = key.removeprefix("dataset.")
        rest = [canonical({k: v for k, v in flat.items() if k != key}) for flat in full]
        panels: dict[str, list[Curve]] = {}
        points = known.assign(at=[flat.get(key, math.nan) for flat in full]).dropna(subset="at")
        for _, line in points.groupby([pd.Series(rest, index=known.index), "backbone"], sort=False):
            if line["at"].nunique() > 1:
                line = line.sort_values("at")
                first = line.iloc[0]
                spread = line["mean_recall_std"].fillna(0)
                curve = Curve(_label(first, runs), tuple(line["at"]), tuple(line["mean_recall"]), tuple(spread))
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
        curve = Curve(_label(row, runs), tuple(found[0]["shares"]), tuple(recalls.mean(axis=0)), tuple(spread), chosen)
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


def _label(row: pd.Series, runs: Runs) -> str:
    title = {row["method"]: options.title(row["method"], runs.titles)}
    return f"{curve_title(row, title)} {options.config(row['point'])}".strip()


def _without(dataset: str, name: str) -> str:
    """A dataset's name in reports without the setting that is an axis: `demo (shuffle_captions=0.2)` is `demo`."""
    short = re.sub(rf"\b{name}=[^,)]*(, )?", "", dataset)
    return short.replace(", )", ")").removesuffix(" ()")


def draw(chart: Chart, dark: bool = False, kind: Style = "paper", looks: Looks | None = None) -> Figure:
    """The figure: a panel beside or below the other, one colour and marker a label, one legend.

    `looks`: colour and marker by label, where all labels have one.
    """
    look, (ink, rc) = LOOKS[kind], style(dark, kind)
    across = min(2, len(chart.panels))
    down = math.ceil(len(chart.panels) / across)
    labels = list(dict.fromkeys(curve.label for curves in chart.panels.values() for curve in curves))
    if looks is None or not set(labels) <= set(looks):
        looks = {label: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, label in enumerate(labels)}
    with matplotlib.rc_context(rc):
        figure = Figure(
            figsize=(
                look.column * across,
                0.7 * look.column * down + 0.2 * look.scale * math.ceil(len(labels) / across),
            )
        )
        figure.set_layout_engine("constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat)
        for panel, (title, curves) in zip(axes, chart.panels.items(), strict=False):
            _panel(panel, curves, looks, ink, look.scale)
            if len(chart.panels) > 1 or protocols.named(title):
                panel.set_title(printable(title), loc="left")
        for empty in axes[len(chart.panels) :]:
            empty.set_visible(False)
        figure.supxlabel(chart.xlabel, fontsize=7.5 * look.scale)
        figure.supylabel(chart.ylabel, fontsize=7.5 * look.scale)
        handles = {
            text: handle for each in axes for handle, text in zip(*each.get_legend_handles_labels(), strict=True)
        }
        shown = [printable(text) for text in labels]
        figure.legend([handles[each] for each in labels], shown, loc="outside upper left", ncols=across, frameon=False)
        seaborn.despine(figure)
    return figure


def _panel(axes: Axes, curves: Sequence[Curve], looks: Looks, ink: Ink, scale: float) -> None:
    axes.set_axisbelow(True)
    for curve in curves:
        look: dict[str, Any] = dict(zip(("color", "marker"), looks[curve.label], strict=True))
        look |= {"ms": 3.5 * scale, "mec": ink.paper, "mew": 0.4, "lw": scale, "elinewidth": 0.8 * scale, "zorder": 3}
        look |= {"capsize": 1.5 * scale}
        axes.errorbar(curve.x, curve.y, curve.spread, label=curve.label, **look)
        rings = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if x in curve.chosen]
        if rings:
            axes.plot(
                *zip(*rings, strict=True),
                ls="",
                marker="o",
                ms=8 * scale,
                mfc="none",
                mec=look["color"],
                mew=scale,
                zorder=4,
            )
    ticks = sorted({x for curve in curves for x in curve.x})
    if len(ticks) <= 12:
        axes.set_xticks(ticks)
    else:
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
