"""SSF's scale and shift of features (arXiv 2210.08823)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ScaleShift(nn.Module):
    """`scale * x + shift` for each feature. Ones and zeros at the start, with noise of `start_std` on both."""

    token_wise = True

    def __init__(self, features: int, start_std: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features))
        self.shift = nn.Parameter(torch.zeros(features))
        if start_std:
            nn.init.normal_(self.scale, mean=1.0, std=start_std)
            nn.init.normal_(self.shift, std=start_std)

    def forward(self, x: Float[Tensor, "batch tokens features"]) -> Float[Tensor, "batch tokens features"]:
        return x * self.scale + self.shift
