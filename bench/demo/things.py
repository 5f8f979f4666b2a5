"""The things of the general world, each in a side view and as a large flat sign, as on maps and toys. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable

from bench.demo.pen import COLOURS, Colour, Pen, shade

TRUNK, WHEEL, PANE, WALL = (110, 80, 56), (40, 40, 44), (206, 226, 240), (232, 224, 206)
LEAVES = {"dark green": (36, 92, 58), "green": (84, 150, 62), "light green": (148, 186, 92)}
WATERS = {"blue": (72, 138, 196), "green": (78, 150, 126), "dark": (40, 66, 92), "muddy": (156, 136, 92)}


class Canvas(Pen):
    """A pen that knows the colour of the ground."""

    ground: Colour = COLOURS["white"]


Draw = Callable[[Canvas, float, float, float, Colour], None]
"""Draws a thing around (x, y), about 2 * r wide."""


def _turn(p: Canvas) -> float:
    return p.rng.choice((0, 0, 90, 180, 270, p.rng.uniform(0, 360)))


def plane(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.disc(x, y, r, c, 0.22)
    p.polygon([(x - 0.1 * r, y), (x + 0.35 * r, y), (x - 0.35 * r, y + 0.6 * r)], shade(c, 0.8))
    p.polygon([(x - r, y), (x - 0.6 * r, y), (x - r, y - 0.5 * r)], c)


def plane_sign(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    turn = _turn(p)
    for points in (
        [(0.25, -0.05), (-0.25, -0.95), (-0.5, -0.95), (-0.2, 0), (-0.5, 0.95), (-0.25, 0.95), (0.25, 0.05)],
        [(1, 0), (0.8, 0.13), (-0.9, 0.1), (-0.9, -0.1), (0.8, -0.13)],
        [(-0.65, 0), (-1, 0.4), (-0.85, 0), (-1, -0.4)],
    ):
        p.shape(x, y, r, points, c, turn)


def boat(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.polygon([(x - r, y + 0.2 * r), (x + r, y + 0.2 * r), (x + 0.6 * r, y + 0.7 * r), (x - 0.6 * r, y + 0.7 * r)], c)
    if p.rng.random() < 0.5:
        p.polygon([(x, y - r), (x, y + 0.1 * r), (x + 0.6 * r, y + 0.1 * r)], shade(c, 1.1))
    else:
        p.box(x - 0.2 * r, y - 0.05 * r, 0.8 * r, 0.5 * r, shade(c, 1.2))


def boat_sign(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    turn = _turn(p)
    p.shape(x, y, r, [(1, 0), (0.4, 0.34), (-0.9, 0.3), (-0.9, -0.3), (0.4, -0.34)], c, turn)
    p.box(x, y, 0.5 * r, 0.3 * r, shade(c, 0.7), turn)


def car(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.box(x, y + 0.1 * r, 2 * r, 0.5 * r, c)
    p.box(x, y - 0.3 * r, 1.1 * r, 0.5 * r, c)
    p.box(x, y - 0.3 * r, 0.8 * r, 0.3 * r, PANE)
    for side in (-0.55, 0.55):
        p.disc(x + side * r, y + 0.4 * r, 0.25 * r, WHEEL)


def car_sign(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    turn = _turn(p)
    p.box(x, y, 1.9 * r, 0.95 * r, c, turn)
    p.box(x, y, 0.9 * r, 0.75 * r, shade(c, 0.6), turn)


def train(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.box(x, y, 2.2 * r, 0.7 * r, c)
    for window in (-0.8, -0.4, 0, 0.4, 0.8):
        p.box(x + window * r, y - 0.1 * r, 0.24 * r, 0.25 * r, PANE)
        p.disc(x + window * r, y + 0.4 * r, 0.12 * r, WHEEL)


def train_sign(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    turn = _turn(p)
    p.box(x, y, 2.2 * r, 0.5 * r, c, turn)
    for window in (-0.75, -0.25, 0.25, 0.75):
        p.shape(x, y, r, [(window, -0.25), (window + 0.08, -0.25), (window + 0.08, 0.25), (window, 0.25)], WHEEL, turn)


def house(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.box(x, y + 0.45 * r, 1.5 * r, 0.9 * r, WALL)
    p.polygon([(x - r, y + 0.05 * r), (x + r, y + 0.05 * r), (x + 0.5 * r, y - 0.8 * r), (x - 0.5 * r, y - 0.8 * r)], c)
    p.box(x, y + 0.6 * r, 0.35 * r, 0.6 * r, TRUNK)
    for side in (-0.45, 0.45):
        p.box(x + side * r, y + 0.45 * r, 0.3 * r, 0.3 * r, PANE)


def house_sign(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.box(x, y, 1.7 * r, 1.4 * r, shade(c, 0.85))
    p.box(x, y - 0.35 * r, 1.7 * r, 0.7 * r, shade(c, 1.1))


def tree(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.box(x, y + 0.65 * r, 0.3 * r, 0.7 * r, TRUNK)
    if p.rng.random() < 0.6:
        p.disc(x, y - 0.25 * r, 0.75 * r, c)
    else:
        p.polygon([(x, y - r), (x - 0.7 * r, y + 0.4 * r), (x + 0.7 * r, y + 0.4 * r)], c)


def tree_sign(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    for step in range(5):
        angle = step * math.tau / 5
        p.disc(x + 0.4 * r * math.cos(angle), y + 0.4 * r * math.sin(angle), 0.5 * r, c)
    p.disc(x, y, 0.45 * r, shade(c, 1.2))


def bush(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    for dx, size in ((-0.5, 0.4), (0, 0.55), (0.5, 0.4)):
        p.disc(x + dx * r, y + 0.2 * r, size * r, c)


def tank(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.disc(x, y + 0.6 * r, 0.8 * r, shade(c, 0.8), 0.35)
    p.box(x, y + 0.1 * r, 1.6 * r, 1.0 * r, shade(c, 0.92))
    p.disc(x, y - 0.4 * r, 0.8 * r, shade(c, 1.08), 0.35)


def tank_sign(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.disc(x, y, 0.9 * r, shade(c, 0.8))
    p.disc(x, y, 0.7 * r, c)
    p.disc(x, y, 0.2 * r, shade(c, 0.7))


def chimney(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.polygon([(x - 0.4 * r, y + r), (x + 0.4 * r, y + r), (x + 0.2 * r, y - 0.7 * r), (x - 0.2 * r, y - 0.7 * r)], c)
    p.disc(x + 0.3 * r, y - 0.85 * r, 0.22 * r, (206, 204, 200))


def chimney_sign(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.disc(x, y, 0.6 * r, c)
    p.disc(x, y, 0.32 * r, WHEEL)


def parasol(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.box(x, y + 0.3 * r, 0.14 * r, 1.3 * r, TRUNK)
    p.polygon([(x - 0.9 * r, y - 0.1 * r), (x + 0.9 * r, y - 0.1 * r), (x + 0.3 * r, y - 0.8 * r), (x, y - 0.9 * r),
               (x - 0.3 * r, y - 0.8 * r)], c)  # fmt: skip


def parasol_sign(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.disc(x, y, 0.8 * r, c)
    p.disc(x, y, 0.15 * r, shade(c, 0.6))


def court(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.polygon([(x - r, y + 0.6 * r), (x + r, y + 0.6 * r), (x + 0.7 * r, y - 0.5 * r), (x - 0.7 * r, y - 0.5 * r)], c)
    p.box(x, y, 1.7 * r, 0.1 * r, (240, 240, 240))
    p.box(x, y - 0.1 * r, 0.06 * r, 0.7 * r, (240, 240, 240))


def court_sign(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.box(x, y, 1.3 * r, 1.9 * r, c)
    p.box(x, y, 1.1 * r, 0.1 * r, (240, 240, 240))
    p.disc(x, y, 0.2 * r, (240, 240, 240))


def hall(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.box(x, y + 0.3 * r, 1.9 * r, 0.9 * r, shade(c, 0.9))
    for step in (-0.95, -0.3, 0.35):
        left = x + step * r
        p.polygon([(left, y - 0.15 * r), (left + 0.6 * r, y - 0.15 * r), (left, y - 0.65 * r)], c)


def hall_sign(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.box(x, y, 1.9 * r, 1.4 * r, c)
    for step in (-0.5, 0, 0.5):
        p.box(x + step * r, y, 0.07 * r, 1.4 * r, shade(c, 0.7))


def field(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.box(x, y, 1.9 * r, 1.5 * r, c)
    for step in range(-3, 4):
        p.box(x + step * 0.28 * r, y, 0.08 * r, 1.5 * r, shade(c, 0.82))


def strip(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.box(x, y, 2 * r, 0.55 * r, c, p.rng.choice((0, 0, 90)))


def pier(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.box(x, y - 0.1 * r, 2 * r, 0.3 * r, c)
    for step in (-0.8, -0.3, 0.3, 0.8):
        p.box(x + step * r, y + 0.3 * r, 0.14 * r, 0.7 * r, shade(c, 0.7))


def circle(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.disc(x, y, r, c)


def ring(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.disc(x, y, r, c)
    p.disc(x, y, r * 0.55, p.ground)


def island(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.disc(x, y, r, WATERS["blue"], 0.8)
    p.blob(x, y, 0.5 * r, c, 0.7)


def pond(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.blob(x, y, r, (190, 176, 132), 0.6)
    p.blob(x, y, 0.85 * r, c, 0.6)


# noun: its drawings, its other names, its colours where not all fit
THINGS: dict[str, tuple[tuple[Draw, ...], tuple[str, ...]]] = {
    "plane": ((plane, plane_sign, plane_sign), ("airliner", "aircraft")),
    "boat": ((boat, boat_sign), ("ship",)),
    "car": ((car, car_sign), ("vehicle",)),
    "train": ((train, train_sign), ()),
    "house": ((house, house_sign), ("building", "roof")),
    "tree": ((tree, tree_sign), ("plant", "crown")),
    "bush": ((bush,), ("plant",)),
    "tank": ((tank, tank_sign), ("cylinder",)),
    "chimney": ((chimney, chimney_sign), ("tower",)),
    "parasol": ((parasol, parasol_sign), ()),
    "court": ((court, court_sign), ("basketball court",)),
    "hall": ((hall, hall_sign), ("workshop", "building")),
    "field": ((field,), ("rectangular field",)),
    "strip": ((strip,), ("line",)),
    "pier": ((pier, strip), ("wharf",)),
    "circle": ((circle,), ("round field",)),
    "ring": ((ring,), ()),
    "island": ((island,), ()),
    "pond": ((pond,), ("lake",)),
}
