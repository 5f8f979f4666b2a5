"""The neural modules that methods put into a backbone's slots. Tensors are (batch, tokens, width) throughout."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# --- prompts ---------------------------------------------------------------------------------------------------------


def prompts(count: int, width: int, std: float) -> nn.Parameter:
    """Learned tokens (count, width), normal with the given standard deviation."""
    return nn.Parameter(torch.randn(count, width) * std)


def uniform_prompts(count: int, width: int, patch: int) -> nn.Parameter:
    """Learned tokens (count, width), uniform Xavier over a patch's 3 * patch^2 inputs (VPT's start)."""
    bound = (6 / (3 * patch * patch + width)) ** 0.5
    return nn.Parameter(torch.empty(count, width).uniform_(-bound, bound))


def _expand(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.to(like.dtype).expand(like.shape[0], -1, -1)


class AppendTokens(nn.Module):
    """Adds learned tokens behind the sequence."""

    def __init__(self, tokens: nn.Parameter) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, _expand(self.tokens, x)], dim=1)


class OverwriteTokens(nn.Module):
    """Puts learned tokens in place of those from position `start` (counted from the end if negative)."""

    def __init__(self, tokens: nn.Parameter, start: int) -> None:
        super().__init__()
        self.tokens, self.start = tokens, start

    def forward(self, x: Tensor) -> Tensor:
        start = self.start % x.shape[1]
        return torch.cat([x[:, :start], _expand(self.tokens, x), x[:, start + len(self.tokens) :]], dim=1)


class DropLast(nn.Module):
    """Cuts the last `count` tokens off again."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : -self.count]


class PromptedEmbedding(nn.Embedding):
    """A token embedding that fills positions 1..n with learned vectors; it adopts the frozen table, keys unchanged."""

    def __init__(self, embedding: nn.Embedding, tokens: nn.Parameter) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({key: value for key, value in vars(embedding).items() if not key.startswith("_")})
        self.weight = embedding.weight
        self.tokens = tokens

    def forward(self, input: Tensor) -> Tensor:
        x = super().forward(input)
        return torch.cat([x[:, :1], _expand(self.tokens, x), x[:, 1 + len(self.tokens) :]], dim=1)


def insert_placeholders(count: int) -> Callable[[Tensor], Tensor]:
    """A rewrite of token ids (batch, context) that makes room for `count` prompts behind the start token.

    The sequence keeps its length: what is pushed out at the end is padding, or else the caption is cut and its end
    token (the highest id, which CLIP pools at) moves to the last position.
    """

    def rewrite(ids: Tensor) -> Tensor:
        longer = F.pad(ids[:, 1:], (count, 0))[:, : ids.shape[1] - 1]
        rewritten = torch.cat([ids[:, :1], longer], dim=1)
        end = ids.amax(dim=1)
        lost = (rewritten != end[:, None]).all(dim=1)
        rewritten[:, -1] = torch.where(lost, end, rewritten[:, -1])
        return rewritten

    return rewrite


# --- attention with separate projections -----------------------------------------------------------------------------


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


# --- starts ----------------------------------------------------------------------------------------------------------


def _zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _kaiming(layer: nn.Linear) -> nn.Linear:
    nn.init.kaiming_uniform_(layer.weight, a=5**0.5)
    nn.init.zeros_(layer.bias)
    return layer


# --- MRS-Adapter -----------------------------------------------------------------------------------------------------


class MRSModule(nn.Module):
    """The one set of weights of MRS-Adapter: down and up projections per tower, and the shared up projection."""

    def __init__(self, widths: Mapping[str, int], bottleneck: int, shared_dim: int, dropout: float) -> None:
        super().__init__()
        self.down = nn.ModuleDict({side: _kaiming(nn.Linear(width, bottleneck)) for side, width in widths.items()})
        self.up = nn.ModuleDict(
            {side: _zeroed(nn.Linear(bottleneck, width - shared_dim)) for side, width in widths.items()}
        )
        self.up_shared = _zeroed(nn.Linear(bottleneck, shared_dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, side: str) -> Tensor:
        z = self.dropout(F.relu(self.down[side](x)))
        return torch.cat([self.up[side](z), self.up_shared(z)], dim=-1)


class MRSBranch(nn.Module):
    """One block's door to the shared `MRSModule`."""

    def __init__(self, module: MRSModule, side: str) -> None:
        super().__init__()
        self.module, self.side = module, side

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x, self.side)


# --- HarMA -----------------------------------------------------------------------------------------------------------

GATE_START = 0.6  # before the sigmoid


def _gate() -> nn.Parameter:
    return nn.Parameter(torch.tensor(GATE_START))


class SelfAttention(nn.MultiheadAttention):
    """Multi-head self-attention over the tokens of one sample; no mask, no dropout."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x, need_weights=False)[0]


class HarmaShared(nn.Module):
    """HarMA's module B: `u + W2 [d MHA(W1 u) + (1 - d) W1 u]`, `d` a gate; W2 starts at zero."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, dim // 2)
        self.attention = SelfAttention(dim // 2, heads)
        self.up = _zeroed(nn.Linear(dim // 2, dim))
        self.gate = _gate()

    def forward(self, u: Tensor) -> Tensor:
        d, low = torch.sigmoid(self.gate), self.down(u)
        return u + self.up(d * self.attention(low) + (1 - d) * low)


class HarmaAdapter(nn.Module):
    """HarMA's adapter with its outer gate: maps a block's MLP output m to `g A(m) + (1 - g) m`.

    `h = GELU(Wd m)`; `u = MHA(h)`; with a shared module `u <- B(u)`; `u <- MHA(u)` again, the same weights;
    `A(m) = m + Wu [b h + (1 - b) u]`. Gates b and g start at sigmoid(0.6), Wu at zero.
    """

    def __init__(self, width: int, dim: int, heads: int, shared: HarmaShared | None) -> None:
        super().__init__()
        self.down = nn.Linear(width, dim)
        self.attention = SelfAttention(dim, heads)
        self.shared = shared
        self.up = _zeroed(nn.Linear(dim, width))
        self.inner_gate, self.gate = _gate(), _gate()

    def forward(self, m: Tensor) -> Tensor:
        h = F.gelu(self.down(m))
        u = self.attention(h)
        if self.shared is not None:
            u = self.shared(u)
        u = self.attention(u)
        b, g = torch.sigmoid(self.inner_gate), torch.sigmoid(self.gate)
        adapted = m + self.up(b * h + (1 - b) * u)
        return g * adapted + (1 - g) * m
