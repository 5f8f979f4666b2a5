"""Learned tokens in either tower: where they come from, and where they enter and leave the sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bench.config.errors import UserError
from bench.core.model import DualEncoder


def normal_prompts(count: int, width: int, std: float) -> Float[nn.Parameter, "{count} {width}"]:
    """Learned tokens, drawn from a normal distribution with this standard deviation."""
    return nn.Parameter(torch.randn(count, width) * std)


# "a photo of a" in CLIP's own tokenizer, whose vocabulary has this size; open_clip's other tokenizers have others.
WORDS, VOCABULARY = (320, 1125, 539, 320), 49408


def word_prompts(model: DualEncoder, count: int) -> tuple[Float[nn.Parameter, "{count} width"], tuple[int, ...]] | None:
    """Learned tokens that start at the first `count` words of "a photo of a", and the ids of its other words.

    None if the tokenizer is not CLIP's, or if there are more tokens than words: MaPLe's start (arXiv 2210.03117,
    released code), where these other words stay in front of every text.
    """
    table = model.token_embedding.weight
    if len(table) != VOCABULARY or count > len(WORDS):
        return None
    return nn.Parameter(table[torch.tensor(WORDS[:count])].detach().clone()), WORDS[count:]


def uniform_prompts(count: int, width: int, patch: int) -> Float[nn.Parameter, "{count} {width}"]:
    """Learned tokens, uniform in +-sqrt(6 / (3 patch^2 + width)): VPT's start (arXiv 2203.12119, released code).

    That is Xavier's bound for the patch embedding, which has 3 patch^2 inputs and `width` outputs; patch in pixels.
    """
    bound = (6 / (3 * patch * patch + width)) ** 0.5
    return nn.Parameter(torch.empty(count, width).uniform_(-bound, bound))


class Coupled(nn.Module):
    """Tokens of this width made from another tower's by a linear layer: MaPLe's coupling (arXiv 2210.03117)."""

    def __init__(self, source: Float[nn.Parameter, "count source_width"], width: int) -> None:
        super().__init__()
        self.source = source
        self.coupling = nn.Linear(source.shape[1], width)

    def __len__(self) -> int:
        return len(self.source)

    def forward(self) -> Float[Tensor, "{len(self)} width"]:
        coupled: Tensor = self.coupling(self.source)
        return coupled


Tokens = Float[Tensor, "count width"] | Coupled  # learned themselves, or made from learned ones


def _expand(tokens: Tokens, like: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch count width"]:
    """The tokens once for each item of a batch, in its type."""
    values = tokens() if isinstance(tokens, Coupled) else tokens
    return values.to(like.dtype).expand(like.shape[0], -1, -1)


class AppendTokens(nn.Module):
    """Appends learned tokens to the sequence."""

    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens+{len(self.tokens)} width"]:
        return torch.cat([x, _expand(self.tokens, x)], dim=1)


class OverwriteTokens(nn.Module):
    """Puts learned tokens in place of those from position `start` on (counted from the end if negative).

    With `left_out` these are not there any more: see `bench.core.blocks.Replaces`.
    """

    left_out = False

    def __init__(self, tokens: Tokens, start: int) -> None:
        super().__init__()
        self.tokens, self.start, self.count = tokens, start, len(tokens)

    def forward(self, x: Float[Tensor, "batch tokens_given width"]) -> Float[Tensor, "batch tokens width"]:
        replaced = 0 if self.left_out else self.count
        start = self.start % (x.shape[1] + self.count - replaced)
        return torch.cat([x[:, :start], _expand(self.tokens, x), x[:, start + replaced :]], dim=1)


class DropLast(nn.Module):
    """Removes the last `count` tokens of the sequence. A sequence of one token, from a block that keeps one, passes."""

    token_wise = True

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens_left width"]:
        return x[:, : -self.count] if x.shape[1] > 1 else x


class PromptedEmbedding(nn.Embedding):
    """A token embedding that gives n learned vectors from position `start` on; it takes over the frozen table's key."""

    def __init__(self, embedding: nn.Embedding, tokens: Float[nn.Parameter, "n width"], start: int) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({key: value for key, value in vars(embedding).items() if not key.startswith("_")})
        self.weight = embedding.weight
        self.tokens, self.start = tokens, start

    def forward(self, input: Int[Tensor, "batch context"]) -> Float[Tensor, "batch context width"]:
        x = super().forward(input)
        return torch.cat([x[:, : self.start], _expand(self.tokens, x), x[:, self.start + len(self.tokens) :]], dim=1)


