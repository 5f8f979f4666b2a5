"""What a tower can be given beside raw inputs, and its forward pass in two parts: up to a block, and from there on.

open_clip's own forward passes take whole inputs only: all token ids of the context, and pixels. Captions are shorter,
and what lies in front of everything trained gives the same numbers in every epoch: see `bench.core.shortcuts`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Depth = int | Literal["whole"]  # how many of a tower's blocks, from the first; or all of the tower, without its head
SAVES = 0.9  # a batch of texts is parted if the two parts have at most this share of its tokens


@dataclass(frozen=True)
class Pictures:
    """Pixels of which the last block is computed at the class token alone, where the embedding is taken."""

    pixels: Float[Tensor, "batch 3 size size"]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, part: slice) -> Pictures:
        return Pictures(self.pixels[part])


@dataclass(frozen=True)
class Texts:
    """Token ids as the text tower takes them: after the model's rewrites, cut behind the batch's longest caption.

    trimmed: whether each text may be cut behind its own end. pooled: the last block is computed at the end tokens
    alone, where the embedding is taken. views: how many passes over the same captions lie one behind the other.
    """

    ids: Int[Tensor, "batch tokens"]
    trimmed: bool = False
    pooled: bool = False
    views: int = 1

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> Texts:
        return replace(self, ids=self.ids[part])

    def picked(self, index: Int[Tensor, " some"], tokens: int) -> Texts:
        """These texts, cut to so many tokens."""
        return replace(self, ids=self.ids[index, :tokens])


@dataclass(frozen=True)
class Prefix:
    """What the first `depth` blocks of a tower gave for a batch, or the whole tower; of texts with their token ids.

    trimmed, pooled: as in `Pictures` and `Texts`.
    """

    values: Float[Tensor, "batch tokens width"] | Float[Tensor, "batch dim"]
    depth: Depth
    ids: Int[Tensor, "batch tokens"] | None = None
    trimmed: bool = False
    pooled: bool = False
    views: ClassVar[int] = 1

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, part: slice) -> Prefix:
        return replace(self, values=self.values[part], ids=None if self.ids is None else self.ids[part])

    def picked(self, index: Int[Tensor, " some"], tokens: int) -> Prefix:
        """These texts, cut to so many tokens."""
        assert self.ids is not None
        return replace(self, values=self.values[index, :tokens], ids=self.ids[index, :tokens])


def twice(items: Float[Tensor, "batch 3 size size"] | Int[Tensor, "batch context"] | Pictures | Texts) -> Any:
    """The batch, and once more behind it."""
    if isinstance(items, Texts):
        return replace(items, ids=items.ids.repeat(2, 1), views=2)
    return Pictures(items.pixels.repeat(2, 1, 1, 1)) if isinstance(items, Pictures) else torch.cat([items, items])


def parted(lengths: Int[Tensor, " batch"], views: int = 1) -> list[Int[Tensor, " some"]]:
    """The short and the long texts of a batch, by index, so that each part is padded to its own longest text.

    Of all cuts through the texts by length it is the one that leaves the fewest tokens. One part with everything where
    that saves less than a tenth. `views`: so many copies of the batch lie one behind the other; each part has all of
    its texts' copies, in the same order. Lengths [5, 30, 7, 31]: [0, 2] and [1, 3].
    """
    count = len(lengths) // views
    found, order = lengths[:count].sort(stable=True)
    firsts = torch.arange(1, count, device=lengths.device)
    tokens = firsts * found[:-1] + (count - firsts) * found[-1:]
    parts = [order]
    if count > 1 and int(tokens.min()) <= SAVES * count * int(found[-1]):
        cut = int(tokens.argmin()) + 1
        parts = [order[:cut], order[cut:]]
    return [torch.cat([part + copy * count for copy in range(views)]) for part in parts]


def pools_at_the_end(text: nn.Module) -> bool:
    """Whether an embedding depends on nothing behind the caption's end: a causal mask, and pooling at the end token."""
    owner: Any = text
    pool = getattr(owner, "text_pool_type", getattr(owner, "pool_type", None))
    causal = getattr(owner, "attn_mask", None) is not None and getattr(owner, "cls_emb", None) is None
    return causal and pool in ("argmax", "eos") and splits(text)


