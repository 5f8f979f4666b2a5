"""Near-duplicate pictures: the same one recompressed, resized, mirrored, turned or cropped. No torch.

Two steps. Perceptual hashes (`imagehash.phash`: signs of the 64 lowest frequencies) of a picture's middle and corners,
compared with those of the eight ways to turn and mirror another, give pairs that may be one picture. Each such pair is
then laid over one another, with up to a tenth of either picture's width and height cut off, and is near where the
colours of 32 x 32 points correlate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import imagehash
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from bench.data.pixels import decode, pool, strict

NEAR = 0.95  # correlation from which on two pictures are one
CANDIDATE_BITS = 14  # of 64 bits that the hashes of a candidate may differ in
EDGE, _POINTS = 96, 32  # pixels of a thumbnail's side, and of what is compared
_PARTS = (1.0, 0.95, 0.9)  # of a side that a crop may leave
_CHUNK = 512
# Parts of a picture that are hashed, as shares of its sides: the whole, the corners and two sizes of the middle.
_HASHED = (
    (0.0, 0.0, 1.0, 1.0),
    *((x, y, x + 0.95, y + 0.95) for x in (0.0, 0.05) for y in (0.0, 0.05)),
    (0.025, 0.025, 0.975, 0.975),
    (0.05, 0.05, 0.95, 0.95),
)
# In words, quarters counter-clockwise, and whether it is mirrored from left to right after that.
_TURNS = (
    ("", 0, False),
    ("mirrored", 0, True),
    ("upside down, mirrored", 2, True),
    ("turned by 180 degrees", 2, False),
    ("turned by 90 degrees", 1, False),
    ("turned by 270 degrees", 3, False),
    ("turned and mirrored", 1, True),
    ("turned and mirrored", 3, True),
)
_BACK = (0, 1, 2, 3, 5, 4, 6, 7)  # the turn that undoes each


Box = tuple[float, float, float, float]  # left, top, right and bottom, as shares of a picture's sides


@dataclass(frozen=True)
class Near:
    """Two pictures, by their places in the list, that are one: how the second is turned, and the correlation."""

    first: int
    second: int
    turn: str
    score: float


def thumbnails(paths: Sequence[Path]) -> list[UInt8[np.ndarray, "edge edge 3"] | None]:
    """Small RGB pictures, whatever their shape was; None for what can't be decoded."""

    def one(path: Path) -> np.ndarray | None:
        try:
            return np.asarray(decode(path).resize((EDGE, EDGE), Image.Resampling.BILINEAR))
        except Exception:  # Pillow's decoders raise nearly anything on a broken file; `data check` lists them
            return None

    with strict(), pool() as threads:
        return list(threads.map(one, paths))


def near(
    pictures: Sequence[UInt8[np.ndarray, "edge edge 3"] | None],
    wanted: Callable[[int, int], bool] = lambda first, second: True,
) -> list[Near]:
    """All pairs of pictures that are one, the most alike first. `wanted(i, j)`: whether a pair is of interest."""
    known = [index for index, picture in enumerate(pictures) if picture is not None]
    images = [Image.fromarray(picture) for picture in pictures if picture is not None]

    @lru_cache(maxsize=4096)
    def parts(index: int) -> UInt8[np.ndarray, "parts points points 3"]:
        return np.stack([_part(images[index], box) for box in _boxes()])

    best: dict[tuple[int, int], Near] = {}
    for a, b, turn in sorted(_candidates(images)):
        first, second = known[a], known[b]
        if wanted(first, second):
            one, other = _points(parts(a)), _points(_turned(parts(b), turn))
            score = float(max((one @ other[0]).max(), (other @ one[0]).max()))
            if score >= max(NEAR, best[first, second].score if (first, second) in best else 0):
                best[first, second] = Near(first, second, _TURNS[turn][0], score)
    return sorted(best.values(), key=lambda pair: (-pair.score, pair.first, pair.second))


def _candidates(images: Sequence[Image.Image]) -> set[tuple[int, int, int]]:
    """(first, second, turn): pairs whose hashes are close once the second is turned so; first comes before second."""
    found = set()
    hashed = [_signs([_part(image, box) for image in images]) for box in _HASHED]
    for turn in range(len(_TURNS)):
        whole = _signs([_turned(_part(image, _HASHED[0])[None], turn)[0] for image in images])
        for part in hashed:
            for start in range(0, len(images), _CHUNK):
                equal = part[start : start + _CHUNK] @ whole.T
                for row, column in np.argwhere(equal >= 64 - 2 * CANDIDATE_BITS):
                    a, b = start + int(row), int(column)
                    if a != b:
                        found.add((a, b, turn) if a < b else (b, a, _BACK[turn]))
    return found


def _turned(parts: UInt8[np.ndarray, "parts side side 3"], turn: int) -> UInt8[np.ndarray, "parts side side 3"]:
    """Pictures turned and mirrored in one of the eight ways: the parts of a turned picture are the turned parts."""
    quarters, mirrored = _TURNS[turn][1:]
    turned = np.rot90(parts, quarters, axes=(1, 2))
    return turned[:, :, ::-1] if mirrored else turned


def _signs(pictures: Sequence[UInt8[np.ndarray, "side side 3"]]) -> Float32[np.ndarray, "pictures 64"]:
    """The hashes' bits as 1 and -1: a product counts the equal ones."""
    bits = [imagehash.phash(Image.fromarray(picture)).hash.ravel() for picture in pictures]
    return np.where(np.array(bits).reshape(len(pictures), 64), 1, -1).astype(np.float32)


def _boxes() -> list[Box]:
    """The whole picture first, then parts of it: three widths and heights at the edges and in the middle."""
    places = [(part, place * (1 - part)) for part in _PARTS for place in (0.0, 0.5, 1.0)]
    spans = dict.fromkeys((start, start + part) for part, start in places)
    return [(left, top, right, bottom) for left, right in spans for top, bottom in spans]


def _part(image: Image.Image, box: Box) -> UInt8[np.ndarray, "points points 3"]:
    """A part of a thumbnail in 32 x 32 points."""
    left, top, right, bottom = (EDGE * side for side in box)
    return np.asarray(image.resize((_POINTS, _POINTS), Image.Resampling.BILINEAR, box=(left, top, right, bottom)))


def _points(parts: UInt8[np.ndarray, "parts side side 3"]) -> Float32[np.ndarray, "parts values"]:
    """The colours of pictures without their mean, of length 1: a product of two is their correlation."""
    values = parts.reshape(len(parts), -1).astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)
