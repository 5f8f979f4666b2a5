"""The places of the general world: strips of a postcard as seen from the ground, and the words for them. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.demo import things
from bench.demo.pen import COLOURS, NUMBERS, SIZE, Colour, article, plural, shade
from bench.demo.things import LEAVES, WATERS, Canvas

GRASSES = ((120, 178, 96), (150, 186, 110), (104, 158, 84))
SANDS = {"yellow": (232, 208, 150), "white": (240, 222, 176), "brown": (206, 178, 132)}
PAVED, TARMAC, LINE = (196, 192, 186), (92, 94, 100), (240, 238, 226)


@dataclass
class Said:
    """What captions may say of a place: names of the whole, its preposition, and for each fact its wordings."""

    names: tuple[str, ...]
    at: str = "in"
    facts: list[tuple[str, ...]] = field(default_factory=list)

    def note(self, *wordings: str) -> None:
        self.facts.append(wordings)

    def count(self, number: int, kind: str, noun: str, tail: str = "", vague: str = "") -> None:
        """Notes "three white planes on the apron", "several white planes" and "some airliners"."""
        if number == 1:
            return self.note(f"{article(f'{kind} {noun}')}{tail}", f"one {kind} {noun}", article(vague or noun))
        many, loose = plural(noun), "two" if number == 2 else "several" if number < 6 else "many"
        return self.note(
            f"{NUMBERS[number]} {kind} {many}{tail}", f"{loose} {kind} {many}", f"some {plural(vague or noun)}{tail}"
        )


Place = Callable[[Canvas, float, float], Said]
"""Draws over the whole width from top to bottom (units of the canvas)."""


def _fill(p: Canvas, top: float, bottom: float, colour: Colour) -> None:
    p.box(SIZE / 2, (top + bottom) / 2, SIZE + 2, bottom - top, p.jitter(colour, 14))


def _line_up(p: Canvas, draw: things.Draw, number: int, y: float, r: float, c: Colour, by: int = 8) -> None:
    """Things side by side, evenly, somewhere along the strip."""
    room = SIZE / number
    r, start = min(r, room * 0.52), p.rng.uniform(-0.15, 0.15) * room
    for i in range(number):
        draw(p, (i + 0.5) * room + start, y, r, p.jitter(c, by))


def _colour(p: Canvas, *names: str) -> tuple[str, Colour]:
    name = p.rng.choice(names or tuple(sorted(COLOURS)))
    return name, COLOURS[name]


def airport(p: Canvas, top: float, bottom: float) -> Said:
    number, (name, paint), (roof, tiles) = p.rng.randint(1, 6), _colour(p), _colour(p)
    high = bottom - top
    _fill(p, top, bottom, PAVED)
    p.box(SIZE / 2, top + high * 0.24, SIZE * p.rng.uniform(0.5, 0.9), high * 0.26, things.WALL)
    p.box(SIZE / 2, top + high * 0.08, SIZE * p.rng.uniform(0.6, 0.95), high * 0.16, p.jitter(tiles))
    p.box(SIZE / 2, bottom - 2, SIZE, 0.8, (230, 206, 100))
    _line_up(p, p.rng.choice((things.plane, things.plane_sign)), number, bottom - high * 0.36, high * 0.34, paint)
    said = Said(("an airport", "an airport apron", "the airport"), "at")
    said.count(number, name, "plane", p.rng.choice((" parked beside the terminal", " on the apron", "")), "airliner")
    said.note(f"a terminal with {article(roof)} roof", f"a long {roof} building", "the terminal")
    return said


def harbour(p: Canvas, top: float, bottom: float) -> Said:
    water, number, piers = p.rng.choice(("blue", "green", "dark")), p.rng.randint(1, 10), p.rng.randint(1, 3)
    (name, paint), high = _colour(p), bottom - top
    _fill(p, top, bottom, WATERS[water])
    p.box(SIZE / 2, bottom - 1.5, SIZE + 2, 3, PAVED)
    for i in range(piers):
        x = (i + 0.5) * SIZE / piers
        p.polygon([(x - 3, bottom), (x + 3, bottom), (x + 1.5, top + high * 0.3), (x - 1.5, top + high * 0.3)],
                  (204, 190, 160))  # fmt: skip
    rows = 1 if number < 6 else 2
    for row in range(rows):
        y = top + high * (0.4 + 0.3 * row) if rows == 2 else top + high * 0.5
        _line_up(p, p.rng.choice((things.boat, things.boat_sign)), number // rows, y, high * 0.26, paint)
    said = Said(("a harbour", "a port", "the harbour"))
    crowd = "a few" if number < 4 else "several" if number < 7 else "many"
    said.note(f"{crowd} {name} boats docked neatly", f"{crowd} {name} ships", f"{crowd} boats")
    said.count(piers, "long", "pier", f" in {water} water", "wharf" if piers == 1 else "pier")
    return said


def farmland(p: Canvas, top: float, bottom: float) -> Said:
    tints = {"green": (122, 168, 70), "yellow": (222, 196, 92), "brown": (166, 122, 84), "dark green": (58, 112, 58)}
    one, two = p.rng.sample(sorted(tints), 2)
    pieces, said = p.rng.randint(2, 6), Said(("a piece of farmland", "farmland", "an area of farmland"))
    round_ = p.rng.random() < 0.3
    if round_:
        pieces = p.rng.randint(1, 2)
        _fill(p, top, bottom, (178, 148, 108))
        for i in range(pieces):
            x, y, r = (i + 0.5) * SIZE / pieces, (top + bottom) / 2, 27 / pieces
            p.disc(x, y, r, tints[one], min(1.0, (bottom - top) / (2.1 * r)))
            p.box(x + r / 2, y, r * 0.5, r * 0.2, tints[two])
        said.count(pieces, f"round {one}", "field", "", "circle")
    else:
        for i in range(pieces):  # furrows that run to the horizon
            tint = p.jitter(tints[one] if i % 2 == 0 else tints[two])
            for step in range(4):
                near, far = (i + step / 4) / pieces, (i + (step + 1) / 4) / pieces
                left, right = 32 + (near - 0.5) * 110, 32 + (far - 0.5) * 110
                up, across = 32 + (near - 0.5) * 66, 32 + (far - 0.5) * 66
                corners = ((left, bottom), (right, bottom), (across, top), (up, top))
                p.polygon(corners, shade(tint, 1 - 0.13 * (step % 2)))
        said.count(pieces, "rectangular", "field", "", "strip")
    said.note(f"{one} and {two} crops", f"{two} and {one} plants", f"{two} crops")
    return said


def bridge(p: Canvas, top: float, bottom: float) -> Said:
    water, number, (deck, paint), (name, tint) = (
        p.rng.choice(sorted(WATERS)),
        p.rng.randint(0, 5),
        _colour(p),
        _colour(p),
    )
    spans, high = p.rng.choice((1, 1, 2)), bottom - top
    _fill(p, top + high * 0.25, bottom, WATERS[water])
    for span in range(spans):
        y = top + high * (0.4 + 0.32 * span)
        for x in range(4, SIZE, 18):
            p.box(x, y + 4, 2.5, 8, shade(paint, 0.8))
        p.box(SIZE / 2, y, SIZE + 2, high * 0.13, p.jitter(paint))
        p.box(SIZE / 2, y - high * 0.07, SIZE + 2, 1.4, TARMAC)
        if number:
            _line_up(p, things.car, number, y - high * 0.12, high * 0.12, tint)
    said = Said(("a bridge", "the bridge") if spans == 1 else ("two bridges", "two parallel bridges"), "on")
    said.note(f"{article(deck)} deck over {water} water", f"a wide {water} river below", f"{water} water")
    if number > 1:
        said.note(f"{NUMBERS[number]} {name} cars on it", f"some {name} cars", "some cars on it")
    else:
        said.note("no traffic on it", "few cars", "hardly any cars")
    return said


def parking(p: Canvas, top: float, bottom: float) -> Said:
    (name, paint), rows, high = _colour(p), p.rng.randint(2, 3), bottom - top
    filled, share = p.rng.choice((("full", 0.97), ("half empty", 0.55), ("nearly empty", 0.2)))
    _fill(p, top, bottom, TARMAC)
    draw, columns = p.rng.choice((things.car, things.car_sign, None)), p.rng.randint(6, 9)
    for row in range(rows):
        y, room = top + (row + 0.5) * high / rows, SIZE / columns
        for column in range(columns):
            x = (column + 0.5) * room
            p.box(x - room / 2, y, 0.5, high / rows * 0.75, LINE)
            if p.rng.random() < share:
                tint = p.jitter(p.rng.choice((paint, paint, paint, COLOURS["grey"], COLOURS["black"])))
                if draw is things.car:
                    draw(p, x, y, room * 0.42, tint)
                else:  # seen from the front
                    p.box(x, y, room * 0.6, high / rows * 0.6, tint)
                    p.box(x, y - high / rows * 0.12, room * 0.45, high / rows * 0.18, things.PANE)
    said = Said(("a parking lot", "a car park", "the parking lot"))
    said.note(f"{NUMBERS[rows]} rows of cars", "neat rows of cars", "lines of cars")
    said.note(f"mostly {name} cars and {filled} spaces", f"{'many' if share > 0.5 else 'few'} {name} cars",
              f"{filled} spaces")  # fmt: skip
    return said


def residential(p: Canvas, top: float, bottom: float) -> Said:
    (name, paint), dense, high = (
        _colour(p, "red", "blue", "grey", "brown", "white", "orange"),
        p.rng.random() < 0.5,
        bottom - top,
    )
    columns, number = 6 if dense else 4, p.rng.choice((0, 2, 4))
    _fill(p, top, bottom, p.rng.choice(GRASSES))
    p.box(SIZE / 2, bottom - high * 0.14, SIZE + 2, high * 0.28, TARMAC)
    _line_up(p, things.house, columns, top + high * 0.4, high * 0.36, paint, 16)
    if not dense:
        for x in range(0, SIZE + 1, 16):
            things.tree(p, x, top + high * 0.45, high * 0.2, LEAVES["green"])
    if number:
        _line_up(p, things.car, number, bottom - high * 0.17, high * 0.15, COLOURS["white"])
    crowd = "dense" if dense else "sparse"
    said = Said(
        ("a residential area", f"a {crowd} residential area", f"a {'crowded' if dense else 'quiet'} neighbourhood")
    )
    said.note(f"{NUMBERS[columns]} houses with {name} roofs", f"{name} roofs", f"{crowd} houses with {name} roofs")
    said.note(f"{NUMBERS[number]} cars on the road" if number else "no cars on the road", "a road between the houses")
    return said


def tank_farm(p: Canvas, top: float, bottom: float) -> Said:
    (name, paint), number, high = _colour(p), p.rng.choice((1, 2, 3, 4, 5, 6, 8, 10)), bottom - top
    _fill(p, top, bottom, p.rng.choice(((190, 164, 124), PAVED, GRASSES[0])))
    rows, size = (1 if number < 5 else 2), p.rng.choice(("small", "large"))
    draw = p.rng.choice((things.tank, things.tank_sign))
    for row in range(rows):
        y = top + high * (row + 0.5) / rows
        _line_up(p, draw, number // rows, y, high / rows * (0.45 if size == "large" else 0.28), paint)
    number = number // rows * rows
    said = Said(("a storage tank area", "a tank farm", "an oil depot"))
    said.count(number, name, "tank", "", "cylinder")
    said.note(f"{size} round tanks" if number > 1 else f"a {size} round tank", f"{size} {name} cylinders")
    return said


def river(p: Canvas, top: float, bottom: float) -> Said:
    water, number, leaves, high = (
        p.rng.choice(sorted(WATERS)),
        p.rng.choice((0, 0, 1, 2, 3)),
        p.rng.choice(sorted(LEAVES)),
        bottom - top,
    )
    wide, curved, banks = p.rng.random() < 0.5, p.rng.random() < 0.5, p.rng.random() < 0.5
    width, bend, middle = high * (0.62 if wide else 0.3), high * 0.14 if curved else 0.4, top + high * 0.55
    _fill(p, top, bottom, p.rng.choice(GRASSES))
    phase = p.rng.uniform(0, math.tau)
    points = [(x, middle + bend * math.sin(x / 9 + phase)) for x in range(-6, 72, 2)]
    p.path(points, width + 2, (206, 190, 146))
    p.path(points, width, p.jitter(WATERS[water], 14))
    if banks:
        for y in (top + high * 0.12, bottom - high * 0.1):
            for x in range(2, SIZE, 7):
                p.disc(x + p.rng.uniform(-2, 2), y, high * 0.1, p.jitter(LEAVES[leaves]))
    if number:
        _line_up(p, things.boat, number, middle, min(7, width * 0.4), COLOURS["white"])
    shape, breadth = "curved" if curved else "straight", "wide" if wide else "narrow"
    said = Said((f"a {shape} river", f"a {breadth} river", f"a {water} river", "the river"), "at")
    if banks:
        said.note(f"{leaves} trees on both banks", f"{leaves} plants on the banks", "trees on both sides")
    said.note(f"{breadth} {water} water", f"a {shape} {breadth} channel", f"{water} water")
    if number:
        said.count(number, "white", "boat", " sailing on it", "ship")
    return said


def forest(p: Canvas, top: float, bottom: float) -> Said:
    leaves, kind, high = p.rng.choice(sorted(LEAVES)), p.rng.choice(("path", "clearing", "lake", "")), bottom - top
    _fill(p, top, bottom, shade(LEAVES[leaves], 0.72))
    draw = p.rng.choice((things.tree, things.tree_sign))
    for y in (top + high * 0.2, top + high * 0.5, top + high * 0.8):
        for x in range(0, SIZE + 4, 6):
            draw(
                p, x + p.rng.uniform(-2, 2), y + p.rng.uniform(-2, 2), p.rng.uniform(3, 5), p.jitter(LEAVES[leaves], 14)
            )
    said = Said((f"a {leaves} forest", "a dense forest", "a forest", "the woods"))
    said.note(f"many {leaves} trees", f"{leaves} plants", "many trees growing closely", "trees everywhere")
    if kind == "path":
        middle = p.rng.uniform(20, 44)
        points = [(middle + 4 * math.sin(y / 5), top + y) for y in range(0, int(high) + 2, 2)]
        p.path(points, 4, (206, 186, 142))
        said.note("a winding path through it", "a narrow path", "a curved path in the trees")
    elif kind == "clearing":
        p.disc(p.rng.uniform(22, 42), top + high * 0.6, 14, (190, 172, 120), 0.4)
        said.note("a bare clearing in the middle", "a piece of bare land among the trees", "a clearing")
    elif kind == "lake":
        p.disc(p.rng.uniform(22, 42), top + high * 0.6, 14, WATERS["blue"], 0.4)
        said.note("a small lake in the middle", "blue water among the trees", "a lake")
    else:
        said.note("no gaps between the crowns", "crowded crowns")
    return said


def beach(p: Canvas, top: float, bottom: float) -> Said:
    water, (sand, tint) = (
        p.rng.choice(("blue", "green", "dark")),
        p.rng.choice(tuple(SANDS.items())),
    )
    waves, number, (name, paint), high = p.rng.randint(1, 4), p.rng.choice((0, 0, 3, 5, 7)), _colour(p), bottom - top
    edge = top + high * p.rng.uniform(0.35, 0.6)
    _fill(p, top, edge, WATERS[water])
    _fill(p, edge, bottom, tint)
    for wave in range(waves):
        p.path(
            [(x, edge - wave * high * 0.1 + 0.7 * math.sin(x / 4 + wave)) for x in range(-4, 70, 3)],
            1.3,
            (244, 246, 244),
        )
    if number:
        _line_up(
            p,
            p.rng.choice((things.parasol, things.parasol, things.parasol_sign)),
            number,
            (edge + bottom) / 2,
            high * 0.2,
            paint,
        )
    said = Said((f"a {sand} beach", "a beach", "a beach by the sea", "the beach"), "on")
    said.note(f"{NUMBERS[waves]} white wave{'s' * (waves > 1)} on the {water} sea", f"{water} sea water", "white waves")
    if number:
        crowd = "many" if number > 5 else "some"
        said.note(f"{crowd} {name} parasols on the sand", f"{name} parasols", "people on the sand")
    else:
        said.note(f"{sand} sand and nobody on it", f"smooth {sand} sand")
    return said


def playground(p: Canvas, top: float, bottom: float) -> Said:
    (track, paint), (field_, tint), (court, hue) = _colour(p), _colour(p), _colour(p, "blue", "green", "red")
    courts, high, middle = p.rng.randint(0, 3), bottom - top, (top + bottom) / 2
    _fill(p, top, bottom, p.rng.choice(GRASSES))
    x, width = (26, 24) if courts else (32, 29)
    squash = high * 0.46 / width
    for part, colour in ((1, paint), (0.9, shade(paint, 1.2)), (0.85, paint), (0.68, tint)):
        p.disc(x, middle, width * part, colour, squash)
    for i in range(courts):
        things.court(p, 57, top + (i + 0.5) * high / courts, min(6, high / courts / 1.6), hue)
    said = Said(("a playground", "a sports ground", "the playground"))
    said.note(
        f"{article(track)} track around {article(field_)} field",
        f"{article(track)} track",
        f"{article(field_)} football field",
    )
    if courts:
        said.count(courts, court, "court", " beside the track", "basketball court")
    else:
        said.note("no courts beside it", f"{article(field_)} lawn inside")
    return said


def station(p: Canvas, top: float, bottom: float) -> Said:
    (name, paint), (roof, tiles), trains, high = _colour(p), _colour(p), p.rng.randint(1, 2), bottom - top
    _fill(p, top, bottom, (186, 164, 136))
    p.box(SIZE / 2, top + high * 0.25, SIZE * p.rng.uniform(0.6, 0.9), high * 0.22, things.WALL)
    p.box(SIZE / 2, top + high * 0.11, SIZE * p.rng.uniform(0.65, 0.95), high * 0.16, p.jitter(tiles))
    _rails(p, bottom - high * 0.55, bottom, trains + 1)
    for i in range(trains):
        things.train(
            p,
            p.rng.uniform(22, 42),
            bottom - high * (0.42 - 0.26 * i),
            high * 0.19 if trains > 1 else high * 0.3,
            paint,
        )
    said = Said(("a railway station", "a train station", "a station", "the station"))
    said.count(trains, f"long {name}", "train", " on the tracks")
    said.note(
        f"a station hall with {article(roof)} roof", f"{article(roof)} station building", "a hall beside the tracks"
    )
    return said


def desert(p: Canvas, top: float, bottom: float) -> Said:
    name, paint = p.rng.choice((("yellow", (226, 194, 116)), ("orange", (224, 156, 92)), ("white", (236, 226, 204))))
    dunes, bushes, wavy, high = p.rng.randint(2, 6), p.rng.choice((0, 0, 4, 9)), p.rng.random() < 0.5, bottom - top
    _fill(p, top, bottom, paint)
    for dune in range(dunes):
        y, phase = top + (dune + 0.5) * high / dunes, p.rng.uniform(0, 6)
        points = [(float(x), y + (high * 0.07 if wavy else 0.3) * math.sin(x / 7 + phase)) for x in range(-4, 70, 3)]
        p.path(points, high * 0.06, shade(paint, 0.82))
    for _ in range(bushes):
        things.bush(p, p.rng.uniform(2, 62), p.rng.uniform(top + 3, bottom - 3), 2.4, (104, 124, 66))
    said = Said((f"{article(name)} desert", "a desert", "the desert"))
    shape = "wavy" if wavy else "straight"
    said.note(f"{NUMBERS[dunes]} {shape} dunes", f"{shape} dunes", f"{shape} stripes on the sand")
    if bushes:
        said.note(f"{'a few' if bushes < 8 else 'many'} small green bushes", "bushes on the sand")
    else:
        said.note("no plants at all", f"bare {name} sand")
    return said


def industrial(p: Canvas, top: float, bottom: float) -> Said:
    (name, paint), halls, chimneys, high = _colour(p), p.rng.randint(1, 4), p.rng.randint(0, 3), bottom - top
    _fill(p, top, bottom, PAVED)
    for i in range(chimneys):
        things.chimney(p, 8 + i * 16 + p.rng.uniform(-2, 2), top + high * 0.4, high * 0.42, (150, 120, 110))
    _line_up(p, p.rng.choice((things.hall, things.hall, things.hall_sign)), halls, top + high * 0.6, high * 0.36, paint)
    said = Said(("an industrial area", "a factory", "the factory"))
    said.count(halls, name, "workshop", "", "hall")
    if chimneys:
        said.count(chimneys, "tall", "chimney", "", "tower")
    else:
        said.note("an open concrete yard", "a yard")
    return said


def crossing(p: Canvas, top: float, bottom: float) -> Said:
    kind, number, (name, paint), high = (
        p.rng.choice(("round", "cross", "tee")),
        p.rng.randint(0, 6),
        _colour(p),
        bottom - top,
    )
    middle = top + high * 0.5
    _fill(p, top, bottom, p.rng.choice(GRASSES))
    p.box(32, middle, 66, high * 0.26, TARMAC)
    up = top if kind != "tee" else middle
    p.polygon(
        [(20, bottom), (44, bottom), (32 + 12 * (up - top) / high + 4, up), (28 - 12 * (up - top) / high, up)], TARMAC
    )
    if kind == "round":
        inner, tint = p.rng.choice((("green", GRASSES[2]), ("grey", PAVED)))
        p.disc(32, middle, 20, TARMAC, high * 0.46 / 20)
        p.disc(32, middle, 10, tint, high * 0.46 / 20)
        said = Said(("a roundabout", "a traffic circle"), "at")
        said.note(f"a {inner} island in the middle", f"a round {inner} centre", "a ring road")
    else:
        for x in range(22, 44, 4):
            p.box(x, bottom - high * 0.2, 2, high * 0.14, LINE)
        said = Said(("a crossroads" if kind == "cross" else "a junction", "an intersection", "a road crossing"), "at")
        said.note("two roads crossing" if kind == "cross" else "a road ending at another", "zebra stripes on the road",
                  f"{'four' if kind == 'cross' else 'three'} ways")  # fmt: skip
    if number:
        _line_up(p, p.rng.choice((things.car, things.car_sign)), number, middle, high * 0.12, paint)
    if number > 1:
        said.note(f"{NUMBERS[number]} {name} cars", f"some {name} cars", "some vehicles")
    else:
        said.note("hardly any cars", "no traffic")
    return said


def pond(p: Canvas, top: float, bottom: float) -> Said:
    water, number, leaves, high = (
        p.rng.choice(sorted(WATERS)),
        p.rng.randint(0, 9),
        p.rng.choice(sorted(LEAVES)),
        bottom - top,
    )
    size, radius = p.rng.choice((("large", 25), ("small", 14)))
    middle, island = top + high * 0.58, p.rng.random() < 0.3
    _fill(p, top, bottom, p.rng.choice(GRASSES))
    squash = min(0.9, high * 0.34 / radius)
    p.disc(32, middle, radius + 1.5, (196, 180, 136), squash)
    p.disc(32, middle, radius, p.jitter(WATERS[water]), squash)
    if island:
        p.disc(32, middle, radius * 0.35, (132, 164, 92), squash)
    if number:
        _line_up(p, things.tree, number, top + high * 0.16, high * 0.17, LEAVES[leaves])
    said = Said((f"a {size} pond", f"a {water} pond", "a pond", "the pond"), "at")
    said.note(
        f"{water} water around a small island" if island else f"calm {water} water",
        "an island" if island else f"{water} water",
    )
    if number > 1:
        said.count(number, leaves, "tree", " around it")
    else:
        said.note("no trees around it", "bare banks")
    return said


def _rails(p: Canvas, top: float, bottom: float, tracks: int) -> None:
    _fill(p, top, bottom, (160, 146, 130))
    for track in range(tracks):
        y, half = top + (track + 0.5) * (bottom - top) / tracks, (bottom - top) / tracks * 0.2
        for x in range(1, SIZE, 4):
            p.box(x, y, 1.3, 2.8 * half, (118, 92, 74))
        for side in (-half, half):
            p.box(32, y + side, 66, 0.8, (66, 66, 70))


def railway(p: Canvas, top: float, bottom: float) -> Said:
    tracks = p.rng.choice((1, 2, 3))
    _rails(p, top, bottom, tracks)
    words = "a railway" if tracks == 1 else f"{NUMBERS[tracks]} railways"
    return Said((words, words, "the railway"), "along")


def road(p: Canvas, top: float, bottom: float) -> Said:
    number, (name, paint), high = p.rng.choice((0, 2, 3, 4)), _colour(p), bottom - top
    _fill(p, top, bottom, p.rng.choice(GRASSES))
    p.box(32, (top + bottom) / 2, 66, high * 0.75, TARMAC)
    for x in range(2, SIZE, 9):
        p.box(x, (top + bottom) / 2, 5, 0.9, LINE)
    if number:
        _line_up(
            p, p.rng.choice((things.car, things.car_sign)), number, (top + bottom) / 2 - high * 0.1, high * 0.24, paint
        )
    words = f"a road with {NUMBERS[number]} {name} cars" if number else "an empty road"
    return Said((words, words, "a road", "the road"), "along")


def trees(p: Canvas, top: float, bottom: float) -> Said:
    rows, leaves, high = p.rng.choice((1, 1, 2)), p.rng.choice(sorted(LEAVES)), bottom - top
    _fill(p, top, bottom, p.rng.choice(GRASSES))
    number, draw = p.rng.randint(6, 10), p.rng.choice((things.tree, things.tree, things.tree_sign))
    for row in range(rows):
        _line_up(p, draw, number, top + high * (row + 0.5) / rows, high / rows * 0.44, LEAVES[leaves])
    words = f"a row of {leaves} trees" if rows == 1 else f"two rows of {leaves} trees"
    return Said((words, words, "neat trees", f"{leaves} trees on one side"), "beside")


def houses(p: Canvas, top: float, bottom: float) -> Said:
    number, (name, paint), high = (
        p.rng.choice((3, 4, 5)),
        _colour(p, "red", "blue", "white", "brown", "orange"),
        bottom - top,
    )
    _fill(p, top, bottom, p.rng.choice(GRASSES))
    _line_up(
        p, p.rng.choice((things.house, things.house, things.house_sign)), number, (top + bottom) / 2, high * 0.42, paint
    )
    words = f"{NUMBERS[number]} houses with {name} roofs"
    return Said((words, words, f"some houses with {name} roofs", "some houses"), "beside")


def meadow(p: Canvas, top: float, bottom: float) -> Said:
    name, paint = p.rng.choice((("green", (122, 166, 74)), ("yellow", (218, 194, 98)), ("brown", (160, 120, 82))))
    _fill(p, top, bottom, paint)
    for x in range(-60, 124, 8):
        p.path([(32 + (x - 32) * 0.5, top), (x, bottom)], 1.0, shade(paint, 0.8))
    return Said((f"{name} farmland", f"a {name} field", "the farmland", "a striped field"), "beside")


def bare_land(p: Canvas, top: float, bottom: float) -> Said:
    _fill(p, top, bottom, (186, 156, 116))
    for _ in range(5):
        p.disc(
            p.rng.uniform(0, 64),
            p.rng.uniform(top + 2, bottom - 2),
            4,
            shade((186, 156, 116), p.rng.uniform(0.85, 1.1)),
            0.4,
        )
    return Said(("bare land", "a piece of bare land", "some bare soil", "open ground"), "on")


def lawn(p: Canvas, top: float, bottom: float) -> Said:
    number, high = p.rng.choice((0, 2, 3, 4)), bottom - top
    _fill(p, top, bottom, (126, 184, 84))
    if number:
        _line_up(p, things.tree, number, (top + bottom) / 2, high * 0.4, LEAVES["dark green"])
    words = f"a lawn with {NUMBERS[number]} trees" if number else "an empty lawn"
    return Said((words, words, "a green lawn", "the grass"), "on")


PLACES: tuple[Place, ...] = (
    airport, beach, bridge, crossing, desert, farmland, forest, harbour, industrial, parking, playground, pond,
    residential, river, station, tank_farm,
)  # fmt: skip
STRIPS: tuple[Place, ...] = (railway, road, trees, houses, meadow, bare_land, lawn, forest, river)
