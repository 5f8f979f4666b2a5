"""Counts and problems of a dataset on disk, as text, before any run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bench.data import DATASETS, Item, is_empty, load, locate, raw_splits
from bench.data.annotations import FILES
from bench.data.images import absent
from bench.data.pixels import decode, fault, pool, strict

if TYPE_CHECKING:
    from bench.config.settings import DatasetSettings


def check(settings: DatasetSettings, echo: Callable[[str], None] = print) -> int:
    """Print counts per split and every problem with the data, line by line through `echo`; the number of problems.

    A problem is an empty caption, a missing image, one that does not decode, or two names that are found as one file.
    UserError if the annotations can't be read at all.
    """
    dataset = load(settings)
    raw = raw_splits(settings)
    used = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    echo(f"{dataset.name}, split {dataset.split}, images in {dataset.root}, sha256 {dataset.sha256}")
    echo(f"{'':6}{'images':>8}{'captions':>10}{'unique':>8}{'shared':>8}   (shared: captions that several images have)")
    for title, items in used.items():
        echo(f"{title:6}{len(items):8}{_caption_counts(items)}")
    kept = {item.image: split for split, items in used.items() for item in items}
    problems = _listed(echo, "empty captions", _empty_captions(raw))
    dropped = sum(is_empty(caption) for item in raw["train"] for caption in item.captions)
    if dropped:
        echo(
            f"dropped from training: {dropped} captions, {sum(item.image not in kept for item in raw['train'])} images"
        )
    root = dataset.root
    found = {name: locate(root, name, split) for name, split in sorted(kept.items())}
    problems += _listed(echo, "missing images", (absent(root, name) for name, path in found.items() if path is None))
    problems += _listed(echo, "unreadable images", _unreadable(found))
    problems += _listed(echo, "files with several names", _doubles(found))
    echo(f"{problems} problems" if problems else f"no problems in {len(kept)} images")
    return problems


def table() -> str:
    """The known datasets: name, splits with the files they are read from, title."""
    lines = []
    for name, info in DATASETS.items():
        lines.append(f"{name:8}{info.title}")
        for split in info.splits:
            files = ", ".join(FILES.get(split, ("no files needed",)))
            default = " (default)" if split == info.splits[0] else ""
            lines.append(f"{'':8}{split + default:20}{files}")
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


def _unreadable(found: dict[str, Path | None]) -> Iterator[str]:
    def complaint(named: tuple[str, Path | None]) -> str | None:
        name, path = named
        try:
            if path is not None:
                decode(path)
        except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
            return f"{name}: {fault(error)}"
        return None

    with strict(), pool() as threads:
        yield from filter(None, threads.map(complaint, found.items()))


def _doubles(found: dict[str, Path | None]) -> Iterator[str]:
    names = defaultdict(list)
    for name, path in found.items():
        names[path].append(name)
    return (f"{path}: {', '.join(each)}" for path, each in names.items() if path is not None and len(each) > 1)


def _listed(echo: Callable[[str], None], title: str, lines: Iterator[str]) -> int:
    listed = list(lines)
    echo(f"{title}: {len(listed)}")
    for line in listed:
        echo(f"  {line}")
    return len(listed)
