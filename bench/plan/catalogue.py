"""The registered methods as data: settings with defaults, presets, and what they train on a backbone. No torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import methods
from bench.config.backbones import model_shape
from bench.config.errors import UserError
from methods import losses
from methods.base import Method


def listing(backbone: str) -> list[dict[str, Any]]:
    """One entry for each method, with the defaults of its settings (None: it has none) and the counts of its presets.

    `trainable_params` is None if the backbone can't take the method, or if the count depends on a setting without a
    default. UserError if there is no such backbone.
    """
    shape = model_shape(backbone)
    return [
        {
            "name": name,
            "paper": cls.paper,
            "settings": _defaults(cls),
            "knob": cls.knob if isinstance(cls.knob, str) else None,  # peft's depends on the type
            "default_loss": cls.default_loss if cls.trains else None,
            **_count(cls, {}, backbone),
            "presets": {preset: _count(cls, values, backbone) for preset, values in cls.presets.items()},
            "total_params": shape.total_params,
        }
        for name, cls in _found()
    ]


def _found() -> Iterator[tuple[str, type[Method]]]:
    """All methods by name. One of an installed package that can't be imported is a note on stderr, not an error."""
    for name in methods.names():
        try:
            yield name, methods.get(name)
        except UserError as error:
            print(f"note: {error}", file=sys.stderr)


def _defaults(cls: type[Method]) -> dict[str, Any]:
    fields = cls.model_fields.items()
    values = {
        key: None if field.is_required() else field.get_default(call_default_factory=True) for key, field in fields
    }
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _count(cls: type[Method], settings: Any, backbone: str) -> dict[str, Any]:
    """Trainable parameters with the default loss, or why there is no such number."""
    needed = [key for key, field in cls.model_fields.items() if field.is_required()]
    if needed:
        return {"trainable_params": None, "note": f"{cls.name}: the count depends on {', '.join(needed)}"}
    shape = model_shape(backbone)
    method = cls(**settings)
    try:
        method.check(shape)
        count = method.trainable_params(shape)
    except UserError as error:
        return {"trainable_params": None, "note": str(error)}
    if count is not None and method.trains:
        count += losses.get(method.default_loss).params
    return {"trainable_params": count, "note": None}
