"""HarMA: gated adapters with self-attention in both towers, serial on the MLP's output."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from methods.base import Method, ModelShape
from methods.lazy import DualEncoder, harma


class HarMA(Method):
    """`x <- x + g A(m) + (1 - g) m` with `m = MLP(LN x)` and a learned gate g: see `methods.layers.harma.HarmaAdapter`.

    By default as in the released code, where the paper's shared module B is in the text tower alone (`shared: text`).
    With `shared: both` image block i uses the B of text block i too, if there is one; the count is the same: 5,934,397
    parameters on ViT-B-32, one of them the loss's temperature. The text adapter attends to all tokens, without a causal
    or padding mask, so the embedding of a caption depends on its padding. The start equals the backbone to about 3e-6.
    """

    name = "harma"
    title = "HarMA"
    paper = "Huang 2024, arXiv 2404.18253"
    default_loss = "harma"
    needs_slots = ("image", "text")
    knob = "bottleneck"
    trims_text = False
    examples = {"": {"bottleneck": 16, "heads": 4}, "both": {"bottleneck": 16, "heads": 4, "shared": "both"}}
    bottleneck: int = Field(128, ge=2)
    """Width of the bottleneck."""
    heads: int = Field(8, ge=1)
    """Heads of the attention inside the bottleneck."""
    shared: Literal["text", "both"] = "text"
    """Which towers use the shared module: text alone as released, or both."""

    @model_validator(mode="after")
    def _heads_divide(self) -> HarMA:
        if self.bottleneck % (2 * self.heads):
            raise ValueError(f"bottleneck {self.bottleneck} must be a multiple of twice the heads ({2 * self.heads})")
        return self

    @property
    def knob_step(self) -> int:
        return 2 * self.heads

    def attach(self, model: DualEncoder) -> None:
        image, text = model.image_blocks, model.text_blocks
        shared = [harma.HarmaShared(self.bottleneck, self.heads) for _ in text.slotted()]
        for index, block in enumerate(text.slotted()):
            block.fill(after_mlp=harma.HarmaAdapter(text.width, self.bottleneck, self.heads, shared[index]))
        for index, block in enumerate(image.slotted()):
            partner = shared[index] if self.shared == "both" and index < len(shared) else None
            block.fill(after_mlp=harma.HarmaAdapter(image.width, self.bottleneck, self.heads, partner))

    def trainable_params(self, shape: ModelShape) -> int | None:
        hidden, half = self.bottleneck, self.bottleneck // 2

        def attention(dim: int) -> int:
            return 4 * dim * dim + 4 * dim

        def adapter(width: int) -> int:
            return (width * hidden + hidden) + attention(hidden) + (hidden * width + width) + 2

        module = (hidden * half + half) + attention(half) + (half * hidden + hidden) + 1
        return sum(tower.layers * adapter(tower.width) for tower in shape.towers) + shape.text.layers * module
