"""The general world the tiny CLIP is pre-trained on: things seen from the side, shapes, patterns, colours and counts.

It takes the place of the web pictures that real CLIPs have seen. It differs from the demo world in rendering (plain
outlines on a plain or patterned ground, no shadows, no view from above) and in vocabulary (everyday things), and shares
with it what general data would share: colours, counts, sizes, relations, and a few words such as tree, water, road and
boat.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from PIL import Image

from bench.demo.pen import COLOURS, NUMBERS, SIZE, Colour, Pen, article, plural, shade

TRUNK, WHEEL, PANE = (110, 80, 56), (40, 40, 44), (206, 226, 240)


class Canvas(Pen):
    """A pen that knows the colour of the ground."""

    ground: Colour = COLOURS["white"]


Draw = Callable[[Canvas, float, float, float, Colour], None]

# --- things: each drawn around (x, y), about 2 * r wide -------------------------------------------------------------


def _regular(corners: int, start: float = -90, inner: float | None = None) -> list[tuple[float, float]]:
    """A regular polygon's corners on the unit circle; with `inner` a star."""
    steps = corners * (2 if inner else 1)
    points = []
    for step in range(steps):
        angle = math.radians(start + 360 * step / steps)
        radius = inner if inner and step % 2 else 1.0
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def _polygon(corners: int, start: float = -90, inner: float | None = None) -> Draw:
    points = _regular(corners, start, inner)
    return lambda p, x, y, r, c: p.shape(x, y, r, points, c, p.rng.uniform(-12, 12))


