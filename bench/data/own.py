"""Datasets of one's own: their caption files, which columns mean what, and their splits. No numpy, no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from bench.config.document import shorten
from bench.config.errors import UserError
from bench.config.files import is_folder, is_regular
from bench.data.annotations import SPLITS, Item, Row, check_name, content, disjoint, gather, shortened
from bench.data.images import split_word
from bench.data.rows import ENDINGS, Table, read_table

if TYPE_CHECKING:
    from bench.config.settings import CaptionSettings

# The names that columns usually have: open_clip's, Hugging Face's, COCO's and Karpathy's.
USUAL = {
    "image": ("filepath", "file_name", "filename", "image", "image_path", "path"),
    "caption": ("caption", "title", "text", "captions"),
    "split": ("split",),
    "label": ("label", "class", "label_name", "class_name"),
}
_FILES = ("captions", "metadata")  # names of caption files that are found by themselves
METADATA = "metadata"  # names in such a file start at its folder, as in Hugging Face's imagefolder
# Settings that change nothing of what the files hold; run ids cover the shuffling by its own settings.
_OUTSIDE = {"root", "file", "title", "shuffle_captions", "shuffle_seed"}


@dataclass(frozen=True)
class _Source:
    """A caption file; `split` is "" where it may hold several."""

    path: Path
    split: str = ""


def root_of(settings: CaptionSettings) -> Path:
    """The folder of the pictures; UserError if it is not there."""
    if settings.root is None:
        raise UserError("dataset.root is not set: give the folder that holds the pictures and the captions")
    root = Path(os.path.expanduser(settings.root))  # noqa: PTH111  (Path.expanduser raises for an unknown user)
    if not is_folder(root):
        raise UserError(f"dataset.root of captions: no folder {root}")
    return root


def resolved(settings: CaptionSettings) -> CaptionSettings:
    """The settings with files, columns and title as they were found; columns of several files only where they agree.

    UserError as `read_own`.
    """
    from bench.config.settings import SplitFiles  # only now: `--help` needs no settings

    root, sources = root_of(settings), _sources(settings)
    if not 0 < settings.val_fraction + settings.test_fraction < 1:
        raise UserError("dataset: val_fraction and test_fraction together leave nothing to train on; make them smaller")
    found = [_columns(table, settings, each) for each, table in zip(sources, _tables(settings, sources), strict=True)]
    columns = {key: value for key, value in found[0].items() if all(each[key] == value for each in found)}
    names = {each.split: _relative(each.path, root) for each in sources}
    file = names[""] if "" in names else SplitFiles(**names)
    title = settings.title or " ".join(root.resolve().name[:60].split()) or "captions"
    return settings.model_copy(update={**columns, "file": file, "title": title})


def identity_own(settings: CaptionSettings) -> str:
    """Hash (hex) of the caption files' bytes and of every setting but paths and the title."""
    known = settings.model_dump(mode="json", exclude=_OUTSIDE)
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    root = root_of(settings)
    for source in _sources(settings):
        digest.update(f"{source.split} {_prefix(source.path, root)} ".encode(errors="surrogateescape"))
        digest.update(hashlib.sha256(content(source.path)).digest())
    return digest.hexdigest()


def read_own(settings: CaptionSettings) -> tuple[str, dict[str, tuple[Item, ...]]]:
    """(how the splits are made, items by split as the files hold them); splits that the files don't name are absent.

    Splits are named by several files, a column, or the folders that all names begin with; without any, all is "train".
    UserError with file and line for what is malformed, and for an image in two splits.
    """
    root, sources = root_of(settings), _sources(settings)
    rows: dict[str, list[Row]] = {}
    for source, table in zip(sources, _tables(settings, sources), strict=True):
        columns = _columns(table, settings, source)
        for row in _rows(table, columns, _prefix(source.path, root)):
            rows.setdefault(source.split or row.split, []).append(row)
    if not rows:
        raise UserError(f"{sources[0].path}: it has no rows of captions")
    how = "by file" if sources[0].split else f"by column {columns['split']}" if columns["split"] else ""
    if not how and (parted := _by_folder(rows[""])):
        how, rows = "by folder", parted
    if "" in rows:
        rows["train"] = rows.pop("")
    splits = {split: gather(rows[split]) for split in SPLITS if split in rows}
    disjoint(splits, str(sources[0].path.parent))
    return how, splits


