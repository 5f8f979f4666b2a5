"""What both drawn worlds share: an antialiased pen, named colours and words for counts. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
FINE = 4  # drawn this much finer, then averaged down: the antialiasing

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]

COLOURS: dict[str, Colour] = {
    "white": (236, 236, 232),
    "grey": (142, 144, 148),
    "black": (44, 44, 50),
    "red": (190, 62, 52),
    "orange": (226, 138, 56),
    "yellow": (226, 200, 84),
    "green": (86, 142, 70),
    "blue": (62, 112, 184),
    "purple": (128, 84, 156),
    "pink": (226, 140, 166),
    "brown": (132, 96, 66),
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def article(phrase: str) -> str:
    """The phrase behind "a" or "an"."""
    return f"{'an' if phrase[0] in 'aeio' else 'a'} {phrase}"


def plural(noun: str) -> str:
    """The noun's plural: "boat" gives "boats", "bush" gives "bushes"."""
    return noun + ("es" if noun.endswith(("s", "sh", "ch", "x")) else "s")


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker (factor below 1) or lighter."""
    red, green, blue = (min(255, max(0, round(channel * factor))) for channel in colour)
    return red, green, blue


class Pen:
    """Draws on a square of 64 units; `picture()` gives the 64 x 64 RGB image. Angles in degrees, clockwise."""

    def __init__(self, rng: Random, ground: Colour) -> None:
        self.rng = rng
        self.image = Image.new("RGB", (SIZE * FINE, SIZE * FINE), ground)
        self.draw = ImageDraw.Draw(self.image)

    def jitter(self, colour: Colour, by: int = 10) -> Colour:
        """The colour, a little off, as no two roofs are alike."""
        step = self.rng.randint(-by, by)
        return tuple(min(255, max(0, c + step + self.rng.randint(-by // 3, by // 3))) for c in colour)  # type: ignore[return-value]

    def polygon(self, points: Points, colour: Colour) -> None:
        self.draw.polygon([(x * FINE, y * FINE) for x, y in points], fill=colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour, squash: float = 1.0) -> None:
        self.draw.ellipse(
            [(x - radius) * FINE, (y - radius * squash) * FINE, (x + radius) * FINE, (y + radius * squash) * FINE],
            fill=colour,
        )

    def box(self, x: float, y: float, width: float, height: float, colour: Colour, turn: float = 0) -> None:
        """A filled rectangle around its centre (x, y)."""
        corners = [
            (-width / 2, -height / 2),
            (width / 2, -height / 2),
            (width / 2, height / 2),
            (-width / 2, height / 2),
        ]
        self.shape(x, y, 1, corners, colour, turn)

    def shape(self, x: float, y: float, size: float, points: Points, colour: Colour, turn: float = 0) -> None:
        """A polygon given around the origin, scaled, turned and moved to (x, y)."""
        cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        self.polygon([(x + size * (u * cos - v * sin), y + size * (u * sin + v * cos)) for u, v in points], colour)

    def path(self, points: Points, width: float, colour: Colour) -> None:
        """A line through the points with round joints."""
        self.draw.line([(x * FINE, y * FINE) for x, y in points], fill=colour, width=round(width * FINE), joint="curve")
        for x, y in points:
            self.disc(x, y, width / 2, colour)

    def blob(self, x: float, y: float, radius: float, colour: Colour, squash: float = 1.0, grow: float = 0.0) -> None:
        """An irregular round patch; the same pen state draws the same outline, `grow` units larger."""
        a, b, c = (self.rng.uniform(0, math.tau) for _ in range(3))
        points = []
        for step in range(48):
            t = step / 48 * math.tau
            r = (
                radius * (1 + 0.16 * math.sin(2 * t + a) + 0.09 * math.sin(3 * t + b) + 0.05 * math.sin(5 * t + c))
                + grow
            )
            points.append((x + r * math.cos(t), y + r * squash * math.sin(t)))
        self.polygon(points, colour)

    def picture(self, grain: float, seed: int) -> Image.Image:
        """The drawing at 64 x 64 with fine and coarse brightness noise (standard deviation `grain`, of 255)."""
        pixels = np.asarray(self.image.reduce(FINE), dtype=np.float32)
        noise = np.random.default_rng(seed)
        fine = noise.normal(0, grain, (SIZE, SIZE, 1))
        coarse = noise.normal(0, grain, (8, 8, 1)).repeat(8, 0).repeat(8, 1)
        for axis in (0, 1):  # a box blur each way turns the 8 x 8 tiles into soft patches
            coarse = np.mean([np.roll(coarse, shift, axis) for shift in range(-4, 5)], axis=0)
        return Image.fromarray(np.clip(pixels + fine + 2 * coarse, 0, 255).astype(np.uint8))
