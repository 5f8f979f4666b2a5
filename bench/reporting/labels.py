"""Labels of a figure's points, each in the best free spot. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.text import Annotation


@dataclass(frozen=True)
class Label:
    """A text to be placed near (x, y) in data units; `line` if it names a horizontal line."""

    text: Annotation
    x: float
    y: float
    spread: float  # of the error bar
    line: bool = False


def place(axes: Axes, labels: Sequence[Label], renderer: RendererBase, leader: str, scale: float = 1.0) -> None:
    """Move each label to the cheapest free spot around its point, and draw a leader line where that is far away.

    Labels in crowds go first; all are placed twice, so that the first ones can make room. Cost: overlap with labels,
    markers, error bars and the frame weighs most, then lines crossed, then distance. `leader`: the colour of the lines.
    `scale`: by how much letters and markers are larger than a paper's.
    """
    if not labels:
        return
    point_size = axes.figure.dpi / 72  # pixels
    unit = point_size * scale
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
        label.text.set_position(tuple((placed[i][:2] - points[i]) / point_size))
        nearest = np.clip(points[i], placed[i][:2], placed[i][2:])
        if not label.line and np.hypot(*(nearest - points[i])) > 9 * unit:
            ends = axes.transData.inverted().transform([points[i], nearest])
            axes.plot(*ends.T, color=leader, lw=0.4 * scale, zorder=1.5, scalex=False, scaley=False)


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
    low, high = spots[:, :2].min(0) - margin, spots[:, 2:].max(0) + margin
    boxes = boxes[((low < boxes[:, 2:]) & (high > boxes[:, :2])).all(1)]  # the others touch none
    near = (spots[:, None, :2] - margin < boxes[None, :, 2:]) & (spots[:, None, 2:] + margin > boxes[None, :, :2])
    return near.all(2).sum(1).astype(float)
