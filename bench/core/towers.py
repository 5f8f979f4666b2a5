"""Where a tower keeps its transformer blocks and the layers around them: open_clip's own classes, and timm's ViT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# timm's names of the layers of a block, where they are not open_clip's.
TIMM_LAYERS = {
    "ln_1": "norm1",
    "attn.out": "attn.proj",
    "ln_2": "norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

Change = Callable[[Float[Tensor, "batch tokens width"]], Float[Tensor, "batch tokens width"]]


@dataclass(frozen=True)
class Tower:
    """A tower whose blocks take slots.

    path: of its blocks, from the tower. width: of its tokens. outside: the paths of layers outside of the blocks by
    open_clip's names for them. class_token: whether a token that is no patch comes first. on_entry: see `Blocks`.
    """

    path: str
    blocks: nn.ModuleList | nn.Sequential
    width: int
    outside: Mapping[str, str]
    class_token: bool
    on_entry: Callable[[Change], RemovableHandle]


def find(side: str, owner: nn.Module) -> Tower | None:
    """The "image" or "text" tower `owner`; None if its blocks can't take slots."""
    if isinstance(owner, TimmModel):
        return _timm(owner.trunk)
    transformer: Any = getattr(owner, "transformer", None)
    blocks = getattr(transformer, "resblocks", None)
    if blocks is None or not all(isinstance(block, ResidualAttentionBlock) for block in blocks):
        return None
    names = ("conv1", "ln_pre", "ln_post") if side == "image" else ("token_embedding", "ln_final")

    def on_entry(change: Change) -> RemovableHandle:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return change(args[0]), *args[1:]

        return transformer.register_forward_pre_hook(hook)  # type: ignore[no-any-return]

    path, outside = "transformer.resblocks", {name: name for name in names}
    return Tower(path, blocks, transformer.width, outside, side == "image", on_entry)


def _timm(trunk: nn.Module) -> Tower | None:
    if type(trunk) is not VisionTransformer or trunk.num_prefix_tokens > 1 or not all(map(_plain, trunk.blocks)):
        return None
    paths = {"conv1": "patch_embed.proj", "ln_pre": "norm_pre", "ln_post": "norm"}
    outside = {
        name: f"trunk.{path}" for name, path in paths.items() if not isinstance(trunk.get_submodule(path), nn.Identity)
    }

    def on_entry(change: Change) -> RemovableHandle:
        # On what is in front of the blocks: gradient checkpointing calls these without their container.
        return trunk.norm_pre.register_forward_hook(lambda module, args, output: change(output))  # type: ignore[no-any-return,operator,union-attr]

    return Tower("trunk.blocks", trunk.blocks, trunk.embed_dim, outside, bool(trunk.num_prefix_tokens), on_entry)


def _plain(block: nn.Module) -> bool:
    """Whether a timm block computes no more than open_clip's: no norms of q and k, no gates, no dropout.

    One with slots is taken for plain: it was.
    """
    if not isinstance(block, Block):
        return isinstance(block, ResidualAttentionBlock)
    attention, mlp = block.attn, block.mlp
    if type(attention) is not Attention or type(mlp) is not Mlp or attention.qkv.bias is None:
        return False
    extras = [attention.q_norm, attention.k_norm, attention.norm, mlp.norm]
    dropouts = [module for module in block.modules() if isinstance(module, nn.Dropout)]
    return (
        all(isinstance(extra, nn.Identity) for extra in extras)
        and getattr(attention, "gate", None) is None
        and not any(dropout.p for dropout in dropouts)
    )
