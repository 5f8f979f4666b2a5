"""Where the images of a dataset lie on disk: one walk of the root, then look-ups in memory. No numpy, no torch."""

from __future__ import annotations

import bisect
import difflib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from bench.config.errors import UserError

# Folders that hold a dataset's pictures and say nothing about them; compared without case.
_SHELVES = ("images", "imgs", *(f"{name}_images" for name in ("rsitmd", "rsicd", "ucm", "sydney", "nwpu")))
_SPLIT_WORDS = {  # restval: what Karpathy's COCO adds to its training images
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# The split folders in which an image may lie whose name has none. Validation is part of training in some layouts and
# held out of it in others, so these two share; a test picture never comes from theirs, nor theirs from test.
_SPLIT_FOLDERS = {"train": ("train", "val"), "val": ("val", "train"), "test": ("test",)}
PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".ppm", ".pgm")
SHOWN = 10  # problems that a message lists
_MOST_FILES = 5_000_000  # in a root: beyond it, the root is no folder of pictures
_RACY_SECONDS = 2  # a folder that changed so shortly before it was read may change again without a new time
_SMALL = 1000  # pictures among which the nearest name is looked for; among more, only the neighbours in the alphabet


def split_word(part: str) -> str | None:
    """The split that a folder's name stands for: `validation` is val; None for any other name."""
    return _SPLIT_WORDS.get(part.lower())


