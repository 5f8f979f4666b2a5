"""Sweep files to runs: the sections of the file, the axes of its grid, and their expansion. No torch."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

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
    EvaluationSettings,
    ReportSettings,
    Settings,
    TrainSettings,
    dataset_class,
)
from bench.config.shapes import ModelShape
from bench.plan import behaviour, budget, interpolation, tuning
from bench.plan.axes import Choice, Choices, expanded, section, values
from bench.plan.departures import departures
from bench.plan.entries import BESIDE, SECTIONS, Entry, Use, placed, read_entry, read_losses, uses
from bench.plan.overrides import method_entries, override_key
from bench.plan.recipes import Layer, Recipe
from bench.plan.spec import RunSpec, data_identity, untrained, weights_identity
from bench.plan.tuning import Tuned
from methods.base import Method
from methods.losses import Loss

T = TypeVar("T")


class _Grid(Settings):
    seed: Any = (0,)
    budget: Any = None
    method: Any


class _File(Settings):
    """The sections of a sweep file without the schedulers' blocks. Each is parsed when its axes are known."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=255)  # of a folder's name on usual disks
    recipe: Any = None
    dataset: Any
    backbone: Any = Field(default_factory=dict)
    train: Any = Field(default_factory=dict)
    loss: Any = None
    evaluation: Any = Field(default_factory=dict)
    tune: Any = None
    report: ReportSettings = ReportSettings()
    core: CoreSettings = CoreSettings()
    behaviour: Any = Field(default_factory=dict)
    grid: _Grid


# Combinations of a sweep file: so many are planned in seconds.
MOST_RUNS = 10_000


@dataclass(frozen=True)
class Sweep:
    """A sweep file's runs in order, without duplicates.

    file: None for a sweep that was not read from one. schedulers: each cluster scheduler's block of settings. notes:
    what was left out or is the same run twice. content: the whole file with the overrides, as plain data. recipes: run
    id -> the recipe that the run was planned with, and the keys in which it departs from it; for runs with a recipe.
    tuned: the configurations that are tuned; their runs are none of `runs` before `bench.launch.stages.staged`,
    which counts those that can't be known yet in `later`.
    """

    name: str
    file: Path | None
    runs: tuple[RunSpec, ...]
    schedulers: Mapping[str, Settings]
    notes: tuple[str, ...] = ()
    content: Mapping[str, Any] = field(default_factory=dict)
    recipes: Mapping[str, tuple[str, list[str]]] = field(default_factory=dict)
    tuned: tuple[Tuned, ...] = ()
    later: int = 0


