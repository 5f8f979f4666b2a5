"""The demo world: drawn overhead scenes of 16 land-use classes, five captions each in the manner of RSITMD. No torch.

A class is one function in `CLASSES`: it draws its subject into the free area and notes what it drew. A neighbour
(a river, a row of houses, ...) shared by all classes fills the rest, so that scenes of a class differ by their
surroundings as much as by their own counts and colours. Captions are templates over the notes: each of the five
mentions other facts, some are exact, some vague, and inside a class many are near-duplicates, as in the real data.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from PIL import Image

from bench.demo.pen import COLOURS, NUMBERS, SIZE, Colour, Pen, article, plural, shade

SPLITS = {"train": 720, "val": 128, "test": 208}
"""Images of each split; classes take turns, so every split holds them in equal parts."""

GRASS, FIELD, SOIL = (134, 158, 98), (158, 166, 104), (178, 150, 112)
CONCRETE, ASPHALT, SAND = (178, 178, 172), (106, 108, 112), (222, 202, 152)
WATER = {"blue": (64, 110, 150), "green": (84, 128, 108), "dark": (46, 76, 96), "muddy": (148, 134, 96)}
TREES = {"dark green": (48, 88, 52), "green": (78, 124, 62), "light green": (122, 160, 82)}


class Scene(Pen):
    """An overhead scene being drawn: the pen, the free area [0, 64] x [top, bottom], and what captions may say.

    subjects: names of the whole; things: for each fact its wordings, most exact first; places: where the subject lies.
    """

    def __init__(self, rng: Random, ground: Colour) -> None:
        super().__init__(rng, shade(ground, rng.uniform(0.92, 1.06)))
        self.top, self.bottom = 0.0, float(SIZE)
        self.subjects: list[str] = []
        self.things: list[list[str]] = []
        self.places: list[str] = []

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2

    @property
    def height(self) -> float:
        return self.bottom - self.top

    def name(self, *subjects: str, at: str = "in") -> None:
        self.subjects += subjects
        self.at = at

    def note(self, *wordings: str) -> None:
        self.things.append(list(wordings))

    def count(self, number: int, kind: str, noun: str, tail: str = "", vague: str = "") -> None:
        """Notes "three white planes parked on the apron", "several white planes" and "some planes"."""
        if number == 1:
            return self.note(f"a {kind} {noun}{tail}", f"one {kind} {noun}", article(vague or noun))
        many, word = plural(noun), vague or noun
        loose = "two" if number == 2 else "several" if number < 6 else "many"
        return self.note(
            f"{NUMBERS[number]} {kind} {many}{tail}", f"{loose} {kind} {many}", f"{loose} {plural(word)}{tail}"
        )

    def colour(self, *names: str) -> tuple[str, Colour]:
        name = self.rng.choice(names)
        return name, self.jitter(COLOURS[name])

    def house(self, x: float, y: float, width: float, height: float, roof: Colour, turn: float = 0) -> None:
        """A gabled roof, one side in the sun, with its shadow on the ground."""
        self.box(x + 0.9, y + 0.9, width, height, (74, 76, 70), turn)
        self.box(x, y, width, height, shade(roof, 0.86), turn)
        half = [(-width / 2, -height / 2), (width / 2, -height / 2), (width / 2, 0.0), (-width / 2, 0.0)]
        self.shape(x, y, 1, half, shade(roof, 1.1), turn)

    def tree(self, x: float, y: float, radius: float, colour: Colour) -> None:
        colour = self.jitter(colour)
        self.disc(x + 0.5, y + 0.6, radius, shade(colour, 0.6))
        self.disc(x, y, radius, colour)
        self.disc(x - radius * 0.25, y - radius * 0.25, radius * 0.5, shade(colour, 1.18))

    def woods(self, top: float, bottom: float, colour: Colour, number: int) -> None:
        for _ in range(number):
            self.tree(self.rng.uniform(0, SIZE), self.rng.uniform(top, bottom), self.rng.uniform(1.8, 3.2), colour)

    def car(self, x: float, y: float, colour: Colour, turn: float = 0, size: float = 1.0) -> None:
        self.box(x, y, 3.8 * size, 1.9 * size, colour, turn)
        self.box(x, y, 1.7 * size, 1.4 * size, shade(colour, 0.55), turn)

    def cars_on(self, y: float, number: int, colour: Colour) -> None:
        start = self.rng.uniform(4, 12)
        for i in range(number):
            self.car(start + i * 48 / max(number, 2), y + self.rng.choice((-1.7, 1.7)), colour)

    def road(self, y: float, width: float = 7.0, colour: Colour = ASPHALT) -> None:
        self.box(32, y, 66, width, colour)
        for x in range(2, SIZE, 6):
            self.box(x, y, 3, 0.5, (226, 222, 200))

    def rails(self, y: float, tracks: int) -> None:
        self.box(32, y, 66, 3.4 * tracks + 1, (150, 138, 124))
        for track in range(tracks):
            centre = y + 3.4 * (track - (tracks - 1) / 2)
            for x in range(0, SIZE, 2):
                self.box(x, centre, 0.7, 2.4, (112, 96, 82))
            for side in (-0.8, 0.8):
                self.box(32, centre + side, 66, 0.5, (70, 68, 72))

    def stream(self, y: float, width: float, colour: Colour, bend: float) -> None:
        """Water across the picture, swinging `bend` units to either side, between sandy banks."""
        phase = self.rng.uniform(0, math.tau)
        points = [(x, y + bend * math.sin(x / 64 * math.tau + phase)) for x in range(-6, 72, 2)]
        self.path(points, width + 1.8, (188, 176, 138))
        self.path(points, width, colour)

    def pond(self, x: float, y: float, radius: float, colour: Colour, squash: float = 1.0) -> None:
        state = self.rng.getstate()
        self.blob(x, y, radius, (176, 168, 128), squash, grow=1.1)
        self.rng.setstate(state)
        self.blob(x, y, radius, colour, squash)

    def boat(self, x: float, y: float, size: float, turn: float, colour: Colour) -> None:
        hull = [(-3, -1), (1.4, -1), (3.2, 0), (1.4, 1), (-3, 1)]
        self.shape(x, y, size, [(u * 1.15, v * 1.35) for u, v in hull], (44, 70, 90), turn)
        self.shape(x, y, size, hull, colour, turn)
        self.box(x, y, 1.8 * size, 0.9 * size, shade(colour, 0.6), turn)

    def plane(self, x: float, y: float, size: float, turn: float, colour: Colour) -> None:
        for dx, dy, tint in ((0.9, 0.9, (120, 120, 118)), (0.0, 0.0, colour)):
            wings = [(0.9, 0), (-1.6, 4.6), (-2.5, 4.6), (-1, 0), (-2.5, -4.6), (-1.6, -4.6)]
            body = [(4.6, 0), (3.8, 0.7), (-4, 0.6), (-4, -0.6), (3.8, -0.7)]
            tail = [(-3, 0), (-4.4, 1.9), (-4.9, 1.9), (-4.3, 0), (-4.9, -1.9), (-4.4, -1.9)]
            for part in (wings, body, tail):
                self.shape(x + dx, y + dy, size, part, tint, turn)


# Neighbours: each fills the strip from y to 64 and says where that puts the subject.


def by_river(s: Scene, y: float) -> None:
    name = s.rng.choice(("blue", "green", "muddy"))
    s.stream((y + 66) / 2, 66 - y - 3, s.jitter(WATER[name]), 1.0)
    s.places += [f"beside a {name} river", f"near a {name} river", "next to a river", "by the river"]


def by_road(s: Scene, y: float) -> None:
    number = s.rng.choice((0, 2, 3, 4))
    name, paint = s.colour("white", "red", "blue", "yellow")
    s.road((y + 64) / 2 + 1, 9)
    s.cars_on((y + 64) / 2 + 1, number, paint)
    cars = f"a road with {NUMBERS[number]} {name} cars" if number else "an empty road"
    s.places += [f"next to {cars}", f"beside {cars}", "near a road", "along the road"]


def by_trees(s: Scene, y: float) -> None:
    rows = s.rng.choice((1, 2))
    name = s.rng.choice(tuple(TREES))
    for row in range(rows):
        for x in range(3, SIZE, 5):
            s.tree(x, (y + 65) / 2 + (row - (rows - 1) / 2) * 5.4, 2.3, TREES[name])
    words = f"a row of {name} trees" if rows == 1 else f"two rows of {name} trees"
    s.places += [f"beside {words}", f"near {words}", f"with {name} trees on one side", "next to neat trees"]


def by_forest(s: Scene, y: float) -> None:
    name = s.rng.choice(tuple(TREES))
    s.box(32, (y + 70) / 2, 66, 68 - y, shade(TREES[name], 0.7))
    s.woods(y + 2, 65, TREES[name], 60)
    s.places += [f"beside a dense {name} forest", f"near many {name} trees", "next to a forest", "close to the woods"]


def by_houses(s: Scene, y: float) -> None:
    number = s.rng.choice((3, 4, 5))
    name, paint = s.colour("red", "blue", "white", "brown")
    for i in range(number):
        s.house((i + 0.5) * 64 / number, (y + 65) / 2, 8.4, 7.6, s.jitter(paint))
    words = f"{NUMBERS[number]} houses with {name} roofs"
    s.places += [f"beside {words}", f"next to {words}", f"near some houses with {name} roofs", "near some houses"]


def by_field(s: Scene, y: float) -> None:
    name, paint = s.rng.choice((("green", (108, 150, 74)), ("yellow", (204, 184, 100)), ("brown", (150, 114, 80))))
    s.box(32, (y + 68) / 2, 66, 66 - y, paint)
    for x in range(-20, 84, 4):
        s.path([(x, y + 1), (x + 6, 65)], 0.7, shade(paint, 0.8))
    s.places += [f"beside {name} farmland", f"near a {name} field", "next to the farmland", "close to a striped field"]


def by_rails(s: Scene, y: float) -> None:
    tracks = s.rng.choice((1, 2, 3))
    s.rails((y + 65) / 2, tracks)
    words = "a railway" if tracks == 1 else f"{NUMBERS[tracks]} railways"
    s.places += [f"beside {words}", f"next to {words}", f"near {words}", "along the railway"]


def by_bare_land(s: Scene, y: float) -> None:
    s.box(32, (y + 68) / 2, 66, 68 - y, s.jitter(SOIL))
    for _ in range(6):
        s.blob(s.rng.uniform(0, 64), s.rng.uniform(y + 3, 62), 3, shade(SOIL, s.rng.uniform(0.86, 1.1)), 0.5)
    s.places += ["beside bare land", "near a piece of bare land", "next to some bare soil", "on open ground"]


def by_lawn(s: Scene, y: float) -> None:
    number = s.rng.choice((0, 2, 3, 4))
    s.box(32, (y + 68) / 2, 66, 68 - y, s.jitter((122, 168, 82)))
    for i in range(number):
        s.tree((i + s.rng.uniform(0.3, 0.7)) * 64 / number, s.rng.uniform(y + 5, 60), 3, TREES["dark green"])
    words = f"a lawn with {NUMBERS[number]} trees" if number else "an empty lawn"
    s.places += [f"beside {words}", f"next to {words}", "near a green lawn", "near the grass"]


NEIGHBOURS = (by_river, by_road, by_trees, by_forest, by_houses, by_field, by_rails, by_bare_land, by_lawn)


# Classes: each draws into the free area and notes its facts.


def airport(s: Scene) -> None:
    number, (name, paint) = s.rng.randint(1, 6), s.colour("white", "white", "red", "blue", "grey")
    roof_name, roof = s.colour("white", "blue", "brown")
    s.box(32, s.middle, 64, s.height, CONCRETE)
    s.box(32, s.bottom - 5, 64, 0.6, (226, 206, 110))
    s.house(32, s.top + 5, s.rng.uniform(34, 60), 8, roof)
    for i in range(number):
        s.plane((i + 0.5) * 64 / number, s.top + 21, 1.0 if number > 4 else 1.25, -90, paint)
    s.name("an airport", "an airport", "an airport apron", at="at")
    s.count(number, name, "plane", " parked beside the terminal", "aircraft" if number == 1 else "airliner")
    s.note(f"a terminal with a {roof_name} roof", f"a long {roof_name} building", "a terminal")


def harbour(s: Scene) -> None:
    water = s.rng.choice(("blue", "green", "dark"))
    piers, per_side = s.rng.randint(1, 3), s.rng.randint(1, 4)
    name, paint = s.colour("white", "white", "red", "blue")
    s.box(32, s.middle, 66, s.height, s.jitter(WATER[water]))
    s.box(32, s.top + 2.5, 66, 5, CONCRETE)
    for pier in range(piers):
        x = (pier + 0.5) * 64 / piers
        s.box(x, s.top + 20, 2.2, 32, (196, 188, 170))
        for i in range(per_side):
            for side in (-1, 1):
                s.boat(x + side * 5, s.top + 11 + i * 7.4, 1.0, 90 - 90 * side, s.jitter(paint))
    boats = 2 * per_side * piers
    s.name("a harbour", "a harbour", "a port")
    crowd = "a few" if boats < 5 else "several" if boats < 11 else "many"
    s.note(f"{crowd} {name} boats docked neatly", f"{crowd} {name} ships", f"{crowd} boats")
    s.count(piers, "long", "pier", f" in {water} water", "wharf" if piers == 1 else "pier")


def farmland(s: Scene) -> None:
    tints = {"green": (108, 150, 74), "yellow": (208, 188, 104), "brown": (152, 116, 82), "dark green": (66, 108, 62)}
    one, two = s.rng.sample(sorted(tints), 2)
    pieces = s.rng.randint(2, 6)
    if s.rng.random() < 0.3:
        radius = s.height / 2 - 2
        pieces = 1 if radius > 20 else 2
        for i in range(pieces):
            x = (i + 0.5) * 64 / pieces
            s.disc(x, s.middle, min(radius, 30 / pieces), tints[one])
            s.shape(x, s.middle, min(radius, 30 / pieces), [(0, 0), (1, 0), (0.7, 0.7)], tints[two])
        s.count(pieces, f"round {one}", "field", "", "circle")
    else:
        for i in range(pieces):
            width, tint = 64 / pieces, tints[one] if i % 2 == 0 else tints[two]
            s.box((i + 0.5) * width, s.middle, width - 1, s.height - 1, s.jitter(tint))
            for x in range(int(i * width) + 2, int((i + 1) * width), 3):
                s.box(x, s.middle, 0.6, s.height - 2, shade(tint, 0.85))
        s.count(pieces, "rectangular", "field", "", "strip")
    s.note(f"{one} and {two} crops", f"{two} and {one} plants", f"{one} crops")
    s.name("a piece of farmland", "farmland", "an area of farmland")


def bridge(s: Scene) -> None:
    water, number = s.rng.choice(("blue", "green", "muddy")), s.rng.randint(0, 5)
    deck_name, deck = s.colour("white", "grey", "red")
    name, paint = s.colour("white", "red", "blue", "yellow")
    spans = s.rng.choice((1, 1, 2))
    s.stream(s.middle, s.height * 0.68, s.jitter(WATER[water]), 1.5)
    for span in range(spans):
        x = 32 + (span - (spans - 1) / 2) * 24
        s.box(x + 1.5, s.middle, 8, s.height, shade(WATER[water], 0.6))
        s.box(x, s.middle, 8, s.height, deck)
        s.box(x, s.middle, 5.6, s.height, ASPHALT)
        for i in range(number):
            s.car(x + (-1.4 if i % 2 else 1.4), s.top + 4 + i * (s.height - 6) / 5, paint, 90, 0.85)
    s.name("a bridge" if spans == 1 else "two bridges", "a bridge" if spans == 1 else "two parallel bridges", at="on")
    s.note(f"a {deck_name} deck over {water} water", f"a wide {water} river below", f"{water} water")
    s.note(
        *(
            [f"{NUMBERS[number]} {name} cars on it", f"some {name} cars", "some cars"]
            if number > 1
            else ["no traffic", "few cars"]
        )
    )


def parking(s: Scene) -> None:
    name, paint = s.colour("white", "red", "blue", "yellow")
    rows = 3 if s.height > 50 else 2
    filled_name, filled = s.rng.choice((("full", 0.97), ("half empty", 0.55), ("nearly empty", 0.2)))
    s.box(32, s.middle, 62, s.height - 2, ASPHALT)
    for row in range(rows):
        y = s.top + (row + 0.5) * s.height / rows
        for x in range(4, 62, 4):
            s.box(x - 2, y, 0.4, 9, (214, 214, 206))
            for side in (-2.6, 2.6):
                if s.rng.random() < filled:
                    mixed = s.rng.choice([paint, paint, paint, COLOURS["grey"], COLOURS["black"]])
                    s.car(x, y + side, s.jitter(mixed), 90)
    s.name("a parking lot", "a car park", "a parking lot")
    s.note(f"{NUMBERS[rows]} rows of cars", "neat rows of cars", "lines of cars")
    s.note(
        f"mostly {name} cars and {filled_name} spaces",
        f"{'many' if filled > 0.5 else 'few'} {name} cars",
        f"{filled_name} spaces",
    )


def residential(s: Scene) -> None:
    name, paint = s.colour("red", "blue", "grey", "brown", "white")
    dense = s.rng.random() < 0.5
    columns = 6 if dense else 4
    for band in (s.top + s.height * 0.22, s.top + s.height * 0.78):
        for i in range(columns):
            x = (i + 0.5) * 64 / columns
            s.house(x, band, 48 / columns, s.height * 0.22, s.jitter(paint, 16))
            if not dense:
                s.tree(x + 7, band + s.rng.uniform(-3, 3), 2.2, TREES["green"])
    s.road(s.middle, 6)
    number = s.rng.choice((0, 2, 4))
    s.cars_on(s.middle, number, COLOURS["white"])
    crowd = "dense" if dense else "sparse"
    s.name("a residential area", f"a {crowd} residential area", f"a {'crowded' if dense else 'quiet'} neighbourhood")
    s.note(f"{NUMBERS[columns * 2]} houses with {name} roofs" if dense else f"eight houses with {name} roofs",
           f"{name} roofs", f"{crowd} houses with {name} roofs")  # fmt: skip
    s.note("a road between the houses", f"{NUMBERS[number]} cars on the road" if number else "an empty road", "a road")


def storage_tanks(s: Scene) -> None:
    name, paint = s.colour("white", "white", "grey", "green", "red", "blue")
    number = s.rng.randint(1, 8)
    columns = min(number, s.rng.choice((2, 3, 4)))
    rows = math.ceil(number / columns)
    radius = min(64 / columns, s.height / rows) * 0.38
    for i in range(number):
        x, y = (i % columns + 0.5) * 64 / columns, s.top + (i // columns + 0.5) * s.height / rows
        s.disc(x + radius * 0.22, y + radius * 0.22, radius, (86, 86, 82))
        s.disc(x, y, radius, shade(paint, 0.8))
        s.disc(x - radius * 0.08, y - radius * 0.08, radius * 0.86, paint)
        s.disc(x, y, radius * 0.12, shade(paint, 0.6))
    size = "large" if radius > 7 else "small"
    s.name("a storage tank area" if number > 1 else "a storage tank", "a tank farm", "an oil depot")
    s.count(number, name, "tank", "", "cylinder")
    s.note(f"{size} round tanks" if number > 1 else f"a {size} round tank", f"{size} {name} cylinders")


def river(s: Scene) -> None:
    water, bend = s.rng.choice(sorted(WATER)), s.rng.choice((0.8, 7.0))
    width = s.rng.choice((8, 16))
    number = s.rng.choice((0, 0, 1, 2, 3))
    leaves = s.rng.choice(tuple(TREES))
    s.stream(s.middle, width, s.jitter(WATER[water]), bend)
    for _ in range(30):
        y = s.rng.choice((s.rng.uniform(s.top, s.top + 7), s.rng.uniform(s.bottom - 7, s.bottom)))
        s.tree(s.rng.uniform(0, 64), y, 2.4, TREES[leaves])
    for i in range(number):
        s.boat(14 + i * 18, s.middle + bend * 0.2, 1.0, s.rng.choice((0, 180)), COLOURS["white"])
    shape = "curved" if bend > 2 else "straight"
    wide = "wide" if width > 10 else "narrow"
    s.name(f"a {shape} river", f"a {wide} river", f"a {water} river", at="at")
    s.note(f"{leaves} trees on both banks", f"{leaves} plants on the banks", "trees on both sides")
    s.note(f"{wide} {water} water", f"a {shape} {wide} channel", f"{water} water")
    if number:
        s.count(number, "white", "boat", " sailing on it", "ship")


def forest(s: Scene) -> None:
    leaves = s.rng.choice(tuple(TREES))
    kind = s.rng.choice(("path", "clearing", "lake", "nothing"))
    s.box(32, s.middle, 66, s.height, shade(TREES[leaves], 0.7))
    s.woods(s.top, s.bottom, TREES[leaves], 170)
    if kind == "path":
        s.path([(x, s.middle + 6 * math.sin(x / 11)) for x in range(-4, 70, 4)], 2.4, (190, 172, 132))
        s.note("a winding path through it", "a narrow path", "a curved path in the trees")
    elif kind == "clearing":
        s.blob(32, s.middle, s.height * 0.24, (172, 160, 110))
        s.note("a bare clearing in the middle", "a piece of bare land among the trees", "a clearing")
    elif kind == "lake":
        s.pond(32, s.middle, s.height * 0.24, WATER["blue"])
        s.note("a small lake in the middle", "blue water among the trees", "a lake")
    else:
        s.note("no gaps between the crowns", "crowded crowns", "trees everywhere")
    s.name(f"a {leaves} forest", "a dense forest", "a forest")
    s.note(f"many {leaves} trees", f"{leaves} plants", "many trees growing closely")


def beach(s: Scene) -> None:
    water = s.rng.choice(("blue", "green", "dark"))
    sand_name, sand = s.rng.choice((("yellow", SAND), ("white", (236, 228, 208)), ("brown", (190, 160, 116))))
    waves, number = s.rng.randint(1, 4), s.rng.choice((0, 0, 4, 7, 10))
    name, paint = s.colour("red", "orange", "white", "blue")
    edge = s.top + s.height * 0.55
    s.box(32, s.middle, 66, s.height, s.jitter(sand))
    s.box(32, (s.top + edge) / 2, 66, edge - s.top, s.jitter(WATER[water]))
    for wave in range(waves):
        phase = s.rng.uniform(0, 6)
        s.path([(x, edge - wave * 4.4 + math.sin(x / 6 + phase)) for x in range(-4, 70, 4)], 1.4, (240, 244, 240))
    for i in range(number):
        s.disc((i + 0.5) * 64 / number, edge + 7 + s.rng.uniform(-2, 4), 1.7, paint)
    s.name(f"a {sand_name} beach", "a beach", "a beach by the sea", at="on")
    s.note(f"{NUMBERS[waves]} white wave{'s' * (waves > 1)} on the {water} sea", f"{water} sea water", "white waves")
    crowd = "many" if number > 5 else "some"
    s.note(*([f"{crowd} {name} parasols on the sand", f"{name} parasols", "people"] if number else
             [f"{sand_name} sand and nobody on it", f"smooth {sand_name} sand"]))  # fmt: skip


def playground(s: Scene) -> None:
    track_name, track = s.colour("red", "blue", "brown")
    field_name, field = s.rng.choice((("green", (92, 156, 76)), ("yellow", (206, 190, 110)), ("brown", (160, 128, 92))))
    courts, (court_name, court) = s.rng.randint(0, 3), s.colour("blue", "green", "red")
    half = s.height / 2 - 3
    cx = 26 if courts else 32
    for grow, colour in ((0.0, track), (2.2, shade(track, 1.15)), (2.8, track), (4.6, field)):
        r = min(half, 19) - grow
        s.disc(cx - 9, s.middle, r, colour)
        s.disc(cx + 9, s.middle, r, colour)
        s.box(cx, s.middle, 18, 2 * r, colour)
    s.box(cx, s.middle, 0.6, 2 * (min(half, 19) - 5), (236, 240, 232))
    for i in range(courts):
        y = s.top + (i + 0.5) * s.height / courts
        s.box(58, y, 8.4, min(13, s.height / courts - 2), court)
        s.box(58, y, 7, 0.5, (240, 240, 240))
    s.name("a playground", "a playground", "a sports ground")
    s.note(
        f"a {track_name} track around a {field_name} field", f"a {track_name} track", f"a {field_name} football field"
    )
    if courts:
        s.count(courts, court_name, "court", " beside the track", "basketball court")
    else:
        s.note("no courts beside it", f"a {field_name} lawn inside")


def railway_station(s: Scene) -> None:
    tracks, trains = s.rng.randint(3, 5), s.rng.randint(1, 3)
    name, paint = s.colour("white", "red", "green", "blue")
    roof_name, roof = s.colour("grey", "blue", "brown", "white")
    y = s.bottom - 2 * tracks - 3
    s.rails(y, tracks)
    s.house(32, s.top + 6, s.rng.uniform(40, 58), 9, roof)
    for i in range(trains):
        centre, x = y + 3.4 * (i * (tracks - 1) / max(1, trains - 1) - (tracks - 1) / 2), s.rng.uniform(24, 40)
        s.box(x, centre, 40, 2.6, paint)
        for window in range(-18, 20, 4):
            s.box(x + window, centre, 0.6, 2.6, shade(paint, 0.6))
    s.name("a railway station", "a train station", "a station")
    s.count(trains, f"long {name}", "train", " on the tracks")
    s.note(f"a station hall with a {roof_name} roof", f"a {roof_name} station building", "a hall beside the tracks")


def desert(s: Scene) -> None:
    name, paint = s.rng.choice((("yellow", (216, 186, 118)), ("orange", (212, 148, 92)), ("white", (228, 218, 194))))
    dunes, bushes = s.rng.randint(2, 6), s.rng.choice((0, 0, 5, 12))
    bend = s.rng.choice((0.6, 3.5))
    s.box(32, s.middle, 66, s.height, s.jitter(paint))
    for dune in range(dunes):
        y, phase = s.top + (dune + 0.5) * s.height / dunes, s.rng.uniform(0, 6)
        points = [(float(x), y + bend * math.sin(x / 9 + phase)) for x in range(-4, 70, 3)]
        s.path(points, 2.6, shade(paint, 0.84))
        s.path([(x, v - 1.2) for x, v in points], 1.2, shade(paint, 1.1))
    for _ in range(bushes):
        s.tree(s.rng.uniform(2, 62), s.rng.uniform(s.top + 2, s.bottom - 2), 1.2, (98, 112, 64))
    s.name(f"a {name} desert", "a desert", "a desert")
    shape = "wavy" if bend > 2 else "straight"
    s.note(f"{NUMBERS[dunes]} {shape} dunes", f"{shape} dunes", f"{shape} stripes on the sand")
    some = "a few" if bushes < 8 else "many"
    s.note(
        *([f"{some} small green bushes", "bushes on the sand"] if bushes else ["no plants at all", f"bare {name} sand"])
    )


def industrial(s: Scene) -> None:
    name, paint = s.colour("blue", "white", "red", "grey", "green")
    halls, chimneys = s.rng.randint(1, 4), s.rng.randint(0, 3)
    s.box(32, s.middle, 66, s.height, CONCRETE)
    for i in range(halls):
        x, width = (i + 0.5) * 64 / halls, 52 / halls
        s.house(x, s.top + s.height * 0.33, width, s.height * 0.5, s.jitter(paint))
        for k in range(1, 4):
            s.box(x - width / 2 + k * width / 4, s.top + s.height * 0.33, 0.5, s.height * 0.5, shade(paint, 0.75))
    for i in range(chimneys):
        x, y = 10 + i * 14, s.bottom - 8
        s.path([(x, y), (x + 7, y + 5)], 2, (96, 96, 96))
        s.disc(x, y, 3, (206, 204, 198))
        s.disc(x, y, 1.6, (60, 60, 62))
    for i in range(s.rng.randint(0, 4)):
        s.box(58, s.bottom - 4 - i * 3, 7, 2, s.jitter(COLOURS[s.rng.choice(("orange", "blue", "red"))]))
    s.name("an industrial area", "a factory", "an industrial area")
    s.count(halls, name, "workshop", "", "hall")
    if chimneys:
        s.count(chimneys, "tall", "chimney", "", "tower")
    else:
        s.note("an open concrete yard", "a yard")


def intersection(s: Scene) -> None:
    kind = s.rng.choice(("roundabout", "crossroads", "tee"))
    number, (name, paint) = s.rng.randint(0, 6), s.colour("white", "red", "blue", "yellow")
    s.box(32, s.middle, 66, 9, ASPHALT)
    up = s.top if kind != "tee" else s.middle
    s.box(32, (up + s.bottom) / 2, 9, s.bottom - up, ASPHALT)
    for x in (*range(2, 24, 5), *range(42, 64, 5)):
        s.box(x, s.middle, 2.6, 0.5, (230, 226, 206))
    if kind == "roundabout":
        inner = s.rng.choice(("green", "grey"))
        s.disc(32, s.middle, 14, ASPHALT)
        s.disc(32, s.middle, 8, (112, 160, 82) if inner == "green" else (196, 194, 186))
        s.name("a roundabout", "a roundabout", "a traffic circle", at="at")
        s.note(f"a {inner} island in the middle", f"a round {inner} centre", "a ring road")
    else:
        for side in (-6, 6):
            for k in range(-3, 4, 2):
                s.box(32 + side, s.middle + k, 2, 0.9, (236, 236, 230))
        s.name("a crossroads" if kind == "crossroads" else "a junction", "an intersection", "a road crossing", at="at")
        roads = "two roads crossing" if kind == "crossroads" else "a road ending at another"
        s.note(roads, "zebra stripes on the road", f"{'four' if kind == 'crossroads' else 'three'} ways")
    for i in range(number):
        x = 5 + i * 4.6 + (27 if i > 2 else 0)
        s.car(x, s.middle + (-2.2 if i % 2 else 2.2), paint)
    s.note(
        *(
            [f"{NUMBERS[number]} {name} cars", f"some {name} cars", "some vehicles"]
            if number > 1
            else ["hardly any cars", "no traffic"]
        )
    )


def pond(s: Scene) -> None:
    water = s.rng.choice(sorted(WATER))
    squash = s.rng.choice((0.6, 1.0))
    number, leaves = s.rng.randint(0, 9), s.rng.choice(tuple(TREES))
    size, radius = s.rng.choice((("large", s.height * 0.36), ("small", s.height * 0.22)))
    s.pond(32, s.middle, radius, s.jitter(WATER[water]), squash)
    island = s.rng.random() < 0.3
    if island:
        s.blob(32, s.middle, radius * 0.3, (124, 152, 88), squash)
    for i in range(number):
        t = i / number * math.tau
        s.tree(32 + 28 * math.cos(t), s.middle + (s.height / 2 - 3) * math.sin(t), 2.8, TREES[leaves])
    s.name(f"a {size} pond", f"a {water} pond", "a pond", at="at")
    s.note(
        f"{water} water" + (" around a small island" if island else ""),
        "an island" if island else f"calm {water} water",
    )
    if number > 1:
        s.count(number, leaves, "tree", " around it")
    else:
        s.note("no trees around it", "bare banks")


CLASSES: dict[str, tuple[Callable[[Scene], None], Colour]] = {
    "airport": (airport, FIELD),
    "beach": (beach, SAND),
    "bridge": (bridge, GRASS),
    "desert": (desert, SAND),
    "farmland": (farmland, SOIL),
    "forest": (forest, GRASS),
    "harbour": (harbour, CONCRETE),
    "industrial": (industrial, CONCRETE),
    "intersection": (intersection, GRASS),
    "parking": (parking, CONCRETE),
    "playground": (playground, GRASS),
    "pond": (pond, FIELD),
    "railwaystation": (railway_station, SOIL),
    "residential": (residential, GRASS),
    "river": (river, FIELD),
    "storagetanks": (storage_tanks, SOIL),
}
"""Each class's drawing function and the ground it draws on."""

