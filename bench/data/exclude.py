"""Training images that a run leaves out, from a file of names: `dataset: {exclude: FILE}`. No numpy, no torch."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.config.errors import UserError
from bench.config.files import is_regular
from bench.data.annotations import Item, text_content

_SHOWN = 3  # names in a message


def names_in(file: str) -> frozenset[str]:
    """The image names in a file, one a line; lines that begin with # are comments. UserError if it can't be read."""
    path = Path(os.path.expanduser(file))  # noqa: PTH111  (Path.expanduser raises for an unknown user)
    if not is_regular(path):
        raise UserError(f"dataset.exclude: no file {path}; give a file with one name of a training image a line")
    lines = (line.strip() for line in text_content(path).splitlines())
    return frozenset(line for line in lines if line and not line.startswith("#"))


def without(train: Sequence[Item], others: Mapping[str, Sequence[Item]], file: str) -> tuple[Item, ...]:
    """The training images without those in the file.

    UserError, with the first of them, for names that no training image has, and if no image would be left.
    """
    names = names_in(file)
    known = [item.image for item in train]
    strange = sorted(names - set(known))
    if strange:
        held = {item.image: split for split, items in others.items() for item in items}
        listed = ", ".join(f"{name!r}{_hint(name, known, held)}" for name in strange[:_SHOWN])
        more = f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else ""
        raise UserError(f"dataset.exclude: {file}: not a training image: {listed}{more}; remove these lines")
    if len(names) == len(known):
        raise UserError(f"dataset.exclude: {file} names every training image; nothing is left to train on")
    return tuple(item for item in train if item.image not in names)


def _hint(name: str, known: Sequence[str], held: Mapping[str, str]) -> str:
    """What the name is in place of a training image's."""
    if name in held:
        return f" (it is in {held[name]})"
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
