"""Figures without a cost axis: mean recall of each method as bars, and heat maps. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.reporting import figures, options
from bench.reporting.figures import Ink, Look, Style, printable
from bench.reporting.tables import Block
from bench.store.naming import canonical, shown

MOST_BARS = 30  # of a panel
MOST_MAPS = 4  # of a report
MOST_NUMBERS = 240  # cells of a heat map that have their number; beyond, a scale says what a colour is
_MAP = "cividis"  # even in lightness, and for colour-blind readers


@dataclass(frozen=True)
class Heat:
    """A heat map: its file's name, title, axes, the texts along them, and a value for each cell; NaN is left blank."""

    name: str
    title: str
    xlabel: str
    ylabel: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: np.ndarray  # (rows, columns)
    caption: str
    ring: tuple[int, int] | None = None  # (row, column) of the cell that validation chose


def per_method(parts: Sequence[Block], kind: Style = "paper", dark: bool = False) -> Figure:
    """A panel a block, one bar a method: of its settings the one that validation chose, else each of them."""
    look, (ink, rc) = figures.LOOKS[kind], figures.style(dark, kind)
    looks = figures.curve_looks(parts)
    panels = [(part, _best(part)) for part in parts]
    tallest = max((len(rows) for _, rows in panels), default=1)
    with matplotlib.rc_context(rc):
        size = (look.column, max(len(panels), 1) * (0.16 * look.scale * max(tallest, 3) + 0.55 * look.scale))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(max(len(panels), 1), 1, squeeze=False, sharex=True)[:, 0]
        for each, (part, rows) in zip(axes, panels, strict=False):
            _bars(each, part, rows, looks, ink, look)
            if len(panels) > 1:
                each.set_title(printable(f"{options.dataset(part.dataset)}, {part.backbone}"), loc="left")
        ends = [(rows["mean_recall"] + figures.errors(rows)[1]).max() for _, rows in panels if len(rows)]
        axes[-1].set_xlim(0, 1.16 * max(ends, default=1.0) or 1.0)
        axes[-1].set_xlabel("test mean recall (%)")
        seaborn.despine(figure)
    return figure


BARS = (
    "Test mean recall of each method: of its settings the one that validation chose. Bars: 95% interval where known, "
    "else sample standard deviation over seeds."
)


def _best(part: Block) -> pd.DataFrame:
    """The rows of the bars, the best first."""
    rows = part.rows[part.rows["mean_recall"].notna() & (part.rows["chosen"].map(lambda each: each is not False))]
    return rows.sort_values("mean_recall", ascending=False, kind="stable")[:MOST_BARS]


def _bars(axes: Axes, part: Block, rows: pd.DataFrame, looks: dict[str, tuple[str, str]], ink: Ink, look: Look) -> None:
    axes.set_axisbelow(True)
    axes.grid(False, axis="y")
    if rows.empty:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no finished run", transform=axes.transAxes, ha="center", va="center", color=ink.faint)
        return
    at, spread, mean = np.arange(len(rows)), figures.errors(rows), rows["mean_recall"].to_numpy(float)
    colours = [looks.get(curve, (ink.faint, ""))[0] for curve in rows["curve"]]
    axes.barh(at, mean, height=0.72, color=colours, zorder=2)
    axes.errorbar(mean, at, xerr=spread, fmt="none", ecolor=ink.text, elinewidth=0.8 * look.scale, zorder=3)
    texts = []
    for row in rows.to_dict("records"):
        several = (rows["curve"] == row["curve"]).sum() > 1
        name = figures.curve_title(row, part.titles)
        texts.append(_short(f"{name} {options.config(row['config'])}" if several else name) + figures.marks_of(row))
    axes.set_yticks(at, texts)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    ends = mean + spread[1]
    for y, end, value in zip(at, ends, mean, strict=True):
        axes.annotate(
            f"{value:.1f}", (end, y), (2, 0), textcoords="offset points", va="center", fontsize=6.5 * look.scale
        )


def _short(text: str) -> str:
    line = printable(text)
    return line if len(line) <= 30 else line[:29] + "…"


def grids(parts: Sequence[Block]) -> list[Heat]:
    """A heat map for each curve of a block whose settings span two numeric axes, at least two values each."""
    found = []
    for part in parts:
        for curve, rows in part.rows[part.rows["mean_recall"].notna()].groupby("curve", sort=False):
            found += list(_grid(part, str(curve), rows))
    return [replace(heat, name=f"grid_{number}") for number, heat in enumerate(found[:MOST_MAPS], 1)]