def _circle(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.disc(x, y, r, c)


def _oval(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.disc(x, y, r, c, 0.6)


def _ring(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.disc(x, y, r, c)
    p.disc(x, y, r * 0.55, p.ground)


def _bar(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.box(x, y, 2.2 * r, 0.6 * r, c, p.rng.uniform(-8, 8))


def _cross(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    turn = p.rng.choice((0, 45))
    p.box(x, y, 2 * r, 0.6 * r, c, turn)
    p.box(x, y, 0.6 * r, 2 * r, c, turn)


def _tree(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.box(x, y + 0.7 * r, 0.35 * r, 0.8 * r, TRUNK)
    if p.rng.random() < 0.5:
        p.disc(x, y - 0.2 * r, 0.75 * r, c)
    else:
        p.polygon([(x, y - r), (x - 0.7 * r, y + 0.4 * r), (x + 0.7 * r, y + 0.4 * r)], c)


def _house(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.box(x, y + 0.35 * r, 1.5 * r, 1.1 * r, (232, 224, 206))
    p.polygon([(x - r, y - 0.1 * r), (x + r, y - 0.1 * r), (x, y - r)], c)
    p.box(x, y + 0.5 * r, 0.4 * r, 0.6 * r, TRUNK)


def _car(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.box(x, y + 0.1 * r, 2 * r, 0.6 * r, c)
    p.box(x, y - 0.3 * r, 1.1 * r, 0.5 * r, c)
    p.box(x, y - 0.3 * r, 0.8 * r, 0.3 * r, PANE)
    for side in (-0.55, 0.55):
        p.disc(x + side * r, y + 0.45 * r, 0.27 * r, WHEEL)


def _boat(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.polygon([(x - r, y + 0.3 * r), (x + r, y + 0.3 * r), (x + 0.6 * r, y + 0.8 * r), (x - 0.6 * r, y + 0.8 * r)], c)
    p.polygon([(x, y - r), (x, y + 0.15 * r), (x + 0.7 * r, y + 0.15 * r)], (240, 238, 230))


def _plane(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.disc(x, y, r, c, 0.22)
    p.polygon([(x - 0.1 * r, y), (x + 0.35 * r, y), (x - 0.35 * r, y + 0.7 * r)], shade(c, 0.8))
    p.polygon([(x - r, y), (x - 0.6 * r, y), (x - r, y - 0.5 * r)], c)


def _fish(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.disc(x, y, 0.75 * r, c, 0.55)
    p.polygon([(x + 0.5 * r, y), (x + r, y - 0.45 * r), (x + r, y + 0.45 * r)], c)
    p.disc(x - 0.4 * r, y - 0.1 * r, 0.1 * r, WHEEL)


def _flower(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.box(x, y + 0.6 * r, 0.16 * r, 0.9 * r, (72, 128, 66))
    for step in range(6):
        angle = step * math.tau / 6
        p.disc(x + 0.42 * r * math.cos(angle), y - 0.3 * r + 0.42 * r * math.sin(angle), 0.26 * r, c)
    p.disc(x, y - 0.3 * r, 0.24 * r, (240, 206, 92))


def _cup(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.disc(x + 0.65 * r, y, 0.4 * r, c)
    p.disc(x + 0.65 * r, y, 0.22 * r, p.ground)
    p.box(x - 0.1 * r, y, 1.3 * r, 1.4 * r, c)


def _cloud(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    for dx, dy, size in ((-0.5, 0.1, 0.45), (0.0, -0.15, 0.55), (0.5, 0.1, 0.45)):
        p.disc(x + dx * r, y + dy * r, size * r, c)


def _ball(p: Canvas, x: float, y: float, r: float, c: Colour) -> None:
    p.disc(x, y, r, c)
    p.box(x, y, 2 * r, 0.35 * r, (240, 238, 232))


THINGS: dict[str, Draw] = {
    "circle": _circle,
    "oval": _oval,
    "ring": _ring,
    "square": _polygon(4, -45),
    "triangle": _polygon(3),
    "star": _polygon(5, inner=0.42),
    "diamond": _polygon(4),
    "bar": _bar,
    "cross": _cross,
    "tree": _tree,
    "house": _house,
    "car": _car,
    "boat": _boat,
    "plane": _plane,
    "fish": _fish,
    "flower": _flower,
    "cup": _cup,
    "cloud": _cloud,
    "ball": _ball,
}

# --- grounds ---------------------------------------------------------------------------------------------------------

SURFACES: dict[str, Colour] = {
    "green grass": (128, 168, 88),
    "yellow sand": (222, 200, 146),
    "blue water": (86, 138, 184),
    "a blue sky": (164, 200, 230),
    "a grey road": (124, 126, 130),
    "brown soil": (158, 124, 92),
}
PATTERNS = ("striped", "checked", "dotted", "wavy")


def _ground(p: Canvas, top: float, bottom: float) -> str:
    """Paint a band of ground from top to bottom, and say what it is."""
    rng = p.rng
    middle, height = (top + bottom) / 2, bottom - top
    if rng.random() < 0.4:
        name = rng.choice(sorted(SURFACES))
        p.ground = p.jitter(SURFACES[name])
        p.box(SIZE / 2, middle, SIZE, height, p.ground)
        if "water" in name:
            for y in range(int(top) + 3, int(bottom), 6):
                p.path([(x, y + math.sin(x / 3)) for x in range(0, SIZE + 3, 3)], 0.7, shade(p.ground, 1.14))
        elif "road" in name:
            for x in range(2, SIZE, 12):
                p.box(x + 3, middle, 6, 1.2, (236, 234, 226))
        return name
    name = rng.choice(sorted(COLOURS))
    p.ground = p.jitter(shade(COLOURS[name], rng.uniform(0.9, 1.1)))
    p.box(SIZE / 2, middle, SIZE, height, p.ground)
    if rng.random() < 0.55:
        return f"a {'plain ' if rng.random() < 0.3 else ''}{name} ground"
    pattern, other = rng.choice(PATTERNS), p.jitter(shade(p.ground, rng.choice((0.72, 1.3))))
    step = rng.choice((6, 8, 10))
    for i, y in enumerate(range(int(top), int(bottom), step)):
        if pattern == "striped":
            p.box(SIZE / 2, y + step / 4, SIZE, step / 2, other)
        elif pattern == "wavy":
            p.path([(x, y + step / 2 + 1.4 * math.sin(x / 4)) for x in range(0, SIZE + 3, 3)], 1.4, other)
        else:
            for j, x in enumerate(range(0, SIZE, step)):
                if pattern == "dotted":
                    p.disc(x + step / 2, y + step / 2, step * 0.22, other)
                elif (i + j) % 2:
                    p.box(x + step / 2, y + step / 2, step, step, other)
    return f"a {pattern} {name} ground"


# --- groups and captions ---------------------------------------------------------------------------------------------


class Group:
    """Some things of one kind and colour, and the words for them."""

    def __init__(self, rng: Random, grounds: str) -> None:
        self.kind = rng.choice(sorted(THINGS))
        self.colour = rng.choice([name for name in sorted(COLOURS) if name not in grounds])  # else it can't be seen
        self.number = rng.choice((1, 1, 2, 3, 4, 5, 6, 8))
        self.size = rng.choice(("small", "", "large"))
        self.lined = rng.choice(("row", "two rows", "")) if self.number >= 4 else ""

    def draw(self, p: Canvas, left: float, top: float, right: float, bottom: float) -> None:
        """Spread the things over the box."""
        rng, width, height = p.rng, right - left, bottom - top
        rows = {"row": 1, "two rows": 2}.get(self.lined) or max(1, round(math.sqrt(self.number * height / width)))
        columns = math.ceil(self.number / rows)
        room = min(width / columns, height / rows) / 2
        radius = max(2.0, room * {"small": 0.5, "": 0.7, "large": 0.92}[self.size])
        colour, loose = p.jitter(COLOURS[self.colour], 8), 0.0 if self.lined else room - radius
        for index in range(self.number):
            x = left + width * (index % columns + 0.5) / columns + rng.uniform(-loose, loose)
            y = top + height * (index // columns + 0.5) / rows + rng.uniform(-loose, loose)
            THINGS[self.kind](p, x, y, radius, colour)

    def words(self, rng: Random) -> str:
        """From the exact to the vague: two rows of six small red stars ... some stars."""
        noun = self.kind if self.number == 1 else plural(self.kind)
        size = f"{self.size} " if self.size and rng.random() < 0.7 else ""
        colour = f"{self.colour} " if rng.random() < 0.85 else ""
        if self.number == 1:
            phrase = f"{size}{colour}{noun}"
            return f"one {phrase}" if rng.random() < 0.3 else article(phrase)
        if self.lined and rng.random() < 0.6:
            line = "a row" if self.lined == "row" else self.lined
            return f"{line} of {colour}{noun}"
        vague = "several" if self.number < 5 else "many"
        many = NUMBERS[self.number] if rng.random() < 0.65 else rng.choice((vague, "some"))
        return f"{many} {size}{colour}{noun}"


ON = (
    "{A} on {G}",
    "{A} on {G}",
    "there {be} {A} on {G}",
    "this is {A} with {G}",
    "we can see {A}",
    "{A}",
    "{G} with {A}",
)
BOTH = (
    "{A} {R} {B}",
    "{A} {R} {B}",
    "{A} {R} {B} on {G}",
    "{A} and {B} on {G}",
    "there {be} {A} {R} {B}",
    "{A} and {B}",
)
ACROSS = ("beside", "next to", "near", "close to", "to the left of")
DOWN = ("above", "over", "near", "beside")


def scene(seed: int, index: int, sentences: int = 3) -> tuple[Image.Image, list[str]]:
    """64 x 64 RGB picture and its captions; the same for the same numbers on every machine."""
    rng = Random(f"general/{seed}/{index}")
    p = Canvas(rng, COLOURS["white"])
    horizon = rng.choice((0, 0, 0, rng.randint(22, 42)))
    if horizon:
        upper, lower = _ground(p, 0, horizon), _ground(p, horizon, SIZE)
        ground = rng.choice((lower, f"{lower} below {upper}", f"{upper} above {lower}"))
    else:
        upper = lower = ground = _ground(p, 0, SIZE)
    first, second = (Group(rng, f"{upper} {lower}") for _ in range(2))
    pair = rng.random() < 0.6
    relation = ACROSS if rng.random() < 0.5 else DOWN
    if not pair:
        margin = rng.randint(3, 12)
        first.draw(p, margin, margin, SIZE - margin, SIZE - margin)
    elif relation is ACROSS:
        first.draw(p, 3, 8, SIZE / 2 - 1, SIZE - 8)
        second.draw(p, SIZE / 2 + 1, 8, SIZE - 3, SIZE - 8)
    else:
        first.draw(p, 6, 3, SIZE - 6, SIZE / 2 - 1)
        second.draw(p, 6, SIZE / 2 + 1, SIZE - 6, SIZE - 3)
    picture = p.picture(grain=rng.uniform(1, 6), seed=rng.getrandbits(32))
    said = []
    for _ in range(sentences):
        a, b = first.words(rng), second.words(rng)
        template = rng.choice(BOTH if pair else ON)
        word = rng.choice(relation)
        if pair and rng.random() < 0.3 and word in ("near", "beside", "close to", "next to"):
            a, b = b, a
        be = "is" if a.split()[0] in ("a", "an", "one") else "are"
        text = template.format(A=a, B=b, G=ground, R=word, be=be)
        said.append(f"{text[0].upper()}{text[1:]}." if rng.random() < 0.5 else text)
    return picture, said
