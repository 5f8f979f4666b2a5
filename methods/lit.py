"""One-tower tuning in the manner of LiT: one tower is trained against the other, which is frozen."""

from __future__ import annotations

from typing import Literal

from methods.base import Method, ModelShape
from methods.lazy import DualEncoder


class LiT(Method):
    """Trains all of one tower and the temperature; the other tower is frozen. The paper freezes the image tower.

    63,428,097 parameters on ViT-B-32.
    """

    name = "lit"
    title = "LiT"
    paper = "Zhai et al. 2022, arXiv 2111.07991"
    trains_backbone = True
    examples = {"": {}, "image": {"tower": "image"}}
    tower: Literal["text", "image"] = "text"
    """The tower that is trained."""

    def attach(self, model: DualEncoder) -> None:
        for parameter in model.tower_parameters(self.tower).values():
            parameter.requires_grad_(True)
        model.clip.logit_scale.requires_grad_(True)  # type: ignore[union-attr,operator]

    @property
    def grad_towers(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.tower,)

    def trainable_params(self, shape: ModelShape) -> int | None:
        params: int | None = getattr(shape, self.tower).params
        return None if params is None else params + 1
