"""Sweep files to runs: typed settings, the grid's expansion, and content-hashed run ids. No torch."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import Field

import methods
from bench import budget
from bench.config import Document, Dumper, Key, parse, parse_yaml, read_document, show
from bench.errors import UserError
from bench.settings import Settings
from methods import losses
from methods.base import Method, ModelShape, describe
from methods.losses import Loss

Beta = Annotated[float, Field(ge=0, lt=1)]

# --- settings --------------------------------------------------------------------------------------------------------


class DatasetSettings(Settings):
    """Which images and captions. `annotations` is the folder of the annotation files where that is not `root`."""

    name: Literal["demo", "rsitmd", "rsicd", "ucm", "sydney", "nwpu"]
    root: str | None = None
    split: Literal["pir", "karpathy", "precomp", "demo"] | None = None
    annotations: str | None = None
    val_fraction: float = Field(0.2, gt=0, lt=1)
    split_seed: int = 0


class BackboneSettings(Settings):
    """An open_clip model; weights are open_clip's tag, a file, `random` (drawn from `seed`) or `demo`."""

    model: str
    weights: str
    seed: int = 0


class TrainSettings(Settings):
    """How the trainable part is trained; `workers` (data loading) is the one setting that no run id depends on."""

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(128, ge=1)
    lr: float = Field(1e-4, gt=0)
    optimizer: Literal["adamw", "adam"] = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    warmup: float = Field(0.1, ge=0, le=1)  # fraction of all steps
    step_epochs: int = Field(20, ge=1)
    step_gamma: float = Field(0.7, gt=0)
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    accumulate: int = Field(1, ge=1)  # batches an optimizer step
    precision: Literal["fp32", "bf16"] = "fp32"
    augment: Literal["none", "clip", "harma"] = "none"
    captions: Literal["none", "clip", "harma"] = "none"
    captions_per_epoch: Literal["all", "one"] = "all"
    grad_checkpointing: bool = False
    eval_batch_size: int = Field(256, ge=1)
    workers: int = Field(4, ge=0)


class SlurmSettings(Settings):
    """What a job array asks the cluster for; `extra` goes to sbatch as it is, `setup` runs before each task."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    gpus_per_node: int | str | None = None
    cpus_per_task: int | None = Field(None, ge=1)
    mem_gb: Annotated[float, Field(gt=0)] | None = None
    timeout_min: int = Field(120, ge=1)
    array_parallelism: int = Field(64, ge=1)  # jobs at once, over all of a sweep's arrays
    runs_per_job: int = Field(1, ge=1)
    parallel_runs: int = Field(1, ge=1)  # of a job's runs, side by side on its GPU
    signal_seconds: int = Field(120, ge=1)  # how long before its time limit a job is told to save and make room
    max_timeouts: int = Field(10, ge=0)  # how often a job that got on may go on after its time limit
    setup: tuple[str, ...] = ()
    extra: dict[str, str | int | float | bool] = Field(default_factory=dict)


class _Grid(Settings):
    seed: Any = (0,)
    budget: Any = None
    method: Any


class _File(Settings):
    """The sections of a sweep file; what stands in them is parsed once the axes are known."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    dataset: Any
    backbone: Any
    train: Any = Field(default_factory=dict)
    loss: Any = None
    grid: _Grid
    slurm: SlurmSettings = SlurmSettings()


# What may stand beside a method's own settings.
BESIDE = ("preset", "train", "loss")

# Without training these decide the score; the rest of the train settings can't matter.
EVALUATION = ("augment", "captions", "eval_batch_size", "workers")


