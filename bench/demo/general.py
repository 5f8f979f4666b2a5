"""The general world the tiny CLIP is pre-trained on: postcards of the demo world's things, seen from the ground.

It takes the place of the web pictures that real CLIPs have seen, who have read "airport" and "bridge" long before they
see one from above. It shares most words and many shapes and colours with the demo world. It differs in viewpoint (side
views, horizons, furrows that run together), in rendering (other palettes, outlines without shadows, skies, patterned
grounds, tints, frames), in crowding (a strip or two, or a few large things), and in its sentences.
"""

from __future__ import annotations

import math
from random import Random

from PIL import Image

from bench.demo.pen import COLOURS, NUMBERS, SIZE, article, plural, shade
from bench.demo.places import PLACES, STRIPS, Said
from bench.demo.things import LEAVES, THINGS, Canvas

SURFACES = {
    "green grass": (128, 176, 98),
    "yellow sand": (232, 208, 146),
    "blue water": (86, 148, 196),
    "green water": (92, 156, 132),
    "dark water": (52, 76, 100),
    "grey concrete": (186, 184, 180),
    "bare soil": (176, 146, 110),
}
PATTERNS = ("striped", "checked", "dotted", "wavy")
SKIES = {"blue": (150, 196, 236), "grey": (204, 208, 212), "orange": (246, 196, 146), "white": (242, 242, 240)}


def _ground(p: Canvas) -> str:
    """Paint the ground of a close-up, and say what it is."""
    rng = p.rng
    if rng.random() < 0.4:
        name = rng.choice(sorted(SURFACES))
        p.ground = p.jitter(SURFACES[name])
        p.box(SIZE / 2, SIZE / 2, SIZE, SIZE, p.ground)
        return name
    name = rng.choice(sorted(COLOURS))
    p.ground = p.jitter(shade(COLOURS[name], rng.uniform(0.9, 1.1)))
    p.box(SIZE / 2, SIZE / 2, SIZE, SIZE, p.ground)
    if rng.random() < 0.6:
        return article(f"{'smooth ' if rng.random() < 0.3 else ''}{name} ground")
    pattern, other, step = rng.choice(PATTERNS), shade(p.ground, rng.choice((0.85, 1.15))), rng.choice((6, 8, 10))
    for i, y in enumerate(range(0, SIZE, step)):
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


