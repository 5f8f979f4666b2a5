"""Taps: how a module behind a tower reads what the tower computes on the way."""

from __future__ import annotations

from typing import Any

from jaxtyping import Shaped
from torch import Tensor, nn


class Tap(nn.Module):
    """Passes its input on unchanged and keeps it until it is taken, once a forward pass.

    It fits into any slot, and into `DualEncoder.token_rewrites`. What a method's head reads of its tower beside the
    embedding goes through taps alone. If the tower is frozen, their contents can come from a cache: set `kept` of each
    and call the head. A copy of a model starts with empty taps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept: Tensor | None = None

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        self.kept = x
        return x

    def take(self) -> Shaped[Tensor, "*shape"]:
        """What last went through, which is then forgotten. Raises RuntimeError if nothing did."""
        kept, self.kept = self.kept, None
        if kept is None:
            raise RuntimeError("a tap is empty: its tower did not run before what reads it")
        return kept

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": None}  # a tensor with a graph behind it can't be copied