@dataclass(frozen=True)
class RunSpec:
    """One run, fully resolved: its `to_dict()` alone reproduces it."""

    sweep: str
    dataset: DatasetSettings
    backbone: BackboneSettings
    method: Method
    loss: Loss
    train: TrainSettings
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in run.yaml and result.json."""
        return {
            "sweep": self.sweep,
            "dataset": self.dataset.model_dump(mode="json"),
            "backbone": self.backbone.model_dump(mode="json"),
            "method": describe(self.method),
            "loss": describe(self.loss),
            "train": self.train.model_dump(mode="json"),
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], document: Document | None = None) -> RunSpec:
        """The inverse of `to_dict`; UserError for what does not fit."""
        document = document or Document(data, {(): "run"})
        flat = parse(_Run, data, "run", document)

        def named(section: str, registry: Any) -> Any:
            settings = dict(getattr(flat, section))
            found = registry.get(str(settings.pop("name", "")))
            return parse(found, settings, section, document, (section,))

        method, loss = named("method", methods), named("loss", losses)
        return cls(flat.sweep, flat.dataset, flat.backbone, method, loss, flat.train, flat.seed)

    @classmethod
    def load(cls, path: Path) -> RunSpec:
        """Read a run.yaml."""
        document = read_document(path)
        return cls.from_dict(document.data, document)

    def dump(self) -> str:
        """The text of run.yaml."""
        return yaml.dump(self.to_dict(), Dumper=Dumper, sort_keys=False, allow_unicode=True)

    def trainable_params(self) -> int | None:
        """Closed form of what the run trains, the loss's own parameters included; None where none is known."""
        from bench.weights import model_shape

        count = self.method.trainable_params(model_shape(self.backbone.model))
        return count if count is None or not self.method.trains else count + self.loss.params

    @cached_property
    def run_id(self) -> str:
        """`<method>[-<settings that differ from the defaults>]-s<seed>-<hash8>`, safe as a folder's name.

        The hash covers all settings, the data and the weights by content; not the sweep's name, where data and
        weights lie, nor the number of loaders. UserError if data or weights are missing.
        """
        from bench.weights import is_file

        content = self.to_dict()
        del content["sweep"], content["train"]["workers"], content["dataset"]["root"], content["dataset"]["annotations"]
        if is_file(self.backbone.weights):
            del content["backbone"]["weights"]
        content["identity"] = [_data_identity(self.dataset), _weights_identity(self.backbone)]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return "-".join([*self._short(), f"s{self.seed}", digest])

    def _short(self) -> Iterator[str]:
        yield _safe(self.method.name)
        parts = _differing(self.method)
        if self.loss.name != self.method.default_loss:
            parts.append(self.loss.name)
        parts += _differing(self.loss)
        if self.train.lr != TrainSettings().lr:
            parts.append(f"lr{self.train.lr:g}")
        if parts:
            yield _safe("-".join(parts))[:60].rstrip("-")


class _Run(Settings):
    sweep: str
    dataset: DatasetSettings
    backbone: BackboneSettings
    method: dict[str, Any]
    loss: dict[str, Any]
    train: TrainSettings
    seed: int


@cache
def _data_identity(dataset: DatasetSettings) -> str:
    from bench.data import identity

    return identity(dataset)


@cache
def _weights_identity(backbone: BackboneSettings) -> str:
    from bench.weights import identity

    return identity(backbone)


@contextmanager
def _placed(place: str) -> Iterator[None]:
    """Puts the place in front of a UserError that does not know it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error.__cause__


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text)


def _differing(settings: Settings) -> list[str]:
    fields = type(settings).model_fields
    given = {key: getattr(settings, key) for key in fields} | (settings.model_extra or {})
    found = []
    for key, value in given.items():
        field = fields.get(key)
        if field is None or field.is_required() or value != field.get_default(call_default_factory=True):
            shown = "+".join(map(str, value)) if isinstance(value, tuple | list) else value
            found.append(f"{key}{shown:g}" if isinstance(shown, float) else f"{key}{shown}")
    return found


# --- the grid --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """A sweep file's runs in order, without duplicates; `notes` says what was collapsed."""

    name: str
    file: Path
    runs: tuple[RunSpec, ...]
    slurm: SlurmSettings
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Choice:
    """One value of each key of a section, and where each was written."""

    values: dict[str, Any]
    places: dict[str, str]


