"""The entries of a grid's methods: a method's settings and what holds for it alone, with their axes. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import methods
from bench.config.document import Document, Key, show
from bench.config.errors import UserError
from bench.config.parse import parse
from bench.config.settings import BackboneSettings, CaptionSettings, DatasetSettings, Settings, TrainSettings
from bench.data import DATASETS
from bench.plan import recipes
from bench.plan.axes import Choice, Choices, section, values
from bench.plan.recipes import Layer, Recipe
from methods import losses
from methods.base import Method
from methods.losses import Loss

# The sections of a sweep file and what takes their settings.
SECTIONS: dict[str, tuple[type[Settings], ...]] = {
    "dataset": (DatasetSettings, CaptionSettings),
    "backbone": (BackboneSettings,),
    "train": (TrainSettings,),
}

# What a sweep file may write beside a method's own settings.
BESIDE = ("preset", "recipe", "loss", *SECTIONS)


@contextmanager
def placed(place: str) -> Iterator[None]:
    """Add the place to a UserError that comes without one."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error.__cause__


@dataclass(frozen=True)
class Use:
    """A recipe where a sweep file names it; without a recipe, no settings."""

    recipe: Recipe | None = None
    place: str = ""

    def layer(self, dataset: str, method: str) -> Layer:
        """The recipe's settings for this method on this dataset; its split only if the dataset has such a split."""
        if self.recipe is None:
            return Layer()
        found = self.recipe.layer(dataset, method)
        known = dataset in DATASETS and found.dataset.get("split") in DATASETS[dataset].splits
        return replace(found, dataset=found.dataset if known else {}, place=f"{self.place}: recipe {self.recipe.name}")


def uses(document: Document, path: Key, listed: Any) -> list[Use]:
    """Each recipe named under `path`, or the one use without a recipe."""
    if listed is None:
        return [Use()]
    return [Use(recipes.get(name, place), place) for name, place in values(document, path, listed)]


@dataclass(frozen=True)
class LossEntry:
    """A loss as a sweep file or a recipe writes it."""

    cls: type[Loss]
    path: Key
    choices: Choices

    def build(self, document: Document, beneath: Sequence[Layer]) -> Iterator[Loss]:
        """The losses; a recipe beneath gives the same loss the settings that are not written. The last recipe wins."""
        low = Choice({}, {})
        for each in beneath:
            if each.loss and each.loss.name == self.cls.name:
                low = Choice(dict(each.loss.settings), dict.fromkeys(each.loss.settings, each.place)).over(low)
        for choice in self.choices:
            both = choice.over(low)
            yield parse(self.cls, both.values, f"loss {self.cls.name}", document, self.path, both.places)


@dataclass(frozen=True)
class Entry:
    """One entry of the grid's methods. Its settings are combinations yet to be built."""

    cls: type[Method]
    path: Key
    settings: Choices
    presets: list[tuple[str, Mapping[str, Any]]]
    recipes: list[Use]
    sections: Mapping[str, Choices]  # by the keys of SECTIONS: what holds for this entry alone
    losses: list[LossEntry]
    common_losses: list[LossEntry]  # the sweep's

    @property
    def count(self) -> int:
        """How many combinations there are, without budgets and seeds."""
        losses = sum(loss.choices.count for loss in self.losses or self.common_losses) or 1
        sections = math.prod(choices.count for choices in self.sections.values())
        return self.settings.count * len(self.presets) * len(self.recipes) * sections * losses

    def build_losses(self, document: Document, low: Layer, high: Layer) -> list[Loss]:
        """The losses under the sweep's recipe (`low`) and the entry's own (`high`), or the method's default."""
        levels = [
            (self.losses, (low, high)),
            (_of_recipe(high), (low, high)),
            (self.common_losses, (low,)),
            (_of_recipe(low), (low,)),
        ]
        found, beneath = next(((found, beneath) for found, beneath in levels if found), ([], ()))
        built = [loss for each in found for loss in each.build(document, beneath)]
        return built or [losses.get(self.cls.default_loss)()]


def _of_recipe(layer: Layer) -> list[LossEntry]:
    """A recipe's loss without its settings, which lie beneath; an empty list if the recipe has none."""
    if layer.loss is None:
        return []
    with placed(layer.place):
        return [LossEntry(losses.get(layer.loss.name), (), Choices(((),)))]


def read_entry(document: Document, entry: dict[str, Any], at: Key, common_losses: list[LossEntry]) -> Entry:
    """What one entry of the grid's methods holds; `common_losses` are the sweep's."""
    [(name, settings)] = entry.items()
    path = (*at, name)
    with placed(document.at(path)):
        cls = methods.get(name)
    own = dict(settings) if isinstance(settings, Mapping) else {} if settings is None else settings
    special = {key: own.pop(key) for key in BESIDE if _is_beside(cls, key, own)} if isinstance(own, dict) else {}
    return Entry(
        cls,
        path,
        section(cls, document, path, own),
        _presets(document, path, cls, special.get("preset")),
        uses(document, (*path, "recipe"), special.get("recipe")),
        {key: section(cls, document, (*path, key), special.get(key) or {}) for key, cls in SECTIONS.items()},
        read_losses(document, (*path, "loss"), special.get("loss")),
        common_losses,
    )


def _is_beside(cls: type[Method], key: str, own: Mapping[str, Any]) -> bool:
    """Whether a key is the entry's own: it is, unless the method has a setting of that name that takes no mapping."""
    value = own.get(key)
    first = value[0] if isinstance(value, list) and value else value
    return key in own and (key not in cls.model_fields or isinstance(first, Mapping))


def _presets(document: Document, path: Key, cls: type[Method], listed: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """The name and settings of each preset in the sweep file; an empty one if it has none."""
    if listed is None:
        return [("", {})]
    found = []
    for value, place in values(document, (*path, "preset"), listed):
        if not isinstance(value, str) or value not in cls.presets:
            known = ", ".join(cls.presets) or "none"
            raise UserError(f"{place}: {cls.name}: unknown preset {show(value)} (allowed: {known})")
        found.append((value, cls.presets[value]))
    return found


def read_losses(document: Document, path: Key, listed: Any) -> list[LossEntry]:
    """The losses that a sweep file lists under `path`; none without a list."""
    found = []
    for index, (item, place) in enumerate([] if listed is None else values(document, path, listed)):
        item = {item: {}} if isinstance(item, str) else item
        if not isinstance(item, dict) or len(item) != 1:
            raise UserError(f"{place}: loss: expected a loss's name or 'name: {{settings}}', got {show(item)}")
        [(name, settings)] = item.items()
        with placed(place):
            cls = losses.get(name)
        inside: Key = (*path, index, name) if isinstance(listed, list) else path
        found.append(LossEntry(cls, inside, section(cls, document, inside, settings or {})))
    return found
