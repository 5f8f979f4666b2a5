"""Attention with separate projections, which the peft library can adapt one by one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return layer


class SplitAttention(nn.Module):
    """open_clip's packed multi-head attention with q, k, v and out as `nn.Linear`s that peft can adapt."""

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = packed.num_heads
        assert packed.in_proj_bias is not None
        parts = zip(packed.in_proj_weight.chunk(3), packed.in_proj_bias.chunk(3), strict=True)
        self.q, self.k, self.v = (_linear(weight, bias) for weight, bias in parts)
        self.out = _linear(packed.out_proj.weight, packed.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Same call and return as `nn.MultiheadAttention(batch_first=True)` without weights."""

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            heads(self.q(query)), heads(self.k(key)), heads(self.v(value)), attn_mask=attn_mask
        )
        projected: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return projected, None


def split_attention(block: nn.Module) -> None:
    """Replace a block's packed attention by `SplitAttention`, in place."""
    assert isinstance(block.attn, nn.MultiheadAttention)
    block.attn = SplitAttention(block.attn)
