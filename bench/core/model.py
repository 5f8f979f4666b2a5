"""An open_clip model ready for any method: frozen, its blocks open to adapters and prompts, its heads replaceable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.config.errors import UserError
from bench.config.files import disk_errors

# nn.MultiheadAttention takes another kernel in eval mode, which rounds otherwise and hides from the FLOP counter.
torch.backends.mha.set_fastpath_enabled(False)


@dataclass(frozen=True)
class Features:
    """A batch of L2-normalised float32 embeddings (batch, dim), and the second view's where a loss asks for one."""

    image: Tensor
    text: Tensor
    image_view: Tensor | None = None
    text_view: Tensor | None = None


class AfterStep(Protocol):
    """What a method does after every optimizer step; its state goes into checkpoints."""

    def __call__(self, step: int, total: int) -> None:
        """Optimizer step `step` (from 1) of `total` is done; the gradients are still there."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class SlottedBlock(ResidualAttentionBlock):
    """open_clip's transformer block with six optional slots; it adopts the block's own parts, their names unchanged.

    x = enter(x);  x = x + ls_1(after_attn(attn(ln_1 x))) + beside_attn(x);
    y = x + ls_2(after_mlp(mlp(ln_2 x))) + beside_mlp(x);  return exit(y).
    Without slots filled it computes what the block did, to the last bit.
    """

    SLOTS = ("enter", "after_attn", "beside_attn", "after_mlp", "beside_mlp", "exit")

    def __init__(self, block: ResidualAttentionBlock) -> None:
        nn.Module.__init__(self)
        for name, child in block.named_children():
            self.add_module(name, child)
        for slot in self.SLOTS:
            self.register_module(slot, None)

    def fill(self, **modules: nn.Module) -> None:
        """Put modules into slots by name; each slot takes one."""
        for slot, module in modules.items():
            if slot not in self.SLOTS:
                raise ValueError(f"a block has no slot '{slot}'; it has {', '.join(self.SLOTS)}")
            if getattr(self, slot) is not None:
                raise ValueError(f"the slot '{slot}' is taken")
            self.add_module(slot, module)

    def forward(
        self, q_x: Tensor, k_x: None = None, v_x: None = None, attn_mask: Tensor | None = None
    ) -> Tensor:  # positional, as gradient checkpointing calls it
        """(batch, tokens, width) to the same, unless a slot changes the number of tokens."""
        x = q_x if self.enter is None else self.enter(q_x)
        attended = self.attention(self.ln_1(x), attn_mask=attn_mask)
        r = x + self.ls_1(attended if self.after_attn is None else self.after_attn(attended))
        x = r if self.beside_attn is None else r + self.beside_attn(x)
        mixed = self.mlp(self.ln_2(x))
        y = x + self.ls_2(mixed if self.after_mlp is None else self.after_mlp(mixed))
        if self.beside_mlp is not None:
            y = y + self.beside_mlp(x)
        return y if self.exit is None else self.exit(y)


class Blocks:
    """The transformer blocks of one tower, whatever class open_clip wrapped it in."""

    def __init__(self, side: str, prefix: str, owner: nn.Module) -> None:
        transformer = getattr(owner, "transformer", None)
        blocks = getattr(transformer, "resblocks", None)
        if blocks is None or not all(isinstance(block, ResidualAttentionBlock) for block in blocks):
            kind = type(blocks[0] if blocks else owner).__name__
            raise UserError(f"the {side} tower ({kind}) takes no adapters or prompts; open_clip's own transformers do")
        self.transformer: nn.Module = transformer  # type: ignore[assignment]
        self.list: nn.ModuleList = blocks
        self.width: int = transformer.width  # type: ignore[union-attr,assignment]
        self.prefix = f"{prefix}transformer.resblocks"

    def named_blocks(self) -> list[tuple[str, nn.Module]]:
        """Blocks with their names inside the open_clip model."""
        return [(f"{self.prefix}.{index}", block) for index, block in enumerate(self.list)]

    def slotted(self) -> list[SlottedBlock]:
        """The blocks with slots to fill; swapped in on first use, which changes no output and no name."""
        for index, block in enumerate(self.list):
            if not isinstance(block, SlottedBlock):
                self.list[index] = SlottedBlock(block)  # type: ignore[arg-type]
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
        self.token_rewrites: list[Callable[[Tensor], Tensor]] = []
        self.penalties: list[Callable[[], Tensor]] = []  # a method's own terms of the loss
        self.after_step: list[AfterStep] = []

    # --- what methods reach for ---

    @property
    def _text_owner(self) -> nn.Module:
        return getattr(self.clip, "text", self.clip)  # CustomTextCLIP keeps the text tower apart, CLIP is flat

    @property
    def image_blocks(self) -> Blocks:
        return Blocks("image", "visual.", self.clip.visual)  # type: ignore[arg-type]

    @property
    def text_blocks(self) -> Blocks:
        return Blocks("text", "text." if hasattr(self.clip, "text") else "", self._text_owner)

    @property
    def embed_dim(self) -> int:
        """Width of both embeddings before the heads."""
        return int(self.clip.visual.output_dim)  # type: ignore[union-attr,arg-type]

    @property
    def patch(self) -> int:
        return int(self.clip.visual.patch_size[0])  # type: ignore[union-attr,index]

    @property
    def context_length(self) -> int:
        return int(self.clip.context_length)  # type: ignore[arg-type]

    @property
    def image_size(self) -> int:
        size = self.clip.visual.image_size  # type: ignore[union-attr]
        height, width = size if isinstance(size, tuple | list) else (size, size)
        if height != width:
            raise UserError(f"images of {height} x {width}: only square inputs are supported")
        return int(height)  # type: ignore[arg-type]

    @property
    def logit_scale(self) -> Tensor:
        """The factor on cosines (about 100 for trained CLIPs), as the backbone has it."""
        return self.clip.logit_scale.exp()  # type: ignore[union-attr,operator]

    def tower_parameters(self, side: str) -> dict[str, nn.Parameter]:
        """All weights of the tower "image" or "text" by their names in the open_clip model; no temperature."""
        return {
            name: parameter
            for name, parameter in self.clip.named_parameters()
            if not name.startswith("logit_") and name.startswith("visual.") == (side == "image")
        }

    def replace_token_embedding(self, make: Callable[[nn.Embedding], nn.Embedding]) -> None:
        """Wrap the text tower's token embedding."""
        self._text_owner.token_embedding = make(self._text_owner.token_embedding)  # type: ignore[arg-type]

    def check_pools_at_end_token(self, owner: str) -> None:
        """Raise UserError if the text tower takes its embedding from elsewhere: prompts would shift it."""
        pool = getattr(self.clip, "text_pool_type", getattr(self._text_owner, "pool_type", None))
        if pool != "argmax":
            raise UserError(f"{owner}: the text tower pools by '{pool}'; prompts need one that pools at the end token")

    # --- encoding ---

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """(batch, 3, size, size) to embeddings (batch, dim) in float32."""
        features = self.image_head(self.clip.encode_image(images)).float()  # type: ignore[operator]
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Token ids (batch, context) to embeddings (batch, dim) in float32."""
        for rewrite in self.token_rewrites:
            tokens = rewrite(tokens)
        features = self.text_head(self.clip.encode_text(tokens)).float()  # type: ignore[operator]
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, images: Tensor, tokens: Tensor, second_view: float | None = None) -> Features:
        """Normalised embeddings of a batch; with `second_view` also those under that element-wise dropout rate.

        The view's dropout falls on what enters the first block of each tower: after ln_pre in the image tower, after
        the position embedding in the text tower. Both passes run as one batch of twice the size.
        """
        if second_view is None:
            return Features(self.encode_image(images, True), self.encode_text(tokens, True))
        with self._dropout_on_second_half(second_view):
            image, image_view = self.encode_image(torch.cat([images, images]), True).chunk(2)
            text, text_view = self.encode_text(torch.cat([tokens, tokens]), True).chunk(2)
        return Features(image, text, image_view, text_view)

    @contextmanager
    def _dropout_on_second_half(self, rate: float) -> Iterator[None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            plain, view = args[0].chunk(2)
            return (torch.cat([plain, F.dropout(view, rate)]), *args[1:])

        with ExitStack() as stack:
            for blocks in (self.image_blocks, self.text_blocks):
                # On the transformer, not on its first block: gradient checkpointing runs blocks again, after this.
                stack.callback(blocks.transformer.register_forward_pre_hook(hook).remove)
            yield

    # --- the trained part ---

    def trainable(self) -> dict[str, nn.Parameter]:
        """What is trained, by name; a module that serves several blocks counts once."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def trainable_params(self) -> int:
        return sum(p.numel() for p in self.trainable().values())

    def total_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def save_adapter(self, path: Path) -> None:
        """Write the trained part alone as safetensors, atomically."""
        tensors = {name: p.detach().cpu().contiguous() for name, p in self.trainable().items()}
        part = path.with_name(f".{path.name}.part")
        with disk_errors(part):
            save_file(tensors, part, metadata={"format": "pt"})
            part.replace(path)

    def load_adapter(self, path: Path) -> None:
        """Read what `save_adapter` wrote into the attached parts; UserError if names or shapes differ."""
        tensors, own = load_file(path), self.trainable()
        if tensors.keys() != own.keys() or any(tensors[name].shape != own[name].shape for name in own):
            raise UserError(f"{path}: holds another method's or another backbone's trained part")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])
