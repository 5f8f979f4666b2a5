"""The sequential adapter: a bottleneck behind the sublayers of every block."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from methods.base import Method, ModelShape, TowerShape
from methods.lazy import DualEncoder, F, bottlenecks

Place = Literal["after_attn", "after_mlp"]


class Adapter(Method):
    """`A(m) = m + Up(GELU(Down m))` on a sublayer's output m, before the residual addition.

    As published: a module behind attention and one behind the MLP of every block, and the blocks' LayerNorms are
    trained too (`layer_norms`; the paper also trains those outside of the blocks). Up starts at zero, the paper's at
    small random weights. `preset: table` gives the published table's 165,248 parameters on ViT-B-32: one module a
    tower, behind the MLP of all its blocks.
    """

    name = "adapter"
    paper = "Houlsby et al. 2019, arXiv 1902.00751"
    needs_slots = ("image", "text")
    presets = {"paper": {}, "table": {"places": ("after_mlp",), "shared": True, "layer_norms": False}}
    knob = "bottleneck"
    examples = {
        "": {"bottleneck": 4},
        "shared": {"bottleneck": 4, "shared": True, "places": ("after_mlp",), "layer_norms": False},
    }
    bottleneck: int = Field(64, ge=1)
    """Width of the bottleneck."""
    places: tuple[Place, ...] = Field(("after_attn", "after_mlp"), min_length=1)
    """Behind which sublayers of a block."""
    shared: bool = False
    """One bottleneck for all blocks of a tower."""
    layer_norms: bool = True
    """Whether the LayerNorms are trained, too."""

    def attach(self, model: DualEncoder) -> None:
        for blocks in (model.image_blocks, model.text_blocks):

            def new(width: int = blocks.width) -> bottlenecks.Bottleneck:
                return bottlenecks.Bottleneck(width, self.bottleneck, F.gelu, serial=True)

            one = new() if self.shared else None
            for block in blocks.slotted():
                block.fill(**{place: one or new() for place in dict.fromkeys(self.places)})
                if self.layer_norms:
                    block.ln_1.requires_grad_(True)
                    block.ln_2.requires_grad_(True)

    def trainable_params(self, shape: ModelShape) -> int | None:
        def tower(side: TowerShape) -> int:
            module = 2 * side.width * self.bottleneck + self.bottleneck + side.width
            modules = 1 if self.shared else side.layers * len(set(self.places))
            return modules * module + (side.layers * 4 * side.width if self.layer_norms else 0)

        return sum(map(tower, shape.towers))
