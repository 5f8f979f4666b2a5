"""open_clip's models in families of one anatomy, and which methods each family takes. No torch."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import methods
from bench.config.backbones import model_names, model_shape
from bench.config.errors import UserError
from bench.config.shapes import ModelShape, TowerShape
from methods.base import DoesNotFit, Method

BUILDS = ("peft",)  # methods that build a model of the backbone's size to check it, which takes a second


@dataclass(frozen=True)
class Family:
    """Models with the same kinds of towers, which take the same methods. `refused`: the others, by the reason why."""

    models: tuple[str, ...]
    towers: str
    takes: tuple[str, ...]
    refused: dict[str, tuple[str, ...]]


def families() -> list[Family]:
    """All of open_clip's models, the families that take the most methods first.

    Methods have their defaults, or their first example where a setting has none. Those in `BUILDS` are asked about the
    smallest model with the same kinds of towers alone.
    """
    kinds: dict[str, list[ModelShape]] = defaultdict(list)
    unsupported = []
    for model in model_names():
        try:
            shape = model_shape(model)
        except UserError:
            unsupported.append(model)
        else:
            kinds[describe(shape)].append(shape)
    found = [family for towers, shapes in kinds.items() for family in _families(towers, shapes)]
    if unsupported:
        reason = {"CoCa is not supported": tuple(methods.names())}
        found.append(Family(tuple(unsupported), "CoCa: a text decoder beside the two towers", (), reason))
    return sorted(found, key=lambda family: (-len(family.takes), -len(family.models)))


def _families(towers: str, shapes: list[ModelShape]) -> Iterator[Family]:
    """Models with these kinds of towers, apart where they take other methods."""
    smallest = min(shapes, key=lambda shape: sum(tower.layers * tower.width**2 for tower in shape.towers))
    of_all = {name: why_not(methods.get(name), smallest) for name in BUILDS}
    alike: dict[tuple[str | None, ...], list[str]] = defaultdict(list)
    for shape in shapes:
        reasons = (of_all[name] if name in BUILDS else why_not(methods.get(name), shape) for name in methods.names())
        alike[tuple(reasons)].append(shape.model)
    for answers, models in alike.items():
        refused = defaultdict(list)
        for name, reason in zip(methods.names(), answers, strict=True):
            refused[reason].append(name)
        takes = refused.pop(None, [])
        yield Family(
            tuple(models), towers, tuple(takes), {str(reason): tuple(each) for reason, each in refused.items()}
        )


def describe(shape: ModelShape) -> str:
    """A model's kinds of towers: all that decides which methods it takes, but for sizes."""
    text = _kind(shape.text)
    if shape.text.pool is not None:
        place = {"argmax": "at the end token", "last": "at the last place"}.get(
            shape.text.pool, f"by {shape.text.pool}"
        )
        text += f", {'causal' if shape.text.causal else 'not causal'}, pools {place}"
    return f"image: {_kind(shape.image)}; text: {text}"


def _kind(tower: TowerShape) -> str:
    """A tower's kind without its size: "timm's eva02_base_patch16_clip_224" is of the kind "timm's eva"."""
    kind = re.sub(r"^timm's ([a-z]+).*", r"timm's \1", re.sub(r"^Hugging Face's .*", "Hugging Face's", tower.kind))
    return f"{kind} of SigLIP" if kind.startswith("timm's") and tower.slots is None else kind


def why_not(cls: type[Method], shape: ModelShape) -> str | None:
    """Why a backbone can't take a method with its defaults; None if it can."""
    required = any(field.is_required() for field in cls.model_fields.values())
    method = cls(**(next(iter(cls.examples.values())) if required else {}))
    try:
        method.check(shape)
        method.trainable_params(shape)
    except DoesNotFit as error:
        return error.why
    except UserError as error:
        return str(error)
    return None
