"""Counts and problems of a dataset on disk, as text, before any run."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bench.config.files import cache_dir, cache_errors
from bench.data import DATASETS, Item, is_empty, load, raw_splits
from bench.data.annotations import FILES
from bench.data.duplicates import KS, ceilings
from bench.data.images import SHOWN, images, locate_all
from bench.data.pixels import decode, fault, pool, strict

if TYPE_CHECKING:
    from bench.config.settings import AnyDataset


def check(settings: AnyDataset, echo: Callable[[str], None] = print, out: Path | None = None) -> int:
    """Print counts per split and what is wrong with the data, line by line through `echo`; the number of problems.

    A problem is a missing image, one that does not decode, or two names that are found as one file. Empty captions are
    noted alone: released files have some. Lists are cut at ten lines; where one is cut, or `out` is given, all are
    written to a file, `out` or one in the cache. UserError if the annotations can't be read at all.
    """
    dataset = load(settings)
    raw = raw_splits(settings)
    used = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    echo(f"{dataset.name}, split {dataset.split}, images in {dataset.root}, sha256 {dataset.sha256}")
    echo(f"{'':6}{'images':>8}{'captions':>10}{'unique':>8}{'shared':>8}   (shared: captions that several images have)")
    for title, items in used.items():
        echo(f"{title:6}{len(items):8}{_caption_counts(items)}")
    echo("the most a model can reach on test, since captions repeat (in percent):")
    most = ceilings(dataset.test)
    for side, title in (("i2t", "image-to-text"), ("t2i", "text-to-image")):
        echo(f"  {title} " + ", ".join(f"R@{k} {most[f'{side}_r{k}']:.1f}" for k in KS))
    kept = {item.image: split for split, items in used.items() for item in items}
    lists = _Lists(echo)
    lists.add("empty captions (a note, no problem)", _empty_captions(raw), problem=False)
    dropped = sum(is_empty(caption) for item in raw.get("train", ()) for caption in item.captions)
    if dropped:
        echo(
            f"dropped from training: {dropped} captions, {sum(item.image not in kept for item in raw['train'])} images"
        )
    found, missing = locate_all(dataset.root, sorted(kept.items()))
    lists.add("missing images", (f"{name}{known}" for name, known in missing.items()))
    if missing:
        echo(f"  {images(dataset.root).searched()}")
    lists.add("unreadable images", _unreadable(found))
    lists.add("files with several names", _doubles(found))
    echo(f"{lists.problems:,} problems" if lists.problems else f"no problems in {len(kept):,} images")
    root = hashlib.sha256(os.fsencode(dataset.root.absolute())).hexdigest()[:8]
    lists.write(out, cache_dir() / "checks" / f"{dataset.name}-{root}.txt")
    return lists.problems


class _Lists:
    """Lists of what was found, the first lines of each printed."""

    def __init__(self, echo: Callable[[str], None]) -> None:
        self.echo = echo
        self.lines: list[str] = []
        self.problems = 0
        self.cut = False

    def add(self, title: str, lines: Iterator[str], problem: bool = True) -> None:
        """Print the title with the number of lines, and the first lines."""
        listed = list(lines)
        self.lines += [f"{title}: {len(listed)}", *(f"  {line}" for line in listed)]
        for line in [f"{title}: {len(listed)}", *(f"  {line}" for line in listed[:SHOWN])]:
            self.echo(line)
        if len(listed) > SHOWN:
            self.cut = True
            self.echo(f"  and {len(listed) - SHOWN:,} more")
        self.problems += len(listed) if problem else 0

    def write(self, out: Path | None, default: Path) -> None:
        """Write all lines to `out`, or to `default` where one was cut, and print where they are."""
        path = out or (default if self.cut else None)
        if path is None:
            return
        with cache_errors("list of problems", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in self.lines), encoding="utf-8", errors="replace")
        self.echo(f"the whole lists: {path}")


def table() -> str:
    """The known datasets: name, splits with the files they are read from, title."""
    lines = []
    for name, info in DATASETS.items():
        lines.append(f"{name:8}{info.title}")
        for split in info.splits:
            files = ", ".join(FILES.get(split, ("no files needed",)))
            default = " (default)" if split == info.splits[0] else ""
            lines.append(f"{'':8}{split + default:20}{files}")
    lines.append("captions  images and captions of your own")
    lines.append(f"{'':8}{'':20}captions or metadata .csv, .tsv, .json, .jsonl, or metadata in train/, val/, test/")
    return "\n".join(lines)


def _caption_counts(items: tuple[Item, ...]) -> str:
    captions = [caption for item in items for caption in item.captions]
    holders = Counter(caption for item in items for caption in set(item.captions))
    shared = sum(holders[caption] > 1 for caption in captions)
    return f"{len(captions):10}{len(holders):8}{shared:8}"


def _empty_captions(raw: dict[str, tuple[Item, ...]]) -> Iterator[str]:
    for split, items in raw.items():
        for item in items:
            empty = sum(map(is_empty, item.captions))
            if empty or not item.captions:
                yield f"{item.image} ({split}): {empty} of {len(item.captions)}"


def _unreadable(found: dict[str, Path]) -> Iterator[str]:
    def complaint(named: tuple[str, Path]) -> str | None:
        name, path = named
        try:
            decode(path)
        except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
            return f"{name}: {fault(error)}"
        return None

    with strict(), pool() as threads:
        yield from filter(None, threads.map(complaint, found.items()))


def _doubles(found: dict[str, Path]) -> Iterator[str]:
    names = defaultdict(list)
    for name, path in found.items():
        names[path].append(name)
    return (f"{path}: {', '.join(each)}" for path, each in names.items() if len(each) > 1)
