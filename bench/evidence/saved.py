"""What the runs of one test set hit, from their saved ranks, in one table a run; kept for the next report. No torch."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int64

from bench.config.errors import UserError
from bench.config.files import cache_dir
from bench.core.ranks import KS, Ranks, Saved, from_npz
from bench.evidence.statistics import RECALLS
from bench.store.folder import RANKS

_REMEMBERED = 100  # runs from which on the tables are kept: reading the ranks of a run takes 2 to 10 ms


# Captions an image, hits of its six recalls, and the duplicate-aware recalls of one run.
Entry = tuple[Int64[np.ndarray, " images"], Float32[np.ndarray, "images 6"], Float64[np.ndarray, " 7"]]


@dataclass(frozen=True)
class Tables:
    """The table of each run (see `bench.evidence.statistics`), and its recalls that take duplicates into account.

    captions: how many each image of the test set has. alike: the seven recalls in percent where an identical caption of
    another image is right too; NaN where the run did not save them.
    """

    run_ids: tuple[str, ...]
    captions: Int64[np.ndarray, " images"]
    tables: Float32[np.ndarray, "runs images 6"]
    alike: Float64[np.ndarray, "runs 7"]


def read(folder: Path, run_ids: Sequence[str], block: str) -> Tables:
    """The tables of those runs of a results folder that hold ranks of one test set: as the first of them.

    Left out are runs whose ranks are absent, broken, without the images' captions (older versions), or of another
    number of images or captions. Tables of many runs are kept in the cache, one file for each folder and `block`:
    unchanged ranks are not read again.
    """
    stamps = {run_id: stamp for run_id in run_ids if (stamp := _stamp(folder / run_id / RANKS))}
    key = hashlib.sha256(os.fsencode(f"{folder.resolve()} {block}")).hexdigest()
    note = cache_dir() / "hits" / f"{key[:32]}.npz"
    known = _remembered(note) if len(stamps) >= _REMEMBERED else {}
    captions: Int64[np.ndarray, " images"] | None = None
    found: dict[str, tuple[Float32[np.ndarray, "images 6"], Float64[np.ndarray, " 7"]]] = {}
    for run_id, stamp in stamps.items():
        entry = known.get((run_id, *stamp)) or read_entry(folder / run_id / RANKS)
        if entry is None:
            continue
        counts, table, alike = entry
        captions = counts if captions is None else captions
        if np.array_equal(counts, captions):
            found[run_id] = table, alike
    if captions is None:
        return Tables((), np.zeros(0, np.int64), np.zeros((0, 0, 6), np.float32), np.zeros((0, RECALLS)))
    tables, alike = (np.stack(each) for each in zip(*found.values(), strict=True))
    result = Tables(tuple(found), captions, tables, alike)
    if len(stamps) >= _REMEMBERED and len(known) != len(found):
        _remember(note, result, np.array([stamps[run_id] for run_id in found]))
    return result


def table_of(saved: Saved) -> Float32[np.ndarray, "images 6"] | None:
    """The table of one run; None where the file does not say how many captions each image has."""
    if saved.captions is None or saved.captions.min(initial=1) < 1:
        return None
    if (len(saved.i2t.above), len(saved.t2i.above)) != (len(saved.captions), saved.captions.sum()):
        return None
    first = np.cumsum(saved.captions) - saved.captions
    columns = [_hits(saved.i2t), np.add.reduceat(_hits(saved.t2i), first, axis=1)]
    return np.concatenate(columns).T.astype(np.float32)


def _hits(ranks: Ranks) -> Float64[np.ndarray, "3 queries"]:
    """`Ranks.hits` for each of KS, which is slow where nothing ties."""
    out = (ranks.above < np.array(KS)[:, None]).astype(float)
    tied = ranks.tied > 0
    if tied.any():
        some = Ranks(ranks.above[tied], ranks.tied[tied], ranks.own[tied])
        out[:, tied] = [some.hits(k) for k in KS]
    return out


def read_entry(path: Path) -> Entry | None:
    """(captions, table, recalls with duplicates) of a ranks file; None where it is not there, or holds no table."""
    try:
        saved = from_npz(path)
    except UserError:
        return None
    table = table_of(saved)
    if table is None:
        return None
    alike = np.full(RECALLS, np.nan)
    if saved.alike_i2t is not None and saved.alike_t2i is not None:
        six = np.concatenate([100 * _hits(ranks).mean(axis=1) for ranks in (saved.alike_i2t, saved.alike_t2i)])
        alike = np.array([*six, six.mean()])
    assert saved.captions is not None
    return saved.captions, table, alike


def _stamp(path: Path) -> tuple[int, int] | None:
    """(time of change in ns, size) of a file; None if it is not there."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _remembered(note: Path) -> dict[tuple[str, int, int], Entry]:
    """The entries in a note, by run and stamp; {} if there is no such file, or something else."""
    try:
        with np.load(note, allow_pickle=False) as held:
            captions, tables, alike = held["captions"], held["tables"], held["alike"]
            keys = [
                (str(name), int(time), int(size))
                for name, (time, size) in zip(held["run_ids"], held["stamps"], strict=True)
            ]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    return {key: (captions, tables[i], alike[i]) for i, key in enumerate(keys)}


def _remember(note: Path, content: Tables, stamps: Int64[np.ndarray, "runs 2"]) -> None:
    with suppress(OSError):  # a cache that can't be written: the ranks are read again next time
        note.parent.mkdir(parents=True, exist_ok=True)
        part = note.with_suffix(f".{os.getpid()}.npz")
        np.savez(
            part,
            run_ids=np.array(content.run_ids),
            stamps=stamps,
            captions=content.captions,
            tables=content.tables,
            alike=content.alike,
        )
        part.replace(note)