# {S} the subject, {P} its place, {T} and {U} two of its things, {at} its preposition, {be} the verb.
FULL = ("there {be} {S} with {T} {P}", "{S} {P} with {T}", "{S} with {T} {be} {P}", "we can see {T} {at} {S} {P}")
PAIR = ("{S} with {T} and {U}", "{T} and {U} can be seen {at} {S}", "it is {S} with {T} and {U}")
PLACE = ("{S} {be} {P}", "there {be} {S} {P}", "this is {S} {P}")
THING = ("{S} with {T}", "{T} {at} {S}", "there {be} {T} {at} {S}", "we can see {T}")
TEMPLATES = (FULL, FULL, PAIR, PLACE, THING)


def captions(scene: Scene) -> list[str]:
    """Five sentences about the scene, from all of its facts to a single vague one."""
    rng, sentences = scene.rng, []
    for templates in TEMPLATES:
        thing, other = (rng.choice(wordings) for wordings in rng.sample(scene.things, 2))
        subject, template = rng.choice(scene.subjects), rng.choice(templates)
        led = thing if "{be} {T}" in template else subject
        be = "is" if led.split()[0] in ("a", "an", "one", "farmland") else "are"
        text = template.format(S=subject, P=rng.choice(scene.places), T=thing, U=other, at=scene.at, be=be)
        sentences.append(f"{text[0].upper()}{text[1:]}." if rng.random() < 0.5 else f"{text} .")
    return sentences


