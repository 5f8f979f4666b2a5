"""What a loss is: typed settings, its own parameters, and a scalar from a batch of embeddings.

Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from bench.config.settings import Settings
from bench.config.shapes import ModelShape
from methods.base import check_slots
from methods.lazy import DualEncoder, Features, Float, Int, Tensor


class Loss(Settings):
    """Base class of all losses. An instance is one configuration; any method can be trained with any loss."""

    name: ClassVar[str]
    paper: ClassVar[str]
    params: ClassVar[int] = 0  # how many parameters of its own it trains
    has_teacher: ClassVar[bool] = False  # whether `attach` calls `model.add_teacher()`
    # Settings under which the conformance suite tries it, by a short label.
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {}}

    @property
    def second_view(self) -> float | None:
        """Element-wise dropout rate of the second pass that the loss needs (`DualEncoder.forward`); None: no pass."""
        return None

    def check(self, shape: ModelShape) -> None:
        """Raise UserError if this backbone can't give the second pass; called while a sweep is planned."""
        if self.second_view is not None:
            check_slots(f"loss {self.name}", shape, ("image", "text"))

    def attach(self, model: DualEncoder) -> None:
        """Add the loss's own trainable parameters, if it has any, to `model.extras`, and the teacher if it has one."""

    def __call__(self, features: Features, image_ids: Int[Tensor, " batch"], model: DualEncoder) -> Float[Tensor, ""]:
        """The loss of a batch; pairs with the same `image_ids` are captions of one image."""
        raise NotImplementedError(f"{type(self).__name__}.__call__")
