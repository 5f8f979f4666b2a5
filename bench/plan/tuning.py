"""Equal tuning: the trials of each configuration of a grid, and what follows from their validation scores. No torch.

A trial is a run like others, with an id of its own, that never opens the test set. Every configuration gets the same
number of trials with the same draws of a setting; the best on validation goes on to the seeds of the grid.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.config.backbones import model_shape
from bench.config.document import Document, show
from bench.config.errors import UserError
from bench.config.parse import parse, suggest
from bench.config.settings import Settings, TrainSettings, TuneSettings
from bench.plan.entries import placed
from bench.plan.spec import RunSpec

Scores = Mapping[str, float | None]  # run id -> validation mean recall of a run that is over; None: it failed
_NUMBER = r"[0-9.]+(?:[eE][-+]?[0-9]+)?"
_LOG = re.compile(rf"log\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)")
_ROUNDS = 20  # of draws, until there are as many distinct ones as wanted


@dataclass(frozen=True)
class Span:
    """All values between two, drawn evenly on a logarithmic scale and rounded to three digits."""

    low: float
    high: float

    def at(self, share: float) -> float:
        """The value at a share of the way from `low` to `high`."""
        return float(f"{self.low * (self.high / self.low) ** share:.3g}")


Axis = Span | list[Any]


@dataclass(frozen=True)
class Tuned:
    """One configuration of the grid: its runs as the file has them, one a seed, and its trials at full length.

    keys: the tuned settings, dotted. halving: trials first train for the `halving`-th part of their epochs, and as many
    of them go on at full length; None: all are trained at full length at once.
    """

    runs: tuple[RunSpec, ...]
    trials: tuple[RunSpec, ...]
    keys: tuple[str, ...]
    halving: int | None

    def planned(self, scores: Scores) -> tuple[list[RunSpec], RunSpec | None]:
        """The trials that are to be run as far as these scores tell, and the winner; None while it is not known."""
        first, whole = list(self.trials), list(self.trials)
        if self.halving:
            first = [replace(trial, train=self._short(trial.train, self.halving)) for trial in self.trials]
            ranked = _ranked(first, scores)
            if ranked is None:
                return first, None
            kept = sorted(ranked[: math.ceil(len(first) / self.halving)])
            whole = [self.trials[i] for i in kept]
        known = {trial.run_id: trial for trial in (*first, *whole)}
        ranked = _ranked(whole, scores)
        return list(known.values()), whole[ranked[0]] if ranked else None

    def finals(self, winner: RunSpec) -> list[RunSpec]:
        """The winner's runs: the seeds and the evaluation of the grid."""
        return [replace(winner, seed=run.seed, evaluation=run.evaluation) for run in self.runs]

    @staticmethod
    def _short(train: TrainSettings, part: int) -> TrainSettings:
        return train.model_copy(update={"epochs": math.ceil(train.epochs / part)})


def _ranked(trials: Sequence[RunSpec], scores: Scores) -> list[int] | None:
    """The finished trials' places in the list, best first, of equal ones the earlier; None until all are over."""
    found = [scores.get(trial.run_id, math.nan) for trial in trials]
    if any(score is not None and math.isnan(score) for score in found):
        return None
    finished = [(-score, place) for place, score in enumerate(found) if score is not None]
    return [place for _, place in sorted(finished)]


def plan(
    document: Document, written: Any, runs: Iterable[RunSpec], limit: Callable[[int], None]
) -> tuple[list[Tuned], list[str]]:
    """The configurations to be tuned among these runs, and notes. `limit(count)` raises if there are too many trials.

    Methods that train nothing, or that have none of the settings, are not tuned. UserError for a setting that no method
    has, and for values that it does not take.
    """
    given = written if isinstance(written, dict) else {}
    # Settings to tune are all keys but its own: first, so that a misspelt one of these is named.
    axes = {key: _axis(document, key, value) for key, value in given.items() if key not in TuneSettings.model_fields}
    settings = parse(TuneSettings, written, "tune", document, ("tune",))
    if not axes:
        raise UserError(f"{document.at(('tune',))}: tune: give the settings to tune, such as `lr: [1e-4, 4e-4, 1e-3]`")
    configurations: dict[str, list[RunSpec]] = {}
    for run in runs:
        key = json.dumps(run.to_dict() | {"seed": None}, sort_keys=True)
        configurations.setdefault(key, []).append(run)
    limit(len(configurations) * settings.trials)
    found: list[Tuned] = []
    notes: list[str] = []
    used: set[str] = set()
    for listed in configurations.values():
        base = listed[0]
        places = {key: place for key in axes if base.method.trains and (place := _place(base, key))}
        used |= places.keys()
        if places:
            own = {key: axes[key] for key in places}
            trials = _trials(document, base, own, places, settings)
            if settings.halving and base.train.epochs == 1:
                raise UserError(f"{document.at(('tune', 'halving'))}: tune: halving: there is no part of one epoch")
            keys = tuple(f"{part}.{name}" for part, name in places.values())
            found.append(Tuned(tuple(listed), trials, keys, settings.halving))
            if len(trials) < settings.trials:
                notes.append(
                    f"{base.method.name} has {len(trials)} trials, not {settings.trials}: its grid has no more"
                )
        elif base.method.trains:
            notes.append(f"{base.method.name} is not tuned: it has none of the settings {', '.join(axes)}")
    for key in axes:
        if key not in used:
            raise UserError(f"{document.at(('tune', key))}: tune: no method of this grid has a setting '{key}'")
    seeds = {run.seed for each in found for run in each.runs}
    if settings.seed in seeds:
        notes.append(
            f"trials are trained with seed {settings.seed}, which is also a seed of the grid; another `tune.seed` "
            "keeps the choice apart from the seeds that are reported"
        )
    return found, list(dict.fromkeys(notes))


