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
from bench.data.annotations import SPLITS, Item, content, find, read
from bench.data.exclude import names_in, without
from bench.data.images import locate
from bench.data.own import identity_own, read_own, root_of
from bench.data.own import resolved as resolved_own
from bench.data.shuffle import shuffled

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from bench.config.settings import AnyDataset, CaptionSettings, DatasetSettings

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetInfo",
    "Item",
    "identity",
    "is_empty",
    "load",
    "load_test",
    "locate",
    "raw_splits",
    "register",
    "resolved",
    "split_of",
]


Splits = dict[str, tuple[Item, ...]]


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


def identity(settings: AnyDataset) -> str:
    """Hash (hex) of the annotation files' bytes, the split, and how validation is held out; a generated
    dataset's version.

    Costs a read of the annotations, no parsing. Images are not in it: the pixel cache hashes those. UserError if the
    root or an annotation file is missing.
    """
    own = _identity(settings)
    if settings.exclude is None:
        return own
    names = "\n".join(sorted(names_in(settings.exclude)))
    return hashlib.sha256(f"{own} without {names}".encode()).hexdigest()


def _identity(settings: AnyDataset) -> str:
    """`identity` of the whole dataset."""
    if _is_own(settings):
        return identity_own(settings)
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


def load(settings: AnyDataset) -> Dataset:
    """The dataset's train, val and test items. Reads annotations alone; whether images exist is for `check`.

    Empty captions are dropped from training, and images left with none; validation and test keep theirs.
    Where the files name no validation images (always in precomp), `val_fraction` of the kept training images is held
    out, and of one's own captions without test images `test_fraction` before it: those whose sha256 of
    "split_seed:name" is smallest, so neither file order nor Python's version matters.
    Training images named in the file `exclude` are left out after that, so validation stays as it is without it.
    Last, `shuffle_captions` of the training captions are paired wrongly (`bench.data.shuffle`).
    UserError for whatever is missing or malformed, and for a split without images.
    """
    found = _read_own(settings) if _is_own(settings) else _read_known(settings)
    split, root, folder, splits = found
    if settings.exclude is not None:
        others = {title: splits[title] for title in SPLITS if title != "train"}
        splits = splits | {"train": without(splits["train"], others, settings.exclude)}
    what = f"{settings.name}, split {split}"
    for title in SPLITS:
        if not splits[title]:
            raise UserError(f"{what}: no {title} images in the annotations in {folder}")
    for item in (*splits["val"], *splits["test"]):
        if not item.captions:
            raise UserError(f"{what}: image {item.image!r} has no caption, in {folder}")
    if settings.shuffle_captions:
        splits["train"] = shuffled(splits["train"], settings.shuffle_captions, settings.shuffle_seed)
        split += f", {100 * settings.shuffle_captions:g}% of training captions shuffled by seed {settings.shuffle_seed}"
    listed = [split, *([[item.image, item.captions] for item in splits[title]] for title in SPLITS)]
    digest = hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode())
    return Dataset(settings.called, split, root, splits["train"], splits["val"], splits["test"], digest.hexdigest())


def load_test(settings: AnyDataset) -> Dataset:
    """The dataset's test items alone, to score a model on that was not trained on it; train and val are empty.

    Of one's own captions whose files name no split, all images are test images; otherwise the test split is as in
    `load`. Images without a caption are left out. `sha256` is that of `test_sha256`. UserError as `load` raises.
    """
    if _is_own(settings):
        root = root_of(settings)
        how, splits = read_own(settings)
        split = how or "all images"
        items = splits.get("test", ()) if how else splits["train"]
    else:
        split, root, _ = _source(settings)
        items = raw_splits(settings)["test"]
    items = tuple(item for item in items if item.captions)
    if not items:
        raise UserError(f"{settings.called}: no test images with captions in the annotations in {root}")
    return Dataset(settings.called, split, root, (), (), items, test_sha256(items))


def test_sha256(items: Sequence[Item]) -> str:
    """Hash (hex) of the names and captions of a test set's items, in order."""
    listed = [[item.image, item.captions] for item in items]
    return hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode()).hexdigest()


def _is_own(settings: AnyDataset) -> TypeIs[CaptionSettings]:
    # By the name, not by the class: importing it takes pydantic, and the commands' --help must not wait for that.
    return settings.name == "captions"


def _read_known(settings: DatasetSettings) -> tuple[str, Path, Path, Splits]:
    """(split, root, folder of the annotations, items by split) of a dataset that the harness knows."""
    split, root, folder = _source(settings)
    splits = raw_splits(settings)
    splits = {"val": (), **splits, "train": _without_empty(splits["train"])}
    if not splits["val"] and split != "pir":
        count = round(settings.val_fraction * len(splits["train"]))
        splits["train"], splits["val"] = _hold_out(splits["train"], count, settings.split_seed)
    return split, root, folder, splits


def _read_own(settings: CaptionSettings) -> tuple[str, Path, Path, Splits]:
    """The same of one's own captions; the split says in words how it is made."""
    root = root_of(settings)
    how, splits = read_own(settings)
    splits = {"val": (), "test": (), **splits, "train": _without_empty(splits.get("train", ()))}
    count, held = len(splits["train"]), []
    for title, fraction in {"test": settings.test_fraction, "val": settings.val_fraction}.items():
        if not splits[title]:
            some = max(1, round(fraction * count))
            splits["train"], splits[title] = _hold_out(splits["train"], some, settings.split_seed)
            held.append(f"{title} {fraction:.3g}")
    words = f"{' and '.join(held)} held out by seed {settings.split_seed}" if held else ""
    return ", ".join(filter(None, (how, words))), root, root, splits


def raw_splits(settings: AnyDataset) -> dict[str, tuple[Item, ...]]:
    """Items by split as the annotation files hold them, empty captions and all; there may be no "val" (nor, of one's
    own captions, "test")."""
    if _is_own(settings):
        return read_own(settings)[1]
    split, _, folder = _source(settings)
    return read("karpathy" if DATASETS[settings.name].make else split, settings.name, folder)


def resolved(settings: AnyDataset) -> AnyDataset:
    """The settings with nothing left open: the split, or the files and columns of one's own captions."""
    if _is_own(settings):
        found = resolved_own(settings)
        # Reports print published numbers beside a known dataset's name: a folder's name alone must not ask for them.
        known = settings.title is None and (found.title or "").lower() in DATASETS
        return found.model_copy(update={"title": f"{found.title} captions"}) if known else found
    return settings.model_copy(update={"split": split_of(settings)})


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


def _hold_out(items: Sequence[Item], count: int, seed: int) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """(train, held out), each in the order of `items`; so many images are held out."""
    names = sorted((i.image for i in items), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    held = set(names[:count])
    return tuple(i for i in items if i.image not in held), tuple(i for i in items if i.image in held)