def expand(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file, apply `key=value` overrides, and give back every run of its grid.

    A list is an axis if the setting takes one value; a list of lists is one if the setting is a list. Of a key's values
    the last in this order wins: its default, the sweep's recipe, the sweep's sections, an entry's recipe, the entry's
    own settings, an override. Order of the runs: recipe, dataset, backbone, method as listed, its settings, loss,
    budget, train, evaluation, seed. A method that does not train gets one run: its seed is 0 and the train settings
    that can't matter are the defaults. With `budget`, every other method gets a run at each number of trainable
    parameters that its knob can reach; the notes say what it reached and what was left out.
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
    _check_loggers(document, parts.core.loggers)
    seeds = _seeds(document, parts.grid.seed)
    budgets = _budgets(document, parts.grid.budget)
    common = uses(document, ("recipe",), parts.recipe)
    common_losses = read_losses(document, ("loss",), parts.loss)
    listed = method_entries(document, parts.grid.method)
    entries = [read_entry(document, entry, at, common_losses) for entry, at in listed]
    shared = {key: section(cls, document, (key,), getattr(parts, key)) for key, cls in SECTIONS.items()}
    evaluation = interpolation.Asked(section(EvaluationSettings, document, ("evaluation",), parts.evaluation))
    _limit(
        document,
        [len(common), evaluation.choices.count, *(choices.count for choices in shared.values())],
        entries,
        len(budgets or [0]),
        seeds,
    )
    measured = behaviour.read(document, parts.behaviour, _dataset)
    runs: dict[str, RunSpec] = {}
    recipes: dict[str, tuple[str, list[str]]] = {}
    total, fitted = 0, []
    stacks = _Stacks(document, shared)
    for stack in stacks.build(common, entries):
        for each in _method_runs(document, stack, evaluation, budgets=budgets):
            if each.note:
                fitted.append(f"{stack.backbone.model}: {each.note}" if len(stacks.backbones) > 1 else each.note)
            if each.method is None:
                continue
            spec = RunSpec(
                parts.name,
                stack.dataset,
                stack.backbone,
                each.method,
                each.loss,
                each.train,
                0,
                each.evaluation,
                parts.core,
                measured,
            )
            found = [replace(spec, seed=seed) for seed in seeds] if each.method.trains else [untrained(spec)]
            total += len(found)
            departs = departures(found[0], stack.recipe) if stack.recipe else []
            for run in found:
                runs.setdefault(run.run_id, run)
                if stack.recipe:
                    recipes.setdefault(run.run_id, (stack.recipe.name, departs))
    interpolation.check_used(document, evaluation, runs.values())
    _titles(document, list(stacks.datasets.values()))
    notes = [*dict.fromkeys(fitted), *_departing(runs, recipes)]
    if total > len(runs):
        notes.append(f"{total - len(runs)} of {total} combinations are the same run as another")
    if not all(run.evaluation.test for run in runs.values()):
        raise UserError(f"{document.at(('evaluation',))}: evaluation.test: false is for trials alone; see `tune`")
    tuned: list[Tuned] = []
    if parts.tune is not None:
        tuned, more = tuning.plan(document, parts.tune, runs.values(), partial(_limit_total, document))
        notes += more
        for run in (run for configuration in tuned for run in configuration.runs):
            del runs[run.run_id]
    return Sweep(parts.name, file, tuple(runs.values()), blocks, tuple(notes), document.data, recipes, tuple(tuned))


def _departing(runs: Mapping[str, RunSpec], recipes: Mapping[str, tuple[str, list[str]]]) -> list[str]:
    """A note for each recipe and set of keys in which runs depart from it."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for run_id, (name, keys) in recipes.items():
        if keys:
            found.setdefault((name, ", ".join(keys)), {})[runs[run_id].method.name] = None
    return [f"not as in recipe {name}: {', '.join(methods)}: {keys}" for (name, keys), methods in found.items()]


def _check_loggers(document: Document, names: Sequence[str]) -> None:
    """UserError for a logger whose package is not installed; none is imported."""
    for name in names:
        found = find_spec(name)
        if found is None or found.origin is None:  # a folder of that name in the current one has no origin
            raise UserError(
                f"{document.at(('core', 'loggers'))}: core: loggers: {name} is not installed; "
                f"`pip install {name}`, or leave it out"
            )


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
    document: Document, shared: Sequence[int], entries: Sequence[Entry], budgets: int, seeds: Sequence[int]
) -> None:
    """UserError if there are too many combinations; none of them is built for that."""
    each = math.prod(shared)
    total = each * sum(entry.count * (budgets * len(seeds) if entry.cls.trains else 1) for entry in entries)
    _limit_total(document, total)


def _limit_total(document: Document, total: int) -> None:
    if total > MOST_RUNS:
        raise UserError(
            f"{document.at(('grid',))}: grid: {total:,} runs, more than {MOST_RUNS:,}; "
            "shorten its lists, or make several sweeps of it"
        )


@dataclass(frozen=True)
class _Stack:
    """An entry of the grid's methods on one dataset and backbone, under the sweep's recipe and its own."""

    entry: Entry
    dataset: AnyDataset
    backbone: BackboneSettings
    recipe: Recipe | None  # the entry's, else the sweep's
    low: Layer  # the sweep's recipe
    high: Layer  # the entry's
    train: Choices  # of the sweep


@dataclass(frozen=True)
class _Stacks:
    """Builds every combination of recipes, datasets, backbones and entries; each dataset and backbone once."""

    document: Document
    shared: Mapping[str, Choices]  # the sweep's sections
    datasets: dict[str, AnyDataset] = field(default_factory=dict)
    backbones: dict[str, BackboneSettings] = field(default_factory=dict)

    def build(self, common: Sequence[Use], entries: Sequence[Entry]) -> Iterator[_Stack]:
        sections = self.shared["dataset"], self.shared["backbone"]
        for use, dataset, backbone, entry in itertools.product(common, *sections, entries):
            own = entry.recipes, entry.sections["dataset"], entry.sections["backbone"]
            for own_use, own_dataset, own_backbone in itertools.product(*own):
                name = str(own_dataset.over(dataset).values.get("name"))
                low, high = (each.layer(name, entry.cls.name) for each in (use, own_use))
                yield _Stack(
                    entry,
                    self.once(self.datasets, _dataset, _stacked("dataset", low, dataset, high, own_dataset)),
                    self.once(self.backbones, _backbone, _stacked("backbone", low, backbone, high, own_backbone)),
                    own_use.recipe or use.recipe,
                    low,
                    high,
                    self.shared["train"],
                )

    def once(self, made: dict[str, T], make: Callable[[Document, Choice], T], choice: Choice) -> T:
        key = json.dumps(choice.values, sort_keys=True)
        if key not in made:
            made[key] = make(self.document, choice)
        return made[key]


def _stacked(part: str, low: Layer, common: Choice, high: Layer, own: Choice) -> Choice:
    """A section by its layers: the sweep's recipe, the sweep, the entry's recipe, the entry; the last one wins."""
    return own.over(high.choice(part)).over(common).over(low.choice(part))


def _dataset(document: Document, choice: Choice, path: Key = ("dataset",)) -> AnyDataset:
    values, owner = expanded(choice), ".".join(str(part) for part in path if isinstance(part, str))
    found: AnyDataset = parse(dataset_class(values), values, owner, document, path, choice.places)
    paths = {key: os.path.abspath(value) for key in ("root", "annotations") if (value := getattr(found, key, None))}  # noqa: PTH100
    found = found.model_copy(update=paths)
    places, own = choice.places, isinstance(found, CaptionSettings)
    with placed(places.get("file" if own else "split") or places.get("root" if own else "name") or places["name"]):
        found = data.resolved(found)
    root = places.get("root") or places["name"]
    split = root if own else places.get("split", root)  # a recipe or an override may have chosen it
    with placed(root if split == root else f"{split}: {root}"):
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
    with placed(choice.places["model"]):
        model_shape(found.model)
    with placed(choice.places["weights"]):
        weights_identity(found)
    return found


@dataclass(frozen=True)
class _Planned:
    """What one entry of the grid gives: a method with its loss, training and evaluation, and a note.

    The method is None where a budget is out of its reach; the note says so.
    """

    method: Method | None
    loss: Loss
    train: TrainSettings
    evaluation: EvaluationSettings
    note: str


def _method_runs(
    document: Document, stack: _Stack, evaluation: interpolation.Asked, *, budgets: Sequence[int] | None
) -> Iterator[_Planned]:
    """All that one entry of the grid's methods gives on one dataset and backbone."""
    entry, low, high = stack.entry, stack.low, stack.high
    cls, path, shape = entry.cls, entry.path, model_shape(stack.backbone.model)
    beneath = high.choice("method").over(low.choice("method"))
    choices = [
        (choice.over(beneath).over(Choice(dict(values), {})), preset)
        for preset, values in entry.presets
        for choice in entry.settings
    ]
    for (choice, preset), one_loss in itertools.product(choices, entry.build_losses(document, low, high)):

        def make(changes: Mapping[str, Any], choice: Choice = choice) -> Method:
            also = BESIDE if cls.presets else BESIDE[1:]
            return parse(cls, {**choice.values, **changes}, cls.name, document, path, choice.places, also)

        plain = make({})
        with placed(document.at(path[:-1])):
            if plain.trains:
                one_loss.check(shape)
            given = ({"preset": preset} if preset else {}) | {key: choice.values[key] for key in choice.places}
            sized = list(_sized(plain, given, make, loss=one_loss, shape=shape, budgets=budgets))
        for fitted, common, own in itertools.product(sized, stack.train, entry.sections["train"]):
            both = _stacked("train", low, common, high, own)
            train = parse(TrainSettings, both.values, "train", document, ("train",), both.places)
            for evaluated, note in interpolation.evaluated(document, entry.evaluation or evaluation, plain):
                notes = "; ".join(filter(None, (fitted.note, note)))
                yield _Planned(fitted.method, one_loss, train, evaluated, notes)


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
