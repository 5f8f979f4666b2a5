"""POSAPL's loss: contrastive at the raw log-scale, plus squared triplets."""

from __future__ import annotations

from pydantic import Field

from methods.lazy import DualEncoder, Features, Float, Int, Tensor
from methods.losses.base import Loss
from methods.losses.info_nce import info_nce
from methods.losses.triplet import violations


def squared_triplet(
    image: Float[Tensor, "batch dim"], text: Float[Tensor, "batch dim"], margin: float
) -> Float[Tensor, ""]:
    """`1/2 sum_{i != j} max(0, margin + S_ij - S_ii)^2` over both directions, S the cosines.

    A sum, not a mean: against the contrastive mean its weight grows with the batch.
    """
    by_row, by_column = violations(image @ text.T, margin)
    return (by_row.square().sum() + by_column.square().sum()) / 2


class POSAPLLoss(Loss):
    """Cross-entropy with same-image targets, plus the squared violations of all negatives.

    As released, the factor on the cosines is the backbone's *logarithmic* scale itself, not its exponential: ln 100 =
    4.605 where CLIP multiplies by 100. It is not trained.
    """

    name = "posapl"
    paper = "POSAPL 2025, the released code (github.com/LiShuo1001/POSAPL)"
    margin: float = Field(0.1, ge=0)
    """By how much a matching pair must be more similar."""

    def __call__(self, features: Features, image_ids: Int[Tensor, " batch"], model: DualEncoder) -> Float[Tensor, ""]:
        contrastive = info_nce(features.image, features.text, model.logit_scale.log(), image_ids)
        return contrastive + squared_triplet(features.image, features.text, self.margin)
