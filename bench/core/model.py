"""An open_clip model ready for any method: frozen, its blocks open to adapters and prompts, its heads replaceable.

Shapes in annotations, here and in `methods`: `batch` pairs or items; `tokens` positions of a sequence, patches or words
with what is added to them; `width` of a tower; `dim` of the embeddings; `context` token ids a text; `size` pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from timm.layers import Attention as TimmAttention
from torch import Tensor, nn

from bench.config.errors import UserError
from bench.config.files import write_bytes
from bench.core import passes, towers
from bench.core.layers import Layer, opened
from bench.core.passes import Depth, Prefix, Texts
from bench.core.teacher import Teacher

# nn.MultiheadAttention takes another kernel in eval mode, which rounds otherwise and hides from the FLOP counter.
torch.backends.mha.set_fastpath_enabled(False)


@dataclass(frozen=True)
class Features:
    """A batch's L2-normalised embeddings, and those of the second view if there was one (`DualEncoder.forward`).

    `teacher` holds the teacher's embeddings of the batch, without gradients, where the model has a teacher by now.
    """

    image: Float[Tensor, "batch dim"]
    text: Float[Tensor, "batch dim"]
    image_view: Float[Tensor, "batch dim"] | None = None
    text_view: Float[Tensor, "batch dim"] | None = None
    teacher: Features | None = field(default=None, kw_only=True)


@runtime_checkable
class AfterStep(Protocol):
    """What a method does after every optimizer step; its state is part of the saved state of training."""

    def __call__(self, step: int, total: int) -> None:
        """Called when optimizer step `step` (from 1) of `total` is done, before the gradients are set to zero."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class SlottedBlock(ResidualAttentionBlock):
    """open_clip's transformer block with six optional slots; it takes over the block's own parts under their names.

    `x = enter(x)`, `x = x + ls_1(after_attn(attn(ln_1 x))) + beside_attn(x)`,
    `y = x + ls_2(after_mlp(mlp(ln_2 x))) + beside_mlp(x)`, and the output is `exit(y)`.
    With all slots empty the output is that of open_clip's block, bit by bit.
    """

    SLOTS = ("enter", "after_attn", "beside_attn", "after_mlp", "beside_mlp", "exit")
    LAYERS = ("ln_1", "attn.q", "attn.k", "attn.v", "attn.out", "ln_2", "mlp.c_fc", "mlp.c_proj")
    OWN_NAMES: ClassVar[Mapping[str, str]] = {"attn.out": "attn.out_proj"}  # of layers, where they are others

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

    def layers(self) -> list[Layer]:
        """All layers of the block, in the order of `LAYERS`."""
        return [self.layer(name) for name in self.LAYERS]

    def forward(
        self,
        q_x: Float[Tensor, "batch tokens width"],
        k_x: None = None,
        v_x: None = None,
        attn_mask: Float[Tensor, "attending attended"] | None = None,
    ) -> Float[Tensor, "batch tokens_out width"]:
        """The block's output; the number of tokens is another one only if `enter` or `exit` changes it.

        open_clip's signature. Gradient checkpointing passes all four by position.
        """
        x = q_x if self.enter is None else self.enter(q_x)
        attended = self.attention(self.ln_1(x), attn_mask=attn_mask)
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
        return super().attention(q_x, attn_mask=attn_mask)  # type: ignore[no-any-return]


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


