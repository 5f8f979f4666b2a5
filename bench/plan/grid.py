"""Sweep files to runs: the sections of the file, the axes of its grid, and their expansion. No torch."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field

import methods
from bench import data
from bench.config import hub
from bench.config.backbones import is_file, model_shape
from bench.config.document import Document, Key, read_document, show
from bench.config.errors import UserError
from bench.config.parse import parse
from bench.config.settings import (
    SCHEDULERS,
    AnyDataset,
    BackboneSettings,
    CaptionSettings,
    CoreSettings,
    DatasetSettings,
    Settings,
    TrainSettings,
    dataset_class,
)
from bench.config.shapes import ModelShape
from bench.plan import budget
from bench.plan.axes import Choice, Choices, expanded, section, values
from bench.plan.overrides import method_entries, override_key
from bench.plan.recipes import RECIPES
from bench.plan.spec import RunSpec, data_identity, weights_identity
from methods import losses
from methods.base import Method
from methods.losses import Loss


class _Grid(Settings):
    seed: Any = (0,)
    budget: Any = None
    method: Any


class _File(Settings):
    """The sections of a sweep file without the schedulers' blocks. Each is parsed when its axes are known."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=255)  # of a folder's name on usual disks
    dataset: Any
    backbone: Any
    train: Any = Field(default_factory=dict)
    loss: Any = None
    core: CoreSettings = CoreSettings()
    grid: _Grid


# What a sweep file may write beside a method's own settings.
BESIDE = ("preset", "recipe", "train", "loss")

# Combinations of a sweep file: so many are planned in seconds.
MOST_RUNS = 10_000

# The train settings that matter for a method that does not train.
EVALUATION = ("augment", "captions", "eval_batch_size", "workers")


@contextmanager
def _placed(place: str) -> Iterator[None]:
    """Add the place to a UserError that comes without one."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error.__cause__


@dataclass(frozen=True)
class Sweep:
    """A sweep file's runs in order, without duplicates.

    file: None for a sweep that was not read from one. schedulers: each cluster scheduler's block of settings. notes:
    what was left out or is the same run twice. content: the whole file with the overrides, as plain data.
    """

    name: str
    file: Path | None
    runs: tuple[RunSpec, ...]
    schedulers: Mapping[str, Settings]
    notes: tuple[str, ...] = ()
    content: Mapping[str, Any] = field(default_factory=dict)


def expand(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file, apply `key=value` overrides, and give back every run of its grid.

    A list is an axis if the setting takes one value; a list of lists is one if the setting is a list. An override
    applies everywhere, also to a method with its own `train` or `loss`. Order: dataset, backbone, method as listed,
    its settings, loss, budget, train, seed. A method that does not train gets one run: its seed is 0 and the train
    settings that can't matter are the defaults. With `budget`, every other method gets a run at each number of
    trainable parameters that its knob can reach; the notes say what it reached and what was left out.
    Relative paths start at the current folder. UserError for any mistake.
    """
    document = read_document(path)
    if not isinstance(document.data, dict):
        raise UserError(f"{path}: expected a sweep file with 'name:', 'dataset:', ..., got {show(document.data)}")
    return expand_document(document, overrides, file=path)


def expand_document(document: Document, overrides: Sequence[str] = (), *, file: Path | None = None) -> Sweep:
    """As `expand`, for the content of a sweep file, which is a mapping."""
    for override in overrides:
        override_key(document, override)
    sections = {key: value for key, value in document.data.items() if key not in SCHEDULERS}
    parts = parse(_File, sections, "sweep", document, also=tuple(SCHEDULERS))
    blocks = {
        name: parse(cls, document.data.get(name, {}), name, document, (name,)) for name, cls in SCHEDULERS.items()
    }
    seeds = _seeds(document, parts.grid.seed)
    budgets = _budgets(document, parts.grid.budget)
    entries = [_entry(document, entry, at, parts.loss) for entry, at in method_entries(document, parts.grid.method)]
    sections = {
        "dataset": section((DatasetSettings, CaptionSettings), document, ("dataset",), parts.dataset),
        "backbone": section(BackboneSettings, document, ("backbone",), parts.backbone),
        "train": section(TrainSettings, document, ("train",), parts.train),
    }
    _limit(document, sections, entries, len(budgets or [0]), len(seeds))
    datasets = [_dataset(document, choice) for choice in sections["dataset"]]
    _titles(document, datasets)
    backbones = [_backbone(document, choice) for choice in sections["backbone"]]
    runs: dict[str, RunSpec] = {}
    total, fitted = 0, []
    for dataset, backbone, entry in itertools.product(datasets, backbones, entries):
        shape = model_shape(backbone.model)
        for each in _method_runs(document, entry, trains=sections["train"], shape=shape, budgets=budgets):
            if each.note:
                fitted.append(f"{backbone.model}: {each.note}" if len(backbones) > 1 else each.note)
            if each.method is None:
                continue
            spec = RunSpec(parts.name, dataset, backbone, each.method, each.loss, each.train, 0, parts.core)
            found = [replace(spec, seed=seed) for seed in seeds] if each.method.trains else [_untrained(spec)]
            total += len(found)
            for run in found:
                runs.setdefault(run.run_id, run)
    notes = list(dict.fromkeys(fitted))
    if total > len(runs):
        notes.append(f"{total - len(runs)} of {total} combinations are the same run as another")
    return Sweep(parts.name, file, tuple(runs.values()), blocks, tuple(notes), document.data)


