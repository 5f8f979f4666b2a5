"""Training captions paired wrongly on purpose, to measure how robust methods are. No numpy, no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from bench.config.errors import UserError
from bench.data.annotations import Item


def shuffled(items: Sequence[Item], share: float, seed: int) -> tuple[Item, ...]:
    """The items with `share` of all their captions paired with wrong images, each image with as many as before.

    Moved are the `round(share * captions)` captions (halves to even) whose sha256 of "seed:image:number" is smallest,
    number being the caption's place in its image, from 0. So what is moved at a smaller share is moved at a larger one,
    and neither the files' order nor Python's version matters. In the order of these hashes each place gets the caption
    of the next one, the last place that of the first. Where that caption is of the place's own image, the place swaps
    with the next one such that both then have another image's. (Another image may have a caption with the same words.)

    The published files of RRSITR (CVPR 2026) draw each share anew, and let a caption come back to its own image.
    UserError if there are too few images for that.
    """
    captions = [(image, number) for image, item in enumerate(items) for number in range(len(item.captions))]

    def drawn(caption: tuple[int, int]) -> bytes:
        image, number = caption
        return hashlib.sha256(f"{seed}:{items[image].image}:{number}".encode()).digest()

    places = sorted(captions, key=drawn)[: round(share * len(captions))]
    sources = places[1:] + places[:1]
    for i, (image, _) in enumerate(places):
        if sources[i][0] == image:
            onward = [*range(i + 1, len(places)), *range(i)]
            fits = [j for j in onward if sources[j][0] != image and places[j][0] != image]
            if not fits:
                raise UserError(
                    f"dataset.shuffle_captions {share:g}: {len(places)} of {len(captions)} captions can't all move to "
                    "other images; choose a larger share, or data with more images"
                )
            sources[i], sources[fits[0]] = sources[fits[0]], sources[i]
    texts = [list(item.captions) for item in items]
    for (image, number), (other, place) in zip(places, sources, strict=True):
        texts[image][number] = items[other].captions[place]
    return tuple(Item(item.image, tuple(own), item.label) for item, own in zip(items, texts, strict=True))
