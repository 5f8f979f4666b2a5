"""Mean recall over trainable parameters, labelled in place. No torch."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from bench.reporting.labels import Label, place
from bench.reporting.tables import Block

COLUMN, PAGE = 3.4, 7.0  # inches: the width of a column, and of the text, of a two-column paper
MOST_LABELS = 40  # in one panel; beyond, only each curve's best configuration is named

# Okabe and Ito's colours without the yellow, which cannot be read as a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = "osD^vPXp<>h"

_RC: dict[Any, Any] = {
    **{"font.family": "DejaVu Sans", "font.size": 7, "axes.labelsize": 7.5, "axes.titlesize": 7.5},
    **{"xtick.labelsize": 6.5, "ytick.labelsize": 6.5, "axes.linewidth": 0.6, "grid.linewidth": 0.4},
    **{"xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5},
    **{"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "petl-bench"},
    "axes.grid": True,
}


@dataclass(frozen=True)
class Ink:
    """The colours of a figure that are not the data's."""

    text: str
    faint: str
    grid: str
    paper: str


_LIGHT = Ink("#1a1a1a", "#6b6b6b", "#e8e8e8", "#ffffff")
_DARK = Ink("#e6e6e6", "#9a9a9a", "#33373d", "#16191d")


def recall_vs_params(parts: Sequence[Block], dark: bool = False) -> Figure:
    """One panel a block; a point is a group of seeds, its bar the sample standard deviation.

    Groups that train nothing are horizontal lines, since a log axis has no zero; groups that train the backbone
    itself are stars; a line joins what differs in numbers alone: one method at several sizes. Groups without a
    finished run are left out.
    """
    ink, rc = style(dark)
    shown = [part.rows[part.rows["mean_recall"].notna() & part.rows["trainable_params"].notna()] for part in parts]
    shown = shown or [pd.DataFrame()]
    columns = min(2, len(shown))
    crowded = max(len(rows) for rows in shown) > 14
    width, height = (PAGE, 4.6) if crowded else (COLUMN, 2.7)
    if columns == 2:
        width, height = (PAGE, 4.2) if crowded else (COLUMN, 2.7)
    down = math.ceil(len(shown) / columns)
    with matplotlib.rc_context(rc):
        figure = Figure(figsize=(width * columns, height * down), layout="constrained")
        FigureCanvasAgg(figure)
        panels = list(figure.subplots(down, columns, squeeze=False).flat)
        labels = [_draw(axes, rows, ink) for axes, rows in zip(panels, shown, strict=False)]
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        for axes, part in zip(panels, parts, strict=False):
            if len(parts) > 1 or part.rows["protocol"].ne("strict").any():
                axes.set_title(part.title, loc="left")
        seaborn.despine(figure)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # labels are placed for these axes: they must not move again
        renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
        for axes, drawn in zip(panels, labels, strict=False):
            place(axes, drawn, renderer, ink.faint)
    return figure


def save(figure: Figure, kind: str) -> bytes:
    """The figure as png, pdf or svg; the same figure gives the same bytes."""
    undated: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}
    buffer = io.BytesIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(buffer, format=kind, dpi=300, metadata=undated[kind], facecolor=figure.get_facecolor())
    return buffer.getvalue()


def style(dark: bool) -> tuple[Ink, dict[Any, Any]]:
    """The colours and matplotlib's settings of every figure, on light or dark paper."""
    ink = _DARK if dark else _LIGHT
    return ink, {**seaborn.axes_style("ticks"), **_RC, **_inks(ink)}


def _inks(ink: Ink) -> dict[Any, Any]:
    text = dict.fromkeys(["text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"], ink.text)
    paper = dict.fromkeys(["figure.facecolor", "axes.facecolor", "savefig.facecolor"], ink.paper)
    return {**text, **paper, "axes.edgecolor": ink.faint, "grid.color": ink.grid}


