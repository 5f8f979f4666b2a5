"""Where an image of a dataset lies on disk. No numpy, no torch."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from bench.config.errors import UserError

_FOLDERS = ("", "images", "imgs")
# The split folders in which an image may lie whose name has none. Validation is part of training in some layouts and
# held out of it in others, so these two share; a test picture never comes from theirs, nor theirs from test.
_SPLIT_FOLDERS = {"train": ("train", "val"), "val": ("val", "train"), "test": ("test",)}


def locate(root: Path, name: str, split: str | None) -> Path | None:
    """The file for image `name` of a split, or None. With F standing for root, root/images and root/imgs in turn, the
    first that exists of: the name as written in F; its base name in F; its base name in F/<split folder>.

    The split folder is the one in the name (`test/port_2.tif`), else those of `split`; None searches none.
    UserError if the name or a symbolic link leads out of the root (the root itself may be a link).
    """
    written = PurePosixPath(name)
    if written.is_absolute() or ".." in written.parts:
        raise UserError(f"image {name!r} leaves the dataset's root {root}; write it relative to the root")
    named = [part for part in written.parent.parts if part in _SPLIT_FOLDERS]
    folders = [root / folder for folder in _FOLDERS]
    candidates = [folder / name for folder in folders]
    candidates += [folder / written.name for folder in folders]
    allowed = named[-1:] or _SPLIT_FOLDERS.get(split or "", ())
    candidates += [folder / each / written.name for each in allowed for folder in folders]
    found = next((path for path in candidates if _is_file(path)), None)
    if found is not None and not found.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"image {name!r}: {found} is a link that leaves the dataset's root {root}; "
            "set dataset.root to the folder that holds the images, and dataset.annotations to the annotations' folder"
        )
    return found


def absent(root: Path, name: str) -> str:
    """The name of a missing image, for a message: with the file of that base name in a split folder, if there is one.

    It may be another picture, and taking it would score a model on what it was trained on.
    """
    base = PurePosixPath(name).name
    places = (Path(folder, split, base) for folder in _FOLDERS for split in _SPLIT_FOLDERS)
    stray = next((place for place in places if _is_file(root / place)), None)
    return name if stray is None else f"{name} ({stray} is of another split)"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a path that is too long, or a folder that may not be read
        return False
