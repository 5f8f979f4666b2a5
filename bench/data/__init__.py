"""Datasets: which there are, what identifies them, and their images and captions by split. No numpy, no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.config.errors import UserError
from bench.config.files import is_folder
from bench.data.annotations import Item, content, find, read
from bench.data.images import locate

if TYPE_CHECKING:
    from bench.config.settings import DatasetSettings

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetInfo",
    "Item",
    "identity",
    "is_empty",
    "load",
    "locate",
    "raw_splits",
    "register",
    "split_of",
]


@dataclass(frozen=True)
class DatasetInfo:
    """A dataset that the harness knows: its title and its splits, the default one first.

    For a generated dataset, `version` identifies its content, and `make` returns its folder with images and with
    annotations in the Karpathy layout.
    """

    title: str
    splits: tuple[str, ...]
    version: str | None = None
    make: Callable[[], Path] | None = None


DATASETS = {
    "rsitmd": DatasetInfo("RSITMD (Yuan et al. 2022)", ("pir", "karpathy", "precomp")),
    "rsicd": DatasetInfo("RSICD (Lu et al. 2018)", ("pir", "karpathy", "precomp")),
    "ucm": DatasetInfo("UCM-Captions (Qu et al. 2016)", ("precomp", "karpathy")),
    "sydney": DatasetInfo("Sydney-Captions (Qu et al. 2016)", ("karpathy",)),
    "nwpu": DatasetInfo("NWPU-Captions (Cheng et al. 2022)", ("karpathy",)),
}


def register(name: str, info: DatasetInfo) -> None:
    """Make a dataset known."""
    DATASETS[name] = info


@dataclass(frozen=True)
class Dataset:
    """A dataset's items by split. Images are found under `root` with `locate(root, item.image, split)`.

    `sha256` covers the split's name and, per split and in order, every image name with its captions.
    """

    name: str
    split: str
    root: Path
    train: tuple[Item, ...]
    val: tuple[Item, ...]
    test: tuple[Item, ...]
    sha256: str


def identity(settings: DatasetSettings) -> str:
    """Hash (hex) of the annotation files' bytes, the split, and how validation is held out; a generated
    dataset's version.

    Costs a read of the annotations, no parsing. Images are not in it: the pixel cache hashes those. UserError if the
    root or an annotation file is missing.
    """
    split_of(settings)
    if (version := DATASETS[settings.name].version) is not None:
        return version
    split, _, folder = _source(settings)
    digest = hashlib.sha256(f"{settings.name} {split}".encode())
    if split != "pir":
        digest.update(f" {settings.val_fraction} {settings.split_seed}".encode())
    for path in find(split, settings.name, folder):
        digest.update(hashlib.sha256(content(path)).digest())
    return digest.hexdigest()


def load(settings: DatasetSettings) -> Dataset:
    """The dataset's train, val and test items. Reads annotations alone; whether images exist is for `check`.

    Empty captions are dropped from training, and images left with none; validation and test keep theirs.
    Where the files name no validation images (always in precomp), `val_fraction` of the kept training images is held
    out: those whose sha256 of "split_seed:name" is smallest, so neither file order nor Python's version matters.
    UserError for whatever is missing or malformed, and for a split without images.
    """
    split, root, folder = _source(settings)
    splits = raw_splits(settings)
    train, val, test = _without_empty(splits["train"]), splits.get("val", ()), splits["test"]
    if not val and split != "pir":
        train, val = _hold_out(train, settings.val_fraction, settings.split_seed)
    for title, items in {"train": train, "val": val, "test": test}.items():
        if not items:
            raise UserError(f"{settings.name}, split {split}: no {title} images in the annotations in {folder}")
    for item in (*val, *test):
        if not item.captions:
            raise UserError(f"{settings.name}, split {split}: image {item.image!r} has no caption, in {folder}")
    listed = [split, *([[item.image, item.captions] for item in items] for items in (train, val, test))]
    digest = hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode())
    return Dataset(settings.name, split, root, train, val, test, digest.hexdigest())


def raw_splits(settings: DatasetSettings) -> dict[str, tuple[Item, ...]]:
    """Items by split as the annotation files hold them, empty captions and all; there may be no "val"."""
    split, _, folder = _source(settings)
    return read("karpathy" if DATASETS[settings.name].make else split, settings.name, folder)


def split_of(settings: DatasetSettings) -> str:
    """The split's name, by default the dataset's first; UserError if the dataset does not have it."""
    info = DATASETS.get(settings.name)
    if info is None:
        raise UserError(f"no dataset {settings.name!r}; there are {', '.join(DATASETS)}")
    if settings.split is not None and settings.split not in info.splits:
        raise UserError(f"{settings.name} has no split {settings.split!r}; it has {', '.join(info.splits)}")
    return settings.split or info.splits[0]


def is_empty(caption: str) -> bool:
    """Whether a caption has neither a letter nor a digit (RSICD has lines with only a full stop)."""
    return not any(char.isalnum() for char in caption)


def _source(settings: DatasetSettings) -> tuple[str, Path, Path]:
    """(split, root, folder of the annotations); makes the dataset first if it is a generated one."""
    split = split_of(settings)
    if make := DATASETS[settings.name].make:
        root = make()
        return split, root, root
    if settings.root is None:
        raise UserError(f"dataset.root is not set: give the folder that holds the images of {settings.name}")
    root = _folder(settings.root)
    folder = _folder(settings.annotations) if settings.annotations is not None else root
    for key, path in {"root": root, "annotations": folder}.items():
        if not is_folder(path):
            raise UserError(f"dataset.{key} of {settings.name}: no folder {path}")
    return split, root, folder


def _folder(text: str) -> Path:
    # Not Path.expanduser: it raises where there is no such user.
    return Path(os.path.expanduser(text))  # noqa: PTH111


def _without_empty(items: Sequence[Item]) -> tuple[Item, ...]:
    kept = (Item(i.image, tuple(c for c in i.captions if not is_empty(c)), i.label) for i in items)
    return tuple(item for item in kept if item.captions)


def _hold_out(items: Sequence[Item], fraction: float, seed: int) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """(train, val), each in the order of `items`; val holds round(fraction * n) images."""
    names = sorted((i.image for i in items), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    held = set(names[: round(fraction * len(names))])
    return tuple(i for i in items if i.image not in held), tuple(i for i in items if i.image in held)