def _axis(document: Document, key: str, value: Any) -> Axis:
    """What a setting is drawn from: a list, `log(low, high)` or `{log: [low, high]}`."""
    place = document.at(("tune", key))
    match = _LOG.fullmatch(value) if isinstance(value, str) else None
    ends = [float(each) for each in match.groups()] if match else value.get("log") if isinstance(value, dict) else None
    if isinstance(value, list) and value:
        return list(value)
    sound = isinstance(ends, list) and len(ends) == 2 and all(_is_number(each) for each in ends)
    if sound and isinstance(ends, list) and 0 < ends[0] < ends[1] and (match or set(value) == {"log"}):
        return Span(float(ends[0]), float(ends[1]))
    cut = "log(" in f"{key}{value}"
    known = list(TuneSettings.model_fields)
    hint = "; inside braces write it as {log: [1e-3, 1e-1]}" if cut else suggest(str(key), known)
    raise UserError(
        f"{place}: tune: {key}: expected a list of values, or {{log: [low, high]}} with 0 < low < high, "
        f"got {show(value)}{hint}"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _place(spec: RunSpec, key: str) -> tuple[str, str] | None:
    """The part of the run with this setting (method, else train, else loss; or as `train.lr` says), and its name."""
    part, dot, name = key.rpartition(".")
    parts: dict[str, Settings] = {"method": spec.method, "train": spec.train, "loss": spec.loss}
    found = (each for each in ([part] if dot else parts) if each in parts and name in type(parts[each]).model_fields)
    first = next(found, None)
    return (first, name) if first else None


def _trials(
    document: Document,
    base: RunSpec,
    axes: Mapping[str, Axis],
    places: Mapping[str, tuple[str, str]],
    settings: TuneSettings,
) -> tuple[RunSpec, ...]:
    """The trials of one configuration, each once."""
    evaluation = base.evaluation.model_copy(update={"test": False})
    if evaluation.protocol == "test-selected":
        evaluation = evaluation.model_copy(update={"protocol": "strict"})
    start = replace(base, seed=settings.seed, evaluation=evaluation)
    found: dict[str, RunSpec] = {}
    for draw in _draws(axes, settings.trials, settings.seed):
        trial = start
        for key, value in draw.items():
            if isinstance(axes[key], Span) and _is_whole(type(getattr(base, places[key][0])), places[key][1]):
                value = round(value)
            trial = _with(document, trial, places[key], value, document.at(("tune", key)))
        found.setdefault(trial.run_id, trial)
        if len(found) == settings.trials:
            break
    return tuple(found.values())


def _with(document: Document, spec: RunSpec, place: tuple[str, str], value: Any, written: str) -> RunSpec:
    """The run with another value of one setting; UserError, with the place where it is written, if it does not fit."""
    part, name = place
    old: Settings = getattr(spec, part)
    cls = type(old)
    given = old.model_dump(mode="json") | {name: value}
    changed = parse(cls, given, f"tune: {part}", document, ("tune",), dict.fromkeys(given, written))
    changes: dict[str, Any] = {part: changed}
    trial = replace(spec, **changes)
    with placed(written):
        if part == "method":
            trial.method.check(model_shape(spec.backbone.model))
    return trial


def _is_whole(cls: type[Settings], name: str) -> bool:
    """Whether a setting takes whole numbers, and no fractions."""
    kinds = str(cls.model_fields[name].annotation)
    return "int" in kinds and "float" not in kinds


def _draws(axes: Mapping[str, Axis], trials: int, seed: int) -> Iterator[dict[str, Any]]:
    """Values of the settings: the whole grid of lists or a part of it; with a span, random ones without end in sight.

    Random values are spread: of so many trials, each has its own part of a span, and a list's values come equally
    often. The values of a setting depend on its name alone, so that methods with other settings get the same.
    """
    lists = [axis for axis in axes.values() if isinstance(axis, list)]
    if len(lists) == len(axes):
        grid = list(itertools.product(*lists))
        kept = sorted(random.Random(seed).sample(range(len(grid)), min(trials, len(grid))))
        yield from (dict(zip(axes, grid[place], strict=True)) for place in kept)
        return
    for part in range(_ROUNDS):
        columns = {key: _column(axis, trials, random.Random(f"{seed} {key} {part}")) for key, axis in axes.items()}
        yield from (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _column(axis: Axis, trials: int, rng: random.Random) -> list[Any]:
    order = rng.sample(range(trials), trials)
    if isinstance(axis, list):
        shuffled = rng.sample(axis, len(axis))
        return [shuffled[place % len(axis)] for place in order]
    return [axis.at((place + rng.random()) / trials) for place in order]