@dataclass
class Images:
    """The files under a dataset's root, by name. Links are followed, also to folders and files outside the root.

    `files` has, for each name without a picture's extension, the (folder, file name) of each file, folders relative to
    the root and "" for the root itself. `stamps` has the time of change of each folder, None where it may change again
    unnoticed. `unreadable`: folders that could not be read.
    """

    root: Path
    files: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    stamps: dict[str, int | None] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    count: int = 0

    def find(self, name: str, split: str | None) -> Path | None:
        """The file for image `name` of a split, or None.

        Searched in turn, first for the name itself, then with another picture's extension (`x.JPG` for `x.tif`), with F
        standing for the root, its folder images, imgs, and RSITMD_images and the like: the name as written in F; its
        base name in F; its base name in F/<split folder>. After these, in all folders below the root.

        The split folder is the one in the name (`test/port_2.tif`), else those of `split`; None searches none. A file
        in a folder of another split is never taken, nor one in another class's folder than the name has.
        UserError if the name leads out of the root, or if several files fit.
        """
        written = PurePosixPath(name)
        if written.is_absolute() or ".." in written.parts:
            raise UserError(f"image {name!r} leaves the dataset's root {self.root}; write it relative to the root")
        here = self.files.get(_stem(written.name), [])
        exact = [(folder, file) for folder, file in here if file == written.name]
        other = [(folder, file) for folder, file in here if file != written.name and _is_picture(file)]
        for known in (exact, other):
            for place in self._places(written, split) if known else ():
                if found := [(folder, file) for folder, file in known if folder == place]:
                    return self._one(name, found)
        for known in (exact, other):
            if found := _below(known, written, split):
                return self._one(name, found)
        return None

    def _places(self, written: PurePosixPath, split: str | None) -> Iterator[str]:
        """The folders where an image may lie, best first."""
        shelves = self._shelves
        inside = written.parent.as_posix()
        yield from (_join(shelf, "" if inside == "." else inside) for shelf in shelves)
        yield from shelves
        for each in _allowed(written, split):
            yield from (_join(shelf, each) for shelf in shelves)

    @cached_property
    def _shelves(self) -> list[str]:
        tops = sorted(folder for folder in self.stamps if folder and "/" not in folder)
        return ["", *(top for each in _SHELVES for top in tops if top.lower() == each)]

    def _one(self, name: str, found: Sequence[tuple[str, str]]) -> Path:
        """The one file of those found: several paths of one file, through links, are one."""
        paths = [self.root / folder / file for folder, file in sorted(found)]
        if len(paths) > 1 and len({path.resolve() for path in paths}) > 1:
            places = " and ".join(path.relative_to(self.root).as_posix() for path in paths[:3])
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            raise UserError(f"{name}: ambiguous: {places}{more}; write its folder in the annotations, or remove one")
        return paths[0]

    def nearest(self, name: str, split: str | None) -> str:
        """What there is in place of a missing image, as words behind its name; "" if nothing is near.

        A file of that name in a folder of another split may be another picture, and taking it would score a model on
        what it was trained on.
        """
        written = PurePosixPath(name)
        stem = _stem(written.name)
        pictures = [each for each in self.files.get(stem, []) if _is_picture(each[1])]
        if pictures:
            place = _join(*sorted(pictures)[0])
            word = "split" if any(split_word(part) for part in PurePosixPath(place).parent.parts) else "folder"
            return f" ({place} is of another {word})"
        stems = self._picture_stems
        if len(stems) > _SMALL:
            at = bisect.bisect(stems, stem)
            stems = stems[max(0, at - _SMALL // 2) : at + _SMALL // 2]
        close = difflib.get_close_matches(stem[:100], stems, n=1, cutoff=0.6)
        if not close:
            return ""
        return f" (nearest: {next(_join(*each) for each in self.files[close[0]] if _is_picture(each[1]))})"

    @cached_property
    def _picture_stems(self) -> list[str]:
        return sorted(stem for stem, found in self.files.items() if any(_is_picture(file) for _, file in found))

    def searched(self) -> str:
        """Where images were looked for, in words."""
        folders = [f for f in self.stamps if f]
        names = f" ({', '.join(sorted(folders)[:5])}{', ...' if len(folders) > 5 else ''})" if folders else ""
        pictures = sum(_is_picture(file) for found in self.files.values() for _, file in found)
        unread = f"; folders that can't be read: {', '.join(self.unreadable[:3])}" if self.unreadable else ""
        return (
            f"looked in {self.root} and {len(folders):,} folders below it{names}: {pictures:,} pictures; by the name "
            f"as written, its base name, and either with another extension{unread}"
        )


_indexed: dict[Path, Images] = {}


def images(root: Path) -> Images:
    """The index of a root. It is read once in a process, and again when one of its folders has changed."""
    known = _indexed.get(root)
    if known is None or not all(stamp is not None and _changed(root / f) == stamp for f, stamp in known.stamps.items()):
        known = _indexed[root] = _walk(root)
    return known


def locate(root: Path, name: str, split: str | None) -> Path | None:
    """The file for image `name` of a split, or None: `Images.find` in the root's index."""
    return images(root).find(name, split)


def locate_all(root: Path, wanted: Iterable[tuple[str, str | None]]) -> tuple[dict[str, Path], dict[str, str]]:
    """(name -> file of each image that is found, name -> what is known of each that is not) of (name, split) pairs.

    What is known is "" for all but the first few missing ones: it takes a comparison with every name.
    """
    index = images(root)
    found: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for name, split in wanted:
        try:
            path = index.find(name, split)
        except UserError as error:
            missing[name] = str(error).removeprefix(name)
            continue
        if path is not None:
            found[name] = path
        else:
            missing[name] = index.nearest(name, split) if len(missing) < SHOWN else ""
    return found, missing


def _walk(root: Path) -> Images:
    """All files under the root, hidden folders aside. A link to a folder that it lies in is not followed."""
    index = Images(root)
    todo: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while todo:
        folder, above = todo.pop()
        try:
            status = (root / folder).stat()
            own = (status.st_dev, status.st_ino)
            if own in above:
                continue
            settled = status.st_mtime_ns < time.time_ns() - _RACY_SECONDS * 10**9
            index.stamps[folder] = status.st_mtime_ns if settled else None
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    with suppress(OSError):  # a link in a circle costs itself, not the rest of its folder
                        if entry.is_dir():
                            if not entry.name.startswith("."):
                                todo.append((_join(folder, entry.name), (*above, own)))
                        elif entry.is_file():
                            index.files.setdefault(_stem(entry.name), []).append((folder, entry.name))
                            index.count += 1
        except OSError:
            index.unreadable.append(folder or ".")
        if index.count > _MOST_FILES:
            raise UserError(
                f"over {_MOST_FILES:,} files under {root}; set dataset.root to the folder that holds the images alone"
            )
    return index


def _below(known: Sequence[tuple[str, str]], written: PurePosixPath, split: str | None) -> list[tuple[str, str]]:
    """Those files in any folder that may be the image: of an allowed split, the best one, and of the name's folders."""
    wanted = [part for part in written.parent.parts if not _is_general(part)]
    allowed = [split_word(each) for each in _allowed(written, split)]
    tiers: dict[str | None, list[tuple[str, str]]] = {}
    for folder, file in known:
        parts = PurePosixPath(folder).parts
        classes = [part for part in parts if not _is_general(part)]
        if not wanted or classes[-len(wanted) :] == wanted:
            of = [word for part in parts if (word := split_word(part))]
            tiers.setdefault(of[-1] if of else None, []).append((folder, file))
    return next((tiers[each] for each in (*allowed, None) if each in tiers), [])


def _allowed(written: PurePosixPath, split: str | None) -> Sequence[str]:
    """The split folders in which an image may lie: the one in its name, else those of its split."""
    named = [part for part in written.parent.parts if split_word(part)]
    return named[-1:] or _SPLIT_FOLDERS.get(split or "", ())


def _is_general(part: str) -> bool:
    """Whether a folder's name says nothing of a picture's class."""
    return split_word(part) is not None or part.lower() in _SHELVES


def _is_picture(file: str) -> bool:
    return file.lower().endswith(PICTURES)


def _stem(file: str) -> str:
    """A file's name without a picture's extension; `v1.5_port` has none."""
    return os.path.splitext(file)[0] if _is_picture(file) else file  # noqa: PTH122


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _changed(folder: Path) -> int | None:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None
