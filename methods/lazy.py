"""The names that methods and losses take from torch, jaxtyping and the core; imported lazily, here alone.

A sweep is planned from the settings of every method, and importing torch takes seconds. `from methods.lazy import F,
Float, Tensor, nn, torch` gives a file these names without importing torch: `F`, `nn`, `torch` and the modules of
`methods/layers/` are imported when an attribute of one is first used, and the names for annotations (`DualEncoder`,
`Features`, `Float`, `Int`, `Tensor`) mean nothing until torch is there. Where torch has been imported already, all of
them are the real ones. A class that extends `nn.Module` uses an attribute of `nn` at once: in this project such classes
are in `methods/layers/`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any


class _Lazy:
    """Stands for a module until an attribute of it is used."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._module), name)


class _Annotation:
    """Stands for a type in annotations, with or without a shape: `Tensor`, `Float[Tensor, "batch dim"]`."""

    def __class_getitem__(cls, shape: Any) -> Any:
        return cls


if TYPE_CHECKING or "torch" in sys.modules:
    import torch
    import torch.nn.functional as F
    from jaxtyping import Float, Int
    from torch import Tensor, nn

    from bench.core.model import DualEncoder, Features
else:
    torch, nn, F = _Lazy("torch"), _Lazy("torch.nn"), _Lazy("torch.nn.functional")
    DualEncoder = Features = Float = Int = Tensor = _Annotation

if TYPE_CHECKING:
    from methods.layers import bottlenecks, harma, mma, mps, posapl, prompts, reft, scale_shift, tags, tuners, unipt
else:
    bottlenecks, harma, prompts, scale_shift, tuners = (
        _Lazy(f"methods.layers.{name}") for name in ("bottlenecks", "harma", "prompts", "scale_shift", "tuners")
    )
    mma, mps, posapl, reft, tags, unipt = (
        _Lazy(f"methods.layers.{name}") for name in ("mma", "mps", "posapl", "reft", "tags", "unipt")
    )

__all__ = [
    "DualEncoder",
    "F",
    "Features",
    "Float",
    "Int",
    "Tensor",
    "bottlenecks",
    "harma",
    "mma",
    "mps",
    "nn",
    "posapl",
    "prompts",
    "reft",
    "scale_shift",
    "tags",
    "torch",
    "tuners",
    "unipt",
]
