"""Scores counted against a bar, on a CPU: how many are above it, and how many reach it. numpy only, no torch.

Tiles of a matrix are compared into booleans in threads (numpy holds no lock while it compares) and added up as bytes,
which is as fast as the comparison: twice as fast as comparing into floats and multiplying by ones.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float32, Int64

TILE = 2**18  # scores that are compared at once: a megabyte, which stays in a core's cache
MOST = 255  # ones that a byte can add up
WORD = 8  # bytes that are added up at once


def by_column(
    scores: Float32[np.ndarray, "rows columns"],
    rows: Int64[np.ndarray, " picked"],
    bar: Float32[np.ndarray, " columns"],
    threads: int,
) -> Int64[np.ndarray, "2 columns"]:
    """For each column, how many of the picked rows have a score above its bar, and how many one that reaches it.

    One column, scores [0.9, 0.5, 0.1], bar 0.5, all rows picked: above 1, reached 2. A row picked twice counts twice.
    """
    found = _each_tile(lambda tile: _columns(_taken(scores, rows[tile]), bar), len(rows), scores.shape[1], threads)
    return np.stack(found).sum(axis=0)


def by_row(
    scores: Float32[np.ndarray, "rows columns"],
    rows: Int64[np.ndarray, " picked"],
    bar: Float32[np.ndarray, " picked"],
    threads: int,
) -> Int64[np.ndarray, "2 picked"]:
    """For each picked row, how many of its scores are above its bar, and how many reach it."""
    found = _each_tile(
        lambda tile: _rows(_taken(scores, rows[tile]), bar[tile, None]), len(rows), scores.shape[1], threads
    )
    return np.concatenate(found, axis=1)


def _each_tile(
    count: Callable[[slice], Int64[np.ndarray, "2 n"]], rows: int, columns: int, threads: int
) -> list[Int64[np.ndarray, "2 n"]]:
    """What `count` gives for each tile, in order."""
    step = max(1, min(MOST, TILE // max(1, columns)))
    tiles = [slice(start, min(rows, start + step)) for start in range(0, rows, step)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(count, tiles))


def _taken(
    scores: Float32[np.ndarray, "rows columns"], rows: Int64[np.ndarray, " picked"]
) -> Float32[np.ndarray, "picked columns"]:
    """These rows; without a copy where each is the next one of the last."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first == len(rows) - 1 and (np.diff(rows) == 1).all():
        return scores[first : last + 1]
    return scores.take(rows, axis=0)


def _columns(
    part: Float32[np.ndarray, "rows columns"], bar: Float32[np.ndarray, " columns"]
) -> Int64[np.ndarray, "2 columns"]:
    held = np.empty(part.shape, np.bool_)
    counted = []
    for compare in (np.greater, np.greater_equal):
        compare(part, bar, out=held)
        counted.append(np.add.reduce(held.view(np.uint8), axis=0, dtype=np.uint8))  # at most MOST rows
    return np.array(counted, dtype=np.int64)


def _rows(part: Float32[np.ndarray, "rows columns"], bar: Float32[np.ndarray, "rows 1"]) -> Int64[np.ndarray, "2 rows"]:
    counted = np.zeros((2, len(part)), np.int64)
    for start in range(0, part.shape[1], WORD * MOST):
        some = part[:, start : start + WORD * MOST]
        width = some.shape[1]
        held = np.zeros((len(part), -(-width // WORD) * WORD), np.bool_)
        for number, compare in enumerate((np.greater, np.greater_equal)):
            compare(some, bar, out=held[:, :width])
            words = np.add.reduce(held.view(np.uint64), axis=1, dtype=np.uint64)  # each byte of it adds up its own
            counted[number] += words.view(np.uint8).reshape(-1, WORD).sum(axis=1, dtype=np.int64)
    return counted