def splits(tower: nn.Module) -> bool:
    """Whether the tower's forward pass can be cut between two blocks: open_clip's own transformers."""
    transformer: Any = getattr(tower, "transformer", None)
    return hasattr(transformer, "resblocks") and bool(getattr(transformer, "batch_first", False))


def ends(text: nn.Module, ids: Int[Tensor, "batch tokens"]) -> Int[Tensor, " batch"]:
    """The position of each caption's end token, at which its embedding is taken."""
    owner: Any = text
    if getattr(owner, "text_pool_type", getattr(owner, "pool_type", None)) == "argmax":
        return ids.argmax(dim=1)
    end: int = owner.text_eos_id if hasattr(owner, "text_eos_id") else owner.eos_id
    return (ids == end).int().argmax(dim=1)


def image_start(
    visual: nn.Module, images: Float[Tensor, "batch 3 size size"], depth: int
) -> Float[Tensor, "batch tokens width"]:
    """What the first `depth` blocks of the image tower give."""
    owner: Any = visual
    return _blocks(owner.transformer, owner._embeds(images), slice(depth), None)


def image_rest(visual: nn.Module, x: Float[Tensor, "batch tokens width"], depth: int) -> Float[Tensor, "batch dim"]:
    """The image tower's embeddings from what `image_start` gave."""
    owner: Any = visual
    pooled: Tensor = owner._pool(_blocks(owner.transformer, x, slice(depth, None), None))[0]
    return pooled if owner.proj is None else pooled @ owner.proj


def text_start(text: nn.Module, ids: Int[Tensor, "batch tokens"], depth: int) -> Float[Tensor, "batch tokens width"]:
    """What the first `depth` blocks of the text tower give for token ids, which may be fewer than its context."""
    owner: Any = text
    return _blocks(owner.transformer, _embedded(owner, ids), slice(depth), _mask(owner, ids))


def text_rest(
    text: nn.Module, x: Float[Tensor, "batch tokens width"], ids: Int[Tensor, "batch tokens"], depth: int
) -> Float[Tensor, "batch dim"]:
    """The text tower's embeddings from what `text_start` gave for these token ids."""
    owner: Any = text
    return _pooled(owner, _blocks(owner.transformer, x, slice(depth, None), _mask(owner, ids)), ids)


def text_features(text: nn.Module, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch dim"]:
    """The text tower's embeddings of token ids, which may be fewer than its context; open_clip's takes all alone."""
    owner: Any = text
    return _pooled(owner, owner.transformer(_embedded(owner, ids), attn_mask=_mask(owner, ids)), ids)


def _embedded(owner: Any, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens width"]:
    kind = owner.transformer.get_cast_dtype()
    x: Tensor = owner.token_embedding(ids).to(kind)
    return x + owner.positional_embedding[: ids.shape[1]].to(kind)


def _mask(owner: Any, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "tokens tokens"]:
    tokens = ids.shape[1]
    mask: Tensor = owner.attn_mask[:tokens, :tokens]
    return mask


def _pooled(
    owner: Any, x: Float[Tensor, "batch tokens_given width"], ids: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch dim"]:
    x = owner.ln_final(x)
    whole = x.shape[1] == ids.shape[1]  # else the last block kept the end tokens alone
    x = x[torch.arange(len(x), device=x.device), ends(owner, ids)] if whole else x[:, 0]
    projection = owner.text_projection
    if projection is None:
        return x
    projected: Tensor = projection(x) if isinstance(projection, nn.Linear) else x @ projection
    return projected


def _blocks(
    transformer: Any, x: Float[Tensor, "batch tokens width"], part: slice, mask: Float[Tensor, "tokens tokens"] | None
) -> Float[Tensor, "batch tokens_given width"]:
    """These blocks of a transformer, as its own forward pass calls them. The last one may give one token alone."""
    for block in transformer.resblocks[part]:
        if transformer.grad_checkpointing:
            x = checkpoint(block, x, None, None, mask, use_reentrant=False)
        else:
            x = block(x, attn_mask=mask)
    return x
