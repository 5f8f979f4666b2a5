"""torch for files that must be readable without it: the one place where methods and losses import it lazily.

Planning a sweep reads every method's settings, and importing torch takes seconds. A file that says
`from methods.lazy import F, nn, torch` uses these names in its functions as if it had imported torch; torch is imported
when a function first touches one of them. A class statement that extends `nn.Module` touches it at once: such classes
belong into `methods/layers/`, whose modules are available here in the same way (`bottlenecks`, `prompts`, ...).
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any


class _Lazy:
    """Stands for a module, or for a name in one, until an attribute of it is wanted."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._module), name)


if TYPE_CHECKING or "torch" in sys.modules:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
else:
    torch, nn, F = _Lazy("torch"), _Lazy("torch.nn"), _Lazy("torch.nn.functional")
    Tensor = Any  # for annotations only

if TYPE_CHECKING:
    from methods.layers import bottlenecks, harma, prompts, tuners
else:
    bottlenecks, harma, prompts, tuners = (
        _Lazy(f"methods.layers.{name}") for name in ("bottlenecks", "harma", "prompts", "tuners")
    )

__all__ = ["F", "Tensor", "bottlenecks", "harma", "nn", "prompts", "torch", "tuners"]