def _grid(part: Block, curve: str, rows: pd.DataFrame) -> Iterator[Heat]:
    flat = list(rows["settings"])
    numeric = dict.fromkeys(
        k for s in flat for k, v in s.items() if isinstance(v, int | float) and not isinstance(v, bool)
    )
    keys = [k for k in numeric if len({canonical(s.get(k)) for s in flat}) > 1 and all(k in s for s in flat)]
    if len(keys) != 2:
        return
    down, across = keys
    values = [sorted({s[key] for s in flat}) for key in keys]
    if len(rows) < 4 or len(rows) > len(values[0]) * len(values[1]):
        return
    validated = rows["val_mean_recall"].notna().all()
    grid = np.full((len(values[0]), len(values[1])), math.nan)
    ring = None
    for each, value, chosen in zip(
        flat, rows["val_mean_recall" if validated else "mean_recall"], rows["chosen"], strict=True
    ):
        place = (values[0].index(each[down]), values[1].index(each[across]))
        grid[place] = value
        ring = place if chosen is True else ring
    split = "validation" if validated else "test"
    title = f"{figures.curve_title(rows.iloc[0], part.titles)}, {options.dataset(part.dataset)}, {part.backbone}"
    names = [key.rpartition(".")[2] for key in (across, down)]
    text = f"Mean recall on the {split} split over {names[1]} and {names[0]}: {title}. Frame: what validation chose."
    along, beside = (tuple(map(shown, each)) for each in reversed(values))
    yield Heat("", title, names[0], names[1], along, beside, grid, text, ring)


def draw_heat(heat: Heat, dark: bool = False, kind: Style = "paper") -> Figure:
    """The figure: every cell has its number, or there is a scale."""
    look, (ink, rc) = figures.LOOKS[kind], figures.style(dark, kind)
    down, across = heat.values.shape
    wide = across * 0.32 * look.scale + 1.3 * look.scale
    with matplotlib.rc_context(rc):
        width = min(max(look.column, wide), look.page)
        figure = Figure(figsize=(width, (0.17 * down + 0.3) * look.scale + _below(heat, look)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.grid(False)
        image = axes.pcolormesh(heat.values, cmap=_MAP, edgecolors=ink.paper, linewidth=0.4 * look.scale)
        axes.invert_yaxis()
        least, most = np.nanmin(heat.values), np.nanmax(heat.values)
        if heat.values.size > MOST_NUMBERS:
            figure.colorbar(image, ax=axes, label="mean recall (%)").outline.set_visible(False)
        for place, value in np.ndenumerate(heat.values) if heat.values.size <= MOST_NUMBERS else ():
            if not math.isnan(value):
                dark = value < (least + most) / 2
                look_of: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6.5 * look.scale}
                axes.text(
                    place[1] + 0.5,
                    place[0] + 0.5,
                    f"{value:.{1 if across <= 6 else 0}f}",
                    color="#ffffff" if dark else "#000000",
                    **look_of,
                )
        if heat.ring:
            y, x = heat.ring
            frame = matplotlib.patches.Rectangle(
                (x, y), 1, 1, fill=False, clip_on=False, ec="#D55E00", lw=1.6 * look.scale
            )
            axes.add_patch(frame)
        turned = _turned(heat)
        axes.set_xticks(np.arange(across) + 0.5, [_short(text) for text in heat.columns], rotation=60 if turned else 0)
        if turned:
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        axes.set_yticks(np.arange(down) + 0.5, [_short(text) for text in heat.rows])
        axes.tick_params(length=0)
        axes.set(xlabel=printable(heat.xlabel), ylabel=printable(heat.ylabel))
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_title(_title(heat.title), loc="left")
    return figure


def _title(text: str) -> str:
    line = printable(text)
    return line if len(line) <= 60 else line[:59] + "…"


def _turned(heat: Heat) -> bool:
    """Whether the texts below the columns are too long to stand side by side."""
    return max(map(len, heat.columns)) * len(heat.columns) > 36


def _below(heat: Heat, look: Look) -> float:
    longest = max(map(len, heat.columns))
    return (0.3 + (0.05 * min(longest, 30) if _turned(heat) else 0.0)) * look.scale
