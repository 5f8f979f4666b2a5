"""Figures of a report: their one look, and mean recall over what a method costs, labelled in place. No torch."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

from bench.reporting import contamination, options, published
from bench.reporting.labels import Label, place
from bench.reporting.summary import SHORT
from bench.reporting.tables import Block
from bench.store.naming import distinguish

Style = Literal["paper", "slides"]
MOST_LABELS = 40  # in one panel; beyond, only each curve's best configuration is named
FONT = "DejaVu Sans"

# Okabe and Ito's colours without the yellow, which cannot be read as a line on white. Colour is never alone: each curve
# has a marker of its own and its name beside it.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = "osD^vPXp<>h"


@dataclass(frozen=True)
class Look:
    """Sizes of a figure: inches of a column and of the page, and by how much its letters are larger than a paper's."""

    column: float
    page: float
    scale: float


COLUMN, PAGE = 3.3, 7.0  # inches: the width of a column, and of the text, of a two-column paper
LOOKS: Mapping[Style, Look] = {"paper": Look(COLUMN, PAGE, 1.0), "slides": Look(10.0, 13.0, 2.0)}


@dataclass(frozen=True)
class Ink:
    """The colours of a figure that are not the data's."""

    text: str
    faint: str
    grid: str
    paper: str


_LIGHT = Ink("#1a1a1a", "#6b6b6b", "#e8e8e8", "#ffffff")
_DARK = Ink("#e6e6e6", "#9a9a9a", "#33373d", "#16191d")


@dataclass(frozen=True)
class Cost:
    """One axis of cost: the file's name, the column of the rows, its label, and the divisor and unit by the maximum."""

    name: str
    column: str
    label: str
    units: tuple[tuple[float, str], ...] = ((1, ""),)


PARAMS = Cost("recall_vs_params", "trainable_params", "trainable parameters")
COSTS = (
    PARAMS,
    Cost(
        "recall_vs_time", "train_seconds", "training time", ((3600, "device-hours"), (60, "device-minutes"), (1, "s"))
    ),
    Cost("recall_vs_memory", "peak_bytes", "peak memory", ((1e9, "GB"), (1e6, "MB"))),
    Cost(
        "recall_vs_flops", "flops_per_pair", "operations for an image and a caption", ((1e9, "GFLOPs"), (1e6, "MFLOPs"))
    ),
)


def caption(cost: Cost, parts: Sequence[Block]) -> str:
    """What a figure over a cost shows, in words."""
    over = "trainable parameters" if cost is PARAMS else cost.label
    known = [bool(part.rows["mean_recall_low"].notna().any()) for part in parts]
    bars = "95% intervals, where known, else " if any(known) else ""
    text = (
        f"Test mean recall over {over}. Bars: {bars}sample standard deviation over seeds. Dashed: methods that train "
        "nothing. Star: the backbone itself is trained. Of settings with equally many parameters, the one that "
        "validation chose. Grey steps: the Pareto front of the means."
    )
    hollow = " Hollow: published numbers, as printed, from runs under other conditions."
    return text + hollow * (cost is PARAMS and any(_published(part) for part in parts))


def recall_vs_params(parts: Sequence[Block], dark: bool = False, kind: Style = "paper") -> Figure:
    """Mean recall over trainable parameters: see `recall_vs`."""
    return recall_vs(PARAMS, parts, dark, kind)


def recall_vs(cost: Cost, parts: Sequence[Block], dark: bool = False, kind: Style = "paper") -> Figure:
    """One panel a block; a mark is a group of seeds, its bar the interval, or else the sample standard deviation.

    Groups that train nothing are horizontal lines, since a log axis has no zero; groups that train the backbone
    itself are stars; a line joins what differs in numbers alone: one method at several sizes. Groups without a
    finished run are left out, and so are settings of equal size that validation did not choose.
    """
    look, (ink, rc) = LOOKS[kind], style(dark, kind)
    shown = [_known(marks(part.rows), cost) for part in parts] or [pd.DataFrame()]
    looks = curve_looks(parts)
    columns = min(2, len(shown))
    crowded = max(len(rows) for rows in shown) > 14
    width, height = (look.page, 0.66 * look.page) if crowded and columns == 1 else (look.column, 0.82 * look.column)
    if columns == 2:
        width, height = (look.page, 0.6 * look.page) if crowded else (look.column, 0.82 * look.column)
    if kind == "slides":
        height = 0.56 * width
    down = math.ceil(len(shown) / columns)
    with matplotlib.rc_context(rc):
        figure = Figure(figsize=(width * columns, height * down), layout="constrained")
        FigureCanvasAgg(figure)
        panels = list(figure.subplots(down, columns, squeeze=False).flat)
        labels = []
        for i, (axes, rows) in enumerate(zip(panels, shown, strict=False)):
            theirs = _published(parts[i]) if cost is PARAMS and parts else []
            labels.append(
                _Panel(axes, ink, look.scale, looks, parts[i].titles if parts else {}).draw(cost, rows, theirs)
            )
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        for axes, part in zip(panels, parts, strict=False):
            if len(parts) > 1 or part.rows["protocol"].ne("strict").any():
                axes.set_title(printable(f"{options.dataset(part.dataset)}, {part.backbone}"), loc="left")
        seaborn.despine(figure)
        _legend(figure, cost, parts, ink)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # labels are placed for these axes: they must not move again
        renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
        for axes, drawn in zip(panels, labels, strict=False):
            place(axes, drawn, renderer, ink.faint, look.scale)
    return figure


