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
    """Multi-head self-attention over the tokens of one sample, without mask; dropout, if any, is on its weights.

    The parameters are those of `nn.MultiheadAttention`. Its own forward pass brings tokens in front of the batch and
    copies q, k and v apart, which takes as long as the products on so few dimensions.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__(dim, heads, dropout, batch_first=True)

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = packed.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        rate = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate).transpose(1, 2).flatten(2)
        projected: Tensor = self.out_proj(mixed)
        return projected


def _mixed(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"], share: Float[Tensor, ""]) -> Float[Tensor, "*shape"]:
    """`(1 - share) a + share b`. Not every torch's `lerp` takes a share in float32 under autocast."""
    return torch.lerp(a, b, share) if a.dtype == share.dtype else a + share * (b - a)


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
        low = self.down(u)
        mixed: Tensor = self.up(_mixed(low, self.attention(low), torch.sigmoid(self.gate)))
        return u + mixed


class HarmaAdapter(nn.Module):
    """HarMA's adapter with its outer gate: from a block's MLP output m to `g A(m) + (1 - g) m`.

    `A(m) = m + Wu [b h + (1 - b) u]`, with `h = GELU(Wd m)` and u computed in steps: `u = MHA(h)`, then `u = B(u)` if
    there is a shared module, then `u = MHA(u)` with the same weights. Wd goes from `width` to `dim`. The gates b and g
    start at sigmoid(0.6), Wu and its bias at zero.

    Computed as `m + (g Wu) [...]`, which is the same: g scales a matrix instead of three tensors of m's size.
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
        mixed = _mixed(u, h, torch.sigmoid(self.inner_gate))
        g = torch.sigmoid(self.gate)
        return m + F.linear(mixed, g * self.up.weight, g * self.up.bias)
