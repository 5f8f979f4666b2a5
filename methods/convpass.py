"""Convpass: convolutional bypasses in the image tower."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from methods.base import Method, ModelShape
from methods.lazy import DualEncoder, bottlenecks

Place = Literal["beside_attn", "beside_mlp"]


class Convpass(Method):
    """`x <- x + Attn(LN x) + s C(LN x)`, `x <- x + MLP(LN x) + s C(LN x)`, with C a bottleneck around a 3x3 convolution
    over the grid of patches: see `methods.layers.bottlenecks.ConvBottleneck`. The text tower does not change. In a
    tower without a class token, such as SigLIP's, the patches are all there is.

    As released: bottleneck 8, a module of its own at every place, and stochastic depth on the frozen branches and on
    the bypasses, drawn for each by itself; its rate rises from 0 in the first block to 0.1 in the last. The authors
    tune s for each task, from 0.01 to 100; 1 is their code's default. Some of their tasks start the convolution by
    Xavier's rule; here it always starts as the identity, the code's default. `preset: table` gives the published
    table's 136,064 parameters on ViT-B-32: one module of 64 beside the MLP of all blocks.
    """

    name = "convpass"
    title = "Convpass"
    paper = "Jie and Deng 2022, arXiv 2207.07039"
    grad_towers = ("image",)
    needs_slots = ("image",)
    presets = {"paper": {}, "table": {"bottleneck": 64, "places": ("beside_mlp",), "shared": True}}
    knob = "bottleneck"
    examples = {"": {"bottleneck": 4}, "shared": {"bottleneck": 4, "shared": True, "places": ("beside_mlp",)}}
    bottleneck: int = Field(8, ge=1)
    """Width of the bottleneck."""
    scale: float = Field(1.0, gt=0)
    """Factor on the output of the bypass."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout inside the bypass."""
    drop_path: float = Field(0.1, ge=0, lt=1)
    """Rate of stochastic depth in the last block; it rises linearly from 0 in the first."""
    places: tuple[Place, ...] = Field(("beside_attn", "beside_mlp"), min_length=1)
    """Beside which sublayers of a block."""
    shared: bool = False
    """One bypass for all blocks and places."""

    def attach(self, model: DualEncoder) -> None:
        blocks = model.image_blocks

        def new() -> bottlenecks.ConvBottleneck:
            return bottlenecks.ConvBottleneck(
                blocks.width, self.bottleneck, self.scale, self.dropout, class_token=blocks.class_token
            )

        one = new() if self.shared else None
        last = max(1, len(blocks.list) - 1)
        for depth, block in enumerate(blocks.slotted()):
            norms, rate = {"beside_attn": block.ln_1, "beside_mlp": block.ln_2}, self.drop_path * depth / last
            block.fill(
                **{place: bottlenecks.Normed(norms[place], one or new(), rate) for place in dict.fromkeys(self.places)}
            )
            if rate:
                block.fill(after_attn=bottlenecks.DropPath(rate), after_mlp=bottlenecks.DropPath(rate))

    def trainable_params(self, shape: ModelShape) -> int | None:
        width, hidden = shape.image.width, self.bottleneck
        module = (width + 1) * hidden + (9 * hidden + 1) * hidden + (hidden + 1) * width
        return module if self.shared else module * shape.image.layers * len(set(self.places))
