"""The frozen layers of a tower, each with slots for modules before, beside and after it; all weights keep their names.

The attention of open_clip and of timm has one packed weight for q, k and v. Where one of its layers is asked for, the
attention is opened, which rounds otherwise (1e-7). All other layers stay bit-equal until something is put around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Attention as TimmAttention
from torch import Tensor, nn

SLOTS = ("before", "beside", "after")
PARTS = ("q", "k", "v")  # in the order in which nn.MultiheadAttention packs them
Mask = Float[Tensor, "attending attended"] | Float[Tensor, "batch_heads attending attended"]


def attend(
    q: Float[Tensor, "batch attending width"],
    k: Float[Tensor, "batch attended width"],
    v: Float[Tensor, "batch attended width"],
    heads: int,
    mask: Mask | None,
) -> Float[Tensor, "batch attending width"]:
    """Multi-head attention between its projections; `mask` is added to the scores.

    With three dimensions it is one for each item and head, as `nn.MultiheadAttention` takes it.
    """
    if mask is not None and mask.ndim == 3:
        mask = mask.unflatten(0, (-1, heads))
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Projection(nn.Module):
    """q, k or v of an `OpenAttention`, as a module that slots can be put around. The weights stay the attention's."""

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        weight: Float[Tensor, "width width"],
        bias: Float[Tensor, " width"],
    ) -> Float[Tensor, "batch tokens width"]:
        return F.linear(x, weight, bias)


class OpenAttention(nn.Module):
    """A block's attention whose projections q, k, v and out can be reached. If q, k or v has slots, all are called.

    Else they are one product. `nn.MultiheadAttention` brings tokens in front of the batch and, where its weights are
    frozen, multiplies token by token, which takes twice as long on a CPU. It reads `out_proj`'s weights without calling
    it, so that a hook on it there never runs.

    This takes over the packed weights under their names: `in_proj_weight`, `in_proj_bias`, `out_proj`. No dropout and
    no weights are given back, as in CLIP's blocks.
    """

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        assert packed.in_proj_bias is not None
        self.heads = packed.num_heads
        self.in_proj_weight, self.in_proj_bias = packed.in_proj_weight, packed.in_proj_bias
        self.q, self.k, self.v = Projection(), Projection(), Projection()
        self.out_proj = packed.out_proj

    @property
    def packed(self) -> tuple[Float[Tensor, "packed width"], Float[Tensor, " packed"]]:
        """The weight and the bias of q, k and v in one."""
        return self.in_proj_weight, self.in_proj_bias

    @property
    def out(self) -> nn.Linear:
        """The output projection."""
        return self.out_proj

    def forward(
        self,
        query: Float[Tensor, "batch attending width"],
        key: Float[Tensor, "batch attended width"],
        value: Float[Tensor, "batch attended width"],
        need_weights: bool = False,
        attn_mask: Mask | None = None,
    ) -> tuple[Float[Tensor, "batch attending width"], None]:
        """What `nn.MultiheadAttention(batch_first=True)` gives without weights; `attn_mask` is added to the scores."""
        q, k, v = self._projected(query, key, value)
        projected: Tensor = self.out(attend(q, k, v, self.heads, attn_mask))
        return projected, None

    def _projected(
        self,
        query: Float[Tensor, "batch attending width"],
        key: Float[Tensor, "batch attended width"],
        value: Float[Tensor, "batch attended width"],
    ) -> Sequence[Float[Tensor, "batch tokens width"]]:
        weight, bias = self.packed
        width = len(weight) // 3
        if key is not value or any(each._forward_hooks or each._forward_pre_hooks for each in (self.q, self.k, self.v)):
            parts = zip((self.q, self.k, self.v), (query, key, value), weight.chunk(3), bias.chunk(3), strict=True)
            return [project(x, w, b) for project, x, w, b in parts]
        if query is key:
            return F.linear(query, weight, bias).chunk(3, dim=-1)
        return F.linear(query, weight[:width], bias[:width]), *F.linear(key, weight[width:], bias[width:]).chunk(2, -1)