def _draw(axes: Axes, rows: pd.DataFrame, ink: Ink) -> list[Label]:
    axes.set_xlabel("trainable parameters")
    axes.set_ylabel("test mean recall (%)")
    axes.set_axisbelow(True)
    if rows.empty:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no finished run", transform=axes.transAxes, ha="center", va="center", color=ink.faint)
        return []
    trained = rows[rows["trainable_params"] > 0]
    _limits(axes, rows, trained)
    best = trained.loc[trained.groupby("curve")["mean_recall"].idxmax()]
    named = set((trained if len(trained) <= MOST_LABELS else best).index)
    labels = []
    for i, (curve, group) in enumerate(trained.groupby("curve", sort=False)):
        colour = COLOURS[i % len(COLOURS)]
        group = group.sort_values(["trainable_params", "mean_recall"])
        x = group["trainable_params"].to_numpy(float)
        y, spread = group["mean_recall"].to_numpy(float), group["mean_recall_std"].fillna(0).to_numpy(float)
        marker, extent = ("*", 7.0) if group["whole"].any() else (MARKERS[i % len(MARKERS)], 4.0)
        style: dict[str, Any] = {
            "marker": marker,
            "ms": extent,
            "mec": ink.paper,
            "mew": 0.4,
            "color": colour,
            "zorder": 3,
        }
        axes.errorbar(x, y, spread, lw=0.9, elinewidth=0.8, capsize=1.5, capthick=0.8, **style)
        for row, at, height, bar in zip(group.to_dict("index").items(), x, y, spread, strict=True):
            if row[0] in named:
                # The best configuration carries the curve's name; its siblings on the line say what differs.
                lone = row[1]["point"] and row[0] not in best.index
                text = row[1]["point"] if lone else f"{curve} {row[1]['point']}"
                labels.append(Label(_text(axes, text, at, height, _mix(colour, ink)), at, height, bar))
    for row in rows[rows["trainable_params"] == 0].to_dict("records"):
        axes.axhline(row["mean_recall"], color=ink.faint, lw=0.9, ls=(0, (4, 2)), zorder=2)
        text = f"{row['method']} {row['config']}".strip() + f" {row['mean_recall']:.1f}"
        at = axes.get_xlim()[0]
        labels.append(Label(_text(axes, text, at, row["mean_recall"], ink.faint), at, row["mean_recall"], 0, True))
    return labels


def _text(axes: Axes, text: str, x: float, y: float, colour: str) -> Annotation:
    lines = textwrap.wrap(" ".join(text.split()).replace("$", r"\$"), 24, max_lines=2, placeholder="…")
    style: dict[str, Any] = {"fontsize": 6.2, "color": colour, "linespacing": 0.95, "va": "bottom", "in_layout": False}
    return axes.annotate("\n".join(lines), (x, y), (0, 0), textcoords="offset points", **style)


def _mix(colour: str, ink: Ink) -> str:
    """The colour drawn towards the text's, so that small letters can be read."""
    pair = np.array([matplotlib.colors.to_rgb(colour), matplotlib.colors.to_rgb(ink.text)])
    return matplotlib.colors.to_hex(np.array([0.6, 0.4]) @ pair)


def _limits(axes: Axes, rows: pd.DataFrame, trained: pd.DataFrame) -> None:
    spread = rows["mean_recall_std"].fillna(0)
    low, high = float((rows["mean_recall"] - spread).min()), float((rows["mean_recall"] + spread).max())
    pad = 0.12 * (high - low) or 2.0
    axes.set_ylim(low - pad, high + pad)
    if trained.empty:
        axes.set_xticks([])
        axes.set_xlabel("no trainable parameters")
        return
    axes.set_xscale("log")
    first, last = (math.log10(float(f(trained["trainable_params"]))) for f in (min, max))
    narrow = last - first < 1  # within one decade the powers of ten alone would give a tick or none
    pad = 0.35 if narrow else max(0.13 * (last - first), 0.6)
    axes.set_xlim(10 ** (first - pad), 10 ** (last + pad))
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=9))
    axes.xaxis.set_major_formatter(lambda value, _: _power(value))
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def _power(value: float) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"