class Group:
    """Some things of one kind and colour, and the words for them."""

    def __init__(self, rng: Random, ground: str) -> None:
        self.kind = rng.choice(sorted(THINGS))
        draws, others = THINGS[self.kind]
        self.draws, self.nouns = rng.choice(draws), (self.kind, self.kind, *others)
        colours = {**COLOURS, **LEAVES} if self.kind in ("tree", "bush") and rng.random() < 0.6 else COLOURS
        names = sorted(LEAVES) if colours is not COLOURS else [name for name in sorted(COLOURS) if name not in ground]
        self.colour = rng.choice(names)  # another than the ground's, else it can't be seen
        self.paint = colours[self.colour]
        self.number = rng.choice((1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9, 10, 12))
        self.size = rng.choice(("small", "", "large"))
        self.lined = rng.choice(("row", "two rows", "")) if self.number >= 4 and self.number % 2 == 0 else ""

    def draw(self, p: Canvas, left: float, top: float, right: float, bottom: float) -> None:
        """Spread the things over the box."""
        rng, width, height = p.rng, right - left, bottom - top
        rows = {"row": 1, "two rows": 2}.get(self.lined) or max(1, round(math.sqrt(self.number * height / width)))
        columns = math.ceil(self.number / rows)
        room = min(width / columns, height / rows) / 2
        radius = max(2.2, room * {"small": 0.6, "": 0.78, "large": 0.95}[self.size])
        colour, loose = p.jitter(self.paint, 12), 0.0 if self.lined else max(0.0, room - radius)
        for index in range(self.number):
            x = left + width * (index % columns + 0.5) / columns + rng.uniform(-loose, loose)
            y = top + height * (index // columns + 0.5) / rows + rng.uniform(-loose, loose)
            self.draws(p, x, y, radius, p.jitter(colour, 6))

    def words(self, rng: Random) -> str:
        """From the exact to the vague: two rows of six small red stars ... some stars."""
        noun = rng.choice(self.nouns)
        many = noun if noun == "aircraft" else plural(noun)
        size = f"{self.size} " if self.size and rng.random() < 0.4 else ""
        colour = f"{self.colour} " if rng.random() < 0.85 else ""
        if self.number == 1:
            phrase = f"{size}{colour}{noun}"
            return f"one {phrase}" if rng.random() < 0.3 else article(phrase)
        if self.lined and rng.random() < 0.5:
            return f"{'a row' if self.lined == 'row' else self.lined} of {colour}{many}"
        vague = "two" if self.number == 2 else "several" if self.number < 6 else "many"
        count = NUMBERS[self.number] if rng.random() < 0.65 else rng.choice((vague, vague, "some"))
        return f"{count} {size}{colour}{many}"


# {A} and {B} what is in front and behind, {T} and {U} what is there, {at} A's preposition, {be} the first one's verb.
ONE = (
    "{T} {at} {A} on a postcard",
    "look at {A} with {T}",
    "here {be} {A} : {T} and {U}",
    "a view of {A} , {T} and {U}",
    "{A} , and {T}",
    "{T} , {U} {at} {A}",
    "this postcard is of {A} . there we can see {T}",
)
TWO = (
    "{A} , and {B} behind it",
    "{T} {at} {A} , {B} behind",
    "a view of {A} {R} {B}",
    "on a postcard there {be} {A} {R} {B} : {T}",
    "look at {A} with {T} {R} {B}",
    "{B} can be seen behind {A}",
    "{T} and {B} in a view of {A}",
    "here we can see {A} and {B} , and {T}",
    "{T} , {U} , {A} {R} {B}",
    "{R} {B} {be} {A} with {T} and {U}",
)
CLOSE = ("{A} on {G}", "here {be} {A} on {G}", "{A} , {G}", "on {G} we can see {A}", "{G} with {A} on it", "just {A}")
BOTH = (
    "{A} {R} {B}",
    "{A} {R} {B} on {G}",
    "{A} and {B} on {G}",
    "{A} , and {B}",
    "here {be} {A} {R} {B}",
    "{B} can be seen {R} {A}",
)
NEAR = ("beside", "next to", "near", "close to", "by", "along")


def _be(phrase: str) -> str:
    return "is" if phrase.split()[0] in ("a", "an", "one", "the", "farmland", "bare", "open") else "are"


def _place(p: Canvas) -> list[Said]:
    """Paint one or two strips below a sky: those that were painted, the one in front first."""
    rng, top = p.rng, 0.0
    if rng.random() < 0.7:
        top = rng.uniform(4, 18)
        p.box(SIZE / 2, top / 2, SIZE + 2, top, p.jitter(SKIES[rng.choice(sorted(SKIES))], 14))
    if rng.random() < 0.25:
        return [rng.choice(PLACES)(p, top, SIZE)]
    front, behind = rng.choice(PLACES), rng.choice(STRIPS)
    if rng.random() < 0.3:
        front, behind = behind, front
    split = top + (SIZE - top) * (rng.uniform(0.25, 0.45) if behind in STRIPS else rng.uniform(0.5, 0.7))
    back = behind(p, top, split)
    said = [front(p, split, SIZE), back]
    return said if front in PLACES else [back, said[0]]


def _place_words(rng: Random, said: list[Said]) -> str:
    first = said[0]
    facts = [rng.choice(wordings) for wordings in rng.sample(first.facts, len(first.facts))]
    fact, other = facts[0], facts[-1]
    name, behind = rng.choice(first.names), rng.choice(said[-1].names)
    template = rng.choice(TWO if len(said) == 2 else ONE)
    return template.format(A=name, B=behind, T=fact, U=other, R=rng.choice(NEAR), at=first.at, be=_be(name))


def _close_up(p: Canvas) -> tuple[str, Group, Group | None, tuple[str, ...]]:
    ground = _ground(p)
    first = Group(p.rng, ground)
    if p.rng.random() < 0.35:
        margin = p.rng.randint(3, 12)
        first.draw(p, margin, margin, SIZE - margin, SIZE - margin)
        return ground, first, None, ()
    second = Group(p.rng, ground)
    if p.rng.random() < 0.5:
        first.draw(p, 3, 8, SIZE / 2 - 1, SIZE - 8)
        second.draw(p, SIZE / 2 + 1, 8, SIZE - 3, SIZE - 8)
        return ground, first, second, NEAR[:4]
    first.draw(p, 6, 3, SIZE - 6, SIZE / 2 - 1)
    second.draw(p, 6, SIZE / 2 + 1, SIZE - 6, SIZE - 3)
    return ground, first, second, (*NEAR[:4], "over")


def _close_words(rng: Random, ground: str, first: Group, second: Group | None, relations: tuple[str, ...]) -> str:
    a, b = first.words(rng), second.words(rng) if second else ""
    relation = rng.choice(relations) if relations else ""
    if second and relation in NEAR and rng.random() < 0.5:
        a, b = b, a
    template = rng.choice(BOTH if second else CLOSE)
    return template.format(A=a, B=b, G=ground, R=relation, be=_be(a))


def scene(seed: int, index: int, sentences: int = 3) -> tuple[Image.Image, list[str]]:
    """64 x 64 RGB picture and its captions; the same for the same numbers on every machine."""
    rng = Random(f"general/{seed}/{index}")
    p = Canvas(rng, COLOURS["white"])
    if rng.random() < 0.7:
        said = _place(p)
        captions = [_place_words(rng, said) for _ in range(sentences)]
    else:
        close = _close_up(p)
        captions = [_close_words(rng, *close) for _ in range(sentences)]
    if rng.random() < 0.25:  # the postcard's frame
        frame, width = rng.choice(((244, 242, 236), (60, 58, 56))), rng.uniform(1, 3)
        for x, y, w, h in (
            (32, 0, 64, width * 2),
            (32, 64, 64, width * 2),
            (0, 32, width * 2, 64),
            (64, 32, width * 2, 64),
        ):
            p.box(x, y, w, h, frame)
    if rng.random() < 0.4:  # it lies on one of its sides
        turns = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
        turn = rng.choice(turns)
    else:
        turn = None
    picture = p.picture(grain=rng.uniform(1, 6), seed=rng.getrandbits(32))
    tint = [rng.uniform(0.88, 1.1) for _ in range(3)]
    picture = Image.merge("RGB", [band.point([round(min(255, v * t)) for v in range(256)]) for band, t in
                                  zip(picture.split(), tint, strict=True)])  # fmt: skip
    if turn is not None:
        picture = picture.transpose(turn)
    return picture, [f"{text[0].upper()}{text[1:]}." if rng.random() < 0.5 else f"{text} ." for text in captions]
