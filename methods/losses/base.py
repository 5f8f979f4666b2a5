"""What a loss is: typed settings, its own parameters, and a scalar from a batch of embeddings. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from bench.config.settings import Settings
from bench.config.shapes import ModelShape
from methods.base import check_slots
from methods.lazy import DualEncoder, Features, Tensor


class Loss(Settings):
    """Base class of all losses: a scalar from a batch of embeddings; any method can be trained with any of them."""

    name: ClassVar[str]
    paper: ClassVar[str]
    params: ClassVar[int] = 0  # parameters of its own that are trained along
    # Settings under which the conformance suite tries it, by a short label.
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {}}

    @property
    def second_view(self) -> float | None:
        """Element-wise dropout rate of a second pass the loss wants to see; None: one pass is enough."""
        return None

    def check(self, shape: ModelShape) -> None:
        """Raise UserError if this backbone can't give what the loss wants; called while a sweep is planned."""
        if self.second_view is not None:
            check_slots(f"loss {self.name}", shape, ("image", "text"))

    def attach(self, model: DualEncoder) -> None:
        """Add the loss's own trainable parameters, if it has any, to `model.extras`."""

    def __call__(self, features: Features, image_ids: Tensor, model: DualEncoder) -> Tensor:
        """The batch's loss (scalar). `image_ids` (batch,) tells which pairs show the same image."""
        raise NotImplementedError(f"{type(self).__name__}.__call__")
