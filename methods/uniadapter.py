"""UniAdapter: adapters in both towers that share their down-projection."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from methods.base import Method, ModelShape, sides_by_depth
from methods.lazy import DualEncoder, bottlenecks


class UniAdapter(Method):
    """`m <- m + s Up_tower(ReLU(Down m))` on the MLP's output m; block i of both towers shares Down.

    The paper adapts BLIP, whose towers have one width, and which has a cross-modal part that CLIP lacks. Where CLIP's
    towers differ in width, both share Down for as many inputs as the narrower one has, and the wider tower has a matrix
    of its own for the others. With the paper's bottleneck of 128 and s = 0.1 that is 3,162,624 parameters on ViT-B-32;
    the published table's 0.55M is not reproduced by any natural reading. The released code differs: parallel to the MLP
    behind a trained LayerNorm, bottleneck 512.
    """

    name = "uniadapter"
    paper = "Lu et al. 2023, arXiv 2302.06605"
    needs_slots = ("image", "text")
    knob = "bottleneck"
    examples = {"": {"bottleneck": 4}}
    bottleneck: int = Field(128, ge=1)
    """Width of the bottleneck."""
    scale: float = Field(0.1, gt=0)
    """Factor on the output of the bottleneck."""

    def attach(self, model: DualEncoder) -> None:
        towers = {"image": model.image_blocks, "text": model.text_blocks}
        for depth, sides in enumerate(sides_by_depth(*(len(blocks.list) for blocks in towers.values()))):
            module = bottlenecks.SharedDownBottleneck(
                {side: towers[side].width for side in sides}, self.bottleneck, self.scale
            )
            for side in sides:
                towers[side].slotted()[depth].fill(after_mlp=bottlenecks.Door(module, side, serial=True))

    def trainable_params(self, shape: ModelShape) -> int | None:
        def module(sides: Iterable[str]) -> int:
            widths = [getattr(shape, side).width for side in sides]
            down = (max(widths) + 1) * self.bottleneck
            return down + sum((self.bottleneck + 1) * width for width in widths)

        return sum(map(module, sides_by_depth(shape.image.layers, shape.text.layers)))
