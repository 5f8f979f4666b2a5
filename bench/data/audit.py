"""Duplicates within and across datasets and their splits: a table, a page of pairs, and lists of images to leave out.

Pictures are compared by `bench.data.similar`, captions by `bench.data.duplicates.words`. No torch.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from bench.config.errors import UserError
from bench.config.files import make_folder, write_bytes
from bench.data import Item, load
from bench.data.annotations import SPLITS
from bench.data.duplicates import words
from bench.data.images import locate_all
from bench.data.similar import near, thumbnails

if TYPE_CHECKING:
    from bench.config.settings import AnyDataset

SHARED_CAPTIONS = 3  # different captions that two images have in common before the pair is reported
_SHOWN = 100  # pairs on the page
_FREQUENT = 50  # a caption of more images says nothing of any two
_HELD = ("val", "test")


@dataclass(frozen=True)
class Entry:
    """One image of one dataset; `path` is None where its picture was not found."""

    dataset: str
    split: str
    item: Item
    path: Path | None

    @property
    def where(self) -> str:
        """Dataset and split in words."""
        return f"{self.dataset} {self.split}"


@dataclass(frozen=True)
class Pair:
    """Two images, by their places among the entries, and in how they are one: `what` as in pairs.csv."""

    first: int
    second: int
    what: str
    how: str
    score: float


@dataclass(frozen=True)
class Row:
    """How many images or captions `of` a split are also `within` another (or twice in the same)."""

    what: str
    of: str
    within: str
    count: int
    percent: float


def audit(datasets: Sequence[AnyDataset], out: Path, echo: Callable[[str], None] = print) -> int:
    """Write table.csv, pairs.csv, index.html and a list `exclude-<dataset>.txt` each to `out`, and print the table.

    Returns how many training images are duplicates of a validation or test image of any of the datasets: those in the
    lists. Pictures that are missing or broken are left out of the comparison, and counted.
    UserError if annotations can't be read, two datasets have one name, or `out` can't be written.
    """
    entries = [entry for settings in datasets for entry in _entries(settings)]
    names = list(dict.fromkeys(entry.dataset for entry in entries))
    if len(names) < len(datasets):
        raise UserError("audit: two of the datasets have the same name; give one of them another title=...")
    pictures = thumbnails([entry.path for entry in entries if entry.path is not None])
    held = iter(pictures)
    thumbs = [None if entry.path is None else next(held) for entry in entries]
    unseen = sum(thumb is None for thumb in thumbs)
    if unseen:
        echo(f"{unseen:,} of {len(entries):,} pictures are missing or broken, and are compared by captions alone")
    pairs = [*_image_pairs(entries, thumbs), *_caption_pairs(entries)]
    pairs.sort(key=lambda pair: (not _leaks(entries, pair), pair.what == "captions", -pair.score))
    table = [*_image_rows(entries, pairs), *_caption_rows(entries)]
    for row in table:
        echo(f"{row.what:18} {row.of:16} in {row.within:16} {row.count:7,}  {row.percent:5.1f}%")
    lists = {name: list(_excluded(entries, pairs, name)) for name in names}
    files = {
        "table.csv": _csv(["what", "of", "in", "count", "percent"], [list(vars(row).values()) for row in table]),
        "pairs.csv": _pairs_csv(entries, pairs),
        "index.html": _page(entries, thumbs, pairs, table, " and ".join(names)),
        **{f"exclude-{name}.txt": "".join(f"{line}\n" for line in lines) for name, lines in lists.items()},
    }
    make_folder(out)
    for name, content in files.items():
        write_bytes(out / name.replace("/", "_"), content.encode())
    leaked = sum(not line.startswith("#") for lines in lists.values() for line in lines)
    echo(f"{leaked:,} training images are duplicates of validation or test images; pairs: {out / 'index.html'}")
    for name, lines in lists.items():
        if lines:
            echo(f"to leave them out: dataset: {{name: {name}, exclude: {out / f'exclude-{name}.txt'}}}")
    return leaked


def _entries(settings: AnyDataset) -> Iterator[Entry]:
    dataset = load(settings)
    splits = {split: getattr(dataset, split) for split in SPLITS}
    found, _ = locate_all(dataset.root, [(item.image, split) for split, items in splits.items() for item in items])
    for split, items in splits.items():
        for item in items:
            yield Entry(dataset.name, split, item, found.get(item.image))


# --- pairs ------------------------------------------------------------------------------------------------------------


def _image_pairs(entries: Sequence[Entry], thumbs: Sequence[np.ndarray | None]) -> Iterator[Pair]:
    """Images whose files are the same, and near-duplicates."""
    files: dict[str, list[int]] = defaultdict(list)
    for index, (entry, thumb) in enumerate(zip(entries, thumbs, strict=True)):
        if thumb is not None and entry.path is not None:
            files[hashlib.sha256(entry.path.read_bytes()).hexdigest()].append(index)
    same = {(a, b) for group in files.values() for n, a in enumerate(group) for b in group[n + 1 :]}
    yield from (Pair(a, b, "same file", "the same file", 1.0) for a, b in sorted(same))
    for found in near(thumbs, lambda a, b: (a, b) not in same):
        how = ", ".join(filter(None, ("near-duplicate", found.turn)))
        yield Pair(found.first, found.second, "near-duplicate", f"{how} ({found.score:.3f})", found.score)


def _caption_pairs(entries: Sequence[Entry]) -> Iterator[Pair]:
    """Images that have several different captions in common: often the same picture, in another set or format."""
    holders: dict[str, list[int]] = defaultdict(list)
    for index, entry in enumerate(entries):
        for text in {words(caption) for caption in entry.item.captions} - {""}:
            holders[text].append(index)
    common = Counter(
        (a, b)
        for group in holders.values()
        if len(group) <= _FREQUENT
        for n, a in enumerate(group)
        for b in group[n + 1 :]
    )
    for (a, b), count in common.items():
        if count >= SHARED_CAPTIONS:
            yield Pair(a, b, "captions", f"{count} captions in common", float(count))


def _leaks(entries: Sequence[Entry], pair: Pair) -> bool:
    """Whether one image of the pair is trained on and the other held out."""
    return len({entries[index].split in _HELD for index in (pair.first, pair.second)}) == 2


def _excluded(entries: Sequence[Entry], pairs: Sequence[Pair], dataset: str) -> Iterator[str]:
    """The lines of a dataset's list: its training images that are held-out pictures too, each below a comment."""
    seen = set()
    for pair in pairs:
        if pair.what == "captions" or not _leaks(entries, pair):
            continue
        train, other = sorted((entries[pair.first], entries[pair.second]), key=lambda entry: entry.split in _HELD)
        if train.dataset == dataset and train.item.image not in seen:
            seen.add(train.item.image)
            yield f"# {pair.how} of {other.where} {other.item.image}"
            yield train.item.image


