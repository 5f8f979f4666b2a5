"""The transformer blocks of a tower, with slots for adapters and prompts, and with outputs at one token alone.

Shapes in annotations are those of `bench.core.model`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from open_clip.transformer import ResidualAttentionBlock
from timm.layers import Attention as TimmAttention
from torch import Tensor, nn

from bench.config.errors import UserError
from bench.core import towers
from bench.core.layers import Layer, opened


@dataclass(frozen=True)
class _Kept:
    """The one token of each item that goes on: those at `places`, or the first ones."""

    places: Int[Tensor, " batch"] | None

    def __call__(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch 1 width"]:
        if self.places is None:
            return x[:, :1]
        return x[torch.arange(len(x), device=x.device), self.places][:, None]

    def rows(
        self, mask: Float[Tensor, "attending attended"], x: Float[Tensor, "batch tokens width"], heads: int
    ) -> Float[Tensor, "batch*{heads} 1 attended"]:
        """The rows of a mask for these tokens, once for each item and head."""
        rows = mask[:1].expand(len(x), -1) if self.places is None else mask[self.places]
        return rows.repeat_interleave(heads, dim=0)[:, None]


@runtime_checkable
class Replaces(Protocol):
    """A module at a block's entrance that puts its own tokens in place of `count` others, from position `start` on.

    `start` counts from the end if it is negative. With `left_out` the others are missing from what it is given: the
    block before has not computed them (`SlottedBlock.leave_out`), and the module inserts its own.
    """

    start: int
    count: int
    left_out: bool


@dataclass(frozen=True)
class _Rest:
    """All tokens but `count` from position `start` on."""

    start: int
    count: int

    def __call__(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens_left width"]:
        start = self.start % x.shape[1]
        if start + self.count == x.shape[1]:
            return x[:, :start]
        return torch.cat([x[:, :start], x[:, start + self.count :]], dim=1)

    def rows(
        self, mask: Float[Tensor, "attending attended"], x: Float[Tensor, "batch tokens width"], heads: int
    ) -> Float[Tensor, "attending_left attended"]:
        """The rows of a mask for these tokens."""
        return self(mask[None])[0]


class SlottedBlock(ResidualAttentionBlock):
    """open_clip's transformer block with six optional slots; it takes over the block's own parts under their names.

    `x = enter(x)`, `x = x + ls_1(after_attn(attn(ln_1 x))) + beside_attn(x)`,
    `y = x + ls_2(after_mlp(mlp(ln_2 x))) + beside_mlp(x)`, and the output is `exit(y)`.
    With all slots empty the output is that of open_clip's block, bit by bit.
    """

    SLOTS = ("enter", "after_attn", "beside_attn", "after_mlp", "beside_mlp", "exit")
    LAYERS = ("ln_1", "attn.q", "attn.k", "attn.v", "attn.out", "ln_2", "mlp.c_fc", "mlp.c_proj")
    OWN_NAMES: ClassVar[Mapping[str, str]] = {"attn.out": "attn.out_proj"}  # of layers, where they are others
    kept: _Kept | _Rest | None = None
    rest: _Rest | None = None

    def __init__(self, block: nn.Module) -> None:
        nn.Module.__init__(self)
        for name, child in block.named_children():
            self.add_module(name, child)
        for slot in self.SLOTS:
            self.register_module(slot, None)

    def fill(self, **modules: nn.Module) -> None:
        """Put modules into slots by name. Raises ValueError for an unknown slot, and for one that is filled."""
        for slot, module in modules.items():
            if slot not in self.SLOTS:
                raise ValueError(f"a block has no slot '{slot}'; it has {', '.join(self.SLOTS)}")
            if getattr(self, slot) is not None:
                raise ValueError(f"the slot '{slot}' is taken")
            self.add_module(slot, module)

    def layer(self, name: str) -> Layer:
        """One of the block's `LAYERS`, which takes modules before, beside and after it.

        The first one of attention opens it, which changes no name, and the output by rounding. Raises ValueError for an
        unknown name, and TypeError where the attention is no longer open_clip's or timm's.
        """
        if name not in self.LAYERS:
            raise ValueError(f"a block has no layer '{name}'; it has {', '.join(self.LAYERS)}")
        if name.startswith("attn."):
            attention = opened(self.get_submodule("attn"))
            self.add_module("attn", attention)
            if name != "attn.out":
                return Layer(name, attention.get_submodule(name.removeprefix("attn.")), attention)
        return Layer(name, self.get_submodule(self.own_name(name)))

    def own_name(self, layer: str) -> str:
        """The name by which the block has one of its `LAYERS`."""
        return self.OWN_NAMES.get(layer, layer)

    def get_weight_dtype(self) -> torch.dtype:
        """The type that the text tower's embeddings are cast to: open_clip's own asks `mlp.c_fc`, wrapped or not."""
        return next(self.mlp.parameters()).dtype

    @property
    def heads(self) -> int:
        """The heads of its attention."""
        return int(self.attn.num_heads if hasattr(self.attn, "num_heads") else self.attn.heads)  # type: ignore[arg-type,union-attr]

    def layers(self) -> list[Layer]:
        """All layers of the block, in the order of `LAYERS`."""
        return [self.layer(name) for name in self.LAYERS]

    @contextmanager
    def keeping(self, places: Int[Tensor, " batch"] | None) -> Iterator[None]:
        """Within it the output has one token an item, that at its place; None: the first one of each.

        Attention still sees all tokens. Modules in slots, but for `enter`, are given the kept tokens alone.
        """
        self.kept = _Kept(places)
        try:
            yield
        finally:
            self.kept = self.rest

    def leave_out(self, start: int, count: int) -> None:
        """From now on the output lacks `count` tokens from position `start` on. Otherwise as `keeping`."""
        self.kept = self.rest = _Rest(start, count)

    def forward(
        self,
        q_x: Float[Tensor, "batch tokens width"],
        k_x: None = None,
        v_x: None = None,
        attn_mask: Float[Tensor, "attending attended"] | None = None,
    ) -> Float[Tensor, "batch tokens_out width"]:
        """The block's output. `enter` and `exit` may change the number of tokens, and so do `keeping`, `leave_out`.

        open_clip's signature. Gradient checkpointing passes all four by position.
        """
        x = q_x if self.enter is None else self.enter(q_x)
        normed = self.ln_1(x)
        if self.kept is None:
            attended = self.attention(normed, attn_mask=attn_mask)
        else:
            mask = None if attn_mask is None else self.kept.rows(attn_mask, x, self.heads)
            x = self.kept(x)
            attended = self.attention(self.kept(normed), normed, normed, mask)
        r = x + self.ls_1(attended if self.after_attn is None else self.after_attn(attended))
        x = r if self.beside_attn is None else r + self.beside_attn(x)
        mixed = self.mlp(self.ln_2(x))
        y = x + self.ls_2(mixed if self.after_mlp is None else self.after_mlp(mixed))
        if self.beside_mlp is not None:
            y = y + self.beside_mlp(x)
        return y if self.exit is None else self.exit(y)


class SlottedTimmBlock(SlottedBlock):
    """timm's block with the same slots: its parts keep timm's names in the state dict, and answer to open_clip's."""

    OWN_NAMES = towers.TIMM_LAYERS

    @property
    def ln_1(self) -> nn.Module:
        return self.norm1

    @property
    def ln_2(self) -> nn.Module:
        return self.norm2

    def ls_1(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return self.drop_path1(self.ls1(x))  # type: ignore[no-any-return]

    def ls_2(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return self.drop_path2(self.ls2(x))  # type: ignore[no-any-return]

    def attention(
        self,
        q_x: Float[Tensor, "batch tokens width"],
        k_x: None = None,
        v_x: None = None,
        attn_mask: Float[Tensor, "attending attended"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        if isinstance(self.attn, TimmAttention):
            return self.attn(q_x, attn_mask=attn_mask)  # type: ignore[no-any-return]
        return super().attention(q_x, k_x, v_x, attn_mask)  # type: ignore[no-any-return]


class Blocks:
    """The transformer blocks of one tower, whichever of open_clip's classes the model is.

    `side` is "image" or "text", `width` the size of its tokens, `class_token` whether the first one is no patch.
    `on_entry(change)` puts `change` in front of the first block, until the handle that it gives back is removed.
    Raises UserError for a tower whose blocks can't take slots: ResNet and Hugging Face towers, open_clip's own custom
    blocks, and of timm's all but plain vision transformers, such as SigLIP's.
    """

    def __init__(self, side: str, prefix: str, owner: nn.Module) -> None:
        tower = towers.find(side, owner)
        if tower is None:
            transformer = getattr(getattr(owner, "transformer", None), "resblocks", None)
            kind = type(transformer[0] if transformer else getattr(owner, "trunk", owner)).__name__
            raise UserError(f"the {side} tower ({kind}) takes no adapters or prompts; open_clip's own transformers do")
        self.list: nn.ModuleList = tower.blocks  # type: ignore[assignment]  # or an nn.Sequential, in timm
        self.width, self.outside, self.class_token = tower.width, tower.outside, tower.class_token
        self.on_entry = tower.on_entry
        self.prefix = f"{prefix}{tower.path}"

    def named_blocks(self) -> list[tuple[str, nn.Module]]:
        """The blocks with their names in the open_clip model's state dict: `visual.transformer.resblocks.0`."""
        return [(f"{self.prefix}.{index}", block) for index, block in enumerate(self.list)]

    def slotted(self) -> list[SlottedBlock]:
        """The blocks as `SlottedBlock`s. The first call puts these in place; no output and no name changes."""
        for index, block in enumerate(self.list):
            if not isinstance(block, SlottedBlock):
                cls = SlottedBlock if isinstance(block, ResidualAttentionBlock) else SlottedTimmBlock
                self.list[index] = cls(block)
        return list(self.list)  # type: ignore[arg-type]