class DualEncoder(nn.Module):
    """An open_clip model (`clip`), frozen, with a head on each embedding and room for a loss's own parameters."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        clip.requires_grad_(False)
        self.clip = clip
        self.image_head: nn.Module = nn.Identity()
        self.text_head: nn.Module = nn.Identity()
        self.extras = nn.ParameterDict()
        # Applied to token ids before encoding, in order; a method that adds prompts makes room for them.
        self.token_rewrites: list[Callable[[Int[Tensor, "batch context"]], Int[Tensor, "batch context"]]] = []
        self.penalties: list[Callable[[], Float[Tensor, ""]]] = []  # a method's own terms of the loss
        self.after_step: list[AfterStep] = []
        self.teacher: Teacher | None = None

    # --- what methods use ---

    @property
    def _text_owner(self) -> nn.Module:
        return getattr(self.clip, "text", self.clip)  # CustomTextCLIP keeps the text tower apart, CLIP is flat

    def tower(self, side: str) -> nn.Module:
        """The module that holds the "image" or "text" tower; of a flat CLIP the text tower's is the whole model."""
        return self.clip.visual if side == "image" else self._text_owner  # type: ignore[return-value]

    @property
    def image_blocks(self) -> Blocks:
        """The image tower's blocks. Raises UserError as `Blocks` does."""
        return Blocks("image", "visual.", self.clip.visual)  # type: ignore[arg-type]

    @property
    def text_blocks(self) -> Blocks:
        """The text tower's blocks. Raises UserError as `Blocks` does."""
        return Blocks("text", "text." if hasattr(self.clip, "text") else "", self._text_owner)

    @property
    def embed_dim(self) -> int:
        """`dim` of both embeddings in front of the heads."""
        visual: Any = self.clip.visual
        if not isinstance(visual, TimmModel):
            return int(visual.output_dim)
        projections = [module for module in visual.head.modules() if isinstance(module, nn.Linear)]
        return int(
            projections[-1].out_features if projections else visual.trunk.num_classes or visual.trunk.num_features
        )

    @property
    def patch(self) -> int:
        """Edge of the image tower's patches in pixels."""
        visual: Any = self.clip.visual
        return int((visual.trunk.patch_embed if isinstance(visual, TimmModel) else visual).patch_size[0])

    @property
    def context_length(self) -> int:
        """How many token ids a text has, padding included."""
        return int(self.clip.context_length)  # type: ignore[arg-type]

    @property
    def image_size(self) -> int:
        """Edge of the images in pixels. Raises UserError if they are not square."""
        size = self.clip.visual.image_size  # type: ignore[union-attr]
        height, width = size if isinstance(size, tuple | list) else (size, size)
        if height != width:
            raise UserError(f"images of {height} x {width}: only square inputs are supported")
        return int(height)  # type: ignore[arg-type]

    @property
    def logit_scale(self) -> Float[Tensor, ""] | Float[Tensor, " 1"]:
        """The factor on cosines as the backbone has it, about 100 for trained CLIPs; of shape (1,) in some configs."""
        return self.clip.logit_scale.exp()  # type: ignore[union-attr,operator]

    def tower_parameters(self, side: str) -> dict[str, nn.Parameter]:
        """The weights of the "image" or "text" tower by their names in the open_clip model, without temperature."""
        return {
            name: parameter
            for name, parameter in self.clip.named_parameters()
            if not name.startswith("logit_") and name.startswith("visual.") == (side == "image")
        }

    def layer(self, side: str, name: str) -> Layer:
        """A layer in front of a tower's blocks or behind them, which takes modules before, beside and after it.

        "conv1" (the patch embedding, whose output has the shape `batch width rows columns`), "ln_pre" (which SigLIP has
        not) and "ln_post" of the "image" tower, "token_embedding" (whose input are token ids) and "ln_final" of the
        "text" tower. Raises ValueError for another name, UserError as `Blocks`.
        """
        known = getattr(self, f"{side}_blocks").outside
        if name not in known:
            raise ValueError(f"the {side} tower has no layer '{name}' outside of its blocks; it has {', '.join(known)}")
        owner = self.clip.visual if side == "image" else self._text_owner
        return Layer(name, owner.get_submodule(known[name]))  # type: ignore[operator,union-attr]

    @property
    def token_embedding(self) -> nn.Embedding:
        """The text tower's token embedding."""
        return self._text_owner.token_embedding  # type: ignore[return-value]

    def replace_token_embedding(self, make: Callable[[nn.Embedding], nn.Embedding]) -> None:
        """Put `make(embedding)` in place of the text tower's token embedding."""
        self._text_owner.token_embedding = make(self.token_embedding)

    def add_teacher(self) -> None:
        """Give training a teacher: from the second epoch on, `Features.teacher` holds its embeddings of each batch."""
        self.teacher = Teacher()

    @property
    def text_pool(self) -> str:
        """Which token becomes a text's embedding: "argmax" (the highest id, CLIP's end token), "last" (place), ..."""
        return str(getattr(self.clip, "text_pool_type", getattr(self._text_owner, "pool_type", "its own way")))

    def check_pools_at_class_token(self, owner: str) -> None:
        """Raise UserError, in the name of `owner`, if the image's embedding is not the class token behind ln_post."""
        visual = self.clip.visual
        if getattr(visual, "attn_pool", None) is not None or getattr(visual, "pool_type", None) != "tok":
            raise UserError(f"{owner}: the image tower does not pool at its class token; choose another backbone")
        if getattr(visual, "final_ln_after_pool", False):
            raise UserError(f"{owner}: the image tower pools before its last LayerNorm; choose another backbone")

    # --- encoding ---

    def encode_image(
        self, images: Float[Tensor, "batch 3 size size"] | Prefix, normalize: bool = False
    ) -> Float32[Tensor, "batch dim"]:
        """Embeddings of pictures in float32, behind the image head; L2-normalised with `normalize`."""
        features = self.image_head(self.image_features(images)).float()
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(
        self, tokens: Int[Tensor, "batch context"] | Texts | Prefix, normalize: bool = False
    ) -> Float32[Tensor, "batch dim"]:
        """Embeddings of token ids in float32, behind the text head; L2-normalised with `normalize`."""
        features = self.text_head(self.text_features(tokens)).float()
        return F.normalize(features, dim=-1) if normalize else features

    def rewritten(self, tokens: Int[Tensor, "batch context"]) -> Int[Tensor, "batch context"]:
        """Token ids with room for the prompts of the text tower."""
        for rewrite in self.token_rewrites:
            tokens = rewrite(tokens)
        return tokens

    def image_features(self, images: Float[Tensor, "batch 3 size size"] | Prefix) -> Float[Tensor, "batch dim"]:
        """The image tower's output, in front of the head."""
        if not isinstance(images, Prefix):
            return self.clip.encode_image(images)  # type: ignore[operator,no-any-return]
        if images.depth == "whole":
            return images.values
        return passes.image_rest(self.clip.visual, images.values, images.depth)  # type: ignore[arg-type]

    def text_features(self, tokens: Int[Tensor, "batch context"] | Texts | Prefix) -> Float[Tensor, "batch dim"]:
        """The text tower's output, in front of the head."""
        if isinstance(tokens, Prefix):
            if tokens.depth == "whole":
                return tokens.values
            assert tokens.ids is not None
            return passes.text_rest(self._text_owner, tokens.values, tokens.ids, tokens.depth)
        ids = tokens.ids if isinstance(tokens, Texts) else self.rewritten(tokens)
        if ids.shape[1] < self.context_length:
            return passes.text_features(self._text_owner, ids)
        return self.clip.encode_text(ids)  # type: ignore[operator,no-any-return]

    def image_prefix(self, images: Float[Tensor, "batch 3 size size"], depth: Depth) -> Float[Tensor, "*any"]:
        """`Prefix.values` of pictures: tokens after `depth` blocks, or the embeddings in front of the head."""
        if depth == "whole":
            return self.image_features(images)
        return passes.image_start(self.clip.visual, images, depth)  # type: ignore[arg-type]

    def text_prefix(self, texts: Texts, depth: Depth) -> Float[Tensor, "*any"]:
        """`Prefix.values` of texts: tokens after `depth` blocks, or the embeddings in front of the head."""
        return self.text_features(texts) if depth == "whole" else passes.text_start(self._text_owner, texts.ids, depth)

    def forward(
        self,
        images: Float[Tensor, "batch 3 size size"] | Prefix,
        tokens: Int[Tensor, "batch context"] | Texts | Prefix,
        second_view: float | None = None,
    ) -> Features:
        """Normalised embeddings of a batch of pairs; with `second_view` also those of a pass under dropout.

        `second_view` is the rate of element-wise dropout on what enters the first block of each tower: after ln_pre in
        the image tower, after the position embedding in the text tower, as in HMMC (arXiv 2308.12509). Both passes run
        as one batch of twice the size. 2 images and 2 captions give four tensors of shape (2, dim), else two.

        In training mode, a teacher that has been through an epoch embeds the batch as well, without a second view.
        """
        taught = None
        if self.training and self.teacher is not None and self.teacher.share:
            taught = self.teacher(self, images, tokens)
        if second_view is None:
            return Features(self.encode_image(images, True), self.encode_text(tokens, True), teacher=taught)
        assert not isinstance(images, Prefix), "the dropout of a second view is in front of the first block"
        assert not isinstance(tokens, Prefix), "the dropout of a second view is in front of the first block"
        with self._dropout_on_second_half(second_view):
            image, image_view = self.encode_image(passes.twice(images), True).chunk(2)
            text, text_view = self.encode_text(passes.twice(tokens), True).chunk(2)
        return Features(image, text, image_view, text_view, teacher=taught)

    @contextmanager
    def _dropout_on_second_half(self, rate: float) -> Iterator[None]:
        def dropped(x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
            plain, view = x.chunk(2)
            return torch.cat([plain, F.dropout(view, rate)])

        with ExitStack() as stack:
            for blocks in (self.image_blocks, self.text_blocks):
                # In front of all blocks, not on the first one: gradient checkpointing runs a block once more in the
                # backward pass, when this hook is gone.
                stack.callback(blocks.on_entry(dropped).remove)
            yield

    # --- the trained part ---

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name; those of a module that serves several blocks once."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def trainable_params(self) -> int:
        """How many numbers are trained, the loss's own included."""
        return sum(p.numel() for p in self.trainable().values())

    def total_params(self) -> int:
        """How many numbers the model has, frozen and trained ones."""
        return sum(p.numel() for p in self.parameters())

    def save_adapter(self, path: Path) -> None:
        """Write the trained part alone as safetensors, atomically. Raises UserError if the disk is full."""
        tensors = {name: p.detach().cpu().contiguous() for name, p in self.trainable().items()}
        write_bytes(path, save(tensors, metadata={"format": "pt"}))  # save_file's files are their owner's alone

    def load_adapter(self, path: Path) -> None:
        """Copy what `save_adapter` wrote into the attached parts. UserError for a damaged or a foreign file."""
        try:
            tensors, own = load_file(path), self.trainable()
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} can't be read ({error}); delete the run's folder to compute it anew") from error
        if tensors.keys() != own.keys() or any(tensors[name].shape != own[name].shape for name in own):
            raise UserError(f"{path}: holds another method's or another backbone's trained part")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])
