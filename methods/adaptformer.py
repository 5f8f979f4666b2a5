"""AdaptFormer: a scaled bottleneck parallel to the MLP of every block."""

from __future__ import annotations

from pydantic import Field

from methods.base import Method, ModelShape, TowerShape
from methods.lazy import DualEncoder, F, bottlenecks


class AdaptFormer(Method):
    """`x <- r + MLP(LN r) + s Up(dropout(ReLU(Down r)))`, on the residual r before its LayerNorm.

    As released for image towers, here in both: a module in every block, s = 0.1, no LayerNorm of its own.
    `preset: table` gives the published table's 165,250 parameters on ViT-B-32: one module a tower, shared by its
    blocks, with a learned s, which starts at 1 as in the released code.
    """

    name = "adaptformer"
    title = "AdaptFormer"
    paper = "Chen et al. 2022, arXiv 2205.13535"
    needs_slots = ("image", "text")
    presets = {"paper": {}, "table": {"shared": True, "learned_scale": True, "scale": 1.0}}
    knob = "bottleneck"
    examples = {"": {"bottleneck": 4}, "shared": {"bottleneck": 4, "shared": True, "learned_scale": True}}
    bottleneck: int = Field(64, ge=1)
    """Width of the bottleneck."""
    scale: float = Field(0.1, gt=0)
    """Factor on the output of the bottleneck, or its start if it is learned."""
    learned_scale: bool = False
    """Whether that factor is trained."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout inside the bottleneck."""
    shared: bool = False
    """One bottleneck for all blocks of a tower."""

    def attach(self, model: DualEncoder) -> None:
        for blocks in (model.image_blocks, model.text_blocks):

            def new(width: int = blocks.width) -> bottlenecks.Bottleneck:
                return bottlenecks.Bottleneck(
                    width,
                    self.bottleneck,
                    F.relu,
                    serial=False,
                    dropout=self.dropout,
                    scale=self.scale,
                    learned_scale=self.learned_scale,
                )

            one = new() if self.shared else None
            for block in blocks.slotted():
                block.fill(beside_mlp=one or new())

    def trainable_params(self, shape: ModelShape) -> int | None:
        def tower(side: TowerShape) -> int:
            module = 2 * side.width * self.bottleneck + self.bottleneck + side.width + self.learned_scale
            return module if self.shared else side.layers * module

        return sum(map(tower, shape.towers))
