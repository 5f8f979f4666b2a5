"""MMA: bottlenecks beside the MLPs of the later blocks, with a layer in the middle that both towers share."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from bench.config.errors import UserError
from methods.base import Method, ModelShape, sides_by_depth
from methods.lazy import DualEncoder, mma, nn


class MMA(Method):
    """`y <- r + MLP(LN2 r) + s Up(ReLU(Shared(ReLU(Down(LN1 x)))))` with the block's input x and r = x + Attn(LN1 x).

    As released: blocks 5 to 12 of both towers, Down and Up of each tower's own, Shared one matrix of 32 x 32 for both
    towers at the same depth, s = 0.001, weights normal by fan-out: 674,560 parameters on ViT-B-32. LN1 is the block's
    own frozen LayerNorm. The gradients of the adapter's weights are not scaled by s, which the released code does by
    scaling gradients: with Adam it changes next to nothing, with plain gradient descent a factor of 1,000. Where one
    tower is deeper, its further blocks have a Shared of their own.
    """

    name = "mma"
    title = "MMA"
    paper = "Yang et al. 2024, Multi-Modal Adapter for Vision-Language Models (CVPR)"
    needs_slots = ("image", "text")
    knob = "bottleneck"
    starts_elsewhere = "as released, the up-projections start at random, times 0.001"
    examples = {"": {"bottleneck": 4, "first_block": 1, "scale": 0.1}, "late": {"bottleneck": 4, "first_block": 2}}
    bottleneck: int = Field(32, ge=1)
    """Width of the bottleneck and of the shared layer."""
    first_block: int = Field(5, ge=1)
    """The first block with an adapter, counted from 1; all later blocks have one."""
    scale: float = Field(0.001, gt=0)
    """Factor on the output of an adapter."""

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        shallow = min(tower.layers for tower in shape.towers)
        if self.first_block > shallow:
            raise UserError(
                f"{self.name}: first_block {self.first_block} exceeds the {shallow} blocks of the shallower tower"
            )

    def attach(self, model: DualEncoder) -> None:
        towers = {"image": model.image_blocks, "text": model.text_blocks}
        by_depth = sides_by_depth(*(len(blocks.list) for blocks in towers.values()))
        for depth, sides in enumerate(by_depth[self.first_block - 1 :], start=self.first_block - 1):
            shared = mma.drawn(nn.Linear(self.bottleneck, self.bottleneck))
            for side in sides:
                block = towers[side].slotted()[depth]
                adapter = mma.MultiModalAdapter(towers[side].width, shared, self.scale)
                block.layer("ln_1").fill(after=adapter.tap)
                block.fill(beside_mlp=adapter)

    def trainable_params(self, shape: ModelShape) -> int | None:
        def at_depth(sides: Iterable[str]) -> int:
            widths = [getattr(shape, side).width for side in sides]
            own = sum(2 * width * self.bottleneck + self.bottleneck + width for width in widths)
            return own + (self.bottleneck + 1) * self.bottleneck

        return sum(map(at_depth, sides_by_depth(shape.image.layers, shape.text.layers)[self.first_block - 1 :]))