def _seeds(document: Document, listed: Any) -> list[int]:
    found = []
    for seed, place in values(document, ("grid", "seed"), listed):
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise UserError(f"{place}: grid: seed: expected whole numbers from 0, got {show(seed)}")
        found.append(seed)
    return found


def _budgets(document: Document, listed: Any) -> list[int] | None:
    """The numbers of trainable parameters; None where the sweep has no budget."""
    if listed is None:
        return None
    return [budget.read(value, place) for value, place in values(document, ("grid", "budget"), listed)]


def _limit(
    document: Document, sections: Mapping[str, Choices], entries: Sequence[_Entry], budgets: int, seeds: int
) -> None:
    """UserError if there are too many combinations; none of them is built for that."""
    each = math.prod(choices.count for choices in sections.values())
    total = each * sum(entry.count * (budgets * seeds if entry.cls.trains else 1) for entry in entries)
    if total > MOST_RUNS:
        raise UserError(
            f"{document.at(('grid',))}: grid: {total:,} runs, more than {MOST_RUNS:,}; "
            "shorten its lists, or make several sweeps of it"
        )


def _dataset(document: Document, choice: Choice) -> AnyDataset:
    values = expanded(choice)
    found: AnyDataset = parse(dataset_class(values), values, "dataset", document, ("dataset",), choice.places)
    paths = {key: os.path.abspath(value) for key in ("root", "annotations") if (value := getattr(found, key, None))}  # noqa: PTH100
    found = found.model_copy(update=paths)
    places, own = choice.places, isinstance(found, CaptionSettings)
    with _placed(places.get("file" if own else "split") or places.get("root" if own else "name") or places["name"]):
        found = data.resolved(found)
    with _placed(places.get("root") or places["name"]):
        data_identity(found)
    return found


def _titles(document: Document, datasets: Sequence[AnyDataset]) -> None:
    """UserError if reports would take two datasets of one's own for one."""
    known: dict[str, tuple[str | None, Any]] = {}
    for each in datasets:
        if isinstance(each, CaptionSettings):
            source = each.root, each.file
            if known.setdefault(each.title or "", source) != source:
                raise UserError(
                    f"{document.at(('dataset',))}: dataset: two datasets have the title {show(each.title)}; "
                    "give each its own `title`"
                )


def _backbone(document: Document, choice: Choice) -> BackboneSettings:
    found = parse(BackboneSettings, expanded(choice), "backbone", document, ("backbone",), choice.places)
    found = found.model_copy(update={"model": hub.absolute(found.model)})
    if is_file(found.weights):
        found = found.model_copy(update={"weights": os.path.abspath(found.weights)})  # noqa: PTH100
    with _placed(choice.places["model"]):
        model_shape(found.model)
    with _placed(choice.places["weights"]):
        weights_identity(found)
    return found


@dataclass(frozen=True)
class _LossEntry:
    """A loss as one entry of a sweep file writes it."""

    cls: type[Loss]
    path: Key
    choices: Choices

    def losses(self, document: Document) -> Iterator[Loss]:
        for choice in self.choices:
            yield parse(self.cls, choice.values, f"loss {self.cls.name}", document, self.path, choice.places)


@dataclass(frozen=True)
class _Entry:
    """One entry of the grid's methods. Its settings are combinations yet to be built."""

    cls: type[Method]
    path: Key
    settings: Choices
    presets: list[tuple[str, Mapping[str, Any]]]
    recipes: list[Mapping[str, Any]]
    train: Choices
    losses: list[_LossEntry]  # none: the method's default

    @property
    def count(self) -> int:
        """How many combinations there are, without budgets and seeds."""
        losses = sum(loss.choices.count for loss in self.losses) or 1
        return self.settings.count * len(self.presets) * len(self.recipes) * self.train.count * losses


def _entry(document: Document, entry: dict[str, Any], at: Key, common_loss: Any) -> _Entry:
    """What one entry of the grid's methods holds; `common_loss` is the sweep's, for entries without one."""
    [(name, settings)] = entry.items()
    path = (*at, name)
    with _placed(document.at(path)):
        cls = methods.get(name)
    own = dict(settings) if isinstance(settings, Mapping) else {} if settings is None else settings
    special = {key: own.pop(key, None) for key in BESIDE} if isinstance(own, dict) else dict.fromkeys(BESIDE)
    loss, loss_path = (common_loss, ("loss",)) if special["loss"] is None else (special["loss"], (*path, "loss"))
    return _Entry(
        cls,
        path,
        section(cls, document, path, own),
        _presets(document, path, cls, special["preset"]),
        _recipes(document, path, special["recipe"]),
        section(TrainSettings, document, (*path, "train"), special["train"] or {}),
        [] if loss is None else _losses(document, loss_path, loss),
    )


