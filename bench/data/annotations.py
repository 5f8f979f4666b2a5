"""Annotation files to items: three layouts, each a small reader. No numpy, no torch.

Layouts (what researchers have on disk):

- ``pir``: train.json, val.json, test.json, each a list of {image, caption: str or [str, ...], label_name?}.
- ``precomp``: train_caps.txt and train_filename.txt, test_caps.txt and test_filename.txt. The file names are one line
  an image (then five captions each) or one line a caption. There is no validation split.
- ``karpathy``: dataset.json, {"images": [{filename, split: train|val|test, sentences: [{raw}, ...]}]}, or the form of
  NWPU-Captions, {class: [{filename, split, raw, raw_1, ...}]}.

A file ``train.json`` may also be called ``rsitmd_train.json``, ``train_rsitmd.json`` or ``train_RSITMD.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bench.config.document import whole_characters
from bench.config.errors import UserError
from bench.config.files import is_regular

SPLITS = ("train", "val", "test")
CAPTIONS_PER_IMAGE = 5  # precomp lists file names once for so many captions
_LONGEST_NAME, _LONGEST_PATH = 255, 2000  # bytes, on any usual disk; a caption in a name's place is longer or not found
FILES = {
    "pir": ("train.json", "val.json", "test.json"),
    "precomp": ("train_caps.txt", "train_filename.txt", "test_caps.txt", "test_filename.txt"),
    "karpathy": ("dataset.json",),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One image: its name as the annotations write it (see `bench.data.images.locate`), captions, class name."""

    image: str
    captions: tuple[str, ...]
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of a file: its place for errors, the image's name, captions, class name, and split if it says one."""

    where: str
    image: str
    captions: list[str]
    label: str | None = None
    split: str = ""


def find(layout: str, name: str, folder: Path) -> list[Path]:
    """The layout's files of dataset `name` in `folder`, in the order of FILES; UserError names one not there."""
    found = []
    for file in FILES[layout]:
        stem, ext = file.split(".")
        names = [file, f"{name}_{file}", f"{stem}_{name}.{ext}", f"{stem}_{name.upper()}.{ext}"]
        path = next((folder / each for each in names if is_regular(folder / each)), None)
        if path is None:
            raise UserError(
                f"{name}, split {layout}: no file {file} (nor {', '.join(names[1:])}) in {folder}; put it there, "
                "or set dataset.annotations to the folder that holds it"
            )
        if not os.access(path, os.R_OK):
            raise UserError(f"{path}: no permission to read it")
        found.append(path)
    return found


def read(layout: str, name: str, folder: Path) -> dict[str, tuple[Item, ...]]:
    """Items of each split the files hold, as written: {"train": ..., "val": ..., "test": ...}, val perhaps absent.

    Captions of one image are gathered under it, in the order of the files. UserError names the file and the line or
    entry (counted from 1) of whatever is wrong, and any image that is in two splits.
    """
    splits = _READERS[layout](find(layout, name, folder))
    disjoint(splits, str(folder))
    return splits


def disjoint(splits: Mapping[str, Sequence[Item]], where: str) -> None:
    """UserError, which begins with `where`, if an image is in two splits."""
    seen: dict[str, str] = {}
    for split, items in splits.items():
        for item in items:
            if seen.setdefault(item.image, split) != split:
                raise UserError(f"{where}: image {item.image!r} is both in {seen[item.image]} and in {split}")


def _read_pir(paths: list[Path]) -> dict[str, tuple[Item, ...]]:
    return {split: gather(_pir_rows(path)) for split, path in zip(SPLITS, paths, strict=True)}


def _pir_rows(path: Path) -> Iterator[Row]:
    entries = json_content(path)
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of {{image, caption}} entries, got {shortened(entries)}")
    for number, entry in enumerate(entries, 1):
        match entry:
            case {"image": str(image), "caption": str(caption)}:
                captions = [caption]
            case {"image": str(image), "caption": [*captions]} if _all_text(captions):
                pass
            case _:
                raise UserError(
                    f"{path}, entry {number}: expected {{image: text, caption: text or a list of texts}}, "
                    f"got {shortened(entry)}"
                )
        label = entry.get("label_name")
        yield Row(f"{path}, entry {number}", image, captions, label if isinstance(label, str) else None)


def _read_precomp(paths: list[Path]) -> dict[str, tuple[Item, ...]]:
    return {"train": gather(_precomp_rows(*paths[:2])), "test": gather(_precomp_rows(*paths[2:]))}


def _precomp_rows(caption_path: Path, name_path: Path) -> Iterator[Row]:
    captions, names = _lines(caption_path), _lines(name_path)
    if len(captions) not in (len(names), len(names) * CAPTIONS_PER_IMAGE):
        raise UserError(
            f"{caption_path} has {len(captions)} lines and {name_path.name} has {len(names)}: expected as many "
            f"(one line a caption) or {CAPTIONS_PER_IMAGE} times as many (one line an image)"
        )
    each = len(captions) // max(len(names), 1)
    for number, name in enumerate(names):
        yield Row(f"{name_path}, line {number + 1}", name.strip(), captions[number * each : (number + 1) * each])


