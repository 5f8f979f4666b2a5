"""Recipes: named settings that belong together, with their source. A recipe is one YAML file in this folder. No torch.

A sweep file uses a recipe by its name: for all runs (`recipe: common`), or for one method of the grid
(`harma: {recipe: harma-released}`). A recipe's file has these keys:

    source     where the settings come from
    differs    what this harness does otherwise than the source, or does not know of it: a list of texts
    like       the name of a recipe; this one has its settings too, and its own win
    released   the method that the recipe is for, where it is a method's released training
    backbone, dataset, train, loss    as in a sweep file, with one value a key; of `dataset` only the split
    method     for each method: its settings, and `train` and `loss` for it alone
    on         for each dataset: the sections above that differ on it
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from bench.config.document import read_document, show
from bench.config.errors import UserError
from bench.config.parse import parse
from bench.config.settings import Settings, TrainSettings
from bench.plan.axes import Choice

_HERE = Path(__file__).parent


class _Backbone(Settings):
    model: str = ""
    weights: str = ""


class _Split(Settings):
    split: str = ""
    val_fraction: float = 0.2
    split_seed: int = 0


class _Sections(Settings):
    """The keys and types of a recipe's sections; the values that count are those that the file writes."""

    backbone: _Backbone = _Backbone()
    dataset: _Split = _Split()
    train: TrainSettings = TrainSettings()
    loss: Any = None
    method: dict[str, dict[str, Any]] = Field(default_factory=dict)


class _File(_Sections):
    source: str
    differs: tuple[str, ...] = ()
    like: str | None = None
    released: str | None = None
    on: dict[str, _Sections] = Field(default_factory=dict)


@dataclass(frozen=True)
class NamedLoss:
    """A loss by its name, with some of its settings."""

    name: str
    settings: Mapping[str, Any]

    def over(self, other: NamedLoss | None) -> NamedLoss:
        """This loss, with the other's settings beneath its own if it is the same loss."""
        same = other is not None and other.name == self.name
        return NamedLoss(self.name, {**other.settings, **self.settings}) if same and other else self


@dataclass(frozen=True)
class Layer:
    """What a recipe says of the runs of one method on one dataset. `place`: where the recipe is named."""

    backbone: Mapping[str, Any] = field(default_factory=dict)
    dataset: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    loss: NamedLoss | None = None
    method: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""

    def choice(self, part: str) -> Choice:
        """The settings of one part, each with the recipe's place."""
        found: Mapping[str, Any] = getattr(self, part)
        return Choice(dict(found), dict.fromkeys(found, self.place))

    def over(self, other: Layer) -> Layer:
        """This layer's settings, and beneath them the other's."""
        return Layer(
            {**other.backbone, **self.backbone},
            {**other.dataset, **self.dataset},
            {**other.train, **self.train},
            self.loss.over(other.loss) if self.loss else other.loss,
            {**other.method, **self.method},
            self.place,
        )


@dataclass(frozen=True)
class Recipe:
    """A recipe as its file has it. `sections`: those for all datasets, and of `on` by the dataset's name."""

    name: str
    source: str
    differs: tuple[str, ...] = ()
    released: str | None = None
    sections: Mapping[str, Any] = field(default_factory=dict)
    on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    like: Recipe | None = None

    def layer(self, dataset: str, method: str) -> Layer:
        """What the recipe says of the runs of this method on this dataset.

        The file's own sections lie over those of `like`, those of the dataset over those for all, and those of the
        method over those for all methods.
        """
        found = self.like.layer(dataset, method) if self.like else Layer()
        for sections in (self.sections, self.on.get(dataset, {})):
            own = dict(sections.get("method", {}).get(method, {}))
            train, loss = own.pop("train", {}), own.pop("loss", None)
            blocks = {key: sections.get(key, {}) for key in ("backbone", "dataset", "train")}
            found = Layer(**blocks, loss=_loss(sections.get("loss"))).over(found)
            found = Layer(train=train, loss=_loss(loss), method=own).over(found)
        return found


def names() -> list[str]:
    """The names of all recipes, in alphabetical order."""
    return sorted(path.stem for path in _HERE.glob("*.yaml"))


def get(name: Any, place: str) -> Recipe:
    """The recipe of this name; UserError, with the place and the nearest name, if there is none."""
    if isinstance(name, str) and name in names():
        return _read(_HERE / f"{name}.yaml")
    close = difflib.get_close_matches(str(name)[:60], names(), n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise UserError(f"{place}: unknown recipe {show(name)}{hint} (allowed: {', '.join(names())})")


def text(name: str) -> str:
    """The file of a recipe, as it is written."""
    return (_HERE / f"{name}.yaml").read_text(encoding="utf-8")


@cache
def _read(path: Path) -> Recipe:
    document = read_document(path)
    file = parse(_File, document.data, f"recipe {path.stem}", document)
    like = get(file.like, document.at(("like",))) if file.like else None
    released = file.released or (like.released if like else None)
    return Recipe(path.stem, file.source, file.differs, released, document.data, document.data.get("on", {}), like)


def _loss(written: Any) -> NamedLoss | None:
    """A loss as a sweep file writes it: its name, or `{name: settings}`."""
    if written is None or isinstance(written, str):
        return NamedLoss(written, {}) if written else None
    [(name, settings)] = written.items()
    return NamedLoss(name, settings or {})
