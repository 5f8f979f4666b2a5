"""How a run departs from the recipe that it was planned with. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from bench.config.document import Document
from bench.config.parse import parse
from bench.config.settings import TrainSettings
from bench.plan.recipes import Layer, Recipe
from bench.plan.spec import RunSpec, untrained
from methods import losses
from methods.base import describe

# Settings of training that change what a run costs, not what it computes.
COSTS = ("grad_checkpointing", "micro_batch", "eval_batch_size", "workers")


def departures(spec: RunSpec, recipe: Recipe) -> list[str]:
    """The dotted keys in which a run differs from what the recipe alone would give: `["train.epochs"]`.

    Of training and loss every setting counts, also one that the recipe leaves at its default, but none of `COSTS`. Of
    the backbone and the dataset those count that the recipe states. The method and its settings count where the recipe
    is a method's released training.
    """
    layer = recipe.layer(spec.dataset.name, spec.method.name)
    alone = _alone(spec, layer)
    found = list(_method(spec, recipe, layer))
    for part in ("backbone", "dataset"):
        stated, settings = getattr(layer, part), getattr(spec, part)
        found += [f"{part}.{key}" for key, value in stated.items() if getattr(settings, key) != value]
    if spec.loss.name != alone.loss.name:
        found.append("loss.name")
    else:
        found += [f"loss.{key}" for key in _differing(describe(spec.loss), describe(alone.loss))]
    train = _differing(spec.train.model_dump(), alone.train.model_dump())
    return found + [f"train.{key}" for key in train if key not in COSTS]


def _alone(spec: RunSpec, layer: Layer) -> RunSpec:
    """The run with the recipe's training and loss."""
    document = Document({}, {})
    named = layer.loss
    loss = losses.get(named.name if named else spec.method.default_loss)
    found = replace(
        spec,
        train=parse(TrainSettings, layer.train, "train", document),
        loss=parse(loss, named.settings if named else {}, "loss", document),
    )
    return found if spec.method.trains else untrained(found)


def _method(spec: RunSpec, recipe: Recipe, layer: Layer) -> Iterator[str]:
    if recipe.released is None:
        return
    if spec.method.name != recipe.released:
        yield "method.name"
        return
    alone = parse(type(spec.method), layer.method, spec.method.name, Document({}, {}))
    yield from (f"method.{key}" for key in _differing(describe(spec.method), describe(alone)))


def _differing(given: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [key for key in given if given[key] != other.get(key)]