class Packed(nn.Module):
    """The weight and the bias of q, k and v in one, which are never multiplied by as a whole."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias


class OpenTimmAttention(OpenAttention):
    """`OpenAttention` of a timm block, where the names are `qkv.weight`, `qkv.bias` and `proj`.

    It has the signature of open_clip's attention. Only for timm's plain attention: see `bench.core.towers`.
    """

    def __init__(self, packed: TimmAttention) -> None:
        nn.Module.__init__(self)
        self.heads = packed.num_heads
        self.qkv = Packed(packed.qkv)
        self.q, self.k, self.v = Projection(), Projection(), Projection()
        self.proj = packed.proj

    @property
    def packed(self) -> tuple[Float[Tensor, "packed width"], Float[Tensor, " packed"]]:
        return self.qkv.weight, self.qkv.bias

    @property
    def out(self) -> nn.Linear:
        return self.proj


def opened(attention: nn.Module) -> OpenAttention:
    """A block's attention with layers that can be reached, or itself if it is open. TypeError for other classes."""
    if isinstance(attention, OpenAttention):
        return attention
    if isinstance(attention, nn.MultiheadAttention):
        return OpenAttention(attention)
    if isinstance(attention, TimmAttention):
        return OpenTimmAttention(attention)
    raise TypeError(f"{type(attention).__name__} is no attention of open_clip or timm: its layers can't be reached")


@dataclass(frozen=True)
class Layer:
    """A frozen layer L with three slots: `after(L(before(x)) + beside(before(x)))`.

    Modules in slots are named after the layer: `resblocks.0.ln_1.after`. The layer stays where it is, with its class
    and the names of its weights; slots work by hooks that hold no reference to a module, so that the model can be
    copied, compiled and checkpointed.
    """

    name: str
    module: nn.Module
    packed: OpenAttention | None = None  # what has the weights of a `Projection`

    @property
    def weight(self) -> Float[Tensor, "*shape"]:
        """The weight itself, of a q, k or v its third of the packed one: what is written into it changes the layer."""
        if self.packed is None:
            return self.module.weight.detach()  # type: ignore[operator,union-attr,no-any-return]
        return self.packed.packed[0].detach().chunk(3)[PARTS.index(self.name[-1])]

    @property
    def bias(self) -> Float[Tensor, " outputs"] | None:
        """The bias itself, as `weight`; None where the layer has none."""
        if self.packed is None:
            return None if self.module.bias is None else self.module.bias.detach()  # type: ignore[operator,union-attr,no-any-return]
        return self.packed.packed[1].detach().chunk(3)[PARTS.index(self.name[-1])]

    @property
    def outputs(self) -> int:
        """The size of the layer's output: features of a linear layer or LayerNorm, channels of a convolution."""
        return len(self.weight)

    @property
    def inputs(self) -> int:
        """The size of the layer's input; a LayerNorm's is that of its output."""
        return self.weight.shape[min(1, self.weight.ndim - 1)]

    def fill(self, **modules: nn.Module) -> None:
        """Put modules into slots by name. Raises ValueError for an unknown slot, and for one that is filled."""
        for slot in modules:
            if slot not in SLOTS:
                raise ValueError(f"a layer has no slot '{slot}'; it has {', '.join(SLOTS)}")
            if getattr(self.module, slot, None) is not None:
                raise ValueError(f"the slot '{slot}' of {self.name} is taken")
        if not hasattr(self.module, SLOTS[0]):
            for slot in SLOTS:
                self.module.register_module(slot, None)
            self.module.register_forward_pre_hook(_enter)
            self.module.register_forward_hook(_leave)
        for slot, module in modules.items():
            self.module.add_module(slot, module)

    def take(self, slot: str) -> nn.Module:
        """Empty a slot; gives back the module that was in it. Raises ValueError if there was none."""
        module: nn.Module | None = getattr(self.module, slot, None)
        if slot not in SLOTS or module is None:
            raise ValueError(f"the slot '{slot}' of {self.name} is empty")
        self.module.register_module(slot, None)
        return module


def _enter(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return inputs if layer.before is None else (layer.before(inputs[0]), *inputs[1:])  # type: ignore[operator]


def _leave(layer: nn.Module, inputs: tuple[Any, ...], output: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    if layer.beside is not None:
        output = output + layer.beside(inputs[0])  # type: ignore[operator]
    return output if layer.after is None else layer.after(output)  # type: ignore[operator,no-any-return]


SLOT_HOOKS = (_enter, _leave)  # by which slots work
