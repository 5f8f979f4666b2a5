"""What a tower can be given beside raw inputs, and its forward pass in two parts: up to a block, and from there on.

open_clip's own forward passes take whole inputs only: all token ids of the context, and pixels. Captions are shorter,
and what lies in front of everything trained gives the same numbers in every epoch: see `bench.core.shortcuts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Depth = int | Literal["whole"]  # how many of a tower's blocks, from the first; or all of the tower, without its head


@dataclass(frozen=True)
class Texts:
    """Token ids as the text tower takes them: after the model's rewrites, cut behind the batch's longest caption."""

    ids: Int[Tensor, "batch tokens"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> Texts:
        return Texts(self.ids[part])


@dataclass(frozen=True)
class Prefix:
    """What the first `depth` blocks of a tower gave for a batch, or the whole tower; of texts with their token ids."""

    values: Float[Tensor, "batch tokens width"] | Float[Tensor, "batch dim"]
    depth: Depth
    ids: Int[Tensor, "batch tokens"] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, part: slice) -> Prefix:
        return Prefix(self.values[part], self.depth, None if self.ids is None else self.ids[part])


def twice(items: Float[Tensor, "batch 3 size size"] | Int[Tensor, "batch context"] | Texts) -> Any:
    """The batch, and once more behind it."""
    return Texts(items.ids.repeat(2, 1)) if isinstance(items, Texts) else torch.cat([items, items])


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
    owner: Any, x: Float[Tensor, "batch tokens width"], ids: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch dim"]:
    x = owner.ln_final(x)
    x = x[torch.arange(len(x), device=x.device), ends(owner, ids)]
    projection = owner.text_projection
    if projection is None:
        return x
    projected: Tensor = projection(x) if isinstance(projection, nn.Linear) else x @ projection
    return projected


def _blocks(
    transformer: Any, x: Float[Tensor, "batch tokens width"], part: slice, mask: Float[Tensor, "tokens tokens"] | None
) -> Float[Tensor, "batch tokens width"]:
    """These blocks of a transformer, as its own forward pass calls them."""
    for block in transformer.resblocks[part]:
        if transformer.grad_checkpointing:
            x = checkpoint(block, x, None, None, mask, use_reentrant=False)
        else:
            x = block(x, attn_mask=mask)
    return x