def _read_karpathy(paths: list[Path]) -> dict[str, tuple[Item, ...]]:
    rows = list(_karpathy_rows(paths[0]))
    return {split: gather(row for row in rows if row.split == split) for split in SPLITS}


def _karpathy_rows(path: Path) -> Iterator[Row]:
    data = json_content(path)
    labelled: list[tuple[str | None, Any]]
    match data:
        case {"images": [*entries]}:
            labelled = [(None, entry) for entry in entries]
        case {**classes} if classes and all(isinstance(entries, list) for entries in classes.values()):
            labelled = [(label, _nwpu_entry(label, entry)) for label, entries in data.items() for entry in entries]
        case _:
            raise UserError(f'{path}: expected {{"images": [...]}}, got {shortened(data)}')
    for number, (label, entry) in enumerate(labelled, 1):
        match entry:
            case {"filename": str(image), "split": "train" | "val" | "test" as split, "sentences": [*sentences]}:
                captions: list[Any] = [
                    sentence.get("raw") if isinstance(sentence, dict) else None for sentence in sentences
                ]
            case _:
                captions = [None]
        if not _all_text(captions):
            raise UserError(
                f"{path}, entry {number}: expected {{filename: text, split: train, val or test, "
                f"sentences: [{{raw: text}}, ...]}}, got {shortened(entry)}"
            )
        label = label or entry.get("label")
        yield Row(f"{path}, entry {number}", image, captions, label if isinstance(label, str) else None, split)


def _nwpu_entry(label: str, entry: Any) -> Any:
    """NWPU-Captions' entry in Karpathy's form; its images lie in one folder a class."""
    if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
        return entry
    raws = [entry[key] for key in ("raw", "raw_1", "raw_2", "raw_3", "raw_4") if key in entry]
    name = f"{label}/{entry['filename']}"
    return {"filename": name, "split": entry.get("split"), "sentences": [{"raw": raw} for raw in raws]}


_READERS: dict[str, Callable[[list[Path]], dict[str, tuple[Item, ...]]]] = {
    "pir": _read_pir,
    "precomp": _read_precomp,
    "karpathy": _read_karpathy,
}


def gather(rows: Iterable[Row]) -> tuple[Item, ...]:
    """One item an image, in order, with the captions of all its rows. UserError for a name that is none."""
    captions: dict[str, list[str]] = {}
    labels: dict[str, str | None] = {}
    for row in rows:
        for text in (row.image, row.label or "", *row.captions):
            whole_characters(text, row.where)
        check_name(row.image, row.where)
        captions.setdefault(row.image, []).extend(row.captions)
        labels[row.image] = labels.get(row.image) or row.label
    return tuple(Item(image, tuple(texts), labels[image]) for image, texts in captions.items())


def check_name(image: str, where: str) -> None:
    """UserError, which begins with `where`, for what can't be an image's name or leads out of the root."""
    whole_characters(image, where)
    path = PurePosixPath(image)
    longest = max((len(part.encode()) for part in path.parts), default=0)
    if not 0 < longest <= _LONGEST_NAME or len(image) > _LONGEST_PATH or "\0" in image:
        raise UserError(f"{where}: {shortened(image)} is not an image's file name")
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{where}: image {image!r} leaves the dataset's root; write it relative to the root")


def content(path: Path) -> bytes:
    """The bytes of an annotation file; UserError if it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None


def text_content(path: Path) -> str:
    """The text of an annotation file, without a byte-order mark; UserError, with the line, if it is not UTF-8."""
    raw = content(path)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 ({error.reason}); convert the file to UTF-8") from None


def _lines(path: Path) -> list[str]:
    # Not str.splitlines: it would also cut captions at U+2028 and the like.
    text = text_content(path).removesuffix("\n")
    return [line.removesuffix("\r") for line in text.split("\n")] if text else []


def json_content(path: Path) -> Any:
    """The content of a JSON file; UserError, with the line, if it is none."""
    try:
        return json.loads(text_content(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})") from None
    except ValueError as error:  # a number of over 4,300 digits
        raise UserError(f"{path}: not valid JSON ({error})") from None
    except RecursionError:
        raise UserError(f"{path}: not an annotation file (nested too deeply)") from None


def _all_text(values: list) -> bool:
    return all(isinstance(value, str) for value in values)


def shortened(value: object) -> str:
    """A value as errors print it, at most 120 characters."""
    try:
        text = repr(value)
    except RecursionError:
        return "lists within lists"
    return text if len(text) <= 120 else text[:117] + "..."