def save(figure: Figure, kind: str) -> bytes:
    """The figure as png, pdf or svg; the same figure gives the same bytes."""
    undated: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}
    buffer = io.BytesIO()
    with matplotlib.rc_context(_FORMATS):
        figure.savefig(buffer, format=kind, dpi=300, metadata=undated[kind], facecolor=figure.get_facecolor())
    return buffer.getvalue()


def style(dark: bool, kind: Style = "paper") -> tuple[Ink, dict[Any, Any]]:
    """The colours and matplotlib's settings of every figure, on light or dark paper."""
    look, ink = LOOKS[kind], _DARK if dark else _LIGHT
    sizes = {
        "font.size": 7,
        "axes.labelsize": 7.5,
        "axes.titlesize": 7.5,
        "legend.fontsize": 6.5,
        "axes.linewidth": 0.6,
    }
    sizes |= {"grid.linewidth": 0.4} | {
        f"{side}tick.{key}": size
        for side in "xy"
        for key, size in (("labelsize", 6.5), ("major.width", 0.6), ("major.size", 2.5))
    }
    rc = {"font.family": FONT, "axes.grid": True, **{key: size * look.scale for key, size in sizes.items()}}
    return ink, {**seaborn.axes_style("ticks"), **_FORMATS, **rc, **_inks(ink)}


_FORMATS: dict[Any, Any] = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "petl-bench"}


def _inks(ink: Ink) -> dict[Any, Any]:
    text = dict.fromkeys(["text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"], ink.text)
    paper = dict.fromkeys(["figure.facecolor", "axes.facecolor", "savefig.facecolor"], ink.paper)
    return {**text, **paper, "axes.edgecolor": ink.faint, "grid.color": ink.grid}


# --- what is drawn ----------------------------------------------------------------------------------------------------


