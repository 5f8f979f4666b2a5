"""An open_clip model ready for any method: frozen, its blocks open to adapters and prompts, its heads replaceable.

Shapes in annotations, here and in `methods`: `batch` pairs or items; `tokens` positions of a sequence, patches or words
with what is added to them; `width` of a tower; `dim` of the embeddings; `context` token ids a text; `size` pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from open_clip.timm_model import TimmModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bench.config.errors import UserError
from bench.config.files import write_bytes
from bench.core import passes
from bench.core.blocks import Blocks, SlottedBlock
from bench.core.layers import Layer
from bench.core.passes import Depth, Pictures, Prefix, Texts
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
        self, images: Float[Tensor, "batch 3 size size"] | Pictures | Prefix, normalize: bool = False
    ) -> Float32[Tensor, "batch dim"]:
        """Embeddings of pictures in float32, behind the image head; L2-normalised with `normalize`."""
        features = self.image_head(self.image_features(images)).float()
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(
        self, tokens: Int[Tensor, "batch context"] | Texts | Prefix, normalize: bool = False
    ) -> Float32[Tensor, "batch dim"]:
        """Embeddings of token ids in float32, behind the text head; L2-normalised with `normalize`."""
        parts = self._parts(tokens)
        found = [self.text_head(self.text_features(part)).float() for part, _ in parts]
        features = found[0] if len(found) == 1 else torch.cat(found)[torch.cat([at for _, at in parts]).argsort()]
        return F.normalize(features, dim=-1) if normalize else features

    def _parts(self, tokens: Int[Tensor, "batch context"] | Texts | Prefix) -> list[tuple[Any, Int[Tensor, " some"]]]:
        """The texts with their places in the batch: on a CPU, where that leaves out padding, the short and the long."""
        everything = [(tokens, torch.arange(len(tokens)))]
        if isinstance(tokens, Tensor) or not tokens.trimmed or tokens.ids is None or not tokens.ids.is_cpu:
            return everything
        lengths = passes.ends(self._text_owner, tokens.ids) + 1
        parts = passes.parted(lengths, tokens.views)
        if len(parts) < 2:
            return everything
        return [(tokens.picked(part, int(lengths[part].max())), part) for part in parts]

    def rewritten(self, tokens: Int[Tensor, "batch context"]) -> Int[Tensor, "batch context"]:
        """Token ids with room for the prompts of the text tower."""
        for rewrite in self.token_rewrites:
            tokens = rewrite(tokens)
        return tokens

    def image_features(
        self, images: Float[Tensor, "batch 3 size size"] | Pictures | Prefix
    ) -> Float[Tensor, "batch dim"]:
        """The image tower's output, in front of the head."""
        if isinstance(images, Pictures):
            with self._last_block("image").keeping(None):
                return self.clip.encode_image(images.pixels)  # type: ignore[operator,no-any-return]
        if not isinstance(images, Prefix):
            return self.clip.encode_image(images)  # type: ignore[operator,no-any-return]
        if images.depth == "whole":
            return images.values
        with self._last_block("image").keeping(None) if images.pooled else nullcontext():
            return passes.image_rest(self.clip.visual, images.values, images.depth)  # type: ignore[arg-type]

    def _last_block(self, side: str) -> SlottedBlock:
        blocks: Blocks = getattr(self, f"{side}_blocks")
        return blocks.slotted()[-1]

    def text_features(self, tokens: Int[Tensor, "batch context"] | Texts | Prefix) -> Float[Tensor, "batch dim"]:
        """The text tower's output, in front of the head."""
        if isinstance(tokens, Prefix) and tokens.depth == "whole":
            return tokens.values
        ids = self.rewritten(tokens) if isinstance(tokens, Tensor) else tokens.ids
        assert ids is not None
        pooled = not isinstance(tokens, Tensor) and tokens.pooled
        with self._last_block("text").keeping(passes.ends(self._text_owner, ids)) if pooled else nullcontext():
            if isinstance(tokens, Prefix):
                assert isinstance(tokens.depth, int)
                return passes.text_rest(self._text_owner, tokens.values, ids, tokens.depth)
            if pooled or ids.shape[1] < self.context_length:
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
        images: Float[Tensor, "batch 3 size size"] | Pictures | Prefix,
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
