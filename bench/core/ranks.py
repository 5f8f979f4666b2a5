"""From ranks to recall, with ties counted fairly, and the file that holds the ranks. numpy only, no torch.

Ties. A query whose correct item has the same score as some wrong ones has no single rank. Recall is its *expectation*
under a random order of tied items: a collapsed model, which gives every pair the same score, gets exactly chance, where
counting strictly higher scores gives it 100. Optimistic and pessimistic recall (every tie won, every tie lost) are the
bounds. Image-to-text takes the best rank among an image's captions, text-to-image that of the caption's one image.
Without ties it is the usual R@K.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from bench.config.errors import UserError

KS = (1, 5, 10)


@dataclass(frozen=True)
class Ranks:
    """How many items are before and beside the best correct item of each query.

    above: wrong items with a strictly higher score. tied: wrong items with exactly its score.
    own: correct items with exactly its score, itself included (at least 1).
    """

    above: Int64[np.ndarray, " queries"]
    tied: Int64[np.ndarray, " queries"]
    own: Int64[np.ndarray, " queries"]

    @property
    def expected(self) -> Float64[np.ndarray, " queries"]:
        """Expected rank (from 1) of the first correct item under a random order of tied items.

        Above 1, tied 2, own 1: rank 2, 3 or 4 with equal chance, so 3.
        """
        return self.above + (self.own + self.tied + 1) / (self.own + 1)

    def hits(self, k: int) -> Float64[np.ndarray, " queries"]:
        """Probability that a correct item is among the first k under a random order of tied items.

        Above 1, tied 2, own 1: 0 for k = 1, then 1/3, 2/3 and 1.
        """
        found = (self.above < k).astype(np.float64)
        open_ = np.flatnonzero((self.tied > 0) & (self.above < k))
        above, tied, own = (each[open_] for each in (self.above, self.tied, self.own))
        # All k - above places left go to wrong items with probability C(tied, left) / C(tied + own, left).
        miss = np.ones(len(open_))
        for place in range(int((k - above).max(initial=0))):
            share = np.clip(tied - place, 0, None) / np.clip(tied + own - place, 1, None)
            miss *= np.where(place < k - above, share, 1.0)
        found[open_] -= miss
        return found

    def recall(self, k: int) -> float:
        """R@k in percent, the expectation over ties."""
        return float(100 * self.hits(k).mean())

    def bounds(self, k: int) -> tuple[float, float]:
        """R@k in percent with every tie lost, and with every tie won."""
        return float(100 * (self.above + self.tied < k).mean()), float(100 * (self.above < k).mean())


def metrics(i2t: Ranks, t2i: Ranks) -> dict[str, float | int]:
    """The six recalls and their mean in percent, the bounds of the mean, how many queries have ties, and sizes."""
    recalls = {f"{side}_r{k}": ranks.recall(k) for side, ranks in (("i2t", i2t), ("t2i", t2i)) for k in KS}
    bounds = np.array([ranks.bounds(k) for ranks in (i2t, t2i) for k in KS])
    return {
        **recalls,
        "mean_recall": float(np.mean(list(recalls.values()))),
        "mean_recall_pessimistic": float(bounds[:, 0].mean()),
        "mean_recall_optimistic": float(bounds[:, 1].mean()),
        "i2t_ties": int((i2t.tied > 0).sum()),
        "t2i_ties": int((t2i.tied > 0).sum()),
        "images": len(i2t.above),
        "captions": len(t2i.above),
    }


@dataclass(frozen=True)
class Saved:
    """The content of ranks.npz: the ranks of every query in the dataset's order, in both directions.

    captions: how many each image has; an image's captions are neighbours. `alike_*`: the ranks where an identical
    caption of another image is right too (`bench.core.evaluate.alike`). None in files that older versions wrote.
    """

    i2t: Ranks
    t2i: Ranks
    captions: Int64[np.ndarray, " images"] | None = None
    alike_i2t: Ranks | None = None
    alike_t2i: Ranks | None = None


_SIDES, _FIELDS = ("i2t", "t2i", "alike_i2t", "alike_t2i"), ("above", "tied", "own")


def to_npz(saved: Saved) -> bytes:
    """The bytes of ranks.npz: above, tied and own of every query for each of `Saved`'s ranks, and captions."""
    sides = {side: ranks for side in _SIDES if (ranks := getattr(saved, side)) is not None}
    arrays = {f"{side}_{name}": getattr(ranks, name) for side, ranks in sides.items() for name in _FIELDS}
    if saved.captions is not None:
        arrays["captions"] = saved.captions
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def from_npz(path: Path) -> Saved:
    """The ranks from a file of `to_npz`'s bytes. Raises UserError for any other file."""
    try:
        held = _arrays(path)
        found = {
            side: Ranks(*(held[f"{side}_{name}"].astype(np.int64) for name in _FIELDS))
            for side in _SIDES
            if side in ("i2t", "t2i") or f"{side}_above" in held
        }
        captions = held["captions"].astype(np.int64) if "captions" in held else None
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(f"{path} does not hold ranks ({type(error).__name__}); run this run again") from error
    return Saved(**found, captions=captions)


def _arrays(path: Path) -> dict[str, Shaped[np.ndarray, " values"]]:
    """The arrays of an npz file of numbers, as np.load gives them in three times the time: reports read thousands.

    ValueError for arrays of anything else, or of more than one dimension.
    """
    found = {}
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.infolist():
            data = _unpacked(content, member)
            start = 10 + int.from_bytes(data[8:10], "little")
            shape, kind = _header(data[:start])
            found[member.filename.removesuffix(".npy")] = np.frombuffer(data, kind, offset=start, count=shape[0])
    return found


def _unpacked(content: bytes, member: zipfile.ZipInfo) -> bytes:
    """A file of a zip archive's bytes. `ZipFile.read` makes a file object for each, which takes longer than unpacking.

    ValueError where it is packed in another way than numpy's, or damaged.
    """
    head = member.header_offset
    name, extra = (int.from_bytes(content[head + at : head + at + 2], "little") for at in (26, 28))
    start = head + 30 + name + extra
    if content[head + 30 : head + 30 + name] != member.filename.encode():
        raise ValueError(f"{member.filename}: not where the archive says")
    packed = content[start : start + member.compress_size]
    if member.compress_type == zipfile.ZIP_DEFLATED:
        packed = zlib.decompress(packed, -15, member.file_size)
    elif member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename}: packed in another way")
    if zlib.crc32(packed) != member.CRC:
        raise ValueError(f"{member.filename}: damaged")
    return packed


@lru_cache(maxsize=256)  # the files of a sweep have the same few headers
def _header(data: bytes) -> tuple[tuple[int], np.dtype[Any]]:
    """Shape and type of a npy file's array, from its first bytes."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not a npy file of version 1.0")
    shape, _, kind = np.lib.format.read_array_header_1_0(file)
    if len(shape) != 1 or kind.kind not in "iu":
        raise ValueError(f"an array of {kind} with shape {shape}")
    return shape, kind