def marks(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that figures show of a block: of those of a curve that train equally many parameters, validation's.

    Where no validation recall is known, all. `named`: the settings that tell a mark from others on its curve.
    """
    rows = rows[rows["mean_recall"].notna()]
    keep = []
    for _, same in rows.groupby(["curve", rows["trainable_params"].astype("Float64")], sort=False, dropna=False):
        scored = same["val_mean_recall"]
        keep += [scored.idxmax()] if scored.notna().all() else list(same.index)
    rows = rows.loc[[i for i in rows.index if i in set(keep)]].copy()
    named = pd.Series("", index=rows.index, dtype=object)
    for _, same in rows.groupby("curve", sort=False):
        named[same.index] = _points(list(same["settings"]))
    return rows.assign(named=named)


def _points(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells the marks of a curve apart: the method's own numbers if these do, else all numbers."""
    numbers = [{k: v for k, v in s.items() if isinstance(v, int | float) and not isinstance(v, bool)} for s in settings]
    own = distinguish([{k: v for k, v in each.items() if k.startswith("method.")} for each in numbers])
    return own if len(set(own)) == len(own) else distinguish(numbers)


def curve_looks(parts: Sequence[Block]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each curve that trains, the same in every panel and figure of a report."""
    curves = dict.fromkeys(
        curve for part in parts for curve in part.rows.loc[part.rows["trainable_params"].fillna(1) > 0, "curve"]
    )
    whole = {curve for part in parts for curve in part.rows.loc[part.rows["whole"], "curve"]}
    return {
        curve: (COLOURS[i % len(COLOURS)], "*" if curve in whole else MARKERS[i % len(MARKERS)])
        for i, curve in enumerate(curves)
    }


def titled_looks(parts: Sequence[Block]) -> dict[str, tuple[str, str]]:
    """`curve_looks` by the curves' titles."""
    looks, named = curve_looks(parts), {}
    for part in parts:
        for row in part.rows.drop_duplicates("curve").to_dict("records"):
            if row["curve"] in looks:
                named[curve_title(row, part.titles)] = looks[row["curve"]]
    return named


def errors(rows: pd.DataFrame) -> np.ndarray:
    """Below and above each row's mean recall, (2, rows): to the ends of its interval, else its standard deviation."""
    mean, std = rows["mean_recall"].to_numpy(float), rows["mean_recall_std"].fillna(0).to_numpy(float)
    ends = [rows[f"mean_recall_{end}"].to_numpy(float) for end in ("low", "high")]
    found = [np.where(np.isnan(ends[0]), std, mean - ends[0]), np.where(np.isnan(ends[1]), std, ends[1] - mean)]
    return np.clip(np.stack(found), 0, None)


def curve_title(row: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """The name of a row's curve in figures: LoRA targets=[...]."""
    rest = str(row["curve"]).removeprefix(str(row["method"]))
    return f"{titles.get(row['method'], row['method'])}{options.config(rest)}"


def pareto(x: np.ndarray, y: np.ndarray) -> list[int]:
    """The points that no other beats, cheapest first: every cheaper or equal one has a lower y."""
    best, found = -math.inf, []
    for i in np.lexsort((-y, x)):
        if y[i] > best:
            best = y[i]
            found.append(int(i))
    return found


def _known(rows: pd.DataFrame, cost: Cost) -> pd.DataFrame:
    if rows.empty:
        return rows
    free = rows["trainable_params"].fillna(1) == 0
    return rows[free | (rows[cost.column].notna() & rows["trainable_params"].notna())]


def _published(part: Block) -> list[tuple[str, float, float]]:
    """(method, parameters, mean recall) of published rows of the block's methods, on its kind of backbone."""
    found, methods = [], set(part.rows["method"])
    for row in published.of_dataset(part.dataset):
        kind = row["backbone"].removeprefix("CLIP(").removesuffix(")")
        count = row["trainable_params"].removesuffix("M")
        if row["registered"] in methods and kind and part.backbone.startswith(kind) and count:
            found.append((row["registered"], 1e6 * float(count), float(row["mean_recall"])))
    return [each for each in found if each[1] > 0]


@dataclass(frozen=True)
class _Panel:
    axes: Axes
    ink: Ink
    scale: float
    looks: Mapping[str, tuple[str, str]]
    titles: Mapping[str, str]

    def draw(self, cost: Cost, rows: pd.DataFrame, theirs: Sequence[tuple[str, float, float]]) -> list[Label]:
        axes = self.axes
        axes.set_ylabel("test mean recall (%)")
        axes.set_axisbelow(True)
        trained = rows[rows["trainable_params"] > 0] if len(rows) else rows
        if rows.empty or (trained.empty and cost is not PARAMS):
            axes.set_axis_off()
            text = "no finished run" if rows.empty else f"{cost.label}: unknown"
            axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=self.ink.faint)
            return []
        values = trained[cost.column].to_numpy(float)
        unit, word = next(((u, w) for u, w in cost.units if values.max(initial=0) >= u), cost.units[-1])
        axes.set_xlabel(f"{cost.label} ({word})" if word else cost.label)
        _limits(axes, rows, values / unit, [y for _, _, y in theirs], [x for _, x, _ in theirs])
        self._front(trained, values / unit)
        for method, x, y in theirs:
            curve = next((each for each in self.looks if each.split(" ")[0] == method), None)
            if curve:
                colour, marker = self.looks[curve]
                axes.plot(
                    x, y, marker=marker, ms=4 * self.scale, mfc="none", mec=colour, mew=0.7 * self.scale, zorder=2.5
                )
        return [*self._curves(trained, cost.column, unit), *self._lines(rows)]

    def _front(self, trained: pd.DataFrame, x: np.ndarray) -> None:
        y = trained["mean_recall"].to_numpy(float)
        front = pareto(x, y)
        if len(front) > 1:
            line: dict[str, Any] = {"color": self.ink.faint, "lw": 0.5 * self.scale, "alpha": 0.6, "zorder": 1.8}
            self.axes.plot(np.repeat(x[front], 2)[1:], np.repeat(y[front], 2)[:-1], **line)

    def _curves(self, trained: pd.DataFrame, column: str, unit: float) -> Iterator[Label]:
        best = trained.loc[trained.groupby("curve")["mean_recall"].idxmax()] if len(trained) else trained
        named = set((trained if len(trained) <= MOST_LABELS else best).index)
        for curve, group in trained.groupby("curve", sort=False):
            colour, marker = self.looks[curve]
            group = group.sort_values(["trainable_params", "mean_recall"])
            x, y, spread = group[column].to_numpy(float) / unit, group["mean_recall"].to_numpy(float), errors(group)
            look: dict[str, Any] = {"marker": marker, "ms": 4.0 * self.scale, "mec": self.ink.paper, "mew": 0.4}
            look |= {"ms": 7.0 * self.scale} if marker == "*" else {}
            look |= {"color": colour, "zorder": 3, "lw": 0.9 * self.scale, "elinewidth": 0.8 * self.scale}
            self.axes.errorbar(x, y, spread, capsize=1.5 * self.scale, capthick=0.8 * self.scale, **look)
            for row, at, height, bar in zip(group.to_dict("index").items(), x, y, spread.max(axis=0), strict=True):
                if row[0] in named:
                    # The best configuration carries the curve's name; its siblings on the line say what differs.
                    point = options.config(row[1]["named"])
                    title = curve_title(row[1], self.titles)
                    text = point if point and row[0] not in best.index else f"{title} {point}".strip()
                    yield Label(
                        self._text(text + marks_of(row[1]), at, height, _mix(colour, self.ink)), at, height, bar
                    )

    def _lines(self, rows: pd.DataFrame) -> Iterator[Label]:
        for row in rows[rows["trainable_params"] == 0].to_dict("records"):
            line: dict[str, Any] = {"color": self.ink.faint, "lw": 0.9 * self.scale, "ls": (0, (4, 2)), "zorder": 2}
            self.axes.axhline(row["mean_recall"], **line)
            name = f"{curve_title(row, self.titles)} {options.config(row['named'])}".strip()
            at = self.axes.get_xlim()[0]
            text = self._text(f"{name} {row['mean_recall']:.1f}{marks_of(row)}", at, row["mean_recall"], self.ink.faint)
            yield Label(text, at, row["mean_recall"], 0, True)

    def _text(self, text: str, x: float, y: float, colour: str) -> Annotation:
        lines = textwrap.wrap(printable(text), 24, max_lines=2, placeholder="…")
        look: dict[str, Any] = {"fontsize": 6.5 * self.scale, "color": colour, "linespacing": 0.95, "va": "bottom"}
        return self.axes.annotate("\n".join(lines), (x, y), (0, 0), textcoords="offset points", in_layout=False, **look)


def marks_of(row: Mapping[str, Any]) -> str:
    """The marks that a row has in figures, too: seeds are missing, the weights have seen the data."""
    seen = contamination.contaminated(row["settings"]) is not None
    return SHORT * (row["seeds"] < row["known"]) + contamination.SEEN * seen


def _legend(figure: Figure, cost: Cost, parts: Sequence[Block], ink: Ink) -> None:
    """What is not named in place: the front, and published numbers where there are any."""
    entries = [Line2D([], [], color=ink.faint, alpha=0.6, lw=0.5, label="Pareto front")]
    if cost is PARAMS and any(_published(part) for part in parts):
        look: dict[str, Any] = {"ls": "", "marker": "o", "mfc": "none", "mec": ink.text, "mew": 0.7}
        entries.append(Line2D([], [], label="published, other conditions", **look))
    figure.legend(handles=entries, loc="outside upper right", ncols=len(entries), frameon=False, borderpad=0)


@cache
def _glyphs() -> Callable[[str], bool]:
    font = get_font(findfont(FONT))
    return cache(lambda char: bool(font.get_char_index(ord(char))))


def printable(text: str) -> str:
    """A text of a figure on one line; a character that the font lacks is its code point, U+4E2D; no mathematics."""
    has = _glyphs()
    line = " ".join(str(text).split())
    shown = "".join(c if has(c) else f"U+{ord(c):X} " for c in line if c.isprintable() and c != "\ufe0f")
    return " ".join(shown.split()).replace("$", r"\$")


def _mix(colour: str, ink: Ink) -> str:
    """The colour drawn towards the text's, so that small letters can be read."""
    pair = np.array([matplotlib.colors.to_rgb(colour), matplotlib.colors.to_rgb(ink.text)])
    return matplotlib.colors.to_hex(np.array([0.6, 0.4]) @ pair)


def _limits(axes: Axes, rows: pd.DataFrame, x: np.ndarray, others: Sequence[float], at: Sequence[float]) -> None:
    spread, mean = errors(rows), rows["mean_recall"].to_numpy(float)
    low, high = min([*(mean - spread[0]), *others]), max([*(mean + spread[1]), *others])
    pad = 0.12 * (high - low) or 2.0
    axes.set_ylim(low - pad, high + pad)
    if not len(x):
        axes.set_xticks([])
        axes.set_xlabel("no trainable parameters")
        return
    least, most = (float(f([*x, *at])) for f in (min, max))
    if least <= 0 or most < 4 * least:  # a log axis would have a tick or none
        pad = 0.15 * (most - least) or 0.1 * abs(most) or 1.0
        axes.set_xlim(least - pad, most + pad)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda value, _: _power(value))
        return
    axes.set_xscale("log")
    first, last = math.log10(least), math.log10(most)
    narrow = last - first < 1  # within one decade the powers of ten alone would give a tick or none
    pad = 0.35 if narrow else max(0.13 * (last - first), 0.6)
    axes.set_xlim(10 ** (first - pad), 10 ** (last + pad))
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=9))
    axes.xaxis.set_major_formatter(lambda value, _: _power(value))
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def _power(value: float) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"
