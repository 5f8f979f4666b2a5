"""MPS-CLIP's G2A adapter: self-attention and a convolution over the tokens, behind every block of both towers."""

from __future__ import annotations

from pydantic import Field, model_validator

from methods.base import Method, ModelShape
from methods.lazy import DualEncoder, mps


class MPSAdapter(Method):
    """`x <- x + Up(sigmoid(g) G(P(MHA(GELU(Down x)))))` behind every block: see `methods.layers.mps.G2Adapter`.

    As released, with a module of its own for each block of both towers: 9,139,224 parameters on ViT-B-32. The text
    adapter attends to all tokens, without a causal or padding mask, so the embedding of a caption depends on its
    padding. The default loss is HarMA's with the temperature fixed at 0.07, as released.

    The published numbers of MPS-CLIP are not comparable with this or any other row: they select on the test set, and
    a test image is cut into crops that are chosen with words of that image's own captions. The crops, and the heads
    that serve them, are left out here.
    """

    name = "mps_adapter"
    title = "MPS-CLIP"
    paper = "MPS-CLIP 2026, arXiv 2601.18190"
    default_loss = "mps"
    needs_slots = ("image", "text")
    knob = "bottleneck"
    trims_text = False
    examples = {"": {"bottleneck": 8, "heads": 2}}
    bottleneck: int = Field(128, ge=2, multiple_of=2)
    """Width of the bottleneck."""
    heads: int = Field(8, ge=1)
    """Heads of both attentions inside the bottleneck."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of the attention and the convolutions in G."""
    drop_path: float = Field(0.1, ge=0, lt=1)
    """Share of samples for which a branch of G is dropped in training."""

    @model_validator(mode="after")
    def _heads_divide(self) -> MPSAdapter:
        if self.bottleneck % self.heads:
            raise ValueError(f"bottleneck {self.bottleneck} must be a multiple of the heads ({self.heads})")
        return self

    @property
    def knob_step(self) -> int:
        return self.heads if self.heads % 2 == 0 else 2 * self.heads

    def attach(self, model: DualEncoder) -> None:
        for blocks in (model.image_blocks, model.text_blocks):
            for block in blocks.slotted():
                block.fill(exit=mps.G2Adapter(blocks.width, self.bottleneck, self.heads, self.dropout, self.drop_path))

    def trainable_params(self, shape: ModelShape) -> int | None:
        dim = self.bottleneck
        attention = 4 * dim * dim + 4 * dim
        convolutions = 2 * (dim * 2 * dim) + 2 * dim * (5 + 1)  # the depthwise one sees 5 tokens and has a bias
        inner = 2 * attention + (dim * dim + dim) + 2 * 2 * dim + convolutions + 1
        return sum(tower.layers * (2 * tower.width * dim + dim + tower.width + inner) for tower in shape.towers)
