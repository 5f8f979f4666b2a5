"""Attention with separate projections, which the peft library can adapt one by one."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from bench.core.layers import Mask, OpenAttention, attend, opened


def _linear(weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"]) -> nn.Linear:
    """A linear layer with copies of these as parameters, trained if these are."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return layer


class SplitAttention(nn.Module):
    """A block's packed multi-head attention with q, k, v and out as `nn.Linear`s, which the peft library can adapt.

    Equal to the packed one to 1e-7 (float32). No dropout and no weights are given back, as in CLIP's blocks.
    """

    token_wise = True  # its layers are; each query is attended by itself

    def __init__(self, packed: OpenAttention) -> None:
        super().__init__()
        self.heads = packed.heads
        weights, biases = (each.chunk(3) for each in packed.packed)
        self.q, self.k, self.v = map(_linear, weights, biases)
        self.out = _linear(packed.out.weight, packed.out.bias)

    def forward(
        self,
        query: Float[Tensor, "batch attending width"],
        key: Float[Tensor, "batch attended width"],
        value: Float[Tensor, "batch attended width"],
        need_weights: bool = False,
        attn_mask: Mask | None = None,
    ) -> tuple[Float[Tensor, "batch attending width"], None]:
        """What `nn.MultiheadAttention(batch_first=True)` gives without weights; `attn_mask` is added to the scores."""
        mixed = attend(self.q(query), self.k(key), self.v(value), self.heads, attn_mask)
        projected: Tensor = self.out(mixed)
        return projected, None


def split_attention(block: nn.Module) -> None:
    """Replace a block's packed attention by `SplitAttention`, in place. TypeError if it is no packed one."""
    block.attn = SplitAttention(opened(block.get_submodule("attn")))
