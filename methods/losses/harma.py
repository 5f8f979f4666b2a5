"""HarMA's loss: contrastive, and triplets weighted by how much they violate."""

from __future__ import annotations

from pydantic import Field

from methods.lazy import DualEncoder, Features, Tensor, torch
from methods.losses.base import Loss
from methods.losses.info_nce import info_nce
from methods.losses.triplet import violations


def adaptive_triplet(image: Tensor, text: Tensor, margin: float) -> Tensor:
    """HarMA's triplets, each weighted by how much it violates (arXiv 2404.18253).

    `1/2 sum_{i != j} (1 - exp(-c))^2 c` in both directions, `c = max(0, margin + S_ij - S_ii)`. A sum, not a mean; the
    weights are part of the gradient, as in the released code.
    """
    by_row, by_column = violations(image @ text.T, margin)

    def weighted(c: Tensor) -> Tensor:
        return ((1 - torch.exp(-c)).square() * c).sum()

    return (weighted(by_row) + weighted(by_column)) / 2


class HarMALoss(Loss):
    """HarMA's two losses: contrastive with same-image targets and a trained temperature, plus adaptive triplets."""

    name = "harma"
    paper = "Huang 2024, arXiv 2404.18253"
    params = 1
    margin: float = Field(0.2, ge=0)
    temperature: float = Field(0.07, gt=0)
    triplet_weight: float = Field(1.0, ge=0)

    def attach(self, model: DualEncoder) -> None:
        model.extras["temperature"] = torch.nn.Parameter(torch.tensor(self.temperature))

    def __call__(self, features: Features, image_ids: Tensor, model: DualEncoder) -> Tensor:
        contrastive = info_nce(features.image, features.text, 1 / model.extras["temperature"], image_ids)
        return contrastive + self.triplet_weight * adaptive_triplet(features.image, features.text, self.margin)
