"""HMMC, the loss of MRS-Adapter."""

from __future__ import annotations

from pydantic import Field

from methods.lazy import DualEncoder, Features, Float, Int, Tensor
from methods.losses.base import Loss
from methods.losses.triplet import hardest_triplet


class HMMC(Loss):
    """`T(v, t) + T(v, v') + T(t, t')`, T the hardest-negative triplets of `hardest_triplet` (arXiv 2308.12509).

    v and t are the embeddings of images and texts, v' and t' those of a second pass under dropout of `view_dropout`.
    A sum over the batch, without temperature. Margin and weights are the released code's; the paper's text could not be
    checked.
    """

    name = "hmmc"
    paper = "Yuan, Zhan, Xiong 2023, arXiv 2308.12509"
    margin: float = Field(0.2, ge=0)
    """By how much a matching pair must be more similar."""
    view_dropout: float = Field(0.2, gt=0, lt=1)
    """Dropout that makes the second view."""
    image_weight: float = Field(1.0, ge=0)
    """Weight of the term between the two image views."""
    text_weight: float = Field(1.0, ge=0)
    """Weight of the term between the two text views."""

    @property
    def second_view(self) -> float | None:
        return self.view_dropout

    def __call__(self, features: Features, image_ids: Int[Tensor, " batch"], model: DualEncoder) -> Float[Tensor, ""]:
        assert features.image_view is not None
        assert features.text_view is not None
        total = hardest_triplet(features.image, features.text, self.margin)
        total = total + self.image_weight * hardest_triplet(features.image, features.image_view, self.margin)
        return total + self.text_weight * hardest_triplet(features.text, features.text_view, self.margin)
