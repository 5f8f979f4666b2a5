"""The best images of a folder for a caption, by an adapted model: what `bench.retrieve(...)` gives."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.compute.adapted import Adapted, load
from bench.config.errors import UserError
from bench.config.files import is_folder
from bench.data.images import PICTURES
from bench.data.pixels import decode, fault, pool, resized, strict

BATCH = 64  # images in memory at once


class Found(NamedTuple):
    """An image and its cosine similarity to the caption, from -1 to 1."""

    path: Path
    score: float


@dataclass(frozen=True)
class Retrieval:
    """The best images for a caption, best first; iterating over it gives (path, score).

    searched: how many images were compared. skipped: files that were not, with the reason in a few words.
    """

    caption: str
    folder: Path
    best: tuple[Found, ...]
    searched: int
    skipped: tuple[tuple[Path, str], ...]

    def __iter__(self) -> Iterator[Found]:
        return iter(self.best)

    def __len__(self) -> int:
        return len(self.best)


def retrieve(
    run: str | Path | Adapted,
    caption: str,
    folder: str | Path,
    top: int = 10,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Retrieval:
    """The `top` images under `folder` that fit the caption best, by the adapted model of a finished run.

    run: a run's folder, or what `bench.load` gave, which saves loading it again. All files with a picture's extension
    count, at any depth; what can't be decoded is skipped and named, and so are links out of the folder. Images of equal
    scores are in the order of their paths. progress(done, total) counts images.
    UserError for a caption without words, a folder without pictures, and as `bench.load`.
    """
    folder = Path(folder)
    if not caption.strip():
        raise UserError("the caption is empty; describe what to look for, such as 'two planes beside a terminal'")
    if top < 1:
        raise UserError(f"top is {top}; ask for at least one image")
    if not is_folder(folder):
        raise UserError(f"no folder '{folder}'; give the folder that holds the pictures")
    paths, skipped = pictures(folder)
    if not paths:
        raise UserError(f"no pictures under '{folder}' ({', '.join(PICTURES)}){_first(skipped)}")
    adapted = run if isinstance(run, Adapted) else load(Path(run), device)
    text = adapted.encode_texts(caption)
    scores: list[Found] = []
    for start in range(0, len(paths), BATCH):
        chunk = paths[start : start + BATCH]
        pixels = _pixels(adapted, chunk, skipped)
        if pixels:
            embeddings = adapted.encode_pixels(np.stack(list(pixels.values())))
            values = adapted.similarity(embeddings, text)[:, 0].tolist()
            scores += map(Found, pixels, values)
        if progress:
            progress(start + len(chunk), len(paths))
    if not scores:
        raise UserError(f"none of the {len(paths)} pictures under '{folder}' can be compared{_first(skipped)}")
    best = sorted(scores, key=lambda found: (-found.score, str(found.path)))[:top]
    return Retrieval(caption, folder, tuple(best), len(scores), tuple(skipped))


def _first(skipped: list[tuple[Path, str]]) -> str:
    return f"; {skipped[0][0]}: {skipped[0][1]}" if skipped else ""


def pictures(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The files under the folder with a picture's extension, sorted; and those that are skipped, with the reason.

    Linked folders are not entered; a linked file counts if it lies in the folder as well.
    """
    root, found, skipped = folder.resolve(), [], []

    def unreadable(error: OSError) -> None:
        skipped.append((Path(error.filename or folder), f"can't be read: {error.strerror}"))

    for place, folders, files in os.walk(folder, onerror=unreadable):
        for name in folders:
            if (link := Path(place, name)).is_symlink():
                skipped.append((link, "a link to a folder, which is not followed"))
        for name in files:
            path = Path(place, name)
            if path.suffix.lower() not in PICTURES or name.startswith("."):
                continue
            reason = _outside(path, root)
            if reason:
                skipped.append((path, reason))
            else:
                found.append(path)
    return sorted(found), sorted(skipped)


def _outside(path: Path, root: Path) -> str | None:
    """Why a file is not opened: it leads out of the root, or is no file of bytes."""
    try:
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            return "a link out of the folder, which is not followed"
        return None if path.is_file() else "no regular file"
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        return f"can't be read: {error}"


def _pixels(adapted: Adapted, paths: list[Path], skipped: list[tuple[Path, str]]) -> dict[Path, np.ndarray]:
    """The pixels of those images that can be decoded; the others are added to `skipped`."""
    size, mode = adapted.model.image_size, adapted.resize

    def read(path: Path) -> np.ndarray | str:
        try:
            return np.array(resized(decode(path), size, mode))
        except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
            return fault(error)

    with strict(), pool() as threads:
        found = dict(zip(paths, threads.map(read, paths), strict=True))
    skipped += [(path, each) for path, each in found.items() if isinstance(each, str)]
    return {path: each for path, each in found.items() if not isinstance(each, str)}
