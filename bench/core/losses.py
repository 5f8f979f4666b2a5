"""Losses as pure functions of L2-normalised float32 embeddings (batch, dim). Pair i is (image i, text i)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(image: Tensor, text: Tensor, scale: Tensor, image_ids: Tensor | None = None) -> Tensor:
    """Symmetric cross-entropy of `scale * cosine`, the mean of both directions (CLIP, arXiv 2103.00020).

    With `image_ids` (batch,) every text whose image has the same id is a positive, in equal shares:
    P_ij = 1[same image] / row sum (HarMA, arXiv 2404.18253). Without, only pair i is positive.
    """
    logits = scale * image @ text.T
    if image_ids is None:
        targets = torch.eye(len(logits), device=logits.device)
    else:
        targets = (image_ids[:, None] == image_ids[None, :]).float()
        targets = targets / targets.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, image_ids: Tensor | None = None) -> Tensor:
    """`-1/n sum_ij log sigmoid(z_ij (scale * S_ij + bias))`, z = 1 for positives, else -1 (SigLIP, arXiv 2303.15343).

    With `image_ids` (batch,) every text whose image has the same id is a positive; without, only pair i is.
    """
    logits = scale * image @ text.T + bias
    if image_ids is None:
        positive = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    else:
        positive = image_ids[:, None] == image_ids[None, :]
    return -F.logsigmoid(torch.where(positive, logits, -logits)).sum() / len(logits)


def _violations(scores: Tensor, margin: float) -> tuple[Tensor, Tensor]:
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
    by_row, by_column = _violations(a @ b.T, margin)
    return by_row.amax(dim=1).sum() + by_column.amax(dim=1).sum()


def sum_triplet(a: Tensor, b: Tensor, margin: float) -> Tensor:
    """All negatives' violations in both directions, summed over anchors."""
    by_row, by_column = _violations(a @ b.T, margin)
    return by_row.sum() + by_column.sum()


def adaptive_triplet(image: Tensor, text: Tensor, margin: float) -> Tensor:
    """HarMA's triplets, each weighted by how much it violates (arXiv 2404.18253).

    `1/2 sum_{i != j} (1 - exp(-c))^2 c` in both directions, `c = max(0, margin + S_ij - S_ii)`. A sum, not a mean; the
    weights are part of the gradient, as in the released code.
    """
    by_row, by_column = _violations(image @ text.T, margin)

    def weighted(c: Tensor) -> Tensor:
        return ((1 - torch.exp(-c)).square() * c).sum()

    return (weighted(by_row) + weighted(by_column)) / 2