@dataclass(frozen=True)
class _Planned:
    """What one entry of the grid gives: a method with its loss and training, and a note on its budget.

    The method is None where a budget is out of its reach; the note says so.
    """

    method: Method | None
    loss: Loss
    train: TrainSettings
    note: str


def _method_runs(
    document: Document, entry: _Entry, *, trains: Choices, shape: ModelShape, budgets: Sequence[int] | None
) -> Iterator[_Planned]:
    """All that one entry of the grid's methods gives."""
    cls, path = entry.cls, entry.path
    own_trains = [
        Choice(dict(recipe) | choice.values, choice.places) for recipe in entry.recipes for choice in entry.train
    ]
    found_losses = [loss for each in entry.losses for loss in each.losses(document)]
    choices = [
        (Choice(dict(values) | choice.values, choice.places), preset)
        for preset, values in entry.presets
        for choice in entry.settings
    ]
    for (choice, preset), one_loss in itertools.product(choices, found_losses or [losses.get(cls.default_loss)()]):

        def make(changes: Mapping[str, Any], choice: Choice = choice) -> Method:
            also = BESIDE if cls.presets else BESIDE[1:]
            return parse(cls, {**choice.values, **changes}, cls.name, document, path, choice.places, also)

        plain = make({})
        with _placed(document.at(path[:-1])):
            if plain.trains:
                one_loss.check(shape)
            given = ({"preset": preset} if preset else {}) | {key: choice.values[key] for key in choice.places}
            sized = list(_sized(plain, given, make, loss=one_loss, shape=shape, budgets=budgets))
        for fitted, common, special_train in itertools.product(sized, trains, own_trains):
            both = Choice(common.values | special_train.values, common.places | special_train.places)
            train = parse(TrainSettings, both.values, "train", document, ("train",), both.places)
            yield _Planned(fitted.method, one_loss, train, fitted.note)


def _sized(
    plain: Method,
    given: Mapping[str, Any],
    make: Callable[[Mapping[str, Any]], Method],
    *,
    loss: Loss,
    shape: ModelShape,
    budgets: Sequence[int] | None,
) -> Iterator[budget.Fitted]:
    """The method as it is set, or at each budget, with a note; checked against the backbone either way.

    `given`: the settings in the sweep file. If the knob is among them, the method has one size.
    """

    def count(method: Method) -> int | None:
        method.check(shape)
        own = method.trainable_params(shape)
        if own is not None and own > budget.MOST:
            raise UserError(f"{method.name}: {own:,} trainable parameters, beyond any memory; lower its sizes")
        return None if own is None else own + loss.params

    count(plain)
    if budgets is None or not plain.trains:
        yield budget.Fitted(plain, "")
        return
    what = " ".join([plain.name, *(f"{key}={value}" for key, value in given.items())])
    for each in budgets:
        yield budget.fit(each, what, knob=None if plain.knob in given else plain.knob, make=make, count=count)


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


def _recipes(document: Document, path: Key, listed: Any) -> list[Mapping[str, Any]]:
    """The training settings of each recipe in the sweep file, without those that a --set replaces."""
    if listed is None:
        return [{}]
    found: list[Mapping[str, Any]] = []
    for value, place in values(document, (*path, "recipe"), listed):
        if not isinstance(value, str) or value not in RECIPES:
            raise UserError(f"{place}: unknown recipe {show(value)} (allowed: {', '.join(RECIPES)})")
        settings = RECIPES[value].train
        found.append({key: settings[key] for key in settings if not document.is_override(("train", key))})
    return found


def _losses(document: Document, path: Key, listed: Any) -> list[_LossEntry]:
    found = []
    for index, (item, place) in enumerate(values(document, path, listed)):
        item = {item: {}} if isinstance(item, str) else item
        if not isinstance(item, dict) or len(item) != 1:
            raise UserError(f"{place}: loss: expected a loss's name or 'name: {{settings}}', got {show(item)}")
        [(name, settings)] = item.items()
        with _placed(place):
            cls = losses.get(name)
        inside: Key = (*path, index, name) if isinstance(listed, list) else path
        found.append(_LossEntry(cls, inside, section(cls, document, inside, settings or {})))
    return found


def _untrained(spec: RunSpec) -> RunSpec:
    """The one run of a method that does not train: seed 0, default loss, evaluation settings only."""
    kept = {key: getattr(spec.train, key) for key in EVALUATION}
    loss = losses.get(spec.method.default_loss)()
    return replace(spec, seed=0, loss=loss, train=TrainSettings(**kept))
