"""What is drawn for a training picture: the box of its crop, whether it is flipped, and RandAugment's operations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64

OPERATIONS = (
    *("Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness"),
    *("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
)
ROUNDS = 2  # operations a picture, each applied with p = 1/2
BOX = 5  # numbers of a crop and flip in a row of `table`
COLUMNS = BOX + 2 * ROUNDS

_RATIO = (3 / 4, 4 / 3)  # width over height of a crop
_LOG_RATIO = torch.log(torch.tensor(_RATIO)).tolist()
_TRIES = 10


@dataclass(frozen=True)
class Draw:
    """What is done to one picture: a crop in pixels, then a flip, then operations with the sign of their strength."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False
    operations: tuple[tuple[str, int], ...] = ()

    def row(self) -> list[int]:
        """The draw as numbers: top, left, height, width, flip, then for each round an operation's number and sign."""
        found = [self.top, self.left, self.height, self.width, int(self.flip)]
        for name, sign in self.operations:
            found += [OPERATIONS.index(name), sign]
        return found + [0] * (COLUMNS - len(found))  # Identity


class Draws:
    """Draws pictures' augmentation from (seed, epoch, position) alone; torch's own random state does not change.

    scale: range of a crop's area over the picture's. The numbers are those that torchvision's RandomResizedCrop and
    RandomHorizontalFlip and `RandAugment.draw` draw, one after the other, from a generator with the same seed.
    """

    def __init__(self, seed: int, scale: tuple[float, float], *, flip_and_randaugment: bool) -> None:
        self.seed, self.scale, self.flip_and_randaugment = seed, scale, flip_and_randaugment
        self.generator, self._number = torch.Generator(), torch.empty(1)

    def __call__(self, epoch: int, position: int, height: int, width: int) -> Draw:
        """The draw for a picture of height x width pixels."""
        state = np.random.SeedSequence([self.seed, epoch, position]).generate_state(1, np.uint64)
        self.generator.manual_seed(int(state[0]))
        box = self._box(height, width)
        if not self.flip_and_randaugment:
            return Draw(*box)
        flip = torch.rand(1, generator=self.generator).item() < 0.5
        return Draw(*box, flip, tuple(draw_operations(self.generator)))

    def _box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop: by chance, or in the middle if no box of ten fits in."""
        for _ in range(_TRIES):
            area = height * width * self._uniform(*self.scale)
            ratio = torch.exp(self._number.uniform_(*_LOG_RATIO, generator=self.generator)).item()
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return self._below(height - h + 1), self._below(width - w + 1), h, w
        narrow, wide = width / height < _RATIO[0], width / height > _RATIO[1]
        h = round(width / _RATIO[0]) if narrow else height
        w = round(height * _RATIO[1]) if wide else width
        return (height - h) // 2, (width - w) // 2, h, w

    def _uniform(self, low: float, high: float) -> float:
        return self._number.uniform_(low, high, generator=self.generator).item()

    def _below(self, end: int) -> int:
        return int(torch.randint(end, (1,), generator=self.generator).item())


def draw_operations(generator: torch.Generator | None = None) -> list[tuple[str, int]]:
    """RandAugment's operations of one picture in order, each with the sign of its strength; none, one or two."""
    found = []
    for index in torch.randint(len(OPERATIONS), (ROUNDS,), generator=generator).tolist():
        applied, positive = (torch.rand(2, generator=generator) < 0.5).tolist()
        if applied:
            found.append((OPERATIONS[index], 1 if positive else -1))
    return found


def table(draws: list[Draw]) -> Int64[torch.Tensor, "{len(draws)} 9"]:
    """The draws of a batch as numbers, a row each (`Draw.row`)."""
    return torch.tensor([draw.row() for draw in draws])
