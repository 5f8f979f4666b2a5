"""Captions that say the same, and what they cost: the recall that no model can exceed. No numpy, no torch.

Two captions are identical if they are so after `words`: case and punctuation aside. Retrieval counts the caption of
another image as wrong even if it is identical, so a split with repeated captions has a ceiling below 100.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from bench.data.annotations import Item

KS = (1, 5, 10)


def words(caption: str) -> str:
    """The caption's letters and digits without case; everything else is a space: "Two  planes." is "two planes"."""
    return " ".join(re.sub(r"[\W_]+", " ", caption.casefold()).split())


def numbered(items: Sequence[Item]) -> list[int]:
    """A number for each caption of the split, in order; identical captions have the same one."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(words(caption), len(numbers)) for item in items for caption in item.captions]


def ceilings(items: Sequence[Item]) -> dict[str, float]:
    """The highest recall that any model can reach, in percent, as `i2t_r1` ... `t2i_r10`: under the standard rule.

    Identical captions count as one: a model gives them the same scores. Text-to-image: of the images that have a
    caption, those come first that have it most often; R@K counts the copies in the first K. Image-to-text: an image's
    best caption ties with the copies that other images have, so that the best of its captions is the one with the
    fewest.
    "a river" of images 0 and 1, "a lake" of image 1: R@1 is 75 image-to-text (50 for image 0, 100 for image 1), and
    66.7 text-to-image (one "a river" of two, and "a lake").
    """
    held: dict[str, Counter[int]] = defaultdict(Counter)
    for image, item in enumerate(items):
        for caption in item.captions:
            held[words(caption)][image] += 1
    captions = sum(len(item.captions) for item in items)
    found = {}
    for k in KS:
        chances = [_best_caption(image, item, held, k) for image, item in enumerate(items)]
        found[f"i2t_r{k}"] = 100 * sum(chances) / len(items)
    for k in KS:
        copies = sum(sum(count for _, count in images.most_common(k)) for images in held.values())
        found[f"t2i_r{k}"] = 100 * copies / captions
    return found


def _best_caption(image: int, item: Item, held: dict[str, Counter[int]], k: int) -> float:
    """The chance that one of the first `k` captions is the image's, with its best caption and its copies first."""
    chances = []
    for caption in item.captions:
        own, all_ = held[words(caption)][image], held[words(caption)].total()
        chances.append(1 - math.comb(all_ - own, k) / math.comb(all_, k) if all_ > k else 1.0)
    return max(chances, default=0.0)
