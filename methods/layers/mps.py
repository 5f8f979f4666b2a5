"""The G2A adapter of MPS-CLIP (arXiv 2601.18190)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from methods.layers.bottlenecks import zeroed
from methods.layers.harma import GATE_START, SelfAttention


def with_positions(x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
    """x plus sinusoidal position embeddings (arXiv 1706.03762); dim is even.

    Token t gets `sin(t / 10000^(2i / dim))` in dimension 2i and the cosine of the same in dimension 2i + 1.
    """
    _, tokens, dim = x.shape
    steps = torch.exp(torch.arange(0, dim, 2, device=x.device) * (-math.log(10_000) / dim))
    angles = torch.arange(tokens, device=x.device)[:, None] * steps
    return x + torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class DropPath(nn.Module):
    """Drops a whole branch for some samples of the batch in training, and divides what it keeps by the rate of that."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(rate)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        return x * self.drop(x.new_ones(len(x), 1, 1))


class GlobalAttention(nn.Module):
    """`G(u) = v + F(v)` with `v = u + LN(u + MHA(LN u + p))`, p the sinusoidal positions.

    F is a convolutional feed-forward net over the tokens: 1x1 from `dim` to twice that without bias, depthwise over 5
    tokens with bias, ReLU, 1x1 back without bias. Dropout is on the attention's weights, on its output and behind ReLU
    and F; both branches of G are dropped whole with `drop_path`.
    """

    def __init__(self, dim: int, heads: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads, dropout)
        self.widen = nn.Conv1d(dim, 2 * dim, 1, bias=False)
        self.along = nn.Conv1d(2 * dim, 2 * dim, 5, padding=2, groups=2 * dim)
        self.narrow = nn.Conv1d(2 * dim, dim, 1, bias=False)
        self.dropout, self.drop_path = nn.Dropout(dropout), DropPath(drop_path)

    def forward(self, u: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        looked = self.attention(with_positions(self.norm_in(u)))
        v = u + self.drop_path(self.norm_out(u + self.dropout(looked)))
        wide = self.dropout(F.relu(self.along(self.widen(v.transpose(1, 2)))))
        mixed: Tensor = v + self.drop_path(self.dropout(self.narrow(wide)).transpose(1, 2))
        return mixed


class G2Adapter(nn.Module):
    """`x + Up(sigmoid(g) G(P(MHA(GELU(Down x)))))` on a block's output x; Down goes from `width` to `dim`.

    P is a linear layer, G a `GlobalAttention`; the gate g starts at 0.6, Up and its bias at zero.
    """

    def __init__(self, width: int, dim: int, heads: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.down = nn.Linear(width, dim)
        self.attention = SelfAttention(dim, heads)
        self.project = nn.Linear(dim, dim)
        self.mix = GlobalAttention(dim, heads, dropout, drop_path)
        self.up = zeroed(nn.Linear(dim, width))
        self.gate = nn.Parameter(torch.tensor(GATE_START))

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        u = self.project(self.attention(F.gelu(self.down(x))))
        branch: Tensor = self.up(torch.sigmoid(self.gate) * self.mix(u))
        return x + branch
