"""Hinge triplets on cosines, and the violations of the margin that other losses use."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from methods.lazy import DualEncoder, Features, Float, Int, Tensor, torch
from methods.losses.base import Loss


def violations(
    scores: Float[Tensor, "batch batch"], margin: float
) -> tuple[Float[Tensor, "batch batch"], Float[Tensor, "batch batch"]]:
    """How far each negative violates the margin, for images and for texts as anchors; a row an anchor.

    `max(0, margin + S_ij - S_ii)` and `max(0, margin + S_ji - S_ii)`, zero on the diagonal. Margin 0.2 and scores
    [[0.5, 0.4], [0.1, 0.5]]: [[0, 0.1], [0, 0]] and [[0, 0], [0.1, 0]].
    """
    own = scores.diagonal()[:, None]
    off_diagonal = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    by_row = (margin + scores - own).clamp(min=0) * off_diagonal
    by_column = (margin + scores.T - own).clamp(min=0) * off_diagonal
    return by_row, by_column


def hardest_triplet(a: Float[Tensor, "batch dim"], b: Float[Tensor, "batch dim"], margin: float) -> Float[Tensor, ""]:
    """T(a, b): the hardest negative's violation in both directions, summed over anchors (HMMC, arXiv 2308.12509).

    `sum_i [max_j (margin + S_ij - S_ii)+ + max_j (margin + S_ji - S_ii)+]` with j != i and S the cosines of a and b.
    """
    by_row, by_column = violations(a @ b.T, margin)
    return by_row.amax(dim=1).sum() + by_column.amax(dim=1).sum()


def sum_triplet(a: Float[Tensor, "batch dim"], b: Float[Tensor, "batch dim"], margin: float) -> Float[Tensor, ""]:
    """The violations of all negatives in both directions, summed over anchors."""
    by_row, by_column = violations(a @ b.T, margin)
    return by_row.sum() + by_column.sum()


class Triplet(Loss):
    """Hinge triplets on cosines, summed over the batch: against the hardest negative, or against all of them."""

    name = "triplet"
    paper = "Faghri et al. 2018, arXiv 1707.05612 (VSE++: hardest); Kiros et al. 2014, arXiv 1411.2539 (sum)"
    examples = {"": {}, "sum": {"negatives": "sum"}}
    margin: float = Field(0.2, ge=0)
    """By how much a matching pair must be more similar."""
    negatives: Literal["hardest", "sum"] = "hardest"
    """The hardest negative of the batch, or the sum over all."""

    def __call__(self, features: Features, image_ids: Int[Tensor, " batch"], model: DualEncoder) -> Float[Tensor, ""]:
        triplet = hardest_triplet if self.negatives == "hardest" else sum_triplet
        return triplet(features.image, features.text, self.margin)
