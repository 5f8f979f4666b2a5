"""What need not be computed to train and score a model: found from what is trained in it, never from a method's name.

Four facts follow from the model as a method left it. Text behind a caption's end changes nothing under a causal mask,
unless the method says that it does (`trims_text`). What lies in front of everything trained, attached or random gives
the same numbers in every epoch: a whole tower, or its first blocks. And of the last block's output one token is used,
so that the others are left out where all behind its attention looks at each token by itself (`token_wise`); so are a
block's outputs at the prompts that the next block replaces by its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from open_clip.transformer import LayerScale, QuickGELU
from torch import nn

from bench.config.errors import UserError
from bench.core.blocks import Replaces, SlottedBlock
from bench.core.layers import SLOT_HOOKS, OpenAttention, Projection, opened
from bench.core.model import DualEncoder
from bench.core.passes import Depth, pools_at_the_end, splits

# Where the modules of a plain tower come from; a module of any other origin was put there by a method.
ORIGINS = ("torch.", "torchvision.", "open_clip.", "timm.", "transformers.", "bench.core.")
BEHIND_BLOCKS = ("ln_post", "proj", "attn_pool", "ln_final", "text_projection")
# Classes whose instances look at each token by itself.
TOKEN_WISE = (
    *(nn.Linear, nn.LayerNorm, nn.Identity, nn.Dropout, nn.GELU, nn.ReLU, nn.SiLU, nn.Sequential),
    *(QuickGELU, LayerScale, Projection),
)
RATES = ("p", "prob", "drop_prob", "dropout")  # how modules with dropout call its rate


@dataclass(frozen=True)
class Shortcuts:
    """What of a model's work can be left out; the default is nothing.

    `cuts_text`: a batch of captions ends with its longest one, or is computed in two parts of short and long ones.
    `image` and `text`: how much of the tower, from its input on, is the same in every epoch. `second_view`: whether
    training puts dropout in front of the first blocks, so that `image` and `text` hold for evaluation alone. `pooled`:
    the towers whose last block is computed at one token, where the embedding is taken; its attention sees all.
    `replaced`: the towers with blocks that leave out the tokens in whose place the next block puts its own.
    `opens_attention`: torch's attention layers are replaced by the core's, which round otherwise (`apply`).
    """

    cuts_text: bool = False
    image: Depth = 0
    text: Depth = 0
    second_view: bool = False
    pooled: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    opens_attention: bool = False

    def depth(self, side: str, *, training: bool) -> Depth:
        """How much of the "image" or "text" tower is computed once."""
        return 0 if training and self.second_view else (self.image if side == "image" else self.text)


def find(model: DualEncoder, *, trims_text: bool, second_view: float | None) -> Shortcuts:
    """The shortcuts of a model to which method and loss are attached.

    `trims_text` is the method's own word that its modules do not look behind a caption's end: no one can see that from
    outside. `second_view` is the loss's. A method must not change the backbone's frozen weights, which the conformance
    suite checks: cached prefixes are known by the weights that were loaded.
    """
    return Shortcuts(
        cuts_text=trims_text and pools_at_the_end(model.tower("text")),
        image=frozen_depth(model, "image"),
        text=frozen_depth(model, "text"),
        second_view=second_view is not None,
        pooled=tuple(side for side in ("image", "text") if keeps_one_token(model, side)),
        replaced=tuple(side for side in ("image", "text") if any(_replaced(model, side))),
        opens_attention=any(_packed(model)),
    )


def apply(model: DualEncoder, found: Shortcuts) -> None:
    """Change the model, in place, as the shortcuts found in it need it; no name and no weight changes."""
    for side in found.pooled:
        (model.image_blocks if side == "image" else model.text_blocks).slotted()
    for side in found.replaced:
        for block, entrance in _replaced(model, side):
            block.leave_out(entrance.start, entrance.count)
            entrance.left_out = True
    for packed in _packed(model) if found.opens_attention else ():
        packed.attn = opened(packed.attn)  # type: ignore[arg-type]


@contextmanager
def computing_everything(model: DualEncoder) -> Iterator[None]:
    """Within it no token is left out that `apply` lets a block leave out: to count what plain passes take."""
    changed = [
        (block, block.rest, entrance)
        for side in ("image", "text")
        for block, entrance in _replaced(model, side)
        if entrance.left_out
    ]
    for block, _, entrance in changed:
        block.kept = block.rest = None
        entrance.left_out = False
    try:
        yield
    finally:
        for block, rest, entrance in changed:
            block.kept = block.rest = rest
            entrance.left_out = True


def _blocks(model: DualEncoder, side: str) -> list[nn.Module]:
    """The blocks of a tower, none where they can't take slots."""
    try:
        return list((model.image_blocks if side == "image" else model.text_blocks).list)
    except UserError:
        return []


def _packed(model: DualEncoder) -> Iterator[nn.Module]:
    """The blocks with an attention layer of torch's own without dropout, which the core's can replace."""
    for block in (*_blocks(model, "image"), *_blocks(model, "text")):
        attention = block._modules.get("attn")
        if type(attention) is nn.MultiheadAttention and not attention.dropout and not _meddled(attention):
            yield block


