"""Sweep files to runs: the sections of the file, the axes of its grid, and their expansion. No torch."""

from __future__ import annotations

import itertools
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import Field

import methods
from bench import data
from bench.config.backbones import is_file, model_shape
from bench.config.document import OVERRIDE, Document, Key, parse_yaml, read_document, show
from bench.config.errors import UserError
from bench.config.parse import parse
from bench.config.settings import SCHEDULERS, BackboneSettings, DatasetSettings, Settings, TrainSettings
from bench.config.shapes import ModelShape
from bench.plan import budget
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

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    dataset: Any
    backbone: Any
    train: Any = Field(default_factory=dict)
    loss: Any = None
    grid: _Grid


# What a sweep file may write beside a method's own settings.
BESIDE = ("preset", "recipe", "train", "loss")

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
    """A sweep file's runs in order, without duplicates; `notes` says what was left out or is the same run twice."""

    name: str
    file: Path
    runs: tuple[RunSpec, ...]
    schedulers: Mapping[str, Settings]  # each cluster scheduler's block of settings
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Choice:
    """One value of each key of a section, and the place of each."""

    values: dict[str, Any]
    places: dict[str, str]


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
    for override in overrides:
        _override(document, override)
    sections = {key: value for key, value in document.data.items() if key not in SCHEDULERS}
    file = parse(_File, sections, "sweep", document, also=tuple(SCHEDULERS))
    blocks = {
        name: parse(cls, document.data.get(name, {}), name, document, (name,)) for name, cls in SCHEDULERS.items()
    }
    seeds = _values(document, ("grid", "seed"), file.grid.seed)
    for seed, place in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise UserError(f"{place}: grid: seed: expected whole numbers from 0, got {show(seed)}")
    budgets = (
        [budget.read(value, place) for value, place in _values(document, ("grid", "budget"), file.grid.budget or [])]
        if file.grid.budget is not None
        else None
    )
    datasets = [_dataset(document, choice) for choice in _section(DatasetSettings, document, ("dataset",))]
    backbones = [_backbone(document, choice) for choice in _section(BackboneSettings, document, ("backbone",))]
    trains = _section(TrainSettings, document, ("train",), file.train)
    runs: dict[str, RunSpec] = {}
    total, fitted = 0, []
    for (dataset, backbone), (entry, at) in itertools.product(
        itertools.product(datasets, backbones), _method_entries(document, file.grid.method)
    ):
        for each in _method_runs(
            document,
            entry,
            at,
            common_loss=file.loss,
            trains=trains,
            shape=model_shape(backbone.model),
            budgets=budgets,
        ):
            if each.note:
                fitted.append(f"{backbone.model}: {each.note}" if len(backbones) > 1 else each.note)
            if each.method is None:
                continue
            spec = RunSpec(file.name, dataset, backbone, each.method, each.loss, each.train, 0)
            found = [replace(spec, seed=seed) for seed, _ in seeds] if each.method.trains else [_untrained(spec)]
            total += len(found)
            for run in found:
                runs.setdefault(run.run_id, run)
    notes = list(dict.fromkeys(fitted))
    if total > len(runs):
        notes.append(f"{total - len(runs)} of {total} combinations are the same run as another")
    return Sweep(file.name, path, tuple(runs.values()), blocks, tuple(notes))


def _override(document: Document, override: str) -> None:
    key, equals, text = override.partition("=")
    place = f"{OVERRIDE} {override}"
    if not equals or not all(key.split(".")):
        raise UserError(f"{place}: expected key=value, such as train.epochs=2")
    path = tuple(key.split("."))
    document.put(path, parse_yaml(text, place)[0], place)
    grid = document.data.get("grid")
    if path[0] in ("train", "loss") and isinstance(grid, dict) and grid.get("method") is not None:
        for entry, _ in _method_entries(document, grid["method"]):
            for settings in entry.values():
                if isinstance(settings, dict):
                    _forget(settings, path)


def _forget(settings: dict[str, Any], path: Sequence[str]) -> None:
    """Remove a method's own value, so that the override applies."""
    own = settings.get(path[0])
    blocks = own if isinstance(own, list) else [own]
    if len(path) == 1 or path[0] == "loss":
        settings.pop(path[0], None)
    for block in blocks:
        if isinstance(block, dict) and len(path) > 1:
            block.pop(path[1], None)


