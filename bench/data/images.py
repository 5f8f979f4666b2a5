"""Where an image of a dataset lies on disk. No numpy, no torch."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from bench.config.errors import UserError

_FOLDERS = ("", "images", "imgs")
_SPLIT_FOLDERS = ("train", "val", "test")


def locate(root: Path, name: str) -> Path | None:
    """The file for image `name`, or None. With F standing for root, root/images and root/imgs in turn, the first that
    exists of: the name as written in F; its base name in F; its base name in F/train, F/val and F/test.

    UserError if the name or a symbolic link leads out of the root (the root itself may be a link).
    """
    written = PurePosixPath(name)
    if written.is_absolute() or ".." in written.parts:
        raise UserError(f"image {name!r} leaves the dataset's root {root}; write it relative to the root")
    folders = [root / folder for folder in _FOLDERS]
    candidates = [folder / name for folder in folders]
    candidates += [folder / written.name for folder in folders]
    candidates += [folder / split / written.name for folder in folders for split in _SPLIT_FOLDERS]
    found = next((path for path in candidates if path.is_file()), None)
    if found is not None and not found.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"image {name!r}: {found} is a link that leaves the dataset's root {root}; "
            "set dataset.root to the folder that holds the images, and dataset.annotations to the annotations' folder"
        )
    return found