def _replaced(model: DualEncoder, side: str) -> Iterator[tuple[SlottedBlock, Replaces]]:
    """The blocks whose outputs the next one replaces at some tokens, with the module that does so."""
    for block, following in pairwise(_blocks(model, side)):
        entrance = getattr(following, "enter", None)
        if not isinstance(entrance, Replaces) or not isinstance(block, SlottedBlock):
            continue
        unseen = not any(_meddled(module) for module in (block, following, following.get_submodule("enter")))
        if unseen and _outputs_apart(block):
            yield block, entrance


def keeps_one_token(model: DualEncoder, side: str) -> bool:
    """Whether a tower's last block may be computed at the token of the embedding alone, with the same embedding.

    It is run (the tower is not frozen as a whole), the embedding is one token's, and nothing behind its attention looks
    at several tokens. Not with gradient checkpointing, which runs a block once more when the tokens are forgotten.
    """
    tower: Any = model.tower(side)
    if not splits(tower) or tower.transformer.grad_checkpointing:
        return False
    at_one = pools_at_the_end(tower) if side == "text" else tower.attn_pool is None and tower.pool_type == "tok"
    try:
        blocks = model.image_blocks if side == "image" else model.text_blocks
    except UserError:
        return False
    depth = frozen_depth(model, side)
    if not at_one or depth == "whole" or depth == len(blocks.list) or getattr(tower, "output_tokens", False):
        return False
    last = blocks.list[-1]
    behind = [child for name, child in tower.named_children() if name in BEHIND_BLOCKS]
    if _meddled(tower.transformer) or _meddled(last) or _meddled(tower):
        return False
    return _outputs_apart(last) and all(map(token_wise, behind))


def _outputs_apart(block: nn.Module) -> bool:
    """Whether a block's output at a token takes the attention of that token alone, and nothing of other outputs."""
    inside = [child for name, child in block.named_children() if name not in ("enter", "attn") and child is not None]
    return _attends_apart(block.get_submodule("attn")) and all(map(token_wise, inside))


def token_wise(module: nn.Module) -> bool:
    """Whether a module computes each token from that token alone, by its class or by its own word (`token_wise`).

    Of a module that says so nothing else is asked; that it is true the conformance suite checks.
    """
    if getattr(module, "token_wise", False):
        return True
    if not isinstance(module, TOKEN_WISE) or not type(module).__module__.startswith(ORIGINS) or _meddled(module):
        return False
    return all(map(token_wise, module.children()))


def _attends_apart(attention: nn.Module) -> bool:
    """Whether a block's attention computes each query by itself, and its layers each token."""
    if isinstance(attention, OpenAttention | nn.MultiheadAttention) and not _meddled(attention):
        return all(map(token_wise, attention.children()))
    return getattr(attention, "token_wise", False)


def _meddled(module: nn.Module) -> bool:
    """Whether a module's own forward pass is not all that happens: by hooks other than those of slots, or replaced."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return "forward" in vars(module) or any(hook not in SLOT_HOOKS for hook in hooks)


def frozen_depth(model: DualEncoder, side: str) -> Depth:
    """How much of a tower lies in front of all that is trained, attached or random in training.

    "whole": all but the head. A number: so many blocks, 0 for none.
    """
    tower = model.tower(side)
    if side == "text" and model.token_rewrites:
        return 0
    outside = [child for name, child in tower.named_children() if name not in ("transformer", "visual")]
    trained = {name for name, weight in model.tower_parameters(side).items() if weight.requires_grad}
    transformer = getattr(tower, "transformer", None)
    inside = [transformer] if isinstance(transformer, nn.Module) else []
    if tower is not model.clip and _itself_changed(tower, weights=False):
        return 0
    if not trained and not _changed([*outside, *inside]):
        return "whole"
    if not splits(tower) or (side == "text" and not pools_at_the_end(tower)):
        return 0
    try:
        blocks = model.image_blocks if side == "image" else model.text_blocks
    except UserError:
        return 0
    fronts = [child for name, child in tower.named_children() if name not in (*BEHIND_BLOCKS, "transformer", "visual")]
    in_front = {name.removeprefix(blocks.prefix.removesuffix("transformer.resblocks")) for name in trained}
    if _changed(fronts) or any(not name.startswith((*BEHIND_BLOCKS, "transformer.")) for name in in_front):
        return 0
    if transformer is None or _itself_changed(transformer):
        return 0
    return next((depth for depth, block in enumerate(blocks.list) if _changed([block])), len(blocks.list))


def _changed(parts: Iterable[nn.Module]) -> bool:
    """Whether anything in these modules is trained, was put there by a method, or is random in training."""
    return any(_itself_changed(module) for part in parts for module in part.modules())


def _itself_changed(module: nn.Module, *, weights: bool = True) -> bool:
    """`_changed` of a module without those inside of it; with `weights` also of its own weights."""
    hooked = bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in vars(module)
    foreign = not type(module).__module__.startswith(ORIGINS)
    filled = any(module._modules.get(slot) is not None for slot in getattr(module, "SLOTS", ()))
    trained = weights and any(weight.requires_grad for weight in module.parameters(recurse=False))
    return hooked or foreign or filled or trained or _is_random(module)


def _is_random(module: nn.Module) -> bool:
    """Whether the module draws random numbers in training: dropout, drop path and patch dropout at a rate above 0."""
    if "drop" not in type(module).__name__.lower() and not isinstance(module, nn.MultiheadAttention):
        return False
    return any(isinstance(rate := getattr(module, name, None), float) and rate > 0 for name in RATES)
