"""HarMA's modules (arXiv 2404.18253)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from methods.layers.bottlenecks import zeroed

GATE_START = 0.6  # before the sigmoid


def _gate() -> nn.Parameter:
    return nn.Parameter(torch.tensor(GATE_START))


class SelfAttention(nn.MultiheadAttention):
    """Multi-head self-attention over the tokens of one sample, without mask; dropout, if any, is on its weights."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__(dim, heads, dropout, batch_first=True)

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        return super().forward(x, x, x, need_weights=False)[0]


class HarmaShared(nn.Module):
    """HarMA's shared module `B(u) = u + W2 [d MHA(W1 u) + (1 - d) W1 u]`, W1 from `dim` to half of it.

    The gate d starts at sigmoid(0.6), W2 and its bias at zero.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, dim // 2)
        self.attention = SelfAttention(dim // 2, heads)
        self.up = zeroed(nn.Linear(dim // 2, dim))
        self.gate = _gate()

    def forward(self, u: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        d, low = torch.sigmoid(self.gate), self.down(u)
        return u + self.up(d * self.attention(low) + (1 - d) * low)


class HarmaAdapter(nn.Module):
    """HarMA's adapter with its outer gate: from a block's MLP output m to `g A(m) + (1 - g) m`.

    `A(m) = m + Wu [b h + (1 - b) u]`, with `h = GELU(Wd m)` and u computed in steps: `u = MHA(h)`, then `u = B(u)` if
    there is a shared module, then `u = MHA(u)` with the same weights. Wd goes from `width` to `dim`. The gates b and g
    start at sigmoid(0.6), Wu and its bias at zero.
    """

    def __init__(self, width: int, dim: int, heads: int, shared: HarmaShared | None) -> None:
        super().__init__()
        self.down = nn.Linear(width, dim)
        self.attention = SelfAttention(dim, heads)
        self.shared = shared
        self.up = zeroed(nn.Linear(dim, width))
        self.inner_gate, self.gate = _gate(), _gate()

    def forward(self, m: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        h = F.gelu(self.down(m))
        u = self.attention(h)
        if self.shared is not None:
            u = self.shared(u)
        u = self.attention(u)
        b, g = torch.sigmoid(self.inner_gate), torch.sigmoid(self.gate)
        adapted = m + self.up(b * h + (1 - b) * u)
        return g * adapted + (1 - g) * m