# --- tables -----------------------------------------------------------------------------------------------------------


def _image_rows(entries: Sequence[Entry], pairs: Sequence[Pair]) -> Iterator[Row]:
    sizes = Counter(entry.where for entry in entries)
    for what in ("same file", "near-duplicate", "captions"):
        found: dict[tuple[str, str], set[int]] = defaultdict(set)
        for pair in pairs:
            if pair.what == what:
                for one, other in ((pair.first, pair.second), (pair.second, pair.first)):
                    found[entries[one].where, entries[other].where].add(one)
        name = f"{SHARED_CAPTIONS}+ captions" if what == "captions" else what
        for (of, within), indices in found.items():
            yield Row(name, of, within, len(indices), 100 * len(indices) / sizes[of])


def _caption_rows(entries: Sequence[Entry]) -> Iterator[Row]:
    """Captions of each split that images of another have too, or another image of the same."""
    held: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    captions: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for index, entry in enumerate(entries):
        for caption in entry.item.captions:
            captions[entry.where].append((index, words(caption)))
            held[entry.where][words(caption)].add(index)
    for of, listed in captions.items():
        for within, known in held.items():
            count = sum(bool(known.get(text, set()) - {index}) for index, text in listed)
            if count:
                yield Row("identical caption", of, within, count, 100 * count / len(listed))


def _csv(head: list[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([head, *rows])
    return text.getvalue()


def _pairs_csv(entries: Sequence[Entry], pairs: Sequence[Pair]) -> str:
    sides = [(entries[pair.first], entries[pair.second], pair) for pair in pairs]
    rows = [
        [pair.what, pair.how, f"{pair.score:.4f}", a.dataset, a.split, a.item.image, b.dataset, b.split, b.item.image]
        for a, b, pair in sides
    ]
    named = [f"{key}_{side}" for side in ("1", "2") for key in ("dataset", "split", "image")]
    return _csv(["what", "how", "score", *named], rows)


# --- the page ---------------------------------------------------------------------------------------------------------


def _page(
    entries: Sequence[Entry],
    thumbs: Sequence[np.ndarray | None],
    pairs: Sequence[Pair],
    table: Sequence[Row],
    title: str,
) -> str:
    def side(index: int) -> dict[str, str]:
        entry, thumb = entries[index], thumbs[index]
        caption = next(iter(entry.item.captions), "")
        return {
            "where": entry.where,
            "name": entry.item.image,
            "caption": caption,
            "thumbnail": "" if thumb is None else _embedded(thumb),
        }

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    shown = [{"first": side(pair.first), "second": side(pair.second), "how": pair.how} for pair in pairs[:_SHOWN]]
    leaks = sum(_leaks(entries, pair) for pair in pairs)
    return environment.get_template("audit.html.j2").render(
        title=title,
        found=f"{len(pairs):,} pairs of images among {len(entries):,}; {leaks:,} between training and held-out images.",
        table=table,
        pairs=shown,
        shown=f"{len(shown):,}",
        total=f"{len(pairs):,}",
    )


def _embedded(thumb: np.ndarray) -> str:
    """A thumbnail as a data URI."""
    held = io.BytesIO()
    Image.fromarray(thumb).save(held, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}"
