"""Attention with separate projections, which the peft library can adapt one by one."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from bench.core.layers import attend


def _linear(weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"]) -> nn.Linear:
    """A linear layer with copies of these as parameters, trained if these are."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return layer


class SplitAttention(nn.Module):
    """open_clip's packed multi-head attention with q, k, v and out as `nn.Linear`s, which the peft library can adapt.

    Equal to the packed one to 1e-7 (float32). No dropout and no weights are given back, as in CLIP's blocks.
    """

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = packed.num_heads
        assert packed.in_proj_bias is not None
        parts = zip(packed.in_proj_weight.chunk(3), packed.in_proj_bias.chunk(3), strict=True)
        self.q, self.k, self.v = (_linear(weight, bias) for weight, bias in parts)
        self.out = _linear(packed.out_proj.weight, packed.out_proj.bias)

    def forward(
        self,
        query: Float[Tensor, "batch attending width"],
        key: Float[Tensor, "batch attended width"],
        value: Float[Tensor, "batch attended width"],
        need_weights: bool = False,
        attn_mask: Float[Tensor, "attending attended"] | None = None,
    ) -> tuple[Float[Tensor, "batch attending width"], None]:
        """What `nn.MultiheadAttention(batch_first=True)` gives without weights; `attn_mask` is added to the scores."""
        mixed = attend(self.q(query), self.k(key), self.v(value), self.heads, attn_mask)
        projected: Tensor = self.out(mixed)
        return projected, None


def split_attention(block: nn.Module) -> None:
    """Replace a block's packed attention by `SplitAttention`, in place."""
    assert isinstance(block.attn, nn.MultiheadAttention)
    block.attn = SplitAttention(block.attn)
