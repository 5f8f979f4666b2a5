"""Hinge triplets on cosines, and the violations that other losses of the kind are made of."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from methods.lazy import DualEncoder, Features, Tensor, torch
from methods.losses.base import Loss


def violations(scores: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """max(0, margin + S_ij - S_ii) by row and by column (transposed back to anchor rows), zero on the diagonal."""
    own = scores.diagonal()[:, None]
    off_diagonal = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    by_row = (margin + scores - own).clamp(min=0) * off_diagonal
    by_column = (margin + scores.T - own).clamp(min=0) * off_diagonal
    return by_row, by_column


def hardest_triplet(a: Tensor, b: Tensor, margin: float) -> Tensor:
    """T(a, b): the hardest negative's violation in both directions, summed over anchors (HMMC, arXiv 2308.12509).

    `sum_i [max_j (margin + S_ij - S_ii)+ + max_j (margin + S_ji - S_ii)+]`, S the cosine matrix, j != i.
    """
    by_row, by_column = violations(a @ b.T, margin)
    return by_row.amax(dim=1).sum() + by_column.amax(dim=1).sum()


def sum_triplet(a: Tensor, b: Tensor, margin: float) -> Tensor:
    """All negatives' violations in both directions, summed over anchors."""
    by_row, by_column = violations(a @ b.T, margin)
    return by_row.sum() + by_column.sum()


class Triplet(Loss):
    """Hinge triplets on cosines: against the hardest negative of the batch, or the sum over all."""

    name = "triplet"
    paper = "Faghri et al. 2018, arXiv 1707.05612 (VSE++: hardest); Kiros et al. 2014, arXiv 1411.2539 (sum)"
    examples = {"": {}, "sum": {"negatives": "sum"}}
    margin: float = Field(0.2, ge=0)
    negatives: Literal["hardest", "sum"] = "hardest"

    def __call__(self, features: Features, image_ids: Tensor, model: DualEncoder) -> Tensor:
        triplet = hardest_triplet if self.negatives == "hardest" else sum_triplet
        return triplet(features.image, features.text, self.margin)