def scene(seed: int, index: int) -> tuple[str, Image.Image, list[str]]:
    """Label, 64 x 64 RGB picture and five captions of one scene; the same for the same numbers on every machine."""
    rng = Random(f"{seed}/{index}")
    label = sorted(CLASSES)[index % len(CLASSES)]
    draw, ground = CLASSES[label]
    s = Scene(rng, ground)
    s.bottom = rng.uniform(48, 51)
    rng.choice(NEIGHBOURS)(s, s.bottom)
    draw(s)
    picture = s.picture(grain=3.0, seed=rng.getrandbits(32))
    turned = rng.randrange(8)
    if turned % 4:
        picture = picture.transpose(
            (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)[turned % 4 - 1]
        )
    if turned > 3:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return label, picture, captions(s)


def build(root: Path, seed: int = 0, progress: Callable[[int, int], None] | None = None) -> None:
    """Writes root/images/*.png and root/dataset.json (Karpathy's layout), calling progress(done, total).

    A finished world is left as it is. The files are written beside root and renamed at the end: an interrupted
    build leaves no half world, and of two builds at once the first to finish wins.
    """
    root = Path(root)
    if (root / "dataset.json").is_file():
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        (work / "images").mkdir()
        splits = [split for split, number in SPLITS.items() for _ in range(number)]
        entries = []
        for index, split in enumerate(splits):
            label, picture, sentences = scene(seed, index)
            filename = f"images/{label}_{index:04d}.png"
            picture.save(work / filename)
            entries.append(
                {"filename": filename, "split": split, "label": label, "sentences": [{"raw": raw} for raw in sentences]}
            )
            if progress:
                progress(index + 1, len(splits))
        (work / "dataset.json").write_text(json.dumps({"images": entries}, indent=1) + "\n", encoding="utf-8")
        work.chmod(0o755)
        try:
            work.replace(root)
        except OSError:
            if not (root / "dataset.json").is_file():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
