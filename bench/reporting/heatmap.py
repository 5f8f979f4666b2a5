"""The transfer matrix as a heat map: trained on x tested on, a panel a method. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.reporting.figures import PAGE, style

MOST = 12  # panels
NONE = "(frozen)"


def draw(
    cells: Mapping[tuple[str, str], Mapping[str, float]], trained: Sequence[str], tested: Sequence[str], dark: bool
) -> Figure:
    """The figure of the first MOST methods. `cells`: (method, trained on) -> mean recall in percent by test set.

    Trained on "" is the frozen backbone. A missing number is an empty cell.
    """
    methods = list(dict.fromkeys(method for method, _ in cells))[:MOST]
    across = min(3, len(methods))
    down = math.ceil(len(methods) / across)
    grids = [
        np.array([[cells.get((method, on), {}).get(name, math.nan) for name in tested] for on in trained])
        for method in methods
    ]
    top = max([10.0, *(float(value) for grid in grids for value in grid.flat if not math.isnan(value))])
    _, rc = style(dark)
    rc = {**rc, "axes.grid": False}
    with matplotlib.rc_context(rc):
        height = down * (0.28 * len(trained) + 0.45) + 0.6
        figure = Figure(figsize=(PAGE * min(1, (across + 1) / 4), height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat)
        for panel, method, grid in zip(axes, methods, grids, strict=False):
            _panel(panel, grid, top)
            panel.set_title(_short(method), loc="left")
            panel.set_xticks(range(len(tested)), [_short(name) for name in tested], rotation=30, ha="right")
            panel.set_yticks(range(len(trained)), [_short(name or NONE) for name in trained])
        for empty in axes[len(methods) :]:
            empty.set_visible(False)
        figure.supxlabel("tested on", fontsize=7.5)
        figure.supylabel("trained on", fontsize=7.5)
    return figure


def _panel(axes: Axes, grid: np.ndarray, top: float) -> None:
    axes.imshow(grid, cmap="cividis", vmin=0, vmax=top, aspect="auto")
    axes.tick_params(length=0)
    for (y, x), value in np.ndenumerate(grid):
        if not math.isnan(value):
            colour = "#1a1a1a" if value > 0.55 * top else "#ffffff"
            axes.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=6.5, color=colour)
    for side in axes.spines.values():
        side.set_visible(False)


def _short(name: str) -> str:
    shown = name if len(name) <= 24 else name[:23] + "…"
    return shown.replace("$", r"\$")
