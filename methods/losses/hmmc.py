"""HMMC, the loss of MRS-Adapter."""

from __future__ import annotations

from pydantic import Field

from methods.lazy import DualEncoder, Features, Tensor
from methods.losses.base import Loss
from methods.losses.triplet import hardest_triplet


class HMMC(Loss):
    """Hardest-negative triplets between image and text, and between each and its own view under dropout."""

    name = "hmmc"
    paper = "Yuan, Zhan, Xiong 2023, arXiv 2308.12509"
    margin: float = Field(0.2, ge=0)
    view_dropout: float = Field(0.2, gt=0, lt=1)
    image_weight: float = Field(1.0, ge=0)
    text_weight: float = Field(1.0, ge=0)

    @property
    def second_view(self) -> float | None:
        return self.view_dropout

    def __call__(self, features: Features, image_ids: Tensor, model: DualEncoder) -> Tensor:
        assert features.image_view is not None
        assert features.text_view is not None
        total = hardest_triplet(features.image, features.text, self.margin)
        total = total + self.image_weight * hardest_triplet(features.image, features.image_view, self.margin)
        return total + self.text_weight * hardest_triplet(features.text, features.text_view, self.margin)
