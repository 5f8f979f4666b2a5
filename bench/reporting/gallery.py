"""What was found for the most telling queries, for the page's gallery: lists, wins, and classes mistaken. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from bench.config.errors import UserError
from bench.core import found
from bench.reporting.pagedata import Row
from bench.reporting.thumbnails import thumbnails
from bench.store import testset
from bench.store.folder import TOP

MOST_ROWS = 30  # of one test set: those that validation chose first
QUERIES = 40  # of each direction
SHOWN = 5  # items found for a query
CONFUSED = 8  # pairs of classes of each row
_LONGEST = 400  # characters of a caption
SIDES = ("t2i", "i2t")


@dataclass(frozen=True)
class _Lists:
    """What the run of one row found: the best images of each caption, the best captions of each image."""

    row: int
    seed: int
    t2i: Int64[np.ndarray, "captions shown"]
    i2t: Int64[np.ndarray, "images shown"]


def galleries(rows: Sequence[Row], thumbnail_bytes: int) -> list[dict[str, Any]]:
    """One gallery a test set whose runs have saved what they found; see `_gallery`. All thumbnails: at most the bytes.

    A row is shown by its run with the lowest seed. Runs of older versions have saved nothing and are left out.
    """
    sets: dict[tuple[str, Path], list[int]] = {}
    for i, row in enumerate(rows):
        if row.runs and row.sha256:
            sets.setdefault((row.sha256, row.runs[0][1].parent), []).append(i)
    merged: dict[str, tuple[testset.Queries, list[int]]] = {}
    for (sha256, folder), members in sets.items():
        known = merged[sha256][0] if sha256 in merged else testset.read(folder, sha256)
        if known is not None:
            merged.setdefault(sha256, (known, []))[1].extend(members)
    galleries = []
    for queries, members in merged.values():
        order = sorted(members, key=lambda i: (not rows[i].chosen, i))
        lists: list[_Lists] = []
        while order and len(lists) < MOST_ROWS:
            i = order.pop(0)
            if (each := _read(i, rows[i], queries)) is not None:
                lists.append(each)
        if lists:
            settings = rows[lists[0].row].settings
            galleries.append(_gallery(queries, lists, len(order), settings, thumbnail_bytes // len(merged)))
    return galleries


def _read(i: int, row: Row, queries: testset.Queries) -> _Lists | None:
    """The lists of the row's first run that has saved some for this test set."""
    captions = sum(map(len, queries.captions))
    for seed, folder in row.runs:
        try:
            best = found.from_npz(folder / TOP)
        except UserError:
            continue
        if (len(best.captions), len(best.images)) == (len(queries.images), captions):
            return _Lists(i, seed, best.images[:, :SHOWN], best.captions[:, :SHOWN])
    return None


def _gallery(
    queries: testset.Queries, lists: Sequence[_Lists], left_out: int, settings: dict[str, Any], budget: int
) -> dict[str, Any]:
    """A test set's gallery for the page's script; items are indices in the test set's order.

    `queries`: of each direction, those in which the rows differ most. `rows`: what each found for them, best first, and
    the classes that its first finds are of instead (class, found, times, queries of the class). `wins[side][a][b]`: for
    how many of all `counts[side]` queries row a has a right item among its SHOWN and row b has none. `images` and
    `captions`: the items that are shown: name, class and picture (a data URL, or None), or text and image.
    """
    owner = np.repeat(np.arange(len(queries.images)), [len(each) for each in queries.captions])
    texts = [text for each in queries.captions for text in each]
    right = {
        "t2i": np.stack([each.t2i == owner[:, None] for each in lists]),
        "i2t": np.stack([owner[each.i2t] == np.arange(len(queries.images))[:, None] for each in lists]),
    }
    chosen = {side: telling(right[side]) for side in SIDES}
    shown = {side: [getattr(each, side)[chosen[side]] for each in lists] for side in SIDES}
    uses = Counter(np.concatenate(shown["t2i"]).ravel().tolist())
    wanted = list(dict.fromkeys([*chosen["i2t"], *owner[chosen["t2i"]].tolist(), *(i for i, _ in uses.most_common())]))
    captions = {*chosen["t2i"], *np.concatenate(shown["i2t"]).ravel().tolist()}
    images = sorted({*wanted, *owner[sorted(captions)].tolist()})
    pictures = thumbnails(queries, settings, wanted, budget)
    classes = {"t2i": owner, "i2t": np.arange(len(queries.images))}
    firsts = {"t2i": [each.t2i[:, 0] for each in lists], "i2t": [owner[each.i2t[:, 0]] for each in lists]}
    return {
        "title": queries.dataset,
        "counts": {"t2i": len(owner), "i2t": len(queries.images)},
        "left_out": left_out,
        "queries": chosen,
        "images": {str(i): [queries.images[i], queries.labels[i], pictures.get(i)] for i in images},
        "captions": {str(i): [_cut(texts[i]), int(owner[i])] for i in sorted(captions)},
        "wins": {side: _wins(right[side]) for side in SIDES},
        "rows": [
            {"row": each.row, "seed": each.seed}
            | {side: shown[side][n].tolist() for side in SIDES}
            | {"confused": {side: confused(queries.labels, classes[side], firsts[side][n]) for side in SIDES}}
            for n, each in enumerate(lists)
        ],
    }


def telling(right: Bool[np.ndarray, "rows queries shown"]) -> list[int]:
    """The QUERIES in which the rows differ most: by the standard deviation of 1 / (place of the first right item).

    Of equal ones, as all are with one row alone, those that a spread over the test set meets first; in its order.
    """
    places = np.where(right.any(axis=2), 1 / (1 + right.argmax(axis=2)), 0.0)
    spread = places.std(axis=0).round(9)
    shuffled = np.arange(len(spread)) * 2654435761 % 2**32
    return sorted(np.lexsort((shuffled, -spread))[:QUERIES].tolist())


def _wins(right: Bool[np.ndarray, "rows queries shown"]) -> list[list[int]]:
    hit = right.any(axis=2).astype(np.int64)
    wins: list[list[int]] = np.matmul(hit, (1 - hit).T).tolist()
    return wins


def confused(
    labels: Sequence[str | None], asked: Int64[np.ndarray, " queries"], first: Int64[np.ndarray, " queries"]
) -> list[list[Any]]:
    """[class, class of what was found first, how often, queries of the class] of the most frequent wrong pairs.

    `asked` and `first`: the image of each query, and that of the first item found. [] where classes are unknown.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    asked_for: Counter[str] = Counter()
    for query, answer in zip(asked.tolist(), first.tolist(), strict=True):
        wanted, got = labels[query], labels[answer]
        if wanted is None or got is None:
            continue
        asked_for[wanted] += 1
        if wanted != got:
            pairs[wanted, got] += 1
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:CONFUSED]
    return [[wanted, got, count, asked_for[wanted]] for (wanted, got), count in ordered]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
