"""Learned tokens in either tower. Tensors are (batch, tokens, width) throughout."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.core.model import DualEncoder


def normal_prompts(count: int, width: int, std: float) -> nn.Parameter:
    """Learned tokens (count, width), normal with the given standard deviation."""
    return nn.Parameter(torch.randn(count, width) * std)


def uniform_prompts(count: int, width: int, patch: int) -> nn.Parameter:
    """Learned tokens (count, width), uniform Xavier over a patch's 3 * patch^2 inputs (VPT's start)."""
    bound = (6 / (3 * patch * patch + width)) ** 0.5
    return nn.Parameter(torch.empty(count, width).uniform_(-bound, bound))


class Coupled(nn.Module):
    """Tokens (count, width) made from another tower's by a linear layer: MaPLe's coupling."""

    def __init__(self, source: nn.Parameter, width: int) -> None:
        super().__init__()
        self.source = source
        self.coupling = nn.Linear(source.shape[1], width)

    def __len__(self) -> int:
        return len(self.source)

    def forward(self) -> Tensor:
        coupled: Tensor = self.coupling(self.source)
        return coupled


Tokens = nn.Parameter | Coupled


def _expand(tokens: Tokens, like: Tensor) -> Tensor:
    values = tokens() if isinstance(tokens, Coupled) else tokens
    return values.to(like.dtype).expand(like.shape[0], -1, -1)


class AppendTokens(nn.Module):
    """Adds learned tokens behind the sequence."""

    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, _expand(self.tokens, x)], dim=1)


class OverwriteTokens(nn.Module):
    """Puts learned tokens in place of those from position `start` (counted from the end if negative)."""

    def __init__(self, tokens: Tokens, start: int) -> None:
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


def prompt_text(model: DualEncoder, owner: str, by_block: Sequence[nn.Parameter]) -> None:
    """Put tokens (n, width) behind the start token: the first at the input, each other in place of the one before.

    UserError, in the name of `owner`, for towers that don't pool at the end token.
    """
    model.check_pools_at_end_token(owner)
    model.replace_token_embedding(lambda embedding: PromptedEmbedding(embedding, by_block[0]))
    model.token_rewrites.append(insert_placeholders(len(by_block[0])))
    for block, tokens in zip(model.text_blocks.slotted()[1:], by_block[1:], strict=False):
        block.fill(enter=OverwriteTokens(tokens, start=1))


def prompt_image(model: DualEncoder, by_block: Sequence[Tokens]) -> None:
    """Put tokens (n, width) behind the patches, each in place of the one before; dropped after the last block."""
    blocks, count = model.image_blocks.slotted(), len(by_block[0])
    blocks[0].fill(enter=AppendTokens(by_block[0]))
    for block, tokens in zip(blocks[1:], by_block[1:], strict=False):
        block.fill(enter=OverwriteTokens(tokens, start=-count))
    blocks[-1].fill(exit=DropLast(count))
