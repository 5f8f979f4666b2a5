"""What was found for every query: its best items in order, and the file that holds them. numpy only, no torch."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from bench.config.errors import UserError

BEST = 10  # items of each query, fewer where there are not so many


@dataclass(frozen=True)
class Found:
    """The content of top.npz: for each query the indices of its best items in the dataset's order, the best first.

    captions: of each image, among all captions. images: of each caption. Items of equal score are in an order that
    depends neither on which of them is right nor on the query: that of `bench.core.evaluate.best_items`.
    """

    captions: Int64[np.ndarray, "images best_captions"]
    images: Int64[np.ndarray, "captions best_images"]


def to_npz(found: Found) -> bytes:
    """The bytes of top.npz, in the smallest type that holds the indices."""
    sides = {"captions": found.captions, "images": found.images}
    buffer = io.BytesIO()
    small = {name: each.astype(np.min_scalar_type(each.max())) for name, each in sides.items()}
    np.savez_compressed(buffer, **small)  # type: ignore[arg-type]
    return buffer.getvalue()


def from_npz(path: Path) -> Found:
    """What a file of `to_npz`'s bytes holds. Raises UserError for any other file."""
    try:
        with np.load(path, allow_pickle=False) as held:
            captions, images = (held[name] for name in ("captions", "images"))
            for each, most in ((captions, len(images)), (images, len(captions))):
                if each.ndim != 2 or each.dtype.kind != "u" or not each.size or each.max() >= most:
                    raise ValueError("indices out of range")
            return Found(captions.astype(np.int64), images.astype(np.int64))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} does not hold the best items of queries ({type(error).__name__})") from error