def _values(document: Document, path: Key, value: Any) -> list[tuple[Any, str]]:
    """A list's items or the one value, each with its place; an empty list is an error."""
    if not isinstance(value, list | tuple):
        return [(value, document.at(path))]
    if not value:
        raise UserError(f"{document.at(path)}: {'.'.join(map(str, path))}: an empty list gives no run")
    return [(item, document.at((*path, index))) for index, item in enumerate(value)]


def _section(cls: type[Settings], document: Document, path: Key, data: Any = None) -> list[_Choice]:
    """All combinations of a section's axes. The section itself may be a list of mappings."""
    if data is None:
        data = document.data
        for part in path:
            data = data[part]
    if isinstance(data, list):
        _values(document, path, data)
        return [choice for i, item in enumerate(data) for choice in _section(cls, document, (*path, i), item or {})]
    if not isinstance(data, Mapping):
        owner = str(next(part for part in reversed(path) if isinstance(part, str)))
        raise UserError(f"{document.at(path)}: {owner}: expected settings 'key: value', got {show(data)}")
    axes = []
    for key, value in data.items():
        field = cls.model_fields.get(key)
        depth = cls.extra_depth(key) if field is None else _type_depth(field.annotation)
        axis = depth is not None and isinstance(value, list) and _depth(value) > depth
        options = _values(document, (*path, key), value) if axis else [(value, document.at((*path, key)))]
        axes.append([(key, option, place) for option, place in options])
    return [
        _Choice({key: value for key, value, _ in picked}, {key: place for key, _, place in picked})
        for picked in itertools.product(*axes)
    ]