Rewrite = Callable[[Int[Tensor, "batch context"]], Int[Tensor, "batch context"]]


def insert_placeholders(count: int, words: Sequence[int] = (), pool: str = "argmax") -> Rewrite:
    """A function of token ids that makes room for `count` prompts, and puts `words` between them and the caption.

    They come behind the start token. The length stays the same. What leaves it at the end is padding; a caption without
    enough of it is cut, and its end token (the highest id, at which CLIP pools) takes the last position. Count 2, start
    90, end 99: [90, 1, 2, 99, 0, 0] becomes [90, 0, 0, 1, 2, 99], and so does [90, 1, 2, 3, 4, 99].

    A tower whose `pool` is "last" takes its embedding at the last position and may have no start token, as SigLIP's:
    the prompts come first, and the last id stays (padding, or the end of a caption that fills the context). Count 2,
    end and padding 1: [5, 6, 1, 1, 1] becomes [0, 0, 5, 6, 1], and so does [5, 6, 7, 8, 1].
    """

    def rewrite(ids: Int[Tensor, "batch context"]) -> Int[Tensor, "batch context"]:
        # Filled on the device: a tensor made of a list would be copied there, with a wait, in every step.
        middle = [ids.new_full((len(ids), 1), word) for word in (*[0] * count, *words)]
        if pool == "last":
            return torch.cat([*middle, ids[:, : -len(middle) - 1], ids[:, -1:]], dim=1)
        rewritten = torch.cat([ids[:, :1], *middle, ids[:, 1:]], dim=1)[:, : ids.shape[1]].contiguous()
        end = ids.amax(dim=1)
        lost = (rewritten != end[:, None]).all(dim=1)
        rewritten[:, -1] = torch.where(lost, end, rewritten[:, -1])
        return rewritten

    return rewrite


def prompt_text(
    model: DualEncoder, owner: str, by_block: Sequence[Float[nn.Parameter, "n width"]], words: Sequence[int] = ()
) -> None:
    """Put n learned tokens in front of the caption: the first set at the input, each other at the input of one block.

    Their places are those of `insert_placeholders`. From the second block on a set replaces the tokens at the places of
    the one before; blocks without a set pass these on. `words` are ids of fixed words between the tokens and the
    caption. Raises UserError, in the name of `owner`, for towers that pool neither at the end token nor at the last
    place.
    """
    pool = model.text_pool
    if pool not in ("argmax", "last"):
        raise UserError(f"{owner}: the text tower pools by '{pool}'; prompts shift the place where it does")
    start = 1 if pool == "argmax" else 0
    model.replace_token_embedding(lambda embedding: PromptedEmbedding(embedding, by_block[0], start))
    model.token_rewrites.append(insert_placeholders(len(by_block[0]), words, pool))
    for block, tokens in zip(model.text_blocks.slotted()[1:], by_block[1:], strict=False):
        block.fill(enter=OverwriteTokens(tokens, start))


def prompt_image(model: DualEncoder, by_block: Sequence[Tokens], before_norm: bool = False) -> None:
    """Put n learned tokens behind the patches: one set for each of the first blocks, in place of the one before.

    Blocks without a set pass the tokens on; the last block removes them. The first set joins at the first block, or
    with `before_norm` in front of the LayerNorm in front of it, if the tower has one.
    """
    blocks, count = model.image_blocks.slotted(), len(by_block[0])
    if before_norm and "ln_pre" in model.image_blocks.outside:
        model.layer("image", "ln_pre").fill(before=AppendTokens(by_block[0]))
    else:
        blocks[0].fill(enter=AppendTokens(by_block[0]))
    for block, tokens in zip(blocks[1:], by_block[1:], strict=False):
        block.fill(enter=OverwriteTokens(tokens, start=-count))
    blocks[-1].fill(exit=DropLast(count))
