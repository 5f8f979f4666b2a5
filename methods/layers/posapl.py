"""POSAPL's modules: bottlenecks with self-attention, and the fusion of hidden states at the end of a tower."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bench.core.taps import Tap
from methods.layers.bottlenecks import zeroed
from methods.layers.harma import SelfAttention


class AttentiveBottleneck(nn.Module):
    """`m + Up(z + MHA(z))` on a block's MLP output m, with `z = Down m` from `width` to `dim`, without an activation.

    Up and its bias start at zero.
    """

    def __init__(self, width: int, dim: int, heads: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, dim)
        self.attention = SelfAttention(dim, heads)
        self.up = zeroed(nn.Linear(dim, width))

    def forward(self, m: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        z = self.down(m)
        branch: Tensor = self.up(z + self.attention(z))
        return m + branch


class SideFusion(nn.Module):
    """Adds a_n to the tokens behind a tower's last LayerNorm: to all of a text, to the class token of an image.

    From the outputs f_1 to f_n of n blocks, which go through `taps`, with linear layers A_k of the tower's width:
    progressive: `a_1 = ReLU(A_1 f_1)`, `a_k = ReLU(A_k (a_(k-1) + f_k))`, `a_n = A_n (a_(n-1) + f_n)`; parallel:
    `a_n = A_n sum_k ReLU(A_k f_k)` over k < n. In the image tower each a_k is averaged over the tokens, and so is what
    A_n is applied to. A_n and its bias start at zero.
    """

    def __init__(self, width: int, count: int, *, progressive: bool, image: bool) -> None:
        super().__init__()
        self.taps = nn.ModuleList(Tap() for _ in range(count if progressive else count - 1))
        self.steps = nn.ModuleList(nn.Linear(width, width) for _ in range(count - 1))
        self.last = zeroed(nn.Linear(width, width))
        self.progressive, self.image = progressive, image

    def _pooled(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch _ width"]:
        return x.mean(dim=1, keepdim=True) if self.image else x

    def _fused(self) -> Float[Tensor, "batch _ width"]:
        states = [tap.take() for tap in self.taps]  # type: ignore[operator]
        if not self.progressive:
            found = [self._pooled(F.relu(step(f))) for step, f in zip(self.steps, states, strict=True)]
            return torch.stack(found).sum(dim=0)
        a = self._pooled(F.relu(self.steps[0](states[0])))
        for step, f in zip(self.steps[1:], states[1:-1], strict=True):
            a = self._pooled(F.relu(step(a + f)))
        return self._pooled(a + states[-1])

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        added = self.last(self._fused())
        return torch.cat([x[:, :1] + added, x[:, 1:]], dim=1) if self.image else x + added