def _depth(value: Any) -> int:
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _type_depth(annotation: Any) -> int:
    """How many lists deep a setting's type goes: 0 for int, 1 for tuple[float, float]."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType, Annotated):
        members = arguments[:1] if origin is Annotated else arguments
        return max(map(_type_depth, members))
    if origin in (tuple, list, set, frozenset, Sequence):
        return 1 + max(map(_type_depth, arguments), default=0)
    return 0


def _dataset(document: Document, choice: _Choice) -> DatasetSettings:
    found = parse(DatasetSettings, _expand_strings(choice), "dataset", document, ("dataset",), choice.places)
    paths = {key: os.path.abspath(value) for key in ("root", "annotations") if (value := getattr(found, key))}  # noqa: PTH100
    with _placed(choice.places.get("split") or choice.places["name"]):
        found = found.model_copy(update={**paths, "split": data.split_of(found)})
    with _placed(choice.places.get("root") or choice.places["name"]):
        data_identity(found)
    return found


def _backbone(document: Document, choice: _Choice) -> BackboneSettings:
    found = parse(BackboneSettings, _expand_strings(choice), "backbone", document, ("backbone",), choice.places)
    if is_file(found.weights):
        found = found.model_copy(update={"weights": os.path.abspath(found.weights)})  # noqa: PTH100
    with _placed(choice.places["model"]):
        model_shape(found.model)
    with _placed(choice.places["weights"]):
        weights_identity(found)
    return found


def _expand_strings(choice: _Choice) -> dict[str, Any]:
    """The values with environment variables ($NAME, ${NAME}; $$ is a dollar) and a leading ~ replaced in texts."""

    def expanded(key: str, value: str) -> str:
        def variable(match: re.Match[str]) -> str:
            name = match[1] or match[2]
            if name and not os.environ.get(name):
                raise UserError(
                    f"{choice.places[key]}: the environment variable {name} is not set; export it, "
                    f"or write the value of '{key}' here"
                )
            return os.environ[name] if name else "$"

        return os.path.expanduser(re.sub(r"\$(?:(\w+)|\{(\w+)\}|\$)", variable, value))  # noqa: PTH111

    return {key: expanded(key, value) if isinstance(value, str) else value for key, value in choice.values.items()}


def _method_entries(document: Document, listed: Any) -> list[tuple[dict[str, Any], Key]]:
    """Each `{name: settings}` of the grid's methods with its path; a bare name has no settings."""
    base: Key = ("grid", "method")
    entries = [(listed, base)]
    if isinstance(listed, list):
        _values(document, base, listed)
        entries = [(item, (*base, index)) for index, item in enumerate(listed)]
    found = []
    for entry, path in entries:
        entry = {entry: {}} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or len(entry) != 1:
            raise UserError(
                f"{document.at(path)}: grid.method: expected a method's name or one 'name: {{settings}}' an entry, "
                f"got {show(entry)}"
            )
        found.append((entry, path))
    return found


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
    document: Document,
    entry: dict[str, Any],
    at: Key,
    *,
    common_loss: Any,
    trains: list[_Choice],
    shape: ModelShape,
    budgets: Sequence[int] | None,
) -> Iterator[_Planned]:
    """All that one entry of the grid's methods gives."""
    [(name, settings)] = entry.items()
    path = (*at, name)
    with _placed(document.at(path)):
        cls = methods.get(name)
    own = dict(settings) if isinstance(settings, Mapping) else {} if settings is None else settings
    special = {key: own.pop(key, None) for key in BESIDE} if isinstance(own, dict) else dict.fromkeys(BESIDE)
    own_trains = [
        _Choice(dict(recipe) | choice.values, choice.places)
        for recipe in _recipes(document, path, special["recipe"])
        for choice in _section(TrainSettings, document, (*path, "train"), special["train"] or {})
    ]
    if special["loss"] is not None:
        found_losses = list(_losses(document, (*path, "loss"), special["loss"]))
    elif common_loss is not None:
        found_losses = list(_losses(document, ("loss",), common_loss))
    else:
        found_losses = [losses.get(cls.default_loss)()]
    choices = [
        (_Choice(dict(values) | choice.values, choice.places), preset)
        for preset, values in _presets(document, path, cls, special["preset"])
        for choice in _section(cls, document, path, own)
    ]
    for (choice, preset), one_loss in itertools.product(choices, found_losses):

        def make(changes: Mapping[str, Any], choice: _Choice = choice) -> Method:
            also = BESIDE if cls.presets else BESIDE[1:]
            return parse(cls, {**choice.values, **changes}, name, document, path, choice.places, also)

        plain = make({})
        with _placed(document.at(at)):
            if plain.trains:
                one_loss.check(shape)
            given = ({"preset": preset} if preset else {}) | {key: choice.values[key] for key in choice.places}
            sized = list(_sized(plain, given, make, loss=one_loss, shape=shape, budgets=budgets))
        for fitted, common, special_train in itertools.product(sized, trains, own_trains):
            both = _Choice(common.values | special_train.values, common.places | special_train.places)
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
    for value, place in _values(document, (*path, "preset"), listed):
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
    for value, place in _values(document, (*path, "recipe"), listed):
        if not isinstance(value, str) or value not in RECIPES:
            raise UserError(f"{place}: unknown recipe {show(value)} (allowed: {', '.join(RECIPES)})")
        settings = RECIPES[value].train
        found.append({key: settings[key] for key in settings if not document.is_override(("train", key))})
    return found


def _losses(document: Document, path: Key, listed: Any) -> Iterator[Loss]:
    for item, place in _values(document, path, listed):
        item = {item: {}} if isinstance(item, str) else item
        if not isinstance(item, dict) or len(item) != 1:
            raise UserError(f"{place}: loss: expected a loss's name or 'name: {{settings}}', got {show(item)}")
        [(name, settings)] = item.items()
        with _placed(place):
            cls = losses.get(name)
        inside: Key = (*path, listed.index(item), name) if isinstance(listed, list) and item in listed else path
        for choice in _section(cls, document, inside, settings or {}):
            yield parse(cls, choice.values, f"loss {name}", document, inside, choice.places)


def _untrained(spec: RunSpec) -> RunSpec:
    """The one run of a method that does not train: seed 0, default loss, evaluation settings only."""
    kept = {key: getattr(spec.train, key) for key in EVALUATION}
    loss = losses.get(spec.method.default_loss)()
    return replace(spec, seed=0, loss=loss, train=TrainSettings(**kept))