def _by_folder(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by the split folder with which their names begin; {} unless all do."""
    parted: dict[str, list[Row]] = {}
    for row in rows:
        parted.setdefault(split_word(PurePosixPath(row.image).parts[0]) or "", []).append(row)
    return {} if "" in parted else parted


# --- files ------------------------------------------------------------------------------------------------------------


def _sources(settings: CaptionSettings) -> list[_Source]:
    root, file = root_of(settings), settings.file
    if file is None:
        return _found(root)
    if isinstance(file, str):
        return [_Source(_readable(root, file))]
    return [_Source(_readable(root, path), split) for split in SPLITS if (path := getattr(file, split)) is not None]


def _readable(root: Path, text: str) -> Path:
    path = root / os.path.expanduser(text)  # noqa: PTH111
    if not is_regular(path):
        near = ", ".join(sorted(each.name for each in _caption_files(root))[:10])
        has = f", which has {near}" if near else ""
        raise UserError(f"dataset.file: no file {shorten(text, 300)} in {root}; give it relative to the root{has}")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: no permission to read it")
    return path


def _found(root: Path) -> list[_Source]:
    """The caption file in the root, or a metadata file in each of its split folders."""
    if here := _caption_files(root, _FILES):
        return [_Source(_only(here))]
    folders: dict[str, list[Path]] = {}
    try:
        inside = sorted(root.iterdir())
    except OSError as error:
        raise UserError(f"dataset.root of captions: can't read {root}: {error.strerror}") from None
    for folder in inside:
        if (split := split_word(folder.name)) and (files := _caption_files(folder, (METADATA,))):
            folders.setdefault(split, []).append(_only(files))
    if "train" not in folders:
        raise UserError(
            f"dataset.root of captions: no {' or '.join(_FILES)} file ({', '.join(ENDINGS)}) in {root}, and no "
            f"{METADATA} file in its folder train; set dataset.file to the file with the captions"
        )
    return [_Source(_only(folders[split]), split) for split in SPLITS if split in folders]


def _caption_files(folder: Path, stems: Sequence[str] = ()) -> list[Path]:
    try:
        files = sorted(folder.iterdir())
    except OSError:
        return []
    return [f for f in files if f.suffix.lower() in ENDINGS and (not stems or f.stem in stems) and is_regular(f)]


def _only(files: Sequence[Path]) -> Path:
    if len(files) > 1:
        raise UserError(f"several caption files: {', '.join(map(str, files))}; set dataset.file to the one to read")
    return files[0]


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _prefix(path: Path, root: Path) -> str:
    """The folder, relative to the root, at which a file's names start: its own for metadata files, else the root."""
    inside = path.stem == METADATA and path.parent.is_relative_to(root)
    return "" if not inside or path.parent == root else path.parent.relative_to(root).as_posix()


# --- columns and rows -------------------------------------------------------------------------------------------------


def _tables(settings: CaptionSettings, sources: Sequence[_Source]) -> list[Table]:
    given = [settings.image, settings.split, settings.label, *_texts(settings.caption)]
    wanted = [*(name for name in given if name), *(name for names in USUAL.values() for name in names)]
    return [read_table(source.path, wanted) for source in sources]


def _columns(table: Table, settings: CaptionSettings, source: _Source) -> dict[str, Any]:
    """The column of each setting: image, caption (perhaps several), split, label."""
    texts = tuple(table.column("caption", name, ()) for name in _texts(settings.caption))
    usual = None if texts else table.column("caption", None, USUAL["caption"])
    return {
        "image": table.column("image", settings.image, USUAL["image"]),
        "caption": texts if len(texts) > 1 else texts[0] if texts else usual,
        "split": None if source.split else table.column("split", settings.split, USUAL["split"], needed=False),
        "label": table.column("label", settings.label, USUAL["label"], needed=False),
    }


def _texts(caption: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return caption if isinstance(caption, tuple) else () if caption is None else (caption,)


def _rows(table: Table, columns: Mapping[str, Any], prefix: str) -> Iterator[Row]:
    for where, values in table.rows:
        image = values.get(columns["image"])
        if not isinstance(image, str):
            raise UserError(f"{where}: expected {columns['image']}: a file's name, got {shortened(image)}")
        image = image.strip()
        check_name(image, where)
        captions = [text for name in _texts(columns["caption"]) for text in _captions(where, name, values.get(name))]
        label = values.get(columns["label"]) if columns["label"] else None
        split = ""
        if columns["split"]:
            written = values.get(columns["split"])
            split = split_word(written.strip()) or "" if isinstance(written, str) else ""
            if not split:
                raise UserError(
                    f"{where}: {columns['split']}: expected train, val or test, got {shortened(written)}; "
                    "set dataset.split to the column of the splits"
                )
        name = f"{prefix}/{image}" if prefix else image
        yield Row(where, name, captions, str(label) if isinstance(label, str | int) and label != "" else None, split)


def _captions(where: str, column: str, value: Any) -> list[str]:
    match value:
        case str():
            return [value]
        case [*texts] if all(isinstance(text, str) for text in texts):
            return texts
    raise UserError(f"{where}: expected {column}: a text or a list of texts, got {shortened(value)}")