def expand(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file, apply `key=value` overrides, and give back every run of its grid.

    Any list where a setting takes one value is an axis; where the setting is itself a list, a list of lists is. An
    override wins everywhere, also over a method's own `train` and `loss`. Order: dataset, backbone, method as listed,
    its settings, loss, budget, train, seed. A method that does not train gets one run: its seed is 0 and the train
    settings that can't matter are the defaults. With `budget`, every other method gets a run at each number of
    trainable parameters that its knob can reach; the notes say what it reached and what was left out.
    Relative paths start at the current folder. UserError for any mistake.
    """
    from bench.weights import model_shape

    document = read_document(path)
    if not isinstance(document.data, dict):
        raise UserError(f"{path}: expected a sweep file with 'name:', 'dataset:', ..., got {show(document.data)}")
    for override in overrides:
        _override(document, override)
    file = parse(_File, document.data, "sweep", document)
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
        planned = _method_runs(document, at, entry, file.loss, trains, model_shape(backbone.model), budgets)
        for method, loss, train, note in planned:
            if note:
                fitted.append(f"{backbone.model}: {note}" if len(backbones) > 1 else note)
            if method is None:
                continue
            spec = RunSpec(file.name, dataset, backbone, method, loss, train, 0)
            found = [replace(spec, seed=seed) for seed, _ in seeds] if method.trains else [_untrained(spec)]
            total += len(found)
            for run in found:
                runs.setdefault(run.run_id, run)
    notes = list(dict.fromkeys(fitted))
    if total > len(runs):
        notes.append(f"{total - len(runs)} of {total} combinations are the same run as another")
    return Sweep(file.name, path, tuple(runs.values()), file.slurm, tuple(notes))


def _override(document: Document, override: str) -> None:
    key, equals, text = override.partition("=")
    place = f"--set {override}"
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
    """Take a method's own value away, so that the override's counts."""
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
    from bench.data import split_of

    found = parse(DatasetSettings, _expand_strings(choice), "dataset", document, ("dataset",), choice.places)
    paths = {key: os.path.abspath(value) for key in ("root", "annotations") if (value := getattr(found, key))}  # noqa: PTH100
    with _placed(choice.places.get("split") or choice.places["name"]):
        found = found.model_copy(update={**paths, "split": split_of(found)})
    with _placed(choice.places.get("root") or choice.places["name"]):
        _data_identity(found)
    return found


def _backbone(document: Document, choice: _Choice) -> BackboneSettings:
    from bench.weights import is_file, model_shape

    found = parse(BackboneSettings, _expand_strings(choice), "backbone", document, ("backbone",), choice.places)
    if is_file(found.weights):
        found = found.model_copy(update={"weights": os.path.abspath(found.weights)})  # noqa: PTH100
    with _placed(choice.places["model"]):
        model_shape(found.model)
    with _placed(choice.places["weights"]):
        _weights_identity(found)
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


def _method_runs(
    document: Document,
    at: Key,
    entry: dict[str, Any],
    common_loss: Any,
    trains: list[_Choice],
    shape: ModelShape,
    budgets: Sequence[int] | None,
) -> Iterator[tuple[Method | None, Loss, TrainSettings, str]]:
    """Every (method, loss, train settings, note on its budget) that one entry of the grid stands for.

    The method is None where a budget is out of its reach; the note says so.
    """
    [(name, settings)] = entry.items()
    path = (*at, name)
    with _placed(document.at(path)):
        cls = methods.get(name)
    own = dict(settings) if isinstance(settings, Mapping) else {} if settings is None else settings
    special = {key: own.pop(key, None) for key in BESIDE} if isinstance(own, dict) else dict.fromkeys(BESIDE)
    own_trains = _section(TrainSettings, document, (*path, "train"), special["train"] or {})
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
            sized = list(_sized(plain, given, make, one_loss, shape, budgets))
        for (method, note), common, special_train in itertools.product(sized, trains, own_trains):
            both = _Choice(common.values | special_train.values, common.places | special_train.places)
            train = parse(TrainSettings, both.values, "train", document, ("train",), both.places)
            yield method, one_loss, train, note


def _sized(
    plain: Method,
    given: Mapping[str, Any],
    make: Callable[[Mapping[str, Any]], Method],
    loss: Loss,
    shape: ModelShape,
    budgets: Sequence[int] | None,
) -> Iterator[tuple[Method | None, str]]:
    """The method as it is set, or at each budget, with a note; checked against the backbone either way.

    `given` is what the sweep file says of it; if that fixes the knob, the method has one size.
    """

    def count(method: Method) -> int | None:
        method.check(shape)
        own = method.trainable_params(shape)
        return None if own is None else own + loss.params

    count(plain)
    if budgets is None or not plain.trains:
        yield plain, ""
        return
    what = " ".join([plain.name, *(f"{key}={value}" for key, value in given.items())])
    for each in budgets:
        found = budget.fit(each, what, None if plain.knob in given else plain.knob, make, count)
        yield found.method, found.note


def _presets(document: Document, path: Key, cls: type[Method], listed: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Each preset that is asked for with its settings; none and nothing where there is none."""
    if listed is None:
        return [("", {})]
    found = []
    for value, place in _values(document, (*path, "preset"), listed):
        if not isinstance(value, str) or value not in cls.presets:
            known = ", ".join(cls.presets) or "none"
            raise UserError(f"{place}: {cls.name}: unknown preset {show(value)} (allowed: {known})")
        found.append((value, cls.presets[value]))
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
