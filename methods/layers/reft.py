"""LoReFT's intervention (arXiv 2404.03592)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class LoReFT(nn.Module):
    """`h + R' (W h + b - R h)` with the rows of R orthonormal, R' its transpose, computed as `h + R' ((W - R) h + b)`.

    R is what Gram-Schmidt makes of the rows of the trained matrix `rows` (a QR decomposition with positive diagonal),
    so it has orthonormal rows whatever the optimizer does. W starts as R and b as zero, which adds exactly nothing;
    with `random_start` both start as those of a linear layer.
    """

    token_wise = True

    def __init__(self, width: int, rank: int, random_start: bool) -> None:
        super().__init__()
        self.rows = nn.Parameter(nn.init.orthogonal_(torch.empty(rank, width)))
        self.source = nn.Linear(width, rank)
        if not random_start:
            self.source.weight.data.copy_(self.rotation().detach())
            nn.init.zeros_(self.source.bias)

    def rotation(self) -> Float[Tensor, "rank width"]:
        """R: the orthonormalised rows."""
        q, r = torch.linalg.qr(self.rows.T)
        return (q * r.diagonal().sign()).T

    def forward(self, h: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        rotation = self.rotation()
        return h + F.linear(h, self.source.weight - rotation, self.source.bias) @ rotation
