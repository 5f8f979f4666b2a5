"""HarMA's loss: contrastive, plus triplets weighted by how much they violate the margin."""

from __future__ import annotations

from pydantic import Field

from methods.lazy import DualEncoder, Features, Float, Int, Tensor, torch
from methods.losses.base import Loss
from methods.losses.info_nce import info_nce
from methods.losses.triplet import violations


def adaptive_triplet(
    image: Float[Tensor, "batch dim"], text: Float[Tensor, "batch dim"], margin: float
) -> Float[Tensor, ""]:
    """HarMA's triplets, each weighted by how much it violates the margin (arXiv 2404.18253, released code).

    `1/2 sum_{i != j} (1 - exp(-c))^2 c` over both directions, `c = max(0, margin + S_ij - S_ii)`, S the cosines.
    A sum, not a mean: against the contrastive mean its weight grows with the batch. The weights are not detached.
    """
    by_row, by_column = violations(image @ text.T, margin)
    return (_weighted(by_row) + _weighted(by_column)) / 2


def _weighted(c: Float[Tensor, "batch batch"]) -> Float[Tensor, ""]:
    return ((1 - torch.exp(-c)).square() * c).sum()


COLDEST = 1e-3  # the lowest temperature: cosines times 1000


class HarMALoss(Loss):
    """HarMA's two losses: contrastive with same-image targets, plus `triplet_weight` times adaptive triplets.

    `temperature` divides the cosines; it is where the trained one starts. Training may push it towards zero: it is
    kept at `COLDEST` or above, for below zero the loss would reward wrong pairs. Both weights are 1 as released.
    """

    name = "harma"
    paper = "Huang 2024, arXiv 2404.18253"
    params = 1
    margin: float = Field(0.2, ge=0)
    """By how much a matching pair must be more similar."""
    temperature: float = Field(0.07, gt=0)
    """Of the contrastive part at the start; it is trained."""
    triplet_weight: float = Field(1.0, ge=0)
    """Weight of the triplet part."""

    def attach(self, model: DualEncoder) -> None:
        model.extras["temperature"] = torch.nn.Parameter(torch.tensor(self.temperature))

    def __call__(self, features: Features, image_ids: Int[Tensor, " batch"], model: DualEncoder) -> Float[Tensor, ""]:
        temperature = model.extras["temperature"]
        with torch.no_grad():
            temperature.clamp_(min=COLDEST)
        contrastive = info_nce(features.image, features.text, 1 / temperature, image_ids)
        return contrastive + self.triplet_weight * adaptive_triplet(features.image, features.text, self.margin)
