"""Mean recall over trainable parameters, labelled in place. No torch."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation

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
class _Ink:
    text: str
    faint: str
    grid: str
    paper: str


_LIGHT = _Ink("#1a1a1a", "#6b6b6b", "#e8e8e8", "#ffffff")
_DARK = _Ink("#e6e6e6", "#9a9a9a", "#33373d", "#16191d")


def recall_vs_params(parts: Sequence[Block], dark: bool = False) -> Figure:
    """One panel a block; a point is a group of seeds, its bar the sample standard deviation.

    Groups that train nothing are horizontal lines, since a log axis has no zero; groups that train the backbone
    itself are stars; a line joins what differs in numbers alone: one method at several sizes. Groups without a
    finished run are left out.
    """
    ink = _DARK if dark else _LIGHT
    shown = [part.rows[part.rows["mean_recall"].notna() & part.rows["trainable_params"].notna()] for part in parts]
    shown = shown or [pd.DataFrame()]
    columns = min(2, len(shown))
    crowded = max(len(rows) for rows in shown) > 14
    width, height = (PAGE, 4.6) if crowded else (COLUMN, 2.7)
    if columns == 2:
        width, height = (PAGE, 4.2) if crowded else (COLUMN, 2.7)
    down = math.ceil(len(shown) / columns)
    style: dict[Any, Any] = {**seaborn.axes_style("ticks"), **_RC, **_inks(ink)}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width * columns, height * down), layout="constrained")
        FigureCanvasAgg(figure)
        panels = list(figure.subplots(down, columns, squeeze=False).flat)
        labels = [_draw(axes, rows, ink) for axes, rows in zip(panels, shown, strict=False)]
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        for axes, part in zip(panels, parts, strict=False):
            if len(parts) > 1:
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


def _inks(ink: _Ink) -> dict[Any, Any]:
    text = dict.fromkeys(["text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"], ink.text)
    paper = dict.fromkeys(["figure.facecolor", "axes.facecolor", "savefig.facecolor"], ink.paper)
    return {**text, **paper, "axes.edgecolor": ink.faint, "grid.color": ink.grid}


@dataclass(frozen=True)
class _Label:
    """A text to be placed near (x, y) in data units; `line` if it names a horizontal line."""

    text: Annotation
    x: float
    y: float
    spread: float  # of the error bar
    line: bool = False


def _draw(axes: Axes, rows: pd.DataFrame, ink: _Ink) -> list[_Label]:
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
                labels.append(_Label(_text(axes, text, at, height, _mix(colour, ink)), at, height, bar))
    for row in rows[rows["trainable_params"] == 0].to_dict("records"):
        axes.axhline(row["mean_recall"], color=ink.faint, lw=0.9, ls=(0, (4, 2)), zorder=2)
        text = f"{row['method']} {row['config']}".strip() + f" {row['mean_recall']:.1f}"
        at = axes.get_xlim()[0]
        labels.append(_Label(_text(axes, text, at, row["mean_recall"], ink.faint), at, row["mean_recall"], 0, True))
    return labels


def _text(axes: Axes, text: str, x: float, y: float, colour: str) -> Annotation:
    lines = textwrap.wrap(" ".join(text.split()).replace("$", r"\$"), 24, max_lines=2, placeholder="…")
    style: dict[str, Any] = {"fontsize": 6.2, "color": colour, "linespacing": 0.95, "va": "bottom", "in_layout": False}
    return axes.annotate("\n".join(lines), (x, y), (0, 0), textcoords="offset points", **style)


def _mix(colour: str, ink: _Ink) -> str:
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


def place(axes: Axes, labels: Sequence[_Label], renderer: RendererBase, leader: str) -> None:
    """Move each label to the cheapest free spot around its point, the most crowded first; twice, so that early
    ones can make way. A leader line joins a label to its point where it had to go far.

    Cost: overlap with labels, markers, error bars and the frame weighs most, then lines crossed, then distance.
    """
    if not labels:
        return
    unit = axes.figure.dpi / 72  # pixels a point
    frame = axes.get_window_extent(renderer)
    points = axes.transData.transform([(label.x, label.y) for label in labels])
    boxes = [label.text.get_window_extent(renderer) for label in labels]
    sizes = np.array([(box.width, box.height) for box in boxes])
    solid, soft = _obstacles(axes, 3 * unit)
    placed: dict[int, np.ndarray] = {}
    gaps = [np.abs(points - point).sum(1) for point in points]
    crowd = [float((gap < 60 * unit).sum()) - 100 * label.line for gap, label in zip(gaps, labels, strict=True)]
    order = sorted(range(len(labels)), key=lambda i: -crowd[i])
    for _ in range(2):
        for i in order:
            spots, far = _spots(points[i], sizes[i], unit, frame, labels[i].line)
            others = [box for j, box in placed.items() if j != i]
            cost = 30 * _overlaps(spots, np.array([*solid, *others]).reshape(-1, 4), unit)
            cost += 2 * _overlaps(spots, soft, 0) + far / unit / 8
            outside = (spots[:, :2] < frame.min).any(1) | (spots[:, 2:] > frame.max).any(1)
            placed[i] = spots[np.argmin(cost + 1000 * outside)]
    for i, label in enumerate(labels):
        label.text.set_position(tuple((placed[i][:2] - points[i]) / unit))
        nearest = np.clip(points[i], placed[i][:2], placed[i][2:])
        if not label.line and np.hypot(*(nearest - points[i])) > 9 * unit:
            ends = axes.transData.inverted().transform([points[i], nearest])
            axes.plot(*ends.T, color=leader, lw=0.4, zorder=1.5, scalex=False, scaley=False)


def _spots(point: np.ndarray, size: np.ndarray, unit: float, frame: Any, line: bool) -> tuple[np.ndarray, np.ndarray]:
    """Candidate boxes (n, 4) in pixels and how far each is from its point (n,)."""
    if line:
        left = np.linspace(frame.x0 + 2 * unit, max(frame.x1 - size[0] - unit, frame.x0), 25)
        corners = np.array([(x, y) for y in (point[1] + unit, point[1] - size[1] - unit) for x in left])
        far = np.concatenate([left - left[0], left - left[0] + 10 * unit]) / 4
    else:
        rings, angles = (
            np.array([4, 6, 9, 13, 18, 24, 32, 42, 54, 70, 90, 120]) * unit,
            np.linspace(0, 2 * np.pi, 33)[:-1],
        )
        ring, angle = (grid.ravel() for grid in np.meshgrid(rings, angles))
        toward = np.stack([np.cos(angle), np.sin(angle)], 1)
        corners = point + toward * ring[:, None] + (toward - 1) / 2 * size
        # Right, left, above, below read best; slanted spots only where those are taken.
        far = ring + unit * (1 - np.abs(toward).max(1)) * 6
    return np.concatenate([corners, corners + size], 1), far


def _obstacles(axes: Axes, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) in pixels that labels must not touch (markers, error bars), and that they should not (lines)."""
    solid, soft = [], []
    for line in axes.get_lines():
        path = line.get_transform().transform(line.get_xydata())
        if line.get_marker() not in ("None", "", None, "_"):
            solid += [(x - radius, y - radius, x + radius, y + radius) for x, y in path]
        if line.get_linestyle() != "None":
            soft += list(_along(path, radius))
    for bars in axes.collections:
        for bar in bars.get_paths():  # error bars, in data units
            ends = axes.transData.transform(bar.vertices)
            solid.append((ends[0][0] - radius / 2, ends[:, 1].min(), ends[0][0] + radius / 2, ends[:, 1].max()))
    return np.array(solid).reshape(-1, 4), np.array(soft).reshape(-1, 4)


def _along(path: np.ndarray, radius: float) -> Iterable[tuple[float, float, float, float]]:
    for start, end in pairwise(path):
        for share in np.linspace(0, 1, max(2, int(np.hypot(*(end - start)) / radius / 2))):
            x, y = start + share * (end - start)
            yield x - 1, y - 1, x + 1, y + 1


def _overlaps(spots: np.ndarray, boxes: np.ndarray, margin: float) -> np.ndarray:
    """How many of the boxes (m, 4) each spot (n, 4) touches, a margin in pixels included: (n,)."""
    near = (spots[:, None, :2] - margin < boxes[None, :, 2:]) & (spots[:, None, 2:] + margin > boxes[None, :, :2])
    return near.all(2).sum(1).astype(float)
